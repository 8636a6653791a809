"""Messages as other people's programs write and read them: finding the payload, writing whole messages, DSNs."""

import email
import importlib.util
import time
from email import policy
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimx.message import dsn
from aimx.message.compose import compose
from aimx.message.header import HeaderBlock
from aimx.message.part import leaves, parse_header, payload_leaf
from aimx.message.payload import Part, decode, encode


def payload_of(message: bytes) -> tuple[str, bytes]:
    headers, start = HeaderBlock.parse(message)
    leaf = payload_leaf(headers, message[start:])
    return leaf.full_type, leaf.data()


def object_of(message: bytes) -> object:
    return decode(*payload_of(message))


def written(payload: object, **rest: object) -> bytes:
    return compose(sender="a@x.local", to=["b@x.local"], payload=encode(payload), t_ms=0, **rest)  # type: ignore[arg-type]


# ── reading ──


@pytest.mark.parametrize("encoding", ["base64", "quoted-printable", "8bit", "7bit", "BINARY"])
def test_every_transfer_encoding(encoding: str) -> None:
    body = {"base64": b"eyJh\r\nIjox\r\nfQ==\r\n", "quoted-printable": b'{"a"=3A=\r\n1}\r\n'}.get(
        encoding, b'{"a":1}\r\n'
    )
    head = f"Content-Type: application/json\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode()
    assert object_of(head + body) == {"a": 1}


def test_base64_as_sloppy_programs_write_it() -> None:
    head = b"Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    for body in (b"aGVsbG8=", b"aGVsbG8", b" aGVs\r\n\r\nbG8=\r\n", b"aGVs*bG8=", b"aGVsbG8=\r\n-- \r\n"):
        assert payload_of(head + body)[1].startswith(b"hello"), body


def test_the_payload_is_the_first_part_unless_one_is_marked() -> None:
    mail = EmailMessage(policy=policy.SMTP)
    mail.set_content("for people")
    mail.add_attachment(b'{"a":1}', "application", "json", filename="a.json")
    assert object_of(mail.as_bytes()) == "for people"
    marked = mail.as_bytes().replace(b"attachment; filename", b"inline; payload; filename")
    assert object_of(marked) == {"a": 1}


def test_nested_multiparts_and_names_of_files() -> None:
    mail = EmailMessage(policy=policy.SMTP)
    mail.set_content("plain")
    mail.add_alternative("<p>html</p>", subtype="html")
    mail.add_attachment(b"\x00\x01", "application", "octet-stream", filename="größe.bin")
    raw = mail.as_bytes()
    headers, start = HeaderBlock.parse(raw)
    found = leaves(headers, raw[start:])
    assert [leaf.content_type for leaf in found] == ["text/plain", "text/html", "application/octet-stream"]
    assert found[2].filename == "größe.bin"
    assert found[2].data() == b"\x00\x01"


@pytest.mark.parametrize(
    ("value", "word", "parameters"),
    [
        (None, "", {}),
        ("Text/PLAIN", "text/plain", {}),
        ('a/b; Charset="utf-8"; x=y', "a/b", {"charset": "utf-8", "x": "y"}),
        (r'a/b; name="qu\"ote;d"; z=1', "a/b", {"name": 'qu"ote;d', "z": "1"}),
        ("inline; payload; filename=x", "inline", {"payload": "", "filename": "x"}),
        ("a; f*0*=utf-8''gr%C3%B6; f*1=ss; f*2*=%C3%A9", "a", {"f": "grössé"}),
        ("a; f*=iso-8859-1'en'caf%E9", "a", {"f": "café"}),
        ("a; ;; =x; b=", "a", {"b": ""}),
        ('a; b="open', "a", {"b": '"open'}),
    ],
)
def test_parameters(value: str | None, word: str, parameters: dict[str, str]) -> None:
    assert parse_header(value) == (word, parameters)


