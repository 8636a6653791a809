"""The client's side of SMTP: replies and data as the octets come, and commands with what the other side knows."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimx.delivery.smtp_client import (
    Broken,
    Envelope,
    Extensions,
    Recipient,
    Replies,
    Reply,
    Stuffing,
    mail,
    rcpt,
)
from aimx.smtp.core import Chunk, EndOfData, Fault, Receiver

WORDS = ["SIZE 1000", "8BITMIME", "SMTPUTF8", "DSN", "MT-PRIORITY", "AUTH PLAIN", "AUTH=LOGIN"]
ALL = Extensions(Reply(250, ["x", *WORDS]))
TEXT = st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), max_size=40)
SAID = st.tuples(st.integers(200, 599), st.lists(TEXT, min_size=1, max_size=4))


def pieces(octets: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(octets), *(cut % (len(octets) + 1) for cut in cuts)})
    return [octets[a:b] for a, b in pairwise(at)]


@given(st.lists(SAID, max_size=5), st.lists(st.integers(0, 10_000)))
def test_replies_are_the_same_however_they_are_cut(said: list[tuple[int, list[str]]], cuts: list[int]) -> None:
    octets = b""
    for code, lines in said:
        for number, line in enumerate(lines):
            octets += f"{code}{' ' if number == len(lines) - 1 else '-'}{line}\r\n".encode()
    parser = Replies()
    found = [reply for piece in pieces(octets, cuts) for reply in parser.feed(piece)]
    assert found == [Reply(code, lines) for code, lines in said]
    assert not parser.pending


@given(st.binary(max_size=200), st.lists(st.integers(0, 200)))
def test_garbage_is_an_error_of_theirs_and_nothing_else(octets: bytes, cuts: list[int]) -> None:
    parser = Replies()
    try:
        for piece in pieces(octets, cuts):
            for reply in parser.feed(piece):
                assert all(line.isprintable() for line in reply.lines)
    except Broken:
        pass


@pytest.mark.parametrize(
    "octets",
    [b"250-a\r\n251 b\r\n", b"HTTP/1.1 200 OK\r\n", b"250" + b"x" * 5000, b"250-x\r\n" * 300, b"99 x\r\n", b"\r\n"],
)
def test_what_is_no_reply_is_noticed(octets: bytes) -> None:
    with pytest.raises(Broken):
        Replies().feed(octets)


@given(st.lists(st.sampled_from([b"\r\n", b".", b"..", b"a", b"\r\n."]), max_size=30), st.lists(st.integers(0, 200)))
def test_our_server_reads_what_our_client_writes(parts: list[bytes], cuts: list[int]) -> None:
    octets = b"".join(parts)
    stuffing, receiver = Stuffing(), Receiver()
    sent = b"".join(stuffing.feed(piece) for piece in pieces(octets, cuts)) + stuffing.end()
    receiver.begin_data()
    receiver.feed(sent)
    got = b""
    while (event := receiver.next_event()) is not None and not isinstance(event, EndOfData):
        assert isinstance(event, Chunk)
        got += event.data
    assert event == EndOfData(Fault.NONE)
    assert got == (octets if not octets or octets.endswith(b"\r\n") else octets + b"\r\n")


def test_extensions_are_read_whatever_their_case_and_age() -> None:
    assert ALL.size == 1000
    assert ALL.mechanisms == {"PLAIN", "LOGIN"}
    assert Extensions(Reply(250, ["x", "size"])).size is None
    assert Extensions(Reply(250, ["x", "SIZE 0"])).size is None
    assert "STARTTLS" in Extensions(Reply(250, ["x", "StartTLS"]))


def test_only_what_the_other_side_knows_is_asked_of_it() -> None:
    to = Recipient("bob@b.example", "SUCCESS", "rfc822;bob@b.example")
    envelope = Envelope("ada@a.example", [to], 77, True, True, "HDRS", "e1", 3)
    assert mail(envelope, ALL) == (
        b"MAIL FROM:<ada@a.example> SIZE=77 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=e1 MT-PRIORITY=3\r\n"
    )
    assert rcpt(to, ALL) == b"RCPT TO:<bob@b.example> NOTIFY=SUCCESS ORCPT=rfc822;bob@b.example\r\n"
    assert mail(envelope, Extensions()) == b"MAIL FROM:<ada@a.example>\r\n"
    assert rcpt(to, Extensions()) == b"RCPT TO:<bob@b.example>\r\n"


def test_an_address_is_quoted_where_it_must_be_and_never_ends_a_line() -> None:
    assert rcpt(Recipient("a b@b.example"), ALL) == b'RCPT TO:<"a b"@b.example>\r\n'
    assert rcpt(Recipient('"a b"@b.example'), ALL) == b'RCPT TO:<"a b"@b.example>\r\n'
    assert mail(Envelope("", [], 1), Extensions()) == b"MAIL FROM:<>\r\n"
    with pytest.raises(ValueError, match="control"):
        rcpt(Recipient("a\r\nDATA@b.example"), ALL)
