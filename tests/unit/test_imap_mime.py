"""The structure of messages: what a careful mail has, and that garbage has one too, in linear time and any pieces."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimx.imap import mime
from aimx.imap.mime import Address, Part, Scanner, body_structure, locate, structure
from aimx.message.header import HeaderBlock

NESTED_HEADER = b'Content-Type: multipart/mixed; boundary="b1"\r\nSubject: x\r\n\r\n'
NESTED_BODY = (
    b"preamble\r\n--b1\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nhello\r\nworld\r\n"
    b"--b1\r\nContent-Type: message/rfc822\r\n\r\nFrom: a@b\r\nSubject: in\r\n"
    b"Content-Type: multipart/alternative; boundary=b2\r\n\r\n--b2\r\n\r\none\r\n--b2\r\nContent-Type: text/html\r\n"
    b'Content-Disposition: attachment; filename="a b.txt"\r\n\r\n<b>\r\n--b2--\r\n\r\n--b1--\r\nepilogue\r\n'
)


def flat(part: Part) -> object:
    """Everything of a part that can differ."""
    return (
        (part.head, part.start, part.end, part.lines, part.content, part.multipart, part.envelope),
        [flat(child) for child in part.children],
        flat(part.embedded) if part.embedded else None,
    )


def test_a_message_with_a_message_inside() -> None:
    root = structure(NESTED_HEADER, NESTED_BODY)
    whole = NESTED_HEADER + NESTED_BODY

    def octets(*path: int) -> bytes | None:
        part = locate(root, path)
        return whole[part.start : part.end] if part else None

    assert octets(1) == b"hello\r\nworld"
    assert octets(2, 1) == b"one"
    assert octets(2, 2) == b"<b>"
    assert octets(3) is octets(1, 1) is octets(2, 3) is None
    assert (octets(2) or b"").startswith(b"From: a@b\r\nSubject: in\r\n")
    assert body_structure(root, extended=False) == (
        b'(("TEXT" "PLAIN" ("CHARSET" "utf-8") NIL NIL "7BIT" 12 1)'
        b'("MESSAGE" "RFC822" NIL NIL NIL "7BIT" 188 (NIL "in" ((NIL NIL "a" "b")) ((NIL NIL "a" "b"))'
        b' ((NIL NIL "a" "b")) NIL NIL NIL NIL NIL) (("TEXT" "PLAIN" ("CHARSET" "US-ASCII") NIL NIL "7BIT" 3 0)'
        b'("TEXT" "HTML" NIL NIL NIL "7BIT" 3 0) "ALTERNATIVE") 13) "MIXED")'
    )
    assert b'("attachment" ("FILENAME" "a b.txt"))' in body_structure(root, extended=True)


def test_a_message_that_is_no_multipart_has_one_part() -> None:
    root = structure(b"Subject: x\r\n\r\n", b"text")
    assert locate(root, (1,)) is root
    assert locate(root, (2,)) is locate(root, (1, 1)) is None


def test_parts_of_a_digest_are_messages() -> None:
    root = structure(
        b"Content-Type: multipart/digest; boundary=d\r\n\r\n", b"--d\r\n\r\nSubject: one\r\n\r\nbody\r\n--d--\r\n"
    )
    assert root.children[0].embedded is not None
    assert b'"one"' in (root.children[0].embedded.envelope or b"")


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (b"", b""),
        (b"\r\n", b""),
        (b"Content-Type: multipart/mixed\r\n\r\n", b"no boundary"),
        (b"Content-Type: multipart/mixed; boundary=\r\n\r\n", b"--\r\n\r\nx\r\n----\r\n"),
        (b"Content-Type: multipart/mixed; boundary=b\r\n\r\n", b"nothing"),
        (b"Content-Type: multipart/mixed; boundary=b\r\n\r\n", b"--b"),
        (b"Content-Type: multipart/mixed; boundary=b\r\n\r\n", b"--b--"),
        (b"Content-Type: multipart/mixed; boundary=b\r\n\r\n", b"--b\r\n--b\r\n--b\r\n"),
        (b"Content-Type: multipart/mixed; boundary=b\n\n", b"--b\nA: b\n\nx\n--b--\n"),
        (b"Content-Type: /\r\n\r\n", b"x"),
        (b"Content-Type: text\r\n\r\n", b"x"),
        (b'Content-Type: text/plain; charset="\r\n\r\n', b"x"),
        (b"Content-Type: message/rfc822\r\n\r\n", b""),
        (b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n", b"U3ViamVjdDogeA=="),
        (b"\xff\xfe: \x00\r\n\x00\r\n\r\n", b"\x00\xff"),
        (
            b"Content-Type: multipart/mixed; boundary=b\r\n\r\n",
            b"--b\r\nContent-Type: multipart/x; boundary=b\r\n\r\n--b\r\n",
        ),
    ],
)
def test_garbage_is_answered(header: bytes, body: bytes) -> None:
    for extended in (False, True):
        written = body_structure(structure(header, body), extended)
        assert balanced(written)
    assert balanced(mime.envelope(HeaderBlock.parse(header)[0]))


def balanced(written: bytes) -> bool:
    """Whether a client's parser finds its way through: strings closed, parentheses matched."""
    depth, place = 0, 0
    while place < len(written):
        char = written[place : place + 1]
        if char == b'"':
            place += 1
            while written[place : place + 1] != b'"':
                place += 2 if written[place : place + 1] == b"\\" else 1
                if place >= len(written):
                    return False
        elif char == b"{":
            end = written.index(b"}\r\n", place)
            place = end + 2 + int(written[place + 1 : end])
        elif char in b"()":
            depth += 1 if char == b"(" else -1
            if depth < 0:
                return False
        place += 1
    return depth == 0


