r"""The client's half of IMAP without I/O: octets in, events out; commands in, octets out.

Enough of RFC 3501 for an agent that reads its mail (AUTHENTICATE PLAIN, SELECT, UID SEARCH, UID FETCH, UID STORE),
with IDLE (RFC 2177) and SASL-IR (RFC 4959). Rules:

- Answers to commands come in the order of the commands. Untagged data belongs to the oldest command not yet
  completed; EXISTS and EXPUNGE are reported besides as `Arrived` and `Expunged`, whenever they come, and FETCH as
  `Fetched`, so that a message can be worked on before the server has written down that it was read.
- IDLE is a command like others that `done()` ends. After `done()` the next command may follow in the same write.
- Reading costs linear time whatever the server sends; nesting is kept on a list of ours, not on Python's stack.
"""

import re
from base64 import b64encode
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_LINE = 1 << 24
"""Octets. The answer to a SEARCH that finds a million messages fits."""
MAX_LITERAL = 1 << 30

Value = None | str | bytes | list["Value"]
"""NIL, an atom or number (str), a string or literal (bytes), a parenthesised list."""

_LITERAL = re.compile(rb"\{(\d{1,10})\}\Z")
# Every branch consumes and repetitions are possessive, so matching is linear. An atom may hold one bracketed part with
# spaces in it: BODY[HEADER.FIELDS (SUBJECT)]<0>; a keyword may hold a bracket that never closes.
_TOKEN = re.compile(rb'[ ]++|([()])|"((?:[^"\\]|\\.)*+)"|([^ ()"\[]*+(?:\[[^\]]{0,1000}+\])?+[^ ()"]*+)', re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_STATUS = re.compile(rb"(OK|NO|BAD|BYE|PREAUTH)(?: \[([^\]]*)\])?(?: |\Z)(.*)", re.DOTALL | re.IGNORECASE)


class ProtocolError(Exception):
    """What came is not IMAP. The connection is of no further use."""


class Data(NamedTuple):
    """One untagged response: `* 12 FETCH (…)` is ("FETCH", 12, [[…]]), `* SEARCH 4` is ("SEARCH", None, ["4"])."""

    name: str
    number: int | None
    values: list[Value]


class Greeted(NamedTuple):
    status: str
    text: str


class Completed(NamedTuple):
    """A command's end: status OK, NO or BAD, the response code without brackets, and what came for it."""

    tag: str
    status: str
    code: str
    text: str
    data: list[Data]


class Continued(NamedTuple):
    text: str


class Arrived(NamedTuple):
    """The mailbox now has `exists` messages."""

    exists: int


class Expunged(NamedTuple):
    """The message with this sequence number is gone, and all above have moved down by one."""

    number: int


class Fetched(NamedTuple):
    """A FETCH response for the oldest command, which holds it too when it is completed."""

    tag: str
    data: Data


class Bye(NamedTuple):
    text: str


Event = Greeted | Completed | Continued | Arrived | Expunged | Fetched | Bye


@dataclass(slots=True)
class _Waiting:
    tag: str
    data: list[Data] = field(default_factory=list)


class Conversation:
    """One connection's state."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self._need: int | None = None
        self._parts: list[bytes] = []
        self._waiting: deque[_Waiting] = deque()
        self._count = 0
        self._greeted = False
        self.idling = False

    # ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def command(self, text: str) -> tuple[str, bytes]:
        """Tag and octets of a command. While idling, the DONE that must come first is in front."""
        if "\r" in text or "\n" in text:
            raise ValueError("a command is one line")
        before = self.done()
        self._count += 1
        tag = f"A{self._count}"
        self._waiting.append(_Waiting(tag))
        return tag, before + f"{tag} {text}\r\n".encode()

    def idle(self) -> tuple[str, bytes]:
        tag, octets = self.command("IDLE")
        self.idling = True
        return tag, octets

    def done(self) -> bytes:
        """Ends IDLE; nothing when not idling."""
        if not self.idling:
            return b""
        self.idling = False
        return b"DONE\r\n"

    # ── in ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    def feed(self, octets: bytes) -> list[Event]:
        """Take octets in; the events they complete. Raises ProtocolError."""
        self._buffer += octets
        events: list[Event] = []
        while (parts := self._next()) is not None:
            events += self._receive(parts)
        return events

    def _next(self) -> list[bytes] | None:
        """The next whole response as line, literal, line, …; None until it is there."""
        buffer = self._buffer
        while True:
            if self._need is not None:
                if len(buffer) < self._need:
                    return None
                self._parts.append(bytes(memoryview(buffer)[: self._need]))
                del buffer[: self._need]
                self._need = None
            end = buffer.find(b"\r\n", self._scanned)
            if end < 0:
                if len(buffer) > MAX_LINE:
                    raise ProtocolError("a line longer than any should be")
                self._scanned = max(0, len(buffer) - 1)
                return None
            line = bytes(memoryview(buffer)[:end])
            del buffer[: end + 2]
            self._scanned = 0
            literal = None if not self._parts and _STATUS.match(line.partition(b" ")[2]) else _LITERAL.search(line)
            if literal is None:
                parts, self._parts = [*self._parts, line], []
                return parts
            self._parts.append(line[: literal.start()])
            self._need = int(literal.group(1))
            if self._need > MAX_LITERAL:
                raise ProtocolError("a literal larger than any should be")

    def _receive(self, parts: list[bytes]) -> list[Event]:
        tag, _, rest = parts[0].partition(b" ")
        if tag == b"+":
            return [Continued(rest.decode("utf-8", "replace"))]
        status = _STATUS.match(rest)
        if tag != b"*":
            return [self._complete(tag, status)]
        if status is not None:
            return self._untagged_status(status)
        return self._untagged([rest, *parts[1:]])

    def _complete(self, tag: bytes, status: re.Match[bytes] | None) -> Completed:
        if status is None or not self._waiting or self._waiting[0].tag.encode() != tag:
            raise ProtocolError("an answer to nothing that was asked")
        word, code, text = _read_status(status)
        waiting = self._waiting.popleft()
        return Completed(waiting.tag, word, code, text, waiting.data)

    def _untagged_status(self, status: re.Match[bytes]) -> list[Event]:
        word, code, text = _read_status(status)
        if not self._greeted:
            self._greeted = True
            return [Greeted(word, text)]
        if word == "BYE":
            return [Bye(text)]
        if code and self._waiting:
            name, _, value = code.partition(" ")
            self._waiting[0].data.append(Data(name.upper(), None, [value]))
        return []

    def _untagged(self, parts: list[bytes]) -> list[Event]:
        values = _values(parts)
        number: int | None = None
        first = values[0] if values else None
        if isinstance(first, str) and first.isascii() and first.isdigit():
            number = int(first)
            del values[0]
        if not values or not isinstance(values[0], str):
            raise ProtocolError("a response without a name")
        name = values.pop(0)
        assert isinstance(name, str)
        name = name.upper()
        data = Data(name, number, values)
        if self._waiting:
            self._waiting[0].data.append(data)
        match name:
            case "EXISTS" if number is not None:
                return [Arrived(number)]
            case "EXPUNGE" if number is not None:
                return [Expunged(number)]
            case "FETCH" if self._waiting:
                return [Fetched(self._waiting[0].tag, data)]
        return []


def plain(user: str, password: str) -> str:
    """The one message of SASL PLAIN (RFC 4616), base 64."""
    return b64encode(f"\0{user}\0{password}".encode()).decode()


def items(data: Data) -> dict[str, Value]:
    """The items of a FETCH response by upper-case name."""
    pairs = data.values[0] if data.values else None
    if not isinstance(pairs, list) or len(pairs) % 2:
        raise ProtocolError("a FETCH response that is no list of pairs")
    return {str(name).upper(): value for name, value in zip(pairs[::2], pairs[1::2], strict=True)}


def _read_status(status: re.Match[bytes]) -> tuple[str, str, str]:
    word, code, text = status.groups()
    return word.decode().upper(), (code or b"").decode("utf-8", "replace"), text.decode("utf-8", "replace")


def _values(parts: list[bytes]) -> list[Value]:
    """Tokens of a response. `parts` alternates between text and literal."""
    top: list[Value] = []
    stack = [top]
    for i, part in enumerate(parts):
        if i % 2:
            stack[-1].append(part)
            continue
        position = 0
        while position < len(part):
            match = _TOKEN.match(part, position)
            if match is None or match.end() == position:
                raise ProtocolError("a response that cannot be read")
            position = match.end()
            bracket, quoted, atom = match.groups()
            if bracket == b"(":
                inner: list[Value] = []
                stack[-1].append(inner)
                stack.append(inner)
            elif bracket == b")":
                if len(stack) == 1:
                    raise ProtocolError("a parenthesis closed that was never opened")
                stack.pop()
            elif quoted is not None:
                stack[-1].append(_ESCAPED.sub(rb"\1", quoted))
            elif atom:
                text = atom.decode("utf-8", "replace")
                stack[-1].append(None if text.upper() == "NIL" else text)
    if len(stack) != 1:
        raise ProtocolError("a parenthesis opened that is never closed")
    return top
