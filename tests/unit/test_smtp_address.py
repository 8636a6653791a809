"""MAIL and RCPT arguments."""

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimx.smtp.address import BadParameter, BadPath, parse_path


@pytest.mark.parametrize(
    ("argument", "address"),
    [
        ("<a@b.example>", "a@b.example"),
        (" <A@B.Example>", "a@b.example"),
        ("<>", ""),
        ("<Postmaster>", "postmaster@fabric.local"),
        ("<@relay.example,@other.example:a@b.example>", "a@b.example"),
        ('<"a b"@b.example>', '"a b"@b.example'),
        ('<"a>b"@b.example>', '"a>b"@b.example'),
        ('<"ab"@b.example>', "ab@b.example"),
        (r'<"a\b"@b.example>', "ab@b.example"),
        ("<a@[127.0.0.1]>", "a@[127.0.0.1]"),
        ("<j\u00fcrgen@b.example>", "jürgen@b.example"),
        ("<ju\u0308rgen@b.example>", "jürgen@b.example"),
        ("<a+b=c@b.example>", "a+b=c@b.example"),
        ("<" + "a" * 64 + "@b.example>", "a" * 64 + "@b.example"),
    ],
)
def test_one_mailbox_has_one_spelling(argument: str, address: str) -> None:
    assert parse_path(argument, "fabric.local").address == address


@pytest.mark.parametrize(
    "argument",
    [
        "",
        "a@b.example",
        "<a@b.example",
        "<a b@b.example>",
        "<a@b..example>",
        "<.a@b.example>",
        "<a@>",
        "<@b.example>",
        "<@r.example a@b.example>",
        "<a>",
        "<a@b.example>x",
        "<a\x01@b.example>",
        '<"a@b.example>',
        '<"a"b@b.example>',
        "<a@b_c.example>",
        "<" + "a" * 65 + "@b.example>",
        "<a@" + "b" * 256 + ">",
        "<a@" + "b." * 125 + "example>",
        "<a@[127.0.0.1>",
        "<a@b.example\n>",
    ],
)
def test_what_is_no_path_is_refused(argument: str) -> None:
    with pytest.raises(BadPath):
        parse_path(argument, "fabric.local")


def test_parameters_are_read_by_keyword() -> None:
    assert parse_path("<a@b.example> SIZE=10  body=8BITMIME SMTPUTF8", "fabric.local").parameters == {
        "SIZE": "10",
        "BODY": "8BITMIME",
        "SMTPUTF8": None,
    }


@pytest.mark.parametrize("rest", ["SIZE=1 SIZE=2", "=1", "SIZE=", "SI_ZE=1", "SIZE=1\x7f2", "SIZE==1"])
def test_malformed_parameters_are_refused(rest: str) -> None:
    with pytest.raises(BadParameter):
        parse_path(f"<a@b.example> {rest}", "fabric.local")


@given(st.text(max_size=300))
def test_no_argument_does_more_than_be_refused(argument: str) -> None:
    with contextlib.suppress(BadPath, BadParameter):
        parse_path(argument, "fabric.local")


@pytest.mark.parametrize("unit", ['"', "\\", '"\\', "a.", ".", "@", "<", " ", "=", "<a@", "A=b "])
def test_no_argument_is_slow(unit: str) -> None:
    start = time.process_time()
    for shape in ("<{}@b.example>", "<{}", '<"{}', "<a@{}>", "<a@b.example> {}"):
        with contextlib.suppress(BadPath, BadParameter):
            parse_path(shape.format(unit * (12_000 // len(unit))), "fabric.local")
    assert time.process_time() - start < 0.1