LINES = st.sampled_from(
    [
        b"--b1\r\n", b"--b2\r\n", b"--b1--\r\n", b"--b2--\r\n", b"\r\n", b"\n", b"--b1 \t\r\n", b"--b11\r\n", b"-",
        b"Content-Type: multipart/mixed; boundary=b2\r\n", b"Content-Type: message/rfc822\r\n", b"text\r\n", b"\r",
        b"Content-Type: multipart/digest; boundary=b1\r\n", b"Subject: x\r\n", b"--b1", b"x",
    ]
)  # fmt: skip


@given(st.lists(LINES, max_size=40).map(b"".join), st.integers(0, 2**32))
def test_any_pieces_of_a_body_give_the_same_structure(body: bytes, seed: int) -> None:
    whole = structure(NESTED_HEADER, body)
    dice = random.Random(seed)
    scanner = Scanner(NESTED_HEADER)
    place = 0
    while place < len(body):
        size = dice.choice((1, 2, 3, 7, 30))
        scanner.feed(body[place : place + size])
        place += size
    assert flat(scanner.finish()) == flat(whole)
    assert balanced(body_structure(whole, extended=True))


@given(st.lists(LINES, max_size=40).map(b"".join))
def test_parts_lie_inside_their_parents_and_in_order(body: bytes) -> None:
    def check(part: Part, low: int, high: int) -> None:
        assert low <= part.head <= part.start <= part.end <= high
        assert part.lines >= 0
        for child in part.children:
            check(child, low, part.end)
            low = child.end
        if part.embedded:
            check(part.embedded, part.start, part.end)

    check(structure(NESTED_HEADER, body), 0, len(NESTED_HEADER) + len(body))


