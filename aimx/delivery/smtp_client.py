"""The client's side of SMTP and LMTP without I/O: replies, extensions, commands, the data on the wire.

Everything the other side sends is a stranger's: bounded, checked, and of its text only printable characters are kept.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MAX_REPLY_LINE = 4096
"""Octets. RFC 5321 §4.5.3.1.5 says 512; some servers say more, and it costs nothing to listen."""
MAX_REPLY_LINES = 256

_LINE = re.compile(rb"([2-5][0-9]{2})(?:([ -])([^\r\n]*))?")
_UNPRINTABLE = re.compile(r"[^ -~\u00a0-\U0010ffff]+")


class Broken(Exception):
    """The other side does not speak the protocol."""


class Reply(NamedTuple):
    """RFC 5321 §4.2."""

    code: int
    lines: list[str]

    @property
    def ok(self) -> bool:
        """Done. A 3yz asks for more, and whoever has nothing more to say was not told yes."""
        return self.code < 300

    @property
    def text(self) -> str:
        return " ".join(self.lines)


class Replies:
    """Octets to replies. Writer of its state: this class."""

    def __init__(self) -> None:
        self._buffer = b""
        self._lines: list[str] = []
        self._code = b""

    @property
    def pending(self) -> bool:
        """Something came that is no whole reply yet."""
        return bool(self._buffer or self._lines)

    def feed(self, octets: bytes) -> list[Reply]:
        """The replies that are whole now. Raises Broken."""
        found: list[Reply] = []
        *lines, self._buffer = (self._buffer + octets).split(b"\n")
        for line in lines:
            reply = self._line(line.removesuffix(b"\r"))
            if reply is not None:
                found.append(reply)
        if len(self._buffer) > MAX_REPLY_LINE:
            raise Broken("an endless line")
        return found

    def _line(self, line: bytes) -> Reply | None:
        match = _LINE.fullmatch(line) if len(line) <= MAX_REPLY_LINE else None
        if match is None:
            raise Broken("that is no SMTP reply")
        code, mark, text = match.groups()
        if self._code not in (b"", code) or len(self._lines) >= MAX_REPLY_LINES:
            raise Broken("a reply with several codes, or without end")
        self._code = code
        self._lines.append(_UNPRINTABLE.sub("?", (text or b"").decode("utf-8", "replace")))
        if mark == b"-":
            return None
        reply = Reply(int(code), self._lines)
        self._lines, self._code = [], b""
        return reply


class Extensions:
    """What an EHLO or LHLO reply announced: upper-case keyword → its words."""

    def __init__(self, reply: Reply | None = None) -> None:
        found: dict[str, tuple[str, ...]] = {}
        for line in reply.lines[1:] if reply else ():
            words = line.replace("=", " ", 1).split() if line.upper().startswith("AUTH=") else line.split()
            if words:
                keyword = words[0].upper()
                found[keyword] = (*found.get(keyword, ()), *words[1:])
        self._found: Mapping[str, tuple[str, ...]] = found

    def __contains__(self, keyword: str) -> bool:
        return keyword in self._found

    @property
    def size(self) -> int | None:
        """Octets a message may have (RFC 1870 §4); None: it does not say, or 0: no fixed limit."""
        words = self._found.get("SIZE", ())
        return int(words[0]) or None if words and words[0].isascii() and words[0].isdigit() else None

    @property
    def mechanisms(self) -> frozenset[str]:
        return frozenset(word.upper() for word in self._found.get("AUTH", ()))


@dataclass(frozen=True, slots=True)
class Recipient:
    address: str
    notify: str | None = None
    """RFC 3461 §4.1, as in `SUCCESS,FAILURE`."""
    orcpt: str | None = None
    """RFC 3461 §4.2, as `rfc822;` and xtext."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """One transaction. `size`: octets of the message as it will go out."""

    sender: str
    recipients: Sequence[Recipient]
    size: int
    eight_bit: bool = False
    """The body has octets above 127."""
    utf8: bool = False
    """An address or a header has."""
    ret: str | None = None
    """RFC 3461 §4.3: `FULL` or `HDRS`."""
    envid: str | None = None
    """RFC 3461 §4.4, xtext."""
    priority: int = 0


def mail(envelope: Envelope, known: Extensions) -> bytes:
    """MAIL with the parameters that the other side knows."""
    words = [f"MAIL FROM:<{_path(envelope.sender)}>"]
    if "SIZE" in known:
        words.append(f"SIZE={envelope.size}")  # RFC 1870 §6
    if envelope.eight_bit and "8BITMIME" in known:
        words.append("BODY=8BITMIME")  # RFC 6152 §2
    if envelope.utf8 and "SMTPUTF8" in known:
        words.append("SMTPUTF8")  # RFC 6531 §3.4
    if "DSN" in known:
        words += [f"RET={envelope.ret}"] if envelope.ret else []
        words += [f"ENVID={envelope.envid}"] if envelope.envid else []
    if envelope.priority and "MT-PRIORITY" in known:
        words.append(f"MT-PRIORITY={envelope.priority}")  # RFC 6710 §4.2
    return _command(words)


def rcpt(recipient: Recipient, known: Extensions) -> bytes:
    """RCPT; what was asked for by RFC 3461 goes on to those who know it."""
    words = [f"RCPT TO:<{_path(recipient.address)}>"]
    if "DSN" in known:
        words += [f"NOTIFY={recipient.notify}"] if recipient.notify else []
        words += [f"ORCPT={recipient.orcpt}"] if recipient.orcpt else []
    return _command(words)


def hello(name: str, lmtp: bool = False) -> bytes:
    return _command(["LHLO" if lmtp else "EHLO", name])


def _command(words: list[str]) -> bytes:
    line = " ".join(words)
    if re.search(r"[\x00-\x1f\x7f]", line):
        raise ValueError("a command of ours holds a control character")
    return line.encode() + b"\r\n"


def _path(address: str) -> str:
    """As it stands between angle brackets. Local parts are kept unquoted inside; what needs quotes gets them here."""
    local, at, domain = address.rpartition("@")
    if not at or local.startswith('"') or re.fullmatch(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\u0080-\U0010ffff-]+", local):
        return address
    quoted = re.sub(r'(["\\])', r"\\\1", local)
    return f'"{quoted}"@{domain}'


class Stuffing:
    """The message's octets as DATA wants them: dots doubled at the beginning of lines, CRLF "." CRLF at the end
    (RFC 5321 §4.5.2). However the octets are cut into pieces, the outcome is the same."""

    def __init__(self) -> None:
        self._tail = b"\r\n"

    def feed(self, piece: bytes) -> bytes:
        if not piece:
            return b""
        joined = self._tail + piece
        self._tail = joined[-2:]
        stuffed = joined.replace(b"\r\n.", b"\r\n..")
        # What was sent before is taken off again; a dot can only have been put in after it.
        return stuffed[len(joined) - len(piece) :]

    def end(self) -> bytes:
        return b".\r\n" if self._tail == b"\r\n" else b"\r\n.\r\n"
