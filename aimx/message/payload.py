"""Payload codecs by content type: the one place where bytes of a body become objects and objects become bytes.

    JSON               application/json, text/json, */*+json
    MessagePack        application/msgpack, application/vnd.msgpack, application/x-msgpack, */*+msgpack
    Protocol Buffers   application/protobuf; proto="pkg.Type", application/x-protobuf, application/vnd.google.protobuf
    text               text/*
    anything else      bytes

`encode` and `decode` serve programs, `as_json` serves people: it never fails, and says where it had to guess or cut.
"""

import dataclasses
import json
import math
import struct
from base64 import b64encode
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from enum import Enum
from typing import Any, Literal, NamedTuple
from uuid import UUID

import msgpack
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError, EncodeError, Message

from aimx.message.header import decode_text
from aimx.message.part import content_type as parse_content_type

Codec = Literal["json", "msgpack", "protobuf", "text", "bytes"]

MAX_SHOWN_BYTES = 1 << 20
MAX_SHOWN_NODES = 100_000
MAX_DEPTH = 64
_CUT = "…"

_TYPES: dict[str, Codec] = {
    "application/json": "json",
    "text/json": "json",
    "application/msgpack": "msgpack",
    "application/vnd.msgpack": "msgpack",
    "application/x-msgpack": "msgpack",
    "application/protobuf": "protobuf",
    "application/x-protobuf": "protobuf",
    "application/vnd.google.protobuf": "protobuf",
}
_PROTO_PARAMETERS = ("proto", "messagetype", "message")


class PayloadError(ValueError):
    """The payload is not what its content type says, or cannot be written as asked. The text is fit for a user."""


class Part(NamedTuple):
    """A body part: what it is, and its bytes without transfer encoding."""

    content_type: str
    data: bytes
    filename: str | None = None


class Shown(NamedTuple):
    """A payload as JSON. `note` says in words what was guessed or left out; None when nothing was."""

    value: Any
    codec: Codec
    note: str | None = None


class Descriptors:
    """Registered Protocol Buffers types. Of two with one name the later registered is taken.

    Every FileDescriptorSet lives in a pool of its own, so that two versions of a schema never collide.
    """

    def __init__(self, sets: Iterable[bytes] = ()) -> None:
        self._pools: list[tuple[descriptor_pool.DescriptorPool, list[str]]] = []
        for data in sets:
            self.add(data)

    def add(self, descriptor_set: bytes) -> list[str]:
        """Register the output of `protoc --descriptor_set_out=… --include_imports`; returns its message types."""
        files = descriptor_pb2.FileDescriptorSet()
        try:
            files.ParseFromString(descriptor_set)
        except DecodeError:
            raise PayloadError("not a FileDescriptorSet (protoc --descriptor_set_out=FILE --include_imports)") from None
        if not files.file:
            raise PayloadError("the FileDescriptorSet holds no file")
        pool = descriptor_pool.DescriptorPool()
        try:
            _fill(pool, files)
            names = [name for file in files.file for name in _message_names(file)]
            for name in names:
                pool.FindMessageTypeByName(name)
        except (TypeError, KeyError) as error:
            raise PayloadError(f"the FileDescriptorSet is not complete (use --include_imports): {error}") from None
        self._pools.append((pool, names))
        return names

    def names(self) -> list[str]:
        return sorted({name for _, names in self._pools for name in names})

    def find(self, name: str) -> type[Message] | None:
        """The class of a message type: registered here, or imported by this program."""
        for pool in (*(pool for pool, _ in reversed(self._pools)), descriptor_pool.Default()):
            try:
                return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
            except KeyError:
                continue
        return None


def codec_of(content_type: str) -> Codec:
    """Which codec reads that content type."""
    kind = parse_content_type(content_type).value
    if kind in _TYPES:
        return _TYPES[kind]
    if kind.endswith("+json"):
        return "json"
    if kind.endswith("+msgpack"):
        return "msgpack"
    return "text" if kind.startswith("text/") else "bytes"


def proto_name(content_type: str) -> str | None:
    """The message type that a Protocol Buffers content type names."""
    parameters = parse_content_type(content_type).parameters
    return next((parameters[name].lstrip(".") for name in _PROTO_PARAMETERS if parameters.get(name)), None)


# ── objects to bytes ─────────────────────────────────────────────────────────────────────────────────────────────────


