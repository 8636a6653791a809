"""SASL mechanisms as conversations without I/O, for SMTP and IMAP alike (RFC 4422).

A mechanism is a generator. It yields what it needs next and is sent the answer:

- `Challenge(data)`   → send it to the client; the answer is the client's response (bytes, base64 already taken off)
- `Find(name)`        → the answer is that agent's Credential, or a decoy's
- `Check(name, password)` → the answer is True if the password proves the name

and returns `Claim(name, authzid)` when proved. It raises scram.Malformed when the client broke the grammar and
scram.NotProved when the proof is wrong. `Directory.sign_in` (agents.py) drives one against the store.
"""

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from aimx.identity import scram

MAX_RESPONSE = 4096
"""Octets of one decoded response. No honest name, password or proof comes near."""


class Challenge(NamedTuple):
    data: bytes


class Find(NamedTuple):
    name: str


class Check(NamedTuple):
    name: str
    password: str


class Claim(NamedTuple):
    name: str
    authzid: str
    """Whom the client wants to act as; empty means as itself."""


Mechanism = Generator[Challenge | Find | Check, Any, Claim]


def plain() -> Mechanism:
    """RFC 4616: [authzid] NUL authcid NUL password."""
    response = yield Challenge(b"")
    parts = response.split(b"\0")
    if len(parts) != 3 or not parts[1] or not parts[2]:
        raise scram.Malformed("PLAIN message")
    authzid, name, password = (_text(part) for part in parts)
    return (yield from _checked(name, password, authzid))


def login() -> Mechanism:
    """draft-murchison-sasl-login-00: user name, then password. An initial response is the user name."""
    name = _text((yield Challenge(b"Username:")))
    password = _text((yield Challenge(b"Password:")))
    if not name or not password:
        raise scram.Malformed("LOGIN message")
    return (yield from _checked(name, password, ""))


def scram_sha_256() -> Mechanism:
    """RFC 7677. The server's signature goes out as a last challenge, answered by an empty response (RFC 4954 §4)."""
    exchange = scram.Exchange()
    exchange.first((yield Challenge(b"")))
    credential = yield Find(exchange.name)
    final = exchange.final((yield Challenge(exchange.challenge(credential))))
    if (yield Challenge(final)) != b"":
        raise scram.Malformed("SCRAM goodbye")
    return Claim(exchange.name, exchange.authzid)


MECHANISMS: dict[str, Callable[[], Mechanism]] = {
    "SCRAM-SHA-256": scram_sha_256,
    "PLAIN": plain,
    "LOGIN": login,
}
"""In the order they are offered."""


def _checked(name: str, password: str, authzid: str) -> Mechanism:
    if not (yield Check(name, password)):
        raise scram.NotProved("password")
    return Claim(name, authzid)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise scram.Malformed("UTF-8") from None
