"""The core alone: lines and data from octets, however they are cut."""

import time
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimx.smtp.core import MAX_COMMAND, MAX_ENDLESS, Chunk, EndOfData, Fault, Line, Receiver


def outcome(pieces: Iterable[bytes], line_limit: int = 1000) -> list[object]:
    """What a receiver makes of the pieces; a line DATA begins data. Chunks are joined."""
    receiver = Receiver(line_limit)
    seen: list[object] = []
    for piece in pieces:
        receiver.feed(piece)
        while (event := receiver.next_event()) is not None:
            match event:
                case Chunk(data) if seen and isinstance(seen[-1], bytes):
                    seen[-1] += data
                case Chunk(data):
                    assert data
                    seen.append(data)
                case Line(b"DATA", Fault.NONE):
                    seen.append(event)
                    receiver.begin_data()
                case _:
                    seen.append(event)
    return seen


def data(content: bytes, line_limit: int = 1000) -> tuple[bytes, Fault, list[object]]:
    """Content, fault, and what came after the end."""
    _, *rest = outcome([b"DATA\r\n" + content], line_limit)
    body = rest.pop(0) if rest and isinstance(rest[0], bytes) else b""
    assert isinstance(body, bytes)
    end = rest.pop(0)
    assert isinstance(end, EndOfData), end
    return body, end.fault, rest


# Bytes that mean something here, so that random streams are full of near misses.
_morsel = st.sampled_from(
    [b"\r\n", b"\r", b"\n", b".", b"..", b"\0", b"a", b"DATA\r\n", b"\r\n.\r\n", b"NOOP\r\n", b"x" * 30]
)
streams = st.lists(_morsel, max_size=40).map(b"".join)


@given(streams, st.lists(st.integers(1, 7), min_size=1, max_size=200))
def test_how_the_octets_are_cut_makes_no_difference(stream: bytes, cuts: list[int]) -> None:
    stream = b"DATA\r\n" + stream
    pieces, at, n = [], 0, 0
    while at < len(stream):
        size = cuts[n % len(cuts)]
        pieces.append(stream[at : at + size])
        at, n = at + size, n + 1
    assert outcome(pieces, 40) == outcome([stream], 40)


@given(st.lists(st.binary(max_size=60).map(lambda line: line.translate(None, b"\r\n\0")), max_size=20))
def test_a_stuffed_message_comes_out_as_it_was(lines: list[bytes]) -> None:
    message = b"".join(line + b"\r\n" for line in lines)
    stuffed = b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines)
    assert data(stuffed + b".\r\nNOOP\r\n") == (message, Fault.NONE, [Line(b"NOOP", Fault.NONE)])


def test_an_empty_message() -> None:
    assert data(b".\r\n") == (b"", Fault.NONE, [])