def encode(obj: object, codec: Codec | None = None) -> Part:
    """An object as a body part. Without `codec`: protobuf messages as such, str as text, bytes as they are, everything
    else as JSON, or as MessagePack when it holds bytes. PayloadError when it does not fit."""
    codec = codec or _codec_for(obj)
    match codec:
        case "protobuf":
            if not isinstance(obj, Message):
                raise PayloadError("only a Protocol Buffers message can be sent as protobuf")
            try:
                data = obj.SerializeToString(deterministic=True)
            except EncodeError as error:
                raise PayloadError(f"the message cannot be serialised: {error}") from None
            return Part(f'application/protobuf; proto="{obj.DESCRIPTOR.full_name}"', data)
        case "msgpack":
            try:
                return Part("application/msgpack", msgpack.packb(_plain(obj, keep_bytes=True), use_bin_type=True))
            except (TypeError, ValueError, OverflowError) as error:
                raise PayloadError(f"not to be written as MessagePack: {error}") from None
        case "text":
            return Part('text/plain; charset="utf-8"', str(obj).encode("utf-8", "replace"))
        case "bytes":
            if not isinstance(obj, bytes | bytearray | memoryview):
                raise PayloadError("only bytes can be sent as they are")
            return Part("application/octet-stream", bytes(obj))
        case "json":
            return Part("application/json", _json_bytes(_plain(obj, keep_bytes=False)))
    raise PayloadError(f"unknown codec {codec!r}")


def _json_bytes(obj: object) -> bytes:
    # ASCII, and lines where it is long: such a body needs no transfer encoding and can be read in any mail program.
    try:
        data = json.dumps(obj, allow_nan=False, separators=(",", ":"))
        if len(data) > 900:
            data = json.dumps(obj, allow_nan=False, indent=1)
    except (TypeError, ValueError, RecursionError) as error:
        raise PayloadError(f"not to be written as JSON: {error}") from None
    return data.encode()


def _codec_for(obj: object) -> Codec:
    if isinstance(obj, Message):
        return "protobuf"
    if isinstance(obj, str):
        return "text"
    if isinstance(obj, bytes | bytearray | memoryview):
        return "bytes"
    return "msgpack" if _holds_bytes(obj) else "json"


def _holds_bytes(obj: object, depth: int = 0) -> bool:
    if isinstance(obj, bytes | bytearray | memoryview):
        return True
    if depth > MAX_DEPTH:
        return False
    if isinstance(obj, Mapping):
        return any(_holds_bytes(value, depth + 1) for value in obj.values())
    if isinstance(obj, list | tuple | set | frozenset):
        return any(_holds_bytes(value, depth + 1) for value in obj)
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return any(_holds_bytes(getattr(obj, f.name), depth + 1) for f in dataclasses.fields(obj))
    return False


def _plain(obj: object, *, keep_bytes: bool, depth: int = 0) -> object:
    """Dataclasses, pydantic models, enums, dates, UUIDs and sets as what JSON and MessagePack know."""
    if depth > 4 * MAX_DEPTH:
        raise PayloadError("the payload is nested too deep, or holds itself")
    if obj is None or (isinstance(obj, bool | str | int | float) and not isinstance(obj, Enum)):
        return obj
    again = depth + 1
    match obj:
        case Enum():
            return _plain(obj.value, keep_bytes=keep_bytes, depth=again)
        case Mapping():
            return {_key(key): _plain(value, keep_bytes=keep_bytes, depth=again) for key, value in obj.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(value, keep_bytes=keep_bytes, depth=again) for value in obj]
        case bytes() | bytearray() | memoryview():
            if keep_bytes:
                return bytes(obj)
            raise PayloadError('JSON holds no bytes; use codec="msgpack"')
        case datetime() | date():
            return obj.isoformat()
        case UUID():
            return str(obj)
        case Message():
            return json_format.MessageToDict(obj, preserving_proto_field_name=True)
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {
            f.name: _plain(getattr(obj, f.name), keep_bytes=keep_bytes, depth=again) for f in dataclasses.fields(obj)
        }
    dump = getattr(obj, "model_dump", None)  # pydantic, without knowing it
    if callable(dump):
        return _plain(dump(), keep_bytes=keep_bytes, depth=again)
    raise PayloadError(f"a {type(obj).__name__} is neither plain data, a dataclass, a model nor a protobuf message")


def _key(key: object) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, Enum):
        return str(key.value)
    if isinstance(key, bool) or key is None:
        return json.dumps(key)
    if isinstance(key, int | float | UUID):
        return str(key)
    raise PayloadError(f"a {type(key).__name__} cannot be a key")


# ── bytes to objects ─────────────────────────────────────────────────────────────────────────────────────────────────


