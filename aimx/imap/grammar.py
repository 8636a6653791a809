"""From octets to tokens: `Framer` cuts the stream into commands, `Cursor` reads the tokens of one command.

Both are sans-IO, take linear time and hold bounded memory whatever the peer sends. The grammar is RFC 3501 §9 with
LITERAL+ (RFC 7888). Nothing here recurses.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import NamedTuple

from aimx.imap import utf7
from aimx.imap.errors import Bad, Bye, No
from aimx.imap.listing import canonical
from aimx.store.contract import DONE, SYSTEM_FLAGS

# --- framing ---------------------------------------------------------------------------------------------------------


class Limits(NamedTuple):
    """Octets one command may have: its lines together, its literals together, and the message of an APPEND."""

    line: int
    literal: int
    message: int


BEFORE_LOGIN = Limits(line=8192, literal=8192, message=8192)
"""A stranger gets enough for AUTHENTICATE with a long token, and nothing to fill memory with."""


@dataclass(slots=True)
class Raw:
    """One whole command: line, literal, line, literal, …, line. Lines come without their CRLF and `{n}`."""

    parts: list[bytes]
    reserved: int = 0
    """Octets that `reserve` granted for it."""


class Continue(NamedTuple):
    """The peer waits for our go-ahead before it sends `size` octets."""

    size: int


class Refused(NamedTuple):
    """A command that was refused while it was read; its octets are gone and the stream is in step again."""

    tag: bytes
    error: Bad | No


_LITERAL = re.compile(rb"\{([0-9]{1,20})(\+?)\}\Z")
_TAG = re.compile(rb"[^\x00-\x20\x7f-\xff(){%*\"\\+]++")
_MAX_NUMBER = 0xFFFFFFFF


class Framer:
    """Feed it octets; `next()` gives what they make, or None when it needs more.

    `reserve(n)` is asked before the message of an APPEND is taken into memory. What it granted for a command under way
    stands in `reserved`; with the whole command it passes to `Raw.reserved`. Who owns it gives it back.
    """

    __slots__ = ("_buffer", "_error", "_left", "_literal", "_literals", "_long", "_parts", "_reserve", "_scanned",
                 "_seen", "_tag", "limits", "reserved")  # fmt: skip

    def __init__(self, limits: Limits = BEFORE_LOGIN, reserve: Callable[[int], bool] = lambda size: True) -> None:
        self.limits = limits
        self.reserved = 0
        self._reserve = reserve
        self._buffer = bytearray()
        self._scanned = 0  # no line end before this place in the buffer
        self._begin()

    def _begin(self) -> None:
        self._parts: list[bytes] = []
        self._tag = b""
        self._seen = 0  # octets of this command's lines so far
        self._literals = 0  # octets of its literals so far
        self._literal: BytesIO | None = None
        self._left = 0  # octets of a literal still to come; thrown away when `_literal` is None
        self._long = 0  # octets of an overlong line thrown away so far
        self._error: Bad | No | None = None

    @property
    def buffered(self) -> int:
        """Octets received and not yet given out, without the literal under way: what backpressure looks at."""
        return len(self._buffer)

    @property
    def idle(self) -> bool:
        """Nothing of a next command has come yet."""
        return not self._buffer and not self._parts and not self._left

    def feed(self, data: bytes) -> None:
        if self._left and not self._buffer:
            data = self._take(data)
        self._buffer += data

    def discard(self) -> None:
        """Throw away all that was received and not given out (RFC 3501 §6.2.1: nothing crosses STARTTLS)."""
        self._buffer.clear()
        self._scanned = 0
        self._begin()

    def line(self, limit: int) -> bytes | None:
        """The next line outside any command (DONE, a SASL response), without its end. Raises Bye when too long."""
        line = self._cut(limit)
        if line is None:
            if len(self._buffer) > limit:
                raise Bye("line too long")
            return None
        return line.removesuffix(b"\r")

    def next(self) -> Raw | Continue | Refused | None:
        """Raises Bye when the stream cannot be kept in step within the limits."""
        while True:
            if self._left:
                if not self._buffer:
                    return None
                part = bytes(self._buffer[: self._left])
                del self._buffer[: len(part)]
                self._take(part)
                if self._left:
                    return None
            line = self._line()
            if line is None:
                return None
            done = self._ended(line)
            if done is not None:
                return done

    def _take(self, data: bytes) -> bytes:
        """Literal octets from the front of `data`; what is beyond the literal comes back."""
        part = data[: self._left]
        self._left -= len(part)
        if self._literal is not None:
            self._literal.write(part)
            if not self._left:
                # A BytesIO hands its buffer out as bytes without another copy.
                self._parts.append(self._literal.getvalue())
                self._literal = None
        return data[len(part) :]

    def _cut(self, limit: int) -> bytes | None:
        """The next line without its LF, if it ends within `limit` octets."""
        end = self._buffer.find(b"\n", self._scanned, limit + 2)
        if end < 0:
            self._scanned = min(len(self._buffer), limit + 2)
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._scanned = 0
        return line

    def _line(self) -> bytes | None:
        """The next line of the command; of an overlong one its last octets, where a literal would announce itself."""
        room = max(self.limits.line - self._seen, 0)
        line = self._cut(room)
        if line is not None:
            return line
        if len(self._buffer) < room + 2:
            return None
        # Overlong: refuse it, keep in step by reading to its end, give up on one without end.
        if not self._parts and not self._tag:
            self._tag = _tag_of(bytes(self._buffer[:256]))
        self._fail(Bad("line too long"))
        end = self._buffer.find(b"\n")
        self._long += len(self._buffer) if end < 0 else end
        if self.limits is BEFORE_LOGIN or self._long > 64 * self.limits.line:
            raise Bye("line too long")
        self._seen = self.limits.line
        tail = bytes(self._buffer[max(0, (len(self._buffer) if end < 0 else end) - 32) : None if end < 0 else end])
        self._scanned = 0
        if end < 0:
            self._buffer[:] = tail
            return None
        del self._buffer[: end + 1]
        return tail

    def _fail(self, error: Bad | No) -> None:
        if self._error is None:
            self._error = error

    def _ended(self, line: bytes) -> Raw | Continue | Refused | None:
        """A line is whole: it ends the command, or a literal follows."""
        if not self._parts and not self._tag:
            self._tag = _tag_of(line)
        self._seen += len(line)
        if line.endswith(b"\r"):
            line = line[:-1]
        else:
            self._fail(Bad("lines end with CRLF"))
        announced = _LITERAL.search(line, max(0, len(line) - 24)) if line.endswith(b"}") else None
        if announced is None:
            self._parts.append(line)
            return self._whole()
        size, waits = int(announced[1]), not announced[2]
        self._parts.append(line[: announced.start()])
        refusal = self._too_big(size)
        if refusal is not None:
            self._fail(refusal)
        if self._error is not None and waits:
            # The peer has not sent the literal and, refused, will not (RFC 3501 §7.5).
            return self._whole()
        if self._error is not None and (self.limits is BEFORE_LOGIN or size > 4 * self.limits.message):
            raise Bye("literal too big")
        self._literals += size
        self._left = size
        if self._error is None:
            self._literal = BytesIO() if size else None
            if not size:
                self._parts.append(b"")
            if waits:
                return Continue(size)
        return None

    def _too_big(self, size: int) -> Bad | No | None:
        words = self._parts[0].split(b" ", 2)
        appends = len(words) > 1 and words[1].upper() == b"APPEND"
        limit = self.limits.message if appends else self.limits.literal
        if size > _MAX_NUMBER:
            return Bad("literal size out of range")
        if self._literals + size > limit:
            return No(f"literals may have at most {limit} octets here", "TOOBIG" if appends else "LIMIT")
        if appends and self._error is None:
            if not self._reserve(size):
                return No("too many messages are being stored, try again", "LIMIT")
            self.reserved += size
        return None

    def _whole(self) -> Raw | Refused:
        parts, tag, error, reserved = self._parts, self._tag, self._error, self.reserved
        self._begin()
        if error is not None:
            return Refused(tag, error)
        self.reserved = 0
        return Raw(parts, reserved)


def _tag_of(line: bytes) -> bytes:
    """The tag a refusal can be sent under, or `*` where there is none."""
    found = _TAG.match(line, 0, 256)
    return found[0] if found and line[found.end() : found.end() + 1] in (b" ", b"\r", b"") else b"*"


# --- tokens ----------------------------------------------------------------------------------------------------------

STAR = 1 << 32
"""`*` in a sequence set: the largest number in use, whatever it is (RFC 3501 §9 seq-number)."""

SequenceSet = tuple[tuple[int, int], ...]
"""Pairs as the peer wrote them, either way round, `STAR` for `*`."""

# Possessive quantifiers: a run of octets is taken whole, so no pattern can back up.
_ATOM = re.compile(rb"[^\x00-\x20\x7f-\xff(){%*\"\\\]]++")
_ASTRING = re.compile(rb"[^\x00-\x20\x7f-\xff(){%*\"\\]++")
_LIST_ATOM = re.compile(rb"[^\x00-\x20\x7f-\xff(){\"\\]++")
_QUOTED = re.compile(rb'"((?:[^"\\\x00\r\n]++|\\["\\])*+)"')
_QUOTED_PAIR = re.compile(rb'\\(["\\])')
_NUMBER = re.compile(rb"[0-9]{1,10}(?![0-9])")
_SEQUENCE_SET = re.compile(rb"[0-9*:,]++")
_FLAG = re.compile(rb"\\?[^\x00-\x20\x7f-\xff(){%*\"\\\]]++")
_FETCH_NAME = re.compile(rb"[A-Za-z0-9.]++")
_SECTION = re.compile(rb"[A-Za-z0-9.]*+")
_DATE = re.compile(rb'"?([0-9]{1,2})-([A-Za-z]{3})-([0-9]{4})"?')
_DATE_TIME = re.compile(
    rb'"([ 0-9][0-9])-([A-Za-z]{3})-([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) ([+-])([0-9]{2})([0-9]{2})"'
)
MAX_KEYWORD = 200
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_KNOWN_FLAGS = {
    flag.lower(): flag
    for flag in (*SYSTEM_FLAGS, "\\Recent", DONE, "$Forwarded", "$MDNSent", "$Junk", "$NotJunk", "$Phishing")
}
_MONTH = {name.lower().encode(): number for number, name in enumerate(MONTHS, 1)}


class Cursor:
    """Reads the tokens of one command in order. Every method raises Bad when its token is not there."""

    __slots__ = ("_at", "_index", "_line", "_parts")

    def __init__(self, raw: Raw) -> None:
        self._parts = raw.parts
        self._index = 0
        self._line = raw.parts[0]
        self._at = 0

    # what comes next

    def peek(self) -> bytes:
        """The next octet; empty at the end of the command and where a literal stands."""
        return self._line[self._at : self._at + 1]

    def at_end(self) -> bool:
        return self._at == len(self._line) and self._index + 1 == len(self._parts)

    def at_literal(self) -> bool:
        return self._at == len(self._line) and self._index + 1 < len(self._parts)

    # fixed text

    def accept(self, text: bytes) -> bool:
        """Take `text` if it is next."""
        if not self._line.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def expect(self, text: bytes) -> None:
        if not self.accept(text):
            raise Bad(f"expected {'a space' if text == b' ' else text.decode('ascii')}")

    def space(self) -> None:
        self.expect(b" ")

    def end(self) -> None:
        if not self.at_end():
            raise Bad("unexpected text at the end of the command")

    # tokens

    def _match(self, pattern: "re.Pattern[bytes]", what: str) -> "re.Match[bytes]":
        found = pattern.match(self._line, self._at)
        if found is None:
            raise Bad(f"expected {what}")
        self._at = found.end()
        return found

    def tag(self) -> bytes:
        return self._match(_TAG, "a tag")[0]

    def atom(self) -> bytes:
        return self._match(_ATOM, "an atom")[0]

    def keyword(self) -> str:
        """An atom whose case does not matter, in upper case."""
        return self.atom().decode("ascii").upper()

    def literal(self) -> bytes:
        if not self.at_literal():
            raise Bad("expected a literal")
        found = self._parts[self._index + 1]
        self._index += 2
        self._line = self._parts[self._index]
        self._at = 0
        return found

    def string(self) -> bytes:
        if self.at_literal():
            return self.literal()
        quoted = self._match(_QUOTED, "a string")[1]
        return _QUOTED_PAIR.sub(rb"\1", quoted) if b"\\" in quoted else quoted

    def astring(self) -> bytes:
        if self.at_literal() or self.peek() == b'"':
            return self.string()
        return self._match(_ASTRING, "a string or an atom")[0]

    def nstring(self) -> bytes | None:
        if self.at_literal() or self.peek() == b'"':
            return self.string()
        if self.keyword() == "NIL":
            return None
        raise Bad("expected a string or NIL")

    def mailbox(self) -> str:
        """A mailbox name, decoded, INBOX in upper case."""
        return canonical(_name(self.astring()))

    def list_mailbox(self) -> str:
        """A name that may hold the wildcards `*` and `%`."""
        if self.at_literal() or self.peek() == b'"':
            return _name(self.string())
        return _name(self._match(_LIST_ATOM, "a mailbox name or pattern")[0])

    def number(self) -> int:
        value = int(self._match(_NUMBER, "a number")[0])
        if value > _MAX_NUMBER:
            raise Bad("number out of range")
        return value

    def sequence_set(self) -> SequenceSet:
        text = self._match(_SEQUENCE_SET, "a sequence set")[0]
        return tuple(_sequence_range(element) for element in text.split(b","))

    def at_sequence_set(self) -> bool:
        return self.peek() in b"0123456789*" and self.peek() != b""

    def flag(self) -> str:
        """A flag or keyword; the well-known ones in their usual spelling, since case does not matter in them."""
        text = self._match(_FLAG, "a flag")[0].decode("ascii")
        known = _KNOWN_FLAGS.get(text.lower())
        if known is None and text.startswith("\\"):
            raise Bad("no such system flag")
        if len(text) > MAX_KEYWORD:
            raise No("that keyword is too long", "LIMIT")
        return known or text

    def flag_list(self) -> tuple[str, ...]:
        """Flags in parentheses, possibly none."""
        self.expect(b"(")
        if self.accept(b")"):
            return ()
        flags = [self.flag()]
        while self.accept(b" "):
            flags.append(self.flag())
        self.expect(b")")
        return tuple(flags)

    def fetch_name(self) -> str:
        """The name of a FETCH item, upper case; a section in brackets may follow."""
        return self._match(_FETCH_NAME, "a fetch item")[0].decode("ascii").upper()

    def section_text(self) -> str:
        """What stands between `[` and the field list or `]`, upper case; possibly nothing."""
        return self._match(_SECTION, "a section")[0].decode("ascii").upper()

    def date(self) -> int:
        """A day as proleptic ordinal (`datetime.date.toordinal`)."""
        day, month, year = self._match(_DATE, "a date like 1-Feb-2026").groups()
        return _moment(day, month, year).toordinal()

    def date_time(self) -> int:
        """A moment in Unix milliseconds."""
        day, month, year, hour, minute, second, sign, zone_hours, zone_minutes = self._match(
            _DATE_TIME, 'a date and time like "01-Feb-2026 12:00:00 +0000"'
        ).groups()
        if int(zone_hours) > 23 or int(zone_minutes) > 59:
            raise Bad("no such time zone")
        offset = timedelta(hours=int(zone_hours), minutes=int(zone_minutes))
        moment = _moment(day, month, year, int(hour), int(minute), int(second))
        try:
            moment += offset if sign == b"-" else -offset
        except OverflowError as error:
            raise Bad("no such date") from error  # a year that could not be told in FETCH
        return int(moment.timestamp()) * 1000


def _name(raw: bytes) -> str:
    try:
        return utf7.decode(raw)
    except utf7.BadName as error:
        raise No(str(error), "CANNOT") from error


def _sequence_range(element: bytes) -> tuple[int, int]:
    first, colon, last = element.partition(b":")
    low = _sequence_number(first)
    return (low, _sequence_number(last)) if colon else (low, low)


def _sequence_number(text: bytes) -> int:
    if text == b"*":
        return STAR
    if not text.isdigit() or len(text) > 10 or text.startswith(b"0") or int(text) > _MAX_NUMBER:
        raise Bad("bad number in a sequence set")
    return int(text)


def _moment(day: bytes, month: bytes, year: bytes, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
    try:
        # Second 60 of a leap second counts as 59: no clock of ours knows it.
        return datetime(int(year), _MONTH[month.lower()], int(day), hour, minute, min(second, 59), tzinfo=UTC)
    except (KeyError, ValueError, OverflowError) as error:
        raise Bad("no such date") from error
