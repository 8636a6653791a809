"""The header block: every byte kept, garbage tolerated, text decoded, and never more than linear time."""

import importlib.util
import time
from email import policy
from email.parser import BytesHeaderParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimx.message.header import HeaderBlock, text
from aimx.message.stamp import line

PLAIN = b"From: a@b.example\r\nSubject: hello\r\n folded\r\nX-Note: 1\r\nx-note: 2\r\n\r\nbody\r\n"


def whole(data: bytes) -> bytes:
    block, start = HeaderBlock.parse(data)
    return block.to_bytes() + data[start:]


def test_fields_are_found_whatever_their_case_and_folding() -> None:
    block, start = HeaderBlock.parse(PLAIN)
    assert PLAIN[start:] == b"body\r\n"
    assert block.get("SUBJECT") == "hello folded"
    assert block.get_all("X-Note") == ["1", "2"]
    assert block.get("Date") is None
    assert "from" in block
    assert block.count("x-note") == 2
    assert block.raw_fields("subject") == [b"Subject: hello\r\n folded\r\n"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n",
        b"\n",
        b"\r\nbody only",
        b"Subject: no body",
        b"Subject: no body\r\n",
        b"Subject: x\r\nno separator here\r\n",
        b"Subject: bare line feeds\n\nbody\n",
        b"Subject: mixed\r\n\nbody",
        b"Subject: mixed\n\r\nbody",
        b" leading space\r\nSubject: x\r\n\r\nbody",
        b"\tno header at all",
        b"no header at all",
        b"From someone Mon Jan  1\r\nSubject: mbox line\r\n\r\nbody",
        b"garbage line\r\nSubject: x\r\nmore garbage\r\n continued\r\n\r\nbody",
        b"Subject: \x00nul\r\nX: \xff\xfe\r\n\r\n\x00",
        b": no name\r\nSpace : before colon\r\n\r\n",
        b"Subject: bare\rCR\r\n\r\nbody",
        b"A:\r\n \r\nB: c\r\n\r\n",
        b"Na\xefve: 8-bit name\r\n\r\n",
    ],
)
def test_odd_messages_are_kept_byte_for_byte(data: bytes) -> None:
    assert whole(data) == data


@given(
    st.lists(
        st.sampled_from([b"a", b"X:", b": ", b" ", b"\t", b"\r", b"\n", b"\r\n", b"\0", b"\xff", b"AIMX-Trace: x"])
    )
)
def test_any_bytes_are_kept_byte_for_byte(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    assert whole(data) == data


@given(st.lists(st.sampled_from([b"a", b"X: 1", b" ", b"\t", b"\r\n", b"\n", b"AIMX-Trace: x", b":"])))
def test_stripping_and_prepending_change_nothing_else(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    block, start = HeaderBlock.parse(data)
    kept = [field.raw for field in block.fields if field.name != b"aimx-trace"]
    block.strip(lambda name: name.startswith(b"aimx-"))
    assert "AIMX-Trace" not in block
    block.prepend([b"AIMX-Trace: ours\r\n", b"X-Top: 1\r\n"])
    result = block.to_bytes() + data[start:]
    assert result.startswith(b"AIMX-Trace: ours\r\nX-Top: 1\r\n")
    assert result.endswith(b"".join(kept) + block.separator + data[start:])
    again, _ = HeaderBlock.parse(result)
    assert again.get("AIMX-Trace") == "ours"
    assert again.get("X-Top") == "1"


def test_a_message_that_opens_with_space_cannot_lengthen_a_header_of_ours() -> None:
    for data in (b" evil\r\nSubject: x\r\n\r\nbody", b" evil, and no header at all"):
        block, start = HeaderBlock.parse(data)
        block.prepend([b"X-Agent-ID: planner\r\n"])
        result = block.to_bytes() + data[start:]
        assert HeaderBlock.parse(result)[0].get("X-Agent-ID") == "planner"
        assert result.endswith(data)


def test_a_header_that_does_not_end_is_reported() -> None:
    block, start = HeaderBlock.parse(b"A: b\r\n" * 100, limit=300)
    assert block.overlong
    assert start <= 306
    assert not HeaderBlock.parse(b"A: b\r\n" * 10, limit=300)[0].overlong


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b" =?utf-8?q?gr=C3=BC=C3=9Fe?=", "grüße"),
        (b" =?UTF-8?B?Z3LDvMOfZQ==?=", "grüße"),
        (b" =?utf-8?q?one?=\r\n =?utf-8?q?_two?= three", "one two three"),
        (b" =?iso-8859-1?q?caf=E9?=", "café"),
        (b" =?iso-2022-jp?b?GyRCRnxLXBsoQg==?=", "日本"),
        (b" =?utf-8*en?q?lang?=", "lang"),
        (b" =?no-such-charset?q?caf=C3=A9?=", "café"),
        (b" =?idna?q?xn--a?=", "xn--a"),
        (b" =?utf-8?b?!!!?=", ""),
        (b" =?utf-8?q?unclosed", "=?utf-8?q?unclosed"),
        (" grüße".encode(), "grüße"),
        (b" caf\xe9", "caf\ufffd"),
        (b" nul\x00", "nul\ufffd"),
    ],
)
def test_text_is_decoded(raw: bytes, expected: str) -> None:
    assert text(raw) == expected


