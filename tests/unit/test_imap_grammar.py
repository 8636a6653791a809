"""Octets to commands: any cutting of the stream gives the same commands, and no input holds memory or time."""

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimx.imap import response, utf7
from aimx.imap.command import Append, Body, Fetch, Login, Section, Store, Unparsable, parse
from aimx.imap.errors import Bye, No
from aimx.imap.grammar import BEFORE_LOGIN, STAR, Continue, Cursor, Framer, Limits, Raw, Refused

LIMITS = Limits(line=4000, literal=2000, message=10_000)


def frames(octets: bytes, cuts: list[int] | None = None, limits: Limits = LIMITS) -> list[object]:
    """What the framer gives for the stream, cut at these lengths, and how it ended."""
    framer = Framer(limits)
    out: list[object] = []
    place = 0
    pending = list(cuts or [])
    while place < len(octets):
        size = pending.pop() if pending else len(octets)
        framer.feed(octets[place : place + size])
        place += size
        try:
            while (event := framer.next()) is not None:
                if isinstance(event, Refused):
                    out.append((event.tag, str(event.error)))
                else:
                    out.append(event)
        except Bye as bye:
            return [*out, bye.text]
    return out


def cursor(text: bytes) -> Cursor:
    return Cursor(Raw([text]))


def read(line: bytes) -> object:
    (raw,) = frames(line + b"\r\n")
    assert isinstance(raw, Raw)
    return parse(raw).command


def refusal(line: bytes) -> str:
    (raw,) = frames(line + b"\r\n")
    assert isinstance(raw, Raw)
    with pytest.raises(Unparsable) as caught:
        parse(raw)
    return caught.value.error.text


def test_literals_are_asked_for_or_taken_as_they_come() -> None:
    assert frames(b"a LOGIN {3}\r\nbob {2+}\r\nxy\r\n") == [Continue(3), Raw([b"a LOGIN ", b"bob", b" ", b"xy", b""])]
    assert read(b"a LOGIN {3+}\r\nbob {0+}\r\n") == Login(b"bob", b"")


def test_a_refused_literal_leaves_the_stream_in_step() -> None:
    too_big = b"literals may have at most 2000 octets here"
    # Synchronizing: the client does not send it.
    assert frames(b"a SEARCH TEXT {3000}\r\nb NOOP\r\n") == [(b"a", too_big.decode()), Raw([b"b NOOP"])]
    # Non-synchronizing: it is on its way and must be thrown away.
    assert frames(b"a SEARCH TEXT {3000+}\r\n" + b"x" * 3000 + b" ALL\r\nb NOOP\r\n") == [
        (b"a", too_big.decode()),
        Raw([b"b NOOP"]),
    ]


def test_an_overlong_line_is_refused_and_skipped_with_its_literals() -> None:
    assert frames(b"a SEARCH " + b"x" * 9000 + b" {5+}\r\nhello ALL\r\nb NOOP\r\n") == [
        (b"a", "line too long"),
        Raw([b"b NOOP"]),
    ]
    with_stranger = frames(b"a SEARCH " + b"x" * 9000, limits=BEFORE_LOGIN)
    assert with_stranger == ["line too long"]


def test_what_a_message_may_have_only_append_may() -> None:
    assert frames(b"a append x {9000}\r\n") == [Continue(9000)]
    assert frames(b"a append x {10001}\r\n") == [(b"a", "literals may have at most 10000 octets here")]


def test_the_budget_is_asked_before_a_message_is_taken() -> None:
    asked: list[int] = []

    def reserve(size: int) -> bool:
        asked.append(size)
        return size <= 500

    framer = Framer(LIMITS, reserve)
    framer.feed(b"a APPEND x {400}\r\n")
    assert framer.next() == Continue(400)
    assert framer.reserved == 400
    framer.feed(b"m" * 400 + b"\r\n")
    raw = framer.next()
    assert isinstance(raw, Raw)
    assert (raw.reserved, framer.reserved) == (400, 0)
    framer.feed(b"b APPEND x {501}\r\n")
    refused = framer.next()
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, No)
    assert asked == [400, 501]


PIECES = st.sampled_from(
    [
        b"a NOOP\r\n", b"b LOGIN {3+}\r\nbob x\r\n", b"c X {0+}\r\n\r\n", b"d Y {3}\r\nabc\r\n", b"\r\n", b"\n", b"\r",
        b"{", b"}", b"{5}", b"{5+}\r\n", b"e " + b"x" * 5000 + b"\r\n", b"f SEARCH {2500+}\r\n" + b"y" * 2500 + b"\r\n",
        b"g APPEND z {3000+}\r\n", b"\0", b'"', b"{99999999999999999999}\r\n",
    ]
)  # fmt: skip


@given(st.lists(PIECES, max_size=12).map(b"".join), st.lists(st.integers(1, 700), max_size=60))
def test_any_cutting_of_the_stream_gives_the_same_commands(octets: bytes, cuts: list[int]) -> None:
    assert frames(octets, cuts) == frames(octets)


@given(st.binary(max_size=300))
def test_any_line_is_parsed_or_refused(octets: bytes) -> None:
    for event in frames(b"a " + octets + b"\r\n"):
        if isinstance(event, Raw):
            with contextlib.suppress(Unparsable):
                parse(event)


