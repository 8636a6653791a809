"""From octets to SMTP's two kinds of input, command lines and message data. No I/O.

Rules, all of which live here:

1. A line ends with CRLF and with nothing else (RFC 5321 §2.3.8). A bare CR, a bare LF or a NUL is a fault; it is
   reported with the line, and the line must not be obeyed.
2. Message data ends with CRLF "." CRLF and with nothing else (§4.1.1.4; the CRLF of the DATA command counts as the
   first). A fault in the data is remembered and reported at that end. So what another server might take for an end
   (LF "." LF, LF "." CRLF, CR "." CR, …) neither ends the data here nor is ever stored or passed on to be
   misunderstood elsewhere: the message is refused whole. That is the cure for SMTP smuggling.
3. One leading dot is taken off each line of data (§4.5.2).
4. However the octets are cut into pieces, the events are the same (data chunks joined), and the work is linear.

`feed` takes what arrived; `next_event` gives one event or None when more is needed. The session decides after each
event whether data follows (`begin_data`), so what is fed but not yet asked for has no meaning yet.
"""

from enum import Flag, auto
from typing import NamedTuple

MAX_COMMAND = 12_288
"""Octets with CRLF of the longest line any command state allows: an AUTH response (RFC 4954 §4)."""
MAX_ENDLESS = 65_536
"""A line longer than this is not waited for: the peer speaks something else."""
MAX_DATA_LINE = 65_536
"""Octets with CRLF of a line of message data. RFC 5321 §4.5.3.1.6 asks for at least 1,000, and §4.5.3.1 for no limit
where one can do without; agents post JSON in one line. Who passes a message on to others must encode such lines."""

_END = b"\r\n.\r\n"


class Fault(Flag):
    """What was wrong with a line, or somewhere in a message's data."""

    NONE = 0
    BARE_CR = auto()
    BARE_LF = auto()
    NUL = auto()
    LONG_LINE = auto()
    ENDLESS = auto()
    """Not a line at all. Nothing more will be read."""


NONE = Fault.NONE
"""Compare with `is`: the truth of a Flag costs a call, and this is asked for every line."""


class Line(NamedTuple):
    """A command line without its CRLF; empty when it was too long."""

    text: bytes
    fault: Fault


class Chunk(NamedTuple):
    """A piece of message data with CRLF line ends, dots taken off."""

    data: bytes


class EndOfData(NamedTuple):
    fault: Fault


Event = Line | Chunk | EndOfData


class Receiver:
    """One connection's input. Writer of all its state: this class."""

    __slots__ = (
        "_at",
        "_buffer",
        "_dead",
        "_dropped",
        "_ended",
        "_first",
        "_in_data",
        "_line_limit",
        "_run",
        "_tail",
        "fault",
    )

    def __init__(self, line_limit: int = MAX_DATA_LINE) -> None:
        self._buffer = b""
        self._at = 0
        self._dead = False
        self._dropped = 0
        """Octets thrown away of an over-long command line."""
        self._line_limit = line_limit
        self._in_data = False
        self._ended = False
        """The end was seen; it is reported after the last chunk."""
        self._first = False
        """The piece to come begins with the CRLF that DATA lent it."""
        self._tail = b""
        """Octets of data that may be the beginning of the end; never more than 4."""
        self._run = 0
        """Length of the last line of data so far."""
        self.fault = NONE
        """Of the data so far."""

    @property
    def waiting(self) -> int:
        """Octets fed and not yet looked at."""
        return len(self._buffer) - self._at

    @property
    def in_data(self) -> bool:
        return self._in_data

    def feed(self, octets: bytes) -> None:
        if self._dead:
            return
        self._buffer = octets if self._at >= len(self._buffer) else self._buffer[self._at :] + octets
        self._at = 0

    def clear(self) -> None:
        """Forget what was fed and not looked at, as after STARTTLS (RFC 3207 §4.2)."""
        self._buffer = b""
        self._at = 0
        self._dropped = 0

    def begin_data(self) -> None:
        """What follows is message data."""
        self._in_data = True
        self._first = True
        self._tail = b"\r\n"
        self._run = 0
        self.fault = NONE

    def next_event(self) -> Event | None:
        if self._ended:
            self._ended = self._in_data = False
            return EndOfData(self.fault)
        if self._at >= len(self._buffer):
            return None
        return self._data() if self._in_data else self._line()

    # ── commands ──

    def _line(self) -> Line | None:
        buffer, start = self._buffer, self._at
        end = buffer.find(b"\n", start) + 1
        length = self._dropped + (end or len(buffer)) - start
        if length > MAX_ENDLESS:
            self._dead = True
            self.clear()
            return Line(b"", Fault.ENDLESS)
        if not end:
            if length > MAX_COMMAND:
                self.clear()
                self._dropped = length
            return None
        self._at = end
        if length > MAX_COMMAND:
            self._dropped = 0
            return Line(b"", Fault.LONG_LINE)
        if buffer[end - 2 : end - 1] != b"\r" or end - 2 < start:
            return Line(buffer[start : end - 1], Fault.BARE_LF)
        text = buffer[start : end - 2]
        if b"\r" in text:
            return Line(text, Fault.BARE_CR)
        if b"\0" in text:
            return Line(text, Fault.NUL)
        return Line(text, NONE)

    # ── data ──

    def _data(self) -> Event | None:
        window = self._tail + (self._buffer[self._at :] if self._at else self._buffer)
        end = window.find(_END)
        if end < 0:
            whole = len(window) - _held(window)
            self._tail = window[whole:]
            self._buffer, self._at = b"", 0
        else:
            whole = end + 2
            self._tail = b""
            self._buffer, self._at = window, end + len(_END)
            self._ended = True
        piece = self._clean(window[:whole])
        return Chunk(piece) if piece else self.next_event()

    def _clean(self, piece: bytes) -> bytes:
        """A piece whose CRLFs are whole: note its faults, take the dots off."""
        if not piece:
            return piece
        pairs = piece.count(b"\r\n")
        if piece.count(b"\n") != pairs:
            self.fault |= Fault.BARE_LF
        if piece.count(b"\r") != pairs:
            self.fault |= Fault.BARE_CR
        if b"\0" in piece:
            self.fault |= Fault.NUL
        if b"\r\n." in piece:
            piece = piece.replace(b"\r\n.", b"\r\n")
        if self._first:
            self._first = False
            piece = piece[2:]
        if self.fault is NONE or Fault.LONG_LINE not in self.fault:
            self._measure(piece)
        return piece

    def _measure(self, piece: bytes) -> None:
        """Find a line over the limit by leaps: from a line's start to the last CRLF within the limit, and on."""
        size, limit, start = len(piece), self._line_limit, -self._run
        while size - start > limit:
            end = piece.rfind(b"\r\n", max(start, 0), max(start + limit, 0))
            if end < 0:
                self.fault |= Fault.LONG_LINE
                return
            start = end + 2
        last = piece.rfind(b"\r\n", max(start, 0))
        self._run = size - (start if last < 0 else last + 2)


def _held(window: bytes) -> int:
    """How many octets at the end may be the beginning of the end."""
    last = window[-1:]
    if last not in (b"\r", b"\n", b"."):
        return 0
    for length in (4, 3, 2, 1):
        if window.endswith(_END[:length]):
            return length
    return 0