@given(st.binary(max_size=200))
def test_decoding_never_fails_and_the_result_can_be_encoded(raw: bytes) -> None:
    text(raw).encode()
    text(b"=?utf-7?b?" + raw + b"?=").encode()


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=300))
def test_what_stamp_writes_is_read_back_by_us_and_by_the_standard_library(value: str) -> None:
    value = " ".join(value.split(" ")).strip()
    if value != " ".join(value.split()) or "=?" in value:
        return
    raw = line("Subject", value)
    assert all(len(each) <= 998 for each in raw.split(b"\r\n"))
    assert HeaderBlock.parse(raw)[0].get("Subject") == value
    if len(raw) < 400:
        theirs = BytesHeaderParser(policy=policy.default).parsebytes(raw + b"\r\n")["Subject"]
        assert str(theirs).strip() == value


@pytest.mark.parametrize(
    "data",
    [
        b"x" * 1_000_000,
        b"x " * 500_000,
        b"\n ".join([b"A: b"] * 200_000) + b"\r\n\r\n",
        b"A: " + b"=?" * 400_000 + b"\r\n\r\n",
        b"A: " + b"=?utf-8?q?" * 90_000 + b"\r\n\r\n",
        b"A: " + b"?= " * 300_000 + b"\r\n\r\n",
        b"A: ?=" + b" " * 900_000 + b"x\r\n\r\n",
        b"A: b\r\n" * 170_000,
    ],
)
def test_hostile_headers_cost_linear_time(data: bytes) -> None:
    start = time.process_time()
    block, _ = HeaderBlock.parse(data)
    block.get("A")
    assert time.process_time() - start < 3


def _odd_mails() -> list[Path]:
    spec = importlib.util.find_spec("test.test_email")
    if spec is None or not spec.submodule_search_locations:
        return []
    return sorted((Path(spec.submodule_search_locations[0]) / "data").glob("*.txt"))


def test_the_odd_mails_of_pythons_own_test_suite_come_back_byte_for_byte() -> None:
    mails = _odd_mails()
    if not mails:
        pytest.skip("SKIPPED LOUDLY: this Python has no test/test_email/data")
    assert len(mails) > 40
    for path in mails:
        data = path.read_bytes()
        for variant in (data, data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")):
            block, start = HeaderBlock.parse(variant)
            assert block.to_bytes() + variant[start:] == variant, path.name
            block.prepend([b"Received: by us\r\n"])
            stamped = block.to_bytes() + variant[start:]
            assert stamped.endswith(variant), path.name
            for field in block.fields:
                block.get(field.name.decode() or "x")
