"""Signing in at a smarthost: SCRAM-SHA-256 and PLAIN, the client's half, without I/O (RFC 4954, RFC 5802, RFC 4616)."""

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Collection
from typing import Protocol

from aimx.identity.scram import Malformed, prepare

MIN_ITERATIONS, MAX_ITERATIONS = 4096, 200_000
"""RFC 7677 §4; and what we are willing to compute for a server."""


class Distrusted(Exception):
    """The server does not prove what it has to, or asks for too much."""


class Conversation(Protocol):
    satisfied: bool
    """The server has proved all it has to."""

    def begin(self) -> bytes:
        """The AUTH command."""

    def respond(self, challenge: str) -> bytes:
        """The line that answers a 334. Raises Distrusted."""


def choose(offered: Collection[str], user: str, password: str) -> Conversation | None:
    """The best that both know; None: nothing."""
    if "SCRAM-SHA-256" in offered:
        return Scram(user, password)
    return Plain(user, password) if "PLAIN" in offered else None


class Plain:
    satisfied = True

    def __init__(self, user: str, password: str) -> None:
        self._message = b"\0".join([b"", user.encode(), password.encode()])

    def begin(self) -> bytes:
        return b"AUTH PLAIN " + b64encode(self._message) + b"\r\n"

    def respond(self, challenge: str) -> bytes:
        raise Distrusted("it asks on where there is nothing more to say")


class Scram:
    """client-first → server-first → client-final → server-final."""

    def __init__(self, user: str, password: str, nonce: str | None = None) -> None:
        try:
            self._password = prepare(password).encode()
            name = prepare(user).replace("=", "=3D").replace(",", "=2C")
        except Malformed:
            raise Distrusted("user or password hold what SASLprep forbids") from None
        self._nonce = nonce or secrets.token_urlsafe(24)
        self._bare = f"n={name},r={self._nonce}"
        self._signature: bytes | None = None
        """What the server has to prove."""
        self.satisfied = False

    def begin(self) -> bytes:
        return b"AUTH SCRAM-SHA-256 " + b64encode(f"n,,{self._bare}".encode()) + b"\r\n"

    def respond(self, challenge: str) -> bytes:
        try:
            text = b64decode(challenge, validate=True).decode("ascii")
        except (Base64Error, ValueError):
            raise Distrusted("its challenge is not base64") from None
        if self._signature is None:
            return b64encode(self._final(text).encode()) + b"\r\n"
        attributes = _attributes(text)
        if not hmac.compare_digest(attributes.get("v", ""), b64encode(self._signature).decode()):
            raise Distrusted("it does not know our password")
        self.satisfied = True
        return b"\r\n"

    def _final(self, first: str) -> str:
        """RFC 5802 §3."""
        attributes = _attributes(first)
        nonce, rounds = attributes.get("r", ""), attributes.get("i", "")
        if not nonce.startswith(self._nonce) or nonce == self._nonce or not rounds.isdigit() or "m" in attributes:
            raise Distrusted("its challenge is malformed")
        if not MIN_ITERATIONS <= int(rounds[:9]) <= MAX_ITERATIONS:
            raise Distrusted(f"it asks for {rounds[:9]} iterations")
        try:
            salt = b64decode(attributes.get("s", ""), validate=True)
        except Base64Error:
            raise Distrusted("its challenge is malformed") from None
        salted = hashlib.pbkdf2_hmac("sha256", self._password, salt, int(rounds))
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        without_proof = f"c=biws,r={nonce}"
        signed = f"{self._bare},{first},{without_proof}".encode()
        signature = hmac.digest(hashlib.sha256(client_key).digest(), signed, "sha256")
        self._signature = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        return f"{without_proof},p={b64encode(proof).decode()}"


def _attributes(text: str) -> dict[str, str]:
    return {part[:1]: part[2:] for part in text.split(",") if part[1:2] == "="}