COMMANDS = st.sampled_from(["FETCH", "UID FETCH", "SEARCH", "STORE", "LIST", "APPEND", "STATUS", "ID", "UID SEARCH"])
TOKENS = st.sampled_from(
    [
        "1", "1:*", "*", "(", ")", "FLAGS", "BODY", "[", "]", "<0.5>", "OR", "NOT", "ALL", '"x"', "NIL", "{1+}\r\nx",
        "HEADER.FIELDS", "+FLAGS", "\\Seen", "CHARSET", "UTF-8", "TEXT", "1-Feb-2026", '"', "\\", "BODY[1.2.MIME]",
        "INBOX", "%", "RETURN", "UID", "KEYWORD", "LARGER", "99999999999", '" 1-Feb-2026 00:00:00 +0000"', "",
    ]
)  # fmt: skip


@given(COMMANDS, st.lists(TOKENS, max_size=14))
def test_any_order_of_tokens_is_parsed_or_refused(name: str, tokens: list[str]) -> None:
    for event in frames(f"a {name} {' '.join(tokens)}\r\n".encode()):
        if isinstance(event, Raw):
            with contextlib.suppress(Unparsable):
                parse(event)


def test_fetch_items() -> None:
    assert read(b"a FETCH 1:3,*:7 FAST") == Fetch(False, ((1, 3), (STAR, 7)), ("FLAGS", "INTERNALDATE", "RFC822.SIZE"))
    command = read(b"a uid fetch 5 (flags body.peek[1.2.header.fields (Subject to)]<3.10> rfc822)")
    assert isinstance(command, Fetch)
    assert command.items == (
        "UID",
        "FLAGS",
        Body(
            b"BODY[1.2.HEADER.FIELDS (Subject to)]",
            Section((1, 2), "HEADER.FIELDS", (b"Subject", b"to")),
            True,
            (3, 10),
        ),
        Body(b"RFC822", Section((), ""), False),
    )
    for bad in (b"FETCH 1 ALLES", b"FETCH 1 (ALL)", b"FETCH 1 BODY[MIME]", b"FETCH 1 BODY[1.]", b"FETCH 1 BODY[.1]"):
        refusal(b"a " + bad)


def test_flags_are_known_by_any_spelling() -> None:
    assert read(rb"a STORE 1 +FLAGS.SILENT (\seen $aimxDONE Mine)") == Store(
        False, ((1, 1),), "add", True, frozenset({"\\Seen", "$AimxDone", "Mine"})
    )
    assert read(rb"a STORE 1 FLAGS \Recent \Flagged") == Store(
        False, ((1, 1),), "replace", False, frozenset({"\\Flagged"})
    )
    assert refusal(rb"a STORE 1 FLAGS (\Foo)") == "no such system flag"


def test_append_reads_flags_date_and_message() -> None:
    command = read(b'a APPEND "Dr&AOQ-" (\\Draft) " 5-Feb-2026 01:30:00 +0130" {2+}\r\nhi')
    assert command == Append("Dr\u00e4", frozenset({"\\Draft"}), 1_770_249_600_000, b"hi")


@given(st.integers(0, 4_102_444_799))
def test_a_written_date_is_read_as_the_same_moment(seconds: int) -> None:
    assert cursor(response.internal_date(seconds * 1000)).date_time() == seconds * 1000


@given(st.binary(max_size=2000).filter(lambda octets: b"\0" not in octets))
def test_a_written_string_is_read_as_the_same_octets(octets: bytes) -> None:
    written = response.string(octets)
    framer = Framer(Limits(10_000, 10_000, 10_000))
    # A server's literals do not wait; a client says so with a plus.
    framer.feed(b"x " + (written.replace(b"}", b"+}", 1) if written.startswith(b"{") else written) + b"\r\n")
    raw = framer.next()
    assert isinstance(raw, Raw)
    reader = Cursor(raw)
    reader.tag()
    reader.space()
    assert reader.string() == octets
    reader.end()


# --- modified UTF-7 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire", "name"),
    [
        (b"~peter/mail/&U,BTFw-/&ZeVnLIqe-", "~peter/mail/\u53f0\u5317/\u65e5\u672c\u8a9e"),  # RFC 3501 §5.1.3
        (b"A&-B", "A&B"),
        (b"&2D3eAA-", "\U0001f600"),
        (b"", ""),
    ],
)
def test_names_of_the_rfc(wire: bytes, name: str) -> None:
    assert utf7.decode(wire) == name
    assert utf7.encode(name) == wire


@pytest.mark.parametrize(
    "wire",
    [b"&AGE", b"&AGE-", b"&", b"&AGEA-", b"&2AA-", b"&AOQ-&APY-", b"\x7f", b"\xc3\xa4", b"&AOR-", b"&AO!-", b"&/w-"],
)
def test_other_spellings_are_errors(wire: bytes) -> None:
    with pytest.raises(utf7.BadName):
        utf7.decode(wire)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_name_comes_back(name: str) -> None:
    assert utf7.decode(utf7.encode(name)) == name


@given(st.binary(max_size=60))
def test_any_octets_are_a_name_or_an_error(octets: bytes) -> None:
    try:
        name = utf7.decode(octets)
    except utf7.BadName:
        return
    assert utf7.encode(name) == octets


def test_time_grows_no_faster_than_the_input() -> None:
    def seconds(size: int) -> float:
        started = time.perf_counter()
        utf7.decode(utf7.encode("\u00e4b" * size))
        frames(b'a LOGIN "' + b"\\\\" * size, limits=Limits(10**7, 10**7, 10**7))
        frames(b"a SEARCH " + b"1," * size + b"1\r\n", limits=Limits(10**7, 10**7, 10**7))
        return time.perf_counter() - started

    seconds(10_000)
    small, large = min(seconds(20_000) for _ in range(3)), min(seconds(200_000) for _ in range(3))
    assert large < 40 * small