@given(
    st.lists(
        st.sampled_from(
            [
                b"--b\r\n",
                b"--b--\r\n",
                b"--b",
                b"\r\n",
                b"\n",
                b"x",
                b"Content-Type: multipart/mixed; boundary=b\r\n",
                b"Content-Type: a/b\r\n",
                b"Content-Transfer-Encoding: base64\r\n",
                b"\r\n\r\n",
            ]
        ),
        max_size=40,
    )
)
def test_garbage_is_always_answered_with_a_part(pieces: list[bytes]) -> None:
    payload_of(b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n' + b"".join(pieces))


def test_hostile_multiparts_are_bounded() -> None:
    head = b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n'
    start = time.process_time()
    for body in (b"--b\r\n\r\n" * 200_000, b"--b" * 500_000, (head + b"--b\r\n") * 20_000, b"--bx\r\n" * 200_000):
        headers, at = HeaderBlock.parse(head + body)
        assert len(leaves(headers, (head + body)[at:])) <= 200
    value = "a; " + "x=y; " * 200_000
    assert len(parse_header(value).parameters) <= 64
    parse_header('a; b="' + "\\" * 500_000)
    assert time.process_time() - start < 4


def test_the_odd_mails_of_pythons_own_test_suite_all_have_a_payload() -> None:
    spec = importlib.util.find_spec("test.test_email")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("SKIPPED LOUDLY: this Python has no test/test_email/data")
    for path in sorted((Path(spec.submodule_search_locations[0]) / "data").glob("*.txt")):
        object_of(path.read_bytes())


# ── writing ──

values = st.text(max_size=300) | st.dictionaries(st.text(max_size=10), st.text(max_size=50)) | st.binary(max_size=200)


@given(values)
def test_what_is_written_is_read_back_by_us_and_decoded_alike_by_the_standard_library(value: object) -> None:
    if isinstance(value, str):
        value = value.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace").decode()
    message = written(value)
    assert object_of(message) == value
    assert message.isascii()
    assert b"\r" not in message.replace(b"\r\n", b"")
    assert b"\n" not in message.replace(b"\r\n", b"")
    assert all(len(line) <= 998 for line in message.split(b"\r\n"))
    theirs = email.message_from_bytes(message, policy=policy.default).get_payload(decode=True)
    assert theirs == payload_of(message)[1]


def test_a_whole_message() -> None:
    message = written(
        {"task": "sum"},
        subject="grüße an alle",
        text="for people",
        cc=["c@x.local"],
        message_id="<m1@x.local>",
        in_reply_to="<m0@x.local>",
        references=["<r0@x.local>"],
        workflow="wf-1",
        priority=1,
        headers={"X-Extra": "1"},
        attachments=[Part("image/png", b"\x89PNG", "größe.png"), Part("text/csv", b"a,b\n", 'q"uote.csv')],
        stamps=[b"traceparent: 00-x\r\n"],
    )
    assert message.startswith(b"traceparent: 00-x\r\nFrom: a@x.local\r\n")
    mail = email.message_from_bytes(message, policy=policy.default)
    assert not mail.defects
    assert mail["Subject"] == "grüße an alle"
    assert mail["References"] == "<r0@x.local> <m0@x.local>"
    assert mail["In-Reply-To"] == "<m0@x.local>"
    assert (mail["X-Workflow-ID"], mail["X-Priority"], mail["X-Extra"]) == ("wf-1", "1", "1")
    assert mail["Date"].datetime.timestamp() == 0
    parts = list(mail.walk())
    assert [part.get_content_type() for part in parts] == [
        "multipart/mixed",
        "text/plain",
        "application/json",
        "image/png",
        "text/csv",
    ]
    assert [part.get_filename() for part in parts[3:]] == ["größe.png", 'q"uote.csv']
    assert parts[3].get_payload(decode=True) == b"\x89PNG"
    assert object_of(message) == {"task": "sum"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"sender": "a@x\r\nBcc: evil@x"},
        {"to": ["not an address"]},
        {"to": ["<a@b>"]},
        {"subject": "x\r\nBcc: evil@x"},
        {"message_id": "<a\n@b>"},
        {"workflow": "a\r\nb"},
        {"headers": {"X-A": "b\nc"}},
        {"headers": {"Bad Name": "b"}},
        {"headers": {"From": "b@c"}},
        {"headers": {"TraceParent": "b"}},
    ],
)
def test_nothing_smuggles_a_header_in(wrong: dict[str, object]) -> None:
    arguments = {"sender": "a@x", "to": ["b@x"], "payload": encode("hi"), **wrong}
    with pytest.raises(ValueError, match=r"address|line break|extra header"):
        compose(**arguments)  # type: ignore[arg-type]


