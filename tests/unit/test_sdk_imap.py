"""The IMAP client core: what a server may send is read right, however it is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimx.sdk import imap
from aimx.sdk.imap import (
    Arrived,
    Bye,
    Completed,
    Continued,
    Conversation,
    Data,
    Expunged,
    Fetched,
    Greeted,
    ProtocolError,
)

DIALOG = (
    b"* OK [CAPABILITY IMAP4rev1 SASL-IR] AIMX ready {3}\r\n"
    b"* 2 EXISTS\r\n"
    b"* FLAGS (\\Seen $AimxDone [odd)\r\n"
    b"* OK [UIDVALIDITY 77] valid\r\n"
    b"A1 OK [READ-WRITE] done\r\n"
    b'* 1 FETCH (UID 5 FLAGS (\\Seen) BODY[HEADER.FIELDS (IN-REPLY-TO REFERENCES)] {4}\r\na)\r\n X "q \\" x" Y NIL)\r\n'
    b"* 3 EXISTS\r\n"
    b"* 2 EXPUNGE\r\n"
    b"A2 NO [TRYCREATE] not now\r\n"
    b"+ idling\r\n"
    b"* BYE leaving\r\n"
)


def conversation() -> Conversation:
    talk = Conversation()
    talk.command("SELECT INBOX")
    talk.command("UID FETCH 5 (UID)")
    return talk


FETCHED = Data(
    "FETCH",
    1,
    [
        [
            "UID",
            "5",
            "FLAGS",
            ["\\Seen"],
            "BODY[HEADER.FIELDS (IN-REPLY-TO REFERENCES)]",
            b"a)\r\n",
            "X",
            b'q " x',
            "Y",
            None,
        ]
    ],
)

EXPECTED: list[imap.Event] = [
    Greeted("OK", "AIMX ready {3}"),
    Arrived(2),
    Completed(
        "A1",
        "OK",
        "READ-WRITE",
        "done",
        [
            Data("EXISTS", 2, []),
            Data("FLAGS", None, [["\\Seen", "$AimxDone", "[odd"]]),
            Data("UIDVALIDITY", None, ["77"]),
        ],
    ),
    Fetched("A2", FETCHED),
    Arrived(3),
    Expunged(2),
    Completed(
        "A2",
        "NO",
        "TRYCREATE",
        "not now",
        [
            FETCHED,
            Data("EXISTS", 3, []),
            Data("EXPUNGE", 2, []),
        ],
    ),
    Continued("idling"),
    Bye("leaving"),
]


def test_a_dialog_is_read() -> None:
    assert conversation().feed(DIALOG) == EXPECTED


@given(st.lists(st.integers(1, 40), max_size=60))
def test_however_the_octets_are_cut(sizes: list[int]) -> None:
    talk, events, rest = conversation(), [], DIALOG
    for size in sizes:
        events += talk.feed(rest[:size])
        rest = rest[size:]
    assert events + talk.feed(rest) == EXPECTED


@given(st.binary(max_size=300))
def test_a_literal_holds_any_octets(octets: bytes) -> None:
    talk = Conversation()
    talk.feed(b"* OK hello\r\n")
    tag, _ = talk.command("UID FETCH 1 (BODY.PEEK[])")
    events = talk.feed(b"* 1 FETCH (BODY[] {%d}\r\n%b)\r\n%s OK done\r\n" % (len(octets), octets, tag.encode()))
    fetched, done = events
    assert isinstance(done, Completed)
    assert imap.items(done.data[0]) == {"BODY[]": octets}
    assert fetched == Fetched(tag, done.data[0])


def test_a_large_literal_in_small_pieces_costs_linear_time() -> None:
    talk = Conversation()
    talk.feed(b"* OK hello\r\n")
    tag, _ = talk.command("UID FETCH 1 (BODY.PEEK[])")
    size = 20_000_000
    talk.feed(b"* 1 FETCH (BODY[] {%d}\r\n" % size)
    piece = bytes(16_384)
    for _ in range(size // len(piece)):
        talk.feed(piece)
    events = talk.feed(bytes(size % len(piece)) + b")\r\n%s OK\r\n" % tag.encode())
    done = events[-1]
    assert isinstance(done, Completed)
    assert len(imap.items(done.data[0])["BODY[]"] or b"") == size


def test_a_command_while_idling_ends_idle_first() -> None:
    talk = Conversation()
    assert talk.idle() == ("A1", b"A1 IDLE\r\n")
    assert talk.command("NOOP") == ("A2", b"DONE\r\nA2 NOOP\r\n")
    assert talk.command("NOOP") == ("A3", b"A3 NOOP\r\n")


def test_a_command_cannot_smuggle_another() -> None:
    with pytest.raises(ValueError, match="one line"):
        Conversation().command("UID STORE 1 +FLAGS (x)\r\nA9 DELETE INBOX")


@pytest.mark.parametrize(
    "octets",
    [
        b"A7 OK nobody asked\r\n",
        b"* 1 FETCH (UID 1\r\n",
        b"* 1 FETCH UID 1)\r\n",
        b'* LIST "never closed\r\n',
        b"* 1 FETCH (BODY[] {9999999999}\r\n",
        b"* (\r\n" * 3,
        b"x" * (imap.MAX_LINE + 1),
    ],
)
def test_what_is_not_imap_is_said_so(octets: bytes) -> None:
    talk = Conversation()
    talk.feed(b"* OK hello\r\n")
    with pytest.raises(ProtocolError):
        talk.feed(octets)


def test_deep_nesting_needs_no_stack() -> None:
    talk = Conversation()
    talk.command("NOOP")
    talk.feed(b"* OK hello\r\n* X " + b"(" * 20_000 + b")" * 20_000 + b"\r\nA1 OK\r\n")
