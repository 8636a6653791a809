"""Payloads: objects to bytes and back by content type, and any body shown as JSON without surprises."""

import dataclasses
import json
import time
from datetime import UTC, datetime
from enum import Enum
from typing import Any
from uuid import UUID

import msgpack
import pytest
from google.protobuf import descriptor_pb2, struct_pb2, timestamp_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from aimx.message.payload import (
    Descriptors,
    PayloadError,
    as_json,
    codec_of,
    decode,
    encode,
    proto_name,
    wire_fields,
)

PROTO = 'application/protobuf; proto="lab.Task"'


def schema(extra_field: str | None = None) -> bytes:
    """message Task { string title = 1; repeated int64 steps = 2; double score = 3; bytes blob = 4;
    Timestamp due = 5; message Note { string text = 1; } Note note = 6; }"""
    file = FileDescriptorProto(name="lab.proto", package="lab", syntax="proto3")
    file.dependency.append("google/protobuf/timestamp.proto")
    task = file.message_type.add(name="Task")
    note = task.nested_type.add(name="Note")
    note.field.add(name="text", number=1, type=FieldDescriptorProto.TYPE_STRING, label=1)
    task.field.add(name="title", number=1, type=FieldDescriptorProto.TYPE_STRING, label=1)
    task.field.add(name="steps", number=2, type=FieldDescriptorProto.TYPE_INT64, label=3)
    task.field.add(name="score", number=3, type=FieldDescriptorProto.TYPE_DOUBLE, label=1)
    task.field.add(name="blob", number=4, type=FieldDescriptorProto.TYPE_BYTES, label=1)
    kind = FieldDescriptorProto.TYPE_MESSAGE
    task.field.add(name="due", number=5, type=kind, type_name=".google.protobuf.Timestamp", label=1)
    task.field.add(name="note", number=6, type=kind, type_name=".lab.Task.Note", label=1)
    if extra_field:
        task.field.add(name=extra_field, number=7, type=FieldDescriptorProto.TYPE_STRING, label=1)
    return FileDescriptorSet(file=[file]).SerializeToString()


def task(descriptors: Descriptors, **fields: Any) -> Message:
    cls = descriptors.find("lab.Task")
    assert cls is not None
    return cls(**fields)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
).filter(lambda value: not isinstance(value, str))


@given(plain)
def test_json_round_trip(value: object) -> None:
    part = encode(value)
    assert part.content_type == "application/json"
    assert decode(part.content_type, part.data) == value
    assert all(len(line) < 990 for line in part.data.split(b"\n")) or b'"' in part.data


@given(plain)
def test_msgpack_round_trip(value: object) -> None:
    part = encode(value, "msgpack")
    assert decode(part.content_type, part.data) == value
    # An 8-bit body of a single-part message ends with the line end of DATA.
    assert decode("application/x-msgpack", part.data + b"\r\n") == value


def test_what_holds_bytes_goes_as_msgpack_by_itself() -> None:
    part = encode({"image": b"\x00\xff", "n": [1, {"deep": b"x"}]})
    assert part.content_type == "application/msgpack"
    assert decode(part.content_type, part.data) == {"image": b"\x00\xff", "n": [1, {"deep": b"x"}]}


def test_text_and_bytes_are_themselves() -> None:
    text = encode("grüße\nzwei")
    assert codec_of(text.content_type) == "text"
    assert decode(text.content_type, text.data.replace(b"\n", b"\r\n") + b"\r\n") == "grüße\nzwei"
    assert decode('text/plain; charset="iso-8859-1"', b"caf\xe9") == "café"
    raw = encode(b"\x00\x01")
    assert decode(raw.content_type, raw.data) == b"\x00\x01"


class Mood(Enum):
    GOOD = "good"


@dataclasses.dataclass
class Step:
    name: str
    at: datetime
    mood: Mood


class Model:
    def model_dump(self) -> dict[str, object]:
        return {"id": UUID(int=1)}