# ── DSN ──


def bounce(action: dsn.Action = "failed") -> bytes:
    original = (
        b"Message-ID: <m1@x.local>\r\nX-Workflow-ID: wf-1\r\nSubject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\n"
        b"traceparent: 00-x\r\nX-Raw: \xff\r\n\r\nsecret body"
    )
    recipient = dsn.Recipient(
        address="critic@x.local",
        action=action,
        status="4.2.2",
        reason="The agent has 10 unacknowledged messages\r\nBcc: evil",
        attempts=7,
        last_attempt_ms=1000,
        will_retry_until_ms=9000 if action == "delayed" else None,
    )
    return dsn.write(
        dsn.Notice(
            domain="x.local",
            host="mx.x.local",
            to="planner@x.local",
            message_id="<d1@x.local>",
            recipients=[recipient],
            original=HeaderBlock.parse(original)[0],
            accepted_ms=0,
            now_ms=2000,
            eid="01J00000000000000000000000",
            trace_id=b"\x12" * 16,
            event="01J00000000000000000000001",
            stamps=[b"traceparent: 00-ours\r\n"],
        )
    )


def test_a_dsn_is_understood_by_programs_and_people() -> None:
    mail = email.message_from_bytes(bounce(), policy=policy.default)
    assert not mail.defects
    assert mail.get_content_type() == "multipart/report"
    assert mail.get_param("report-type") == "delivery-status"
    assert mail["Auto-Submitted"] == "auto-replied"
    assert mail["In-Reply-To"] == "<m1@x.local>"
    assert mail["X-Workflow-ID"] == "wf-1"
    assert mail["traceparent"] == "00-ours"
    assert mail["Bcc"] is None
    words, status, headers = mail.iter_parts()
    assert "critic@x.local" in words.get_content()
    assert "aimx trace " + "12" * 16 in words.get_content()
    about, recipient = status.get_payload()  # type: ignore[misc]
    assert about["Reporting-MTA"] == "dns; mx.x.local"
    assert about["AIMX-Event"] == "01J00000000000000000000001"
    assert about["AIMX-Trace-ID"] == "12" * 16
    assert recipient["Final-Recipient"] == "rfc822; critic@x.local"
    assert (recipient["Action"], recipient["Status"]) == ("failed", "4.2.2")
    assert headers.get_content_type() == "text/rfc822-headers"
    assert b"secret body" not in bounce()


def test_a_dsn_is_read_back_by_the_sdk() -> None:
    raw = bounce()
    header, start = HeaderBlock.parse(raw)
    report = dsn.read(header, raw[start:])
    assert report is not None
    assert (report.action, report.status, report.recipient) == ("failed", "4.2.2", "critic@x.local")
    assert (report.eid, report.event) == ("01J00000000000000000000000", "01J00000000000000000000001")
    assert report.trace_id == "12" * 16


def test_other_mail_is_no_dsn() -> None:
    assert dsn.read(HeaderBlock.parse(b"Content-Type: multipart/report; boundary=x\r\n\r\n")[0], b"--x--\r\n") is None


def test_a_delay_says_until_when_it_is_retried() -> None:
    mail = email.message_from_bytes(bounce("delayed"), policy=policy.default)
    assert "Delayed" in mail["Subject"]
    assert b"Will-Retry-Until: Thu, 01 Jan 1970 00:00:09 +0000\r\n" in bounce("delayed")