@pytest.mark.parametrize(
    "body",
    [
        b"--x\r\n" * 100_000,
        b"--b1\r\n\r\n" * 60_000,
        b"--b1\r\nA: b\r\n" * 40_000,
        b"--b1\r\n" + b"Content-Type: message/rfc822\r\n\r\n" * 20_000,
        b"".join(b"--b%d\r\nContent-Type: multipart/x; boundary=b%d\r\n\r\n" % (n, n + 1) for n in range(1, 8000)),
        b"--b1\r\n" + b"x" * 500_000,
    ],
    ids=["candidates", "parts", "headers", "messages", "nesting", "one line"],
)
def test_no_body_takes_long_or_nests_without_end(body: bytes) -> None:
    root = structure(NESTED_HEADER, body)
    count = depth = 0
    pending = [(root, 1)]
    while pending:
        part, level = pending.pop()
        count, depth = count + 1, max(depth, level)
        pending += [(child, level + 1) for child in (*part.children, *([part.embedded] if part.embedded else []))]
    assert count <= mime.MAX_PARTS + mime.MAX_DEPTH
    assert depth <= mime.MAX_DEPTH
    assert balanced(body_structure(root, extended=True))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b'"Joe, X" <joe@x.org>', [Address(b"Joe, X", b"joe", b"x.org")]),
        (b"foo@bar (Foo Bar)", [Address(b"Foo Bar", b"foo", b"bar")]),
        (
            b"grp: a@b, c@d;, e@f",
            [
                Address(None, b"grp", None),
                Address(None, b"a", b"b"),
                Address(None, b"c", b"d"),
                Address(None, None, None),
                Address(None, b"e", b"f"),
            ],
        ),
        (b"undisclosed-recipients:;", [Address(None, b"undisclosed-recipients", None), Address(None, None, None)]),
        (b"<@r1,@r2:u@h>", [Address(None, b"u", b"h")]),
        (b"John Doe <a.b @ c.d>", [Address(b"John Doe", b"a.b", b"c.d")]),
        (b'"q \\" x"@d', [Address(None, b'q " x', b"d")]),
        (b"foo", [Address(None, b"foo", b"")]),
        (b"a@[1.2.3.4]", [Address(None, b"a", b"[1.2.3.4]")]),
        (b"", []),
        (b",,,", []),
    ],
)
def test_addresses(value: bytes, expected: list[Address]) -> None:
    assert mime.addresses(value) == expected


@given(st.text(alphabet='<>@,;:"\\()[] ab\u00e9', max_size=60))
def test_any_address_field_can_be_written(text: str) -> None:
    header = HeaderBlock.parse(b"From: " + text.encode() + b"\r\nTo: " + text.encode() + b"\r\n\r\n")[0]
    assert balanced(mime.envelope(header))


def test_the_odd_mails_of_python_have_structures() -> None:
    test = pytest.importorskip("test.test_email", reason="Python's own test-suite is not installed")
    mails = sorted(Path(test.__file__).parent.joinpath("data").glob("msg_*.txt"))
    assert len(mails) > 30
    for path in mails:
        octets = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        header, start = HeaderBlock.parse(octets)
        assert balanced(mime.envelope(header)), path.name
        assert balanced(body_structure(structure(octets[:start], octets[start:]), extended=True)), path.name


@pytest.mark.parametrize(
    ("fields", "octets", "text"),
    [
        (b"Content-Type: application/json\r\nContent-Transfer-Encoding: base64", b"eyJhIjogIkjDuGoifQ==", "h\u00f8j"),
        (
            b"Content-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: quoted-printable",
            b"Gr=FC=DFe",
            "gr\u00fcsse",
        ),
    ],
)
def test_search_text_is_found_behind_encodings(fields: bytes, octets: bytes, text: str) -> None:
    body = b"--b1\r\n" + fields + b"\r\n\r\n" + octets + b"\r\n--b1--\r\n"
    assert text in mime.text_of(NESTED_HEADER, body)


def test_the_envelope_has_the_recipients_of_every_field_so_that_an_answer_to_all_reaches_all() -> None:
    header = HeaderBlock.parse(b"From: a@x\r\nCc: b@x\r\nTo: c@x\r\nCc: d@x,\r\n e@x\r\nFrom: z@x\r\n\r\n")[0]
    written = mime.envelope(header)
    assert b'((NIL NIL "b" "x")(NIL NIL "d" "x")(NIL NIL "e" "x"))' in written
    assert b'"z"' not in written