def test_python_objects_become_plain_data() -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    part = encode({"steps": (Step("a", at, Mood.GOOD),), "model": Model(), 7: {1}})
    assert json.loads(part.data) == {
        "steps": [{"name": "a", "at": "2026-01-02T00:00:00+00:00", "mood": "good"}],
        "model": {"id": "00000000-0000-0000-0000-000000000001"},
        "7": [1],
    }


@pytest.mark.parametrize("value", [float("nan"), {"a": float("inf")}, object(), {("a",): 1}])
def test_what_json_cannot_say_is_refused_with_words(value: object) -> None:
    with pytest.raises(PayloadError, match=r"JSON|neither|key"):
        encode(value)


def test_an_object_that_holds_itself_is_refused() -> None:
    loop: list[object] = []
    loop.append(loop)
    for codec in ("json", "msgpack"):
        with pytest.raises(PayloadError, match="deep"):
            encode(loop, codec)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content_type", "data"),
    [
        ("application/json", b"{"),
        ("application/json", b"[" * 100_000),
        ("application/json", b"9" * 5000),
        ("application/json", b"\xff"),
        ("application/vnd.task+json; charset=utf-16", b"\x00"),
        ("application/msgpack", b"\xc1"),
        ("application/msgpack", b"\x91" * 5000),
        ("application/msgpack", b"\xdd\xff\xff\xff\xff"),
        ("application/msgpack", b"\x81\x90\x01"),
        ("application/protobuf", b"\xff\xff"),
        (PROTO, b"\x0a\xff"),
    ],
)
def test_a_body_that_is_not_what_it_says_is_one_kind_of_error(content_type: str, data: bytes) -> None:
    with pytest.raises(PayloadError):
        decode(content_type, data, Descriptors([schema()]))
    json.dumps(as_json(content_type, data, Descriptors([schema()])).value, allow_nan=False)


# ── Protocol Buffers ──


def test_a_registered_message_is_read_written_and_shown() -> None:
    descriptors = Descriptors()
    assert descriptors.add(schema()) == ["lab.Task", "lab.Task.Note"]
    assert descriptors.names() == ["lab.Task", "lab.Task.Note"]
    message = task(descriptors, title="go", steps=[1, 2], score=float("nan"), blob=b"\xff", note={"text": "x"})
    message.due.FromSeconds(0)  # type: ignore[attr-defined]
    part = encode(message)
    assert part.content_type == PROTO
    back = decode(part.content_type, part.data, descriptors)
    assert isinstance(back, Message)
    assert back.title == "go"  # type: ignore[attr-defined]
    shown = as_json(part.content_type, part.data + b"\r\n", descriptors)
    assert shown.note is None
    assert shown.value == {
        "title": "go",
        "steps": ["1", "2"],
        "score": "NaN",
        "blob": "/w==",
        "due": "1970-01-01T00:00:00Z",
        "note": {"text": "x"},
    }
    json.dumps(shown.value, allow_nan=False)


def test_without_a_schema_fields_are_shown_by_number_and_it_is_said() -> None:
    part = encode(
        task(Descriptors([schema()]), title="go", steps=[300], score=0.5, blob=b"\x00\xff", note={"text": "x"})
    )
    shown = as_json(part.content_type, part.data)
    assert shown.value["1"] == "go"
    assert shown.value["3"] == 0.5
    assert shown.value["4"] == "AP8="
    assert shown.note is not None
    assert "no schema for lab.Task" in shown.note
    assert "field number" in shown.note
    nameless = as_json("application/x-protobuf", part.data)
    assert nameless.note is not None
    assert "names no message type" in nameless.note


def test_a_type_that_the_program_itself_imported_needs_no_schema() -> None:
    part = encode(timestamp_pb2.Timestamp(seconds=5))
    assert decode(part.content_type, part.data) == timestamp_pb2.Timestamp(seconds=5)
    assert as_json(part.content_type, part.data).value == "1970-01-01T00:00:05Z"


