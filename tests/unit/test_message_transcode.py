"""A message made fit for 7-bit servers and lines of 998 octets says the same as before."""

from email import message_from_bytes, policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimx.message.header import HeaderBlock
from aimx.message.transcode import Untouchable, encode, fits, longest_line


def encoded(message: bytes, *, eight_bit: bool = False) -> bytes:
    header, start = HeaderBlock.parse(message)
    body = encode(header, message[start:], eight_bit=eight_bit)
    return header.to_bytes() + body


LONG = b'{"items": "' + b"x" * 40_000 + b'"}\r\n'


@given(st.lists(st.text(st.characters(exclude_characters="\r\n\0", codec="utf-8"), max_size=2000), max_size=5))
def test_text_comes_out_as_it_went_in(lines: list[str]) -> None:
    body = "".join(f"{line}\r\n" for line in lines).encode()
    out = encoded(b"Content-Type: text/plain; charset=utf-8\r\n\r\n" + body)
    assert fits(out, eight_bit=False)
    assert message_from_bytes(out).get_payload(decode=True) == body


@given(st.binary(max_size=5000).map(lambda octets: octets.replace(b"\r", b"").replace(b"\n", b"\r\n")))
def test_octets_come_out_as_they_went_in(body: bytes) -> None:
    out = encoded(b"Content-Type: application/json\r\n\r\n" + body)
    assert fits(out, eight_bit=False)
    if fits(body, eight_bit=False):
        assert out.endswith(body)
    else:
        assert message_from_bytes(out).get_payload(decode=True) == body


def test_only_the_part_that_needs_it_is_encoded() -> None:
    out = encoded(
        b"Content-Type: multipart/mixed; boundary=b\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        b"--b\r\nX-Odd:  kept \r\n\r\nplain\r\n"
        b"--b\r\nContent-Type: application/json\r\n\r\n" + LONG + b"--b--\r\n"
    )
    assert fits(out, eight_bit=False)
    assert b"--b\r\nX-Odd:  kept \r\n\r\nplain\r\n--b\r\n" in out
    message = message_from_bytes(out, policy=policy.default)
    assert message["Content-Transfer-Encoding"] == "7bit"
    _, attached = message.iter_parts()
    assert attached["Content-Transfer-Encoding"] == "base64"
    assert attached.get_payload(decode=True) == LONG.removesuffix(b"\r\n")


def test_a_message_in_a_message_is_encoded_inside() -> None:
    inner = b"Subject: inner\r\nContent-Type: text/plain; charset=utf-8\r\n\r\ngr\xc3\xbc\xc3\x9fe\r\n"
    out = encoded(b"Content-Type: message/rfc822\r\n\r\n" + inner)
    assert out.isascii()
    (inside,) = message_from_bytes(out).get_payload()
    assert inside.get_payload(decode=True) == "grüße\r\n".encode()


def test_eight_bit_may_stay_where_the_next_server_takes_it() -> None:
    message = "Content-Type: text/plain\r\n\r\ngrüße\r\n".encode()
    assert encoded(message, eight_bit=True).endswith("grüße\r\n".encode())


@pytest.mark.parametrize(
    "message",
    [
        b"Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\ngr\xc3\xbc\r\n--b--\r\n",
        b"DKIM-Signature: v=1\r\n\r\ngr\xc3\xbc\r\n",
        b"Content-Type: message/delivery-status\r\n\r\ngr\xc3\xbc\r\n",
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nX: gr\xc3\xbc\r\n\r\ngr\xc3\xbc\r\n--b--\r\n",
        b"Content-Transfer-Encoding: x-uuencode\r\n\r\ngr\xc3\xbc\r\n",
    ],
)
def test_what_may_not_be_touched_is_refused(message: bytes) -> None:
    with pytest.raises(Untouchable):
        encoded(message)


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(5, 20))
def test_a_long_line_is_seen_wherever_it_is(lengths: list[int], limit: int) -> None:
    body = b"".join(b"x" * length + b"\r\n" for length in lengths)
    assert longest_line(body, limit) == any(length > limit for length in lengths)