def decode(content_type: str, data: bytes, descriptors: Descriptors | None = None) -> object:
    """The object in a body: dict, list, number, str; bytes; a protobuf message when its type is known, else a dict by
    field number. PayloadError when the bytes are not what the type says."""
    match codec_of(content_type):
        case "json":
            return _from_json(content_type, data)
        case "msgpack":
            return _retry_without_line_end(_from_msgpack, data)
        case "protobuf":
            cls = (descriptors or _NONE).find(proto_name(content_type) or "")
            if cls is None:
                return _retry_without_line_end(wire_fields, data)
            return _retry_without_line_end(cls.FromString, data)
        case "text":
            return _from_text(content_type, data)
        case "bytes":
            return data


def _from_text(content_type: str, data: bytes) -> str:
    charset = parse_content_type(content_type).parameters.get("charset", "utf-8").lower()
    # A mail's lines end with CRLF, and one such end closes the body without belonging to the text.
    return decode_text(data, charset).replace("\r\n", "\n").removesuffix("\n")


def _from_json(content_type: str, data: bytes) -> object:
    charset = parse_content_type(content_type).parameters.get("charset", "utf-8").lower()
    try:
        if charset not in ("utf-8", "us-ascii"):
            return json.loads(decode_text(data, charset))
        return json.loads(data)
    except RecursionError:
        raise PayloadError("the JSON is nested too deep") from None
    except ValueError as error:
        where = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise PayloadError(f"not JSON{where}") from None


def _from_msgpack(data: bytes) -> object:
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False, timestamp=0, unicode_errors="replace")
    except Exception:  # the unpacker's errors have no common class of their own, and a key may be unhashable
        raise PayloadError("not MessagePack") from None


def _retry_without_line_end(read: Any, data: bytes) -> object:
    """An 8-bit or binary body of a single-part message ends with the CRLF that ends DATA, which is not its own."""
    try:
        return read(data)
    except (PayloadError, DecodeError):
        if not data.endswith(b"\r\n"):
            raise PayloadError("the body is not what its content type says") from None
    try:
        return read(data[:-2])
    except (PayloadError, DecodeError):
        raise PayloadError("the body is not what its content type says") from None


# ── for people ───────────────────────────────────────────────────────────────────────────────────────────────────────


def as_json(content_type: str, data: bytes, descriptors: Descriptors | None = None) -> Shown:
    """Any payload as a JSON value: bytes as base 64, NaN and infinities as strings, depth, nodes and size bounded."""
    codec = codec_of(content_type)
    if len(data) > MAX_SHOWN_BYTES:
        return Shown(None, codec, f"{len(data)} bytes are too many to show; fetch the raw message")
    try:
        value = decode(content_type, data, descriptors)
    except PayloadError as error:
        return _shown(_bytes_or_text(data), codec, f"{error}; shown as it came")
    if codec == "protobuf":
        return _show_protobuf(value, proto_name(content_type), data)
    if codec == "bytes":
        return Shown(_base64(data), codec, "bytes, as base 64")
    return _shown(value, codec, None)


def _show_protobuf(value: object, name: str | None, data: bytes) -> Shown:
    if isinstance(value, Message):
        try:
            shown = json_format.MessageToDict(value, preserving_proto_field_name=True)
            return _shown(shown, "protobuf", None)
        except (json_format.Error, TypeError, ValueError, RecursionError):
            # An Any of a type that nobody registered, a Timestamp out of range.
            return _shown(wire_fields(data), "protobuf", f"{name} holds what JSON cannot say; shown by field number")
    reason = f"no schema for {name} is registered" if name else "the content type names no message type"
    return _shown(value, "protobuf", f"{reason}; shown by field number, types are guessed")


def _shown(value: object, codec: Codec, note: str | None) -> Shown:
    budget = [MAX_SHOWN_NODES]
    safe = _safe(value, 0, budget)
    if budget[0] <= 0:
        note = "; ".join(filter(None, (note, "cut: too deep or too many values")))
    return Shown(safe, codec, note)


def _safe(value: object, depth: int, budget: list[int]) -> Any:
    budget[0] -= 1
    if budget[0] <= 0 or depth > MAX_DEPTH:
        budget[0] = min(budget[0], 0) if depth <= MAX_DEPTH else -1
        return _CUT
    match value:
        case None | bool() | str():
            return value
        case int():
            # Python refuses to print integers of thousands of digits, and JSON readers lose them anyway.
            return value if abs(value) < 1 << 1024 else hex(value)
        case float():
            return (
                value if math.isfinite(value) else "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
            )
        case dict():
            return {_safe_key(key): _safe(item, depth + 1, budget) for key, item in value.items() if budget[0] > 0}
        case list() | tuple():
            return [_safe(item, depth + 1, budget) for item in value if budget[0] > 0]
        case bytes():
            return _base64(value)
        case msgpack.Timestamp():
            return {"seconds": value.seconds, "nanoseconds": value.nanoseconds}
        case msgpack.ExtType():
            return {"ext": value.code, "base64": _base64(value.data)}
        case _:
            return str(value)