def test_what_json_cannot_say_of_a_message_falls_back_to_field_numbers() -> None:
    part = encode(timestamp_pb2.Timestamp(seconds=1 << 60))
    shown = as_json(part.content_type, part.data)
    assert shown.value == {"1": 1 << 60}
    assert shown.note is not None
    nan = encode(struct_pb2.Value(number_value=float("nan")))
    json.dumps(as_json(nan.content_type, nan.data).value, allow_nan=False)


def test_a_newer_version_of_a_schema_replaces_the_older_one() -> None:
    descriptors = Descriptors([schema(), schema("owner")])
    part = encode(task(descriptors, title="go", owner="me"))
    assert as_json(part.content_type, part.data, descriptors).value == {"title": "go", "owner": "me"}


def test_an_incomplete_schema_is_refused_and_says_what_to_do() -> None:
    file = FileDescriptorProto(name="x.proto", dependency=["missing.proto"])
    for data in (b"\xff", b"", FileDescriptorSet(file=[file]).SerializeToString()):
        with pytest.raises(PayloadError, match=r"include_imports|no file"):
            Descriptors([data])
    loop = FileDescriptorProto(name="x.proto", dependency=["x.proto"])
    with pytest.raises(PayloadError, match="include_imports"):
        Descriptors([FileDescriptorSet(file=[loop]).SerializeToString()])


@pytest.mark.parametrize("name", ["application/protobuf", "application/x-protobuf", "application/vnd.google.protobuf"])
def test_the_names_protobuf_goes_by(name: str) -> None:
    assert codec_of(name) == "protobuf"
    assert proto_name(f'{name}; messageType=".lab.Task"') == "lab.Task"
    assert proto_name(name) is None


@given(st.binary(max_size=300))
def test_any_bytes_can_be_shown_under_any_name(data: bytes) -> None:
    for content_type in (
        "application/json",
        "application/msgpack",
        PROTO,
        "application/protobuf",
        "text/plain",
        "image/png",
        "garbage",
    ):
        shown = as_json(content_type, data, Descriptors())
        json.dumps(shown.value, allow_nan=False)


@given(st.dictionaries(st.integers(1, 9), st.integers(0, 2**64 - 1), min_size=1))
def test_varints_are_read_as_the_library_wrote_them(fields: dict[int, int]) -> None:
    file = descriptor_pb2.FileDescriptorProto(name="v.proto", package="v", syntax="proto3")
    message = file.message_type.add(name="V")
    for number in range(1, 10):
        message.field.add(name=f"f{number}", number=number, type=FieldDescriptorProto.TYPE_UINT64, label=1)
    cls = Descriptors([FileDescriptorSet(file=[file]).SerializeToString()]).find("v.V")
    assert cls is not None
    data = cls(**{f"f{number}": value for number, value in fields.items()}).SerializeToString()
    assert wire_fields(data) == {str(number): value for number, value in fields.items() if value}


def test_what_is_shown_is_bounded() -> None:
    big = as_json("application/json", b'"' + b"x" * 2_000_000 + b'"')
    assert big.value is None
    assert big.note is not None
    deep: object = 1
    for _ in range(200):
        deep = [deep]
    shown = as_json("application/msgpack", msgpack.packb(deep))
    assert shown.note is not None
    assert "cut" in shown.note
    wide = as_json("application/msgpack", b"\xdd\x00\x0f\x00\x00" + b"\xc0" * 0x0F0000)
    assert len(wide.value) <= 100_000
    assert wide.note is not None


def test_hostile_protobuf_costs_little() -> None:
    nested = b""
    for _ in range(3000):
        size = len(nested)
        length = b""
        while size >= 0x80:
            length += bytes([size & 0x7F | 0x80])
            size >>= 7
        nested = b"\x0a" + length + bytes([size]) + nested
    start = time.process_time()
    as_json("application/protobuf", nested)
    as_json("application/protobuf", b"\x08\x01" * 400_000)
    assert time.process_time() - start < 5