SMUGGLED = b"MAIL FROM:<evil@fabric.local>\r\nDATA\r\nevil\r\n"
ENDS = {
    "LF . LF": b"\n.\n",
    "LF . CRLF": b"\n.\r\n",
    "LF . CR": b"\n.\r",
    "CR . CR": b"\r.\r",
    "CR . LF": b"\r.\n",
    "CR . CRLF": b"\r.\r\n",
    "CRLF . LF": b"\r\n.\n",
    "CRLF . CR": b"\r\n.\r",
    "CRLF . CR CRLF": b"\r\n.\r\r\n",
    "CRLF NUL . CRLF": b"\r\n\0.\r\n",
    "CRLF . NUL CRLF": b"\r\n.\0\r\n",
    "LF CR . LF CR": b"\n\r.\n\r",
    "LF LF . LF LF": b"\n\n.\n\n",
    "CR CR . CR CR": b"\r\r.\r\r",
    "CR CRLF . CRLF": b"\r\r\n.\n\r\n",
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_no_other_end_of_data_ends_data_and_each_is_a_fault(end: bytes) -> None:
    body, fault, rest = data(b"Subject: x\r\n\r\nhello" + end + SMUGGLED + b".\r\nQUIT\r\n")
    assert fault & (Fault.BARE_CR | Fault.BARE_LF | Fault.NUL)
    assert body.endswith(b"evil\r\n"), "what was to be smuggled is content"
    assert rest == [Line(b"QUIT", Fault.NONE)]


def test_a_bare_cr_before_the_true_end_is_a_fault_too() -> None:
    _, fault, _ = data(b"hello\r\r\n.\r\n")
    assert fault == Fault.BARE_CR


@pytest.mark.parametrize(
    ("octets", "fault"),
    [
        (b"NOOP\n", Fault.BARE_LF),
        (b"\n", Fault.BARE_LF),
        (b"NOOP\rQUIT\r\n", Fault.BARE_CR),
        (b"NO\0OP\r\n", Fault.NUL),
        (b"\r\r\n", Fault.BARE_CR),
        (b"x" * MAX_COMMAND + b"\r\n", Fault.LONG_LINE),
    ],
)
def test_a_faulty_command_line_is_told_apart_and_the_next_one_is_read(octets: bytes, fault: Fault) -> None:
    first, second = outcome([octets + b"NOOP\r\n"])
    assert isinstance(first, Line)
    assert first.fault == fault
    assert second == Line(b"NOOP", Fault.NONE)


@pytest.mark.parametrize("size", [1, 100, 100_000])
def test_an_endless_line_is_given_up(size: int) -> None:
    pieces = [b"x" * size] * ((MAX_ENDLESS + 10) // size + 1)
    assert outcome([*pieces, b"\r\nNOOP\r\n"])[0] == Line(b"", Fault.ENDLESS)
    receiver = Receiver()
    for piece in pieces:
        receiver.feed(piece)
        receiver.next_event()
    assert receiver.waiting == 0


@pytest.mark.parametrize(("length", "fault"), [(998, Fault.NONE), (999, Fault.LONG_LINE)])
@pytest.mark.parametrize("before", [b"", b"short\r\n", b"y" * 998 + b"\r\n", b"a\r\n" * 700])
def test_a_line_of_data_has_its_limit_without_the_dot(length: int, fault: Fault, before: bytes) -> None:
    line = b"." + b"x" * (length - 1)
    assert data(before + b"." + line + b"\r\nz\r\n.\r\n") == (before + line + b"\r\nz\r\n", fault, [])
    assert outcome([b"DATA\r\n" + before, b".", line[:500], line[500:], b"\r", b"\n.\r\n"])[-1] == EndOfData(fault)


def test_after_a_refused_line_length_data_still_ends_where_it_ends() -> None:
    _, fault, rest = data(b"x" * 5000 + b"\r\n.\r\nNOOP\r\n")
    assert fault == Fault.LONG_LINE
    assert rest == [Line(b"NOOP", Fault.NONE)]


@pytest.mark.parametrize(
    "unit", [b"\r\n.", b"\r\n..", b"\r", b"\n.\n", b"\r\n.\r", b"x" * 3, b"\r\n"], ids=lambda unit: repr(unit)
)
def test_work_is_linear_in_what_arrives(unit: bytes) -> None:
    """Eight times the data takes about eight times as long, not sixty-four."""

    def seconds(size: int) -> float:
        stream = unit * (size // len(unit))
        best = 9.0
        for _ in range(3):
            receiver = Receiver()
            receiver.begin_data()
            start = time.process_time()
            for at in range(0, len(stream), 4096):
                receiver.feed(stream[at : at + 4096])
                while receiver.next_event() is not None:
                    pass
            best = min(best, time.process_time() - start)
        return best

    small, large = seconds(1 << 18), seconds(1 << 21)
    assert large < 0.005 + small * 24


def test_what_came_after_starttls_can_be_forgotten() -> None:
    receiver = Receiver()
    receiver.feed(b"STARTTLS\r\nNOOP\r\nMAI")
    assert receiver.next_event() == Line(b"STARTTLS", Fault.NONE)
    receiver.clear()
    receiver.feed(b"EHLO x\r\n")
    assert receiver.next_event() == Line(b"EHLO x", Fault.NONE)
    assert receiver.next_event() is None