def _safe_key(key: object) -> str:
    if isinstance(key, bytes):
        return _base64(key)
    return key if isinstance(key, str) else str(key)[:256]


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _bytes_or_text(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return _base64(data)
    return text if _readable(text) else _base64(data)


def _readable(text: str) -> bool:
    return text.isprintable() or all(char.isprintable() or char in "\r\n\t" for char in text)


# ── Protocol Buffers without a schema ────────────────────────────────────────────────────────────────────────────────


def wire_fields(data: bytes, depth: int = 0) -> dict[str, object]:
    """The fields of an encoded message by number (protobuf.dev, "Encoding"). Repeated fields become lists.

    Length-delimited content is text when it reads like text, else a message when it parses as one, else bytes.
    PayloadError when the bytes are no message.
    """
    fields: dict[str, object] = {}
    repeated: set[str] = set()
    pos, end = 0, len(data)
    while pos < end:
        tag, pos = _varint(data, pos)
        number, wire = tag >> 3, tag & 7
        if not 1 <= number < 1 << 29:
            raise PayloadError("not Protocol Buffers")
        value, pos = _wire_value(data, pos, wire, depth)
        key = str(number)
        if key not in fields:
            fields[key] = value
            continue
        earlier = fields[key]
        if key in repeated and isinstance(earlier, list):
            earlier.append(value)
        else:
            fields[key] = [earlier, value]
            repeated.add(key)
    return fields


def _wire_value(data: bytes, pos: int, wire: int, depth: int) -> tuple[object, int]:
    match wire:
        case 0:
            return _varint(data, pos)
        case 1 | 5:
            size = 8 if wire == 1 else 4
            if pos + size > len(data):
                raise PayloadError("not Protocol Buffers")
            return _fixed(data[pos : pos + size]), pos + size
        case 2:
            size, pos = _varint(data, pos)
            if pos + size > len(data):
                raise PayloadError("not Protocol Buffers")
            return _guess(data[pos : pos + size], depth), pos + size
    raise PayloadError("not Protocol Buffers")  # groups are gone since proto2


def _guess(data: bytes, depth: int) -> object:
    try:
        text = data.decode()
        if _readable(text):
            return text
    except UnicodeDecodeError:
        pass
    if depth < 16:
        try:
            return wire_fields(data, depth + 1)
        except PayloadError:
            pass
    return data


def _fixed(data: bytes) -> object:
    """A fixed field may be a float or an integer; a float that a person would write is taken for one."""
    number: float = struct.unpack("<d" if len(data) == 8 else "<f", data)[0]
    if number == 0 or (math.isfinite(number) and 1e-9 < abs(number) < 1e15):
        return number
    return int.from_bytes(data, "little")


def _varint(data: bytes, pos: int) -> tuple[int, int]:
    value = shift = 0
    while pos < len(data) and shift < 70:
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, pos
        shift += 7
    raise PayloadError("not Protocol Buffers")


# ── descriptor sets ──────────────────────────────────────────────────────────────────────────────────────────────────


def _fill(pool: descriptor_pool.DescriptorPool, files: descriptor_pb2.FileDescriptorSet) -> None:
    """Add files after those they import, whatever their order; well-known types may be missing from the set."""
    by_name = {file.name: file for file in files.file}
    done: set[str] = set()

    def add(name: str, path: tuple[str, ...]) -> None:
        if name in done:
            return
        if name in path:
            raise KeyError(f"{name} imports itself")
        file = by_name.get(name)
        if file is None:
            file = descriptor_pb2.FileDescriptorProto()
            descriptor_pool.Default().FindFileByName(name).CopyToProto(file)
        for dependency in file.dependency:
            add(dependency, (*path, name))
        pool.Add(file) if not hasattr(pool, "AddSerializedFile") else pool.AddSerializedFile(file.SerializeToString())
        done.add(name)

    for name in by_name:
        add(name, ())


def _message_names(file: descriptor_pb2.FileDescriptorProto) -> list[str]:
    prefix = f"{file.package}." if file.package else ""
    names: list[str] = []
    waiting = [(prefix, message) for message in file.message_type]
    while waiting:
        before, message = waiting.pop(0)
        if message.options.map_entry:
            continue
        names.append(before + message.name)
        waiting += [(f"{before}{message.name}.", nested) for nested in message.nested_type]
    return names


_NONE = Descriptors()
