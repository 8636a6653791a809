"""Finished spans to OTLP bytes, written straight into the wire format.

Through the SDK's span objects and the stock encoder a span costs some 70 µs under the GIL, which the mail waits for;
this costs a thirtieth, so little that it is done where the span ends and not on the exporting thread: bytes are small
to keep, no concern of the garbage collector, and need no interpreter to be sent. Field numbers: opentelemetry-proto,
trace/v1/trace.proto and common/v1/common.proto. A test holds the result against the stock encoder's, field by field.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from struct import Struct

from aimx.telemetry.context import RANDOM, Context
from aimx.telemetry.span import AttributeValue, Kind, Span

_FIXED64 = Struct("<Q").pack
_DOUBLE = Struct("<d").pack
_TIMES = Struct("<BQBQ").pack  # tags of start (7) and end (8), both fixed64
_FLAGS = Struct("<BBI").pack
# SpanFlags: the low byte is W3C's; then "is_remote is known" and "is_remote".
_KNOWN, _REMOTE = 0x100, 0x200
_TRUE, _FALSE = b"\x10\x01", b"\x10\x00"
_STATUS_ERROR = b"\x18\x02"
_SHORT = 100


class Encoder:
    """Puts batches together for one resource and scope. For one thread."""

    def __init__(self, resource: Mapping[str, AttributeValue], scope: str, version: str = "") -> None:
        about = b"".join([_block(b"\x0a", _key_value(key, value)) for key, value in resource.items()])
        name = _block(b"\x0a", scope.encode()) + (_block(b"\x12", version.encode()) if version else b"")
        self._resource = _block(b"\x0a", about)
        self._scope = _block(b"\x0a", name)

    def encode(self, spans: Sequence[Span | bytes]) -> bytes:
        """An ExportTraceServiceRequest; of spans that `encode_span` has been at already, too."""
        known = [span if type(span) is bytes else encode_span(span) for span in spans]  # type: ignore[arg-type]
        inside = b"".join([self._scope, *known])
        return _block(b"\x0a", self._resource + _block(b"\x12", inside))


def encode_span(span: Span) -> bytes:
    """A `Span` message, as the element of `ScopeSpans.spans` (2) that it is going to be."""
    parent = span.parent
    out = [
        b"\x0a\x10",
        span.trace_id,
        b"\x12\x08",
        span.span_id,
        _head(span.name, span.kind),
        _TIMES(0x39, span.start_ns, 0x41, span.end_ns),
    ]
    if parent is None:
        flags = span.sampled | _KNOWN | RANDOM
    else:
        flags = span.sampled | _KNOWN | (parent.flags & RANDOM) | (_REMOTE if parent.remote else 0)
        out += (b"\x22\x08", parent.span_id)
        if parent.tracestate:
            out.append(_text(b"\x1a", parent.tracestate))
    for facts in span.facts:
        wire = facts.wire
        if wire is None:
            wire = facts.wire = b"".join([_attribute(key, value) for key, value in facts.items()])
        out.append(wire)
    for key, value in span.own.items():
        # Small numbers and truths are said again and again; texts that are not among the facts never are.
        kind = type(value)
        out.append(_small(key, value) if kind is int or kind is bool else _attribute(key, value))
    if span.error_type is not None:
        if "error.type" not in span.own:
            out.append(_attribute("error.type", span.error_type))
        message = _text(b"\x12", span.description) if span.description else b""
        out.append(_block(b"\x7a", message + _STATUS_ERROR))
    if span.events:
        out += map(_event, span.events)
    if span.links:
        out += [_link(context, facts) for context, facts in span.links]
        if span.dropped_links:
            out.append(b"\x70" + _varint(span.dropped_links))
    out.append(_FLAGS(0x85, 0x01, flags))
    body = b"".join(out)
    return b"".join((b"\x12", _varint(len(body)), body))


def _event(event: tuple[str, int, Mapping[str, AttributeValue] | None]) -> bytes:
    name, t_ns, facts = event
    body = b"\x09" + _FIXED64(t_ns) + _text(b"\x12", name)
    if facts:
        body += b"".join([_block(b"\x1a", _key_value(key, value)) for key, value in facts.items()])
    return _block(b"\x5a", body)


def _link(context: Context, facts: Mapping[str, AttributeValue] | None) -> bytes:
    body = b"\x0a\x10" + context.trace_id + b"\x12\x08" + context.span_id
    if context.tracestate:
        body += _text(b"\x1a", context.tracestate)
    if facts:
        body += b"".join([_block(b"\x22", _key_value(key, value)) for key, value in facts.items()])
    flags = context.flags | _KNOWN | (_REMOTE if context.remote else 0)
    return _block(b"\x6a", body + b"\x35" + flags.to_bytes(4, "little"))


def _attribute(key: str, value: AttributeValue) -> bytes:
    if type(value) is str and len(value) < _SHORT:
        # The most frequent by far: a short text, whose three lengths are one octet each.
        data, name = value.encode("utf-8", "replace"), _key(key)
        size = len(data)
        whole = len(name) + size + 4
        if whole < 128:
            return b"".join((b"\x4a", _SMALL[whole], name, b"\x12", _SMALL[size + 2], b"\x0a", _SMALL[size], data))
    return _block(b"\x4a", _key_value(key, value))


_small = lru_cache(4096, typed=True)(_attribute)  # typed: 1 and True are equal, and are not the same


def _key_value(key: str, value: AttributeValue) -> bytes:
    """A `KeyValue` message: the key (1), an `AnyValue` (2)."""
    return _key(key) + _block(b"\x12", _any(value))


@lru_cache(4096)
def _key(key: str) -> bytes:
    return _text(b"\x0a", key)


@lru_cache(4096)
def _head(name: str, kind: Kind) -> bytes:
    return _text(b"\x2a", name) + b"\x30" + _SMALL[kind]


def _any(value: AttributeValue) -> bytes:
    kind = type(value)
    if kind is str:
        return _text(b"\x0a", value)  # type: ignore[arg-type]
    if kind is bool:
        return _TRUE if value else _FALSE
    if isinstance(value, int):
        return b"\x18" + _varint(value & 0xFFFFFFFFFFFFFFFF)
    if isinstance(value, float):
        return b"\x21" + _DOUBLE(value)
    if isinstance(value, str):
        return _text(b"\x0a", str(value))
    return _block(b"\x2a", b"".join(map(_block, repeat(b"\x0a"), map(_any, value))))


def _text(tag: bytes, value: str) -> bytes:
    return _block(tag, value.encode("utf-8", "replace"))


def _block(tag: bytes, data: bytes) -> bytes:
    size = len(data)
    return tag + (_SMALL[size] if size < 128 else _varint(size)) + data


_SMALL = [bytes((n,)) for n in range(128)]


def _varint(value: int) -> bytes:
    if value < 0x80:
        return _SMALL[value]
    if value < 0x4000:  # the length of nearly every span
        return bytes((value & 0x7F | 0x80, value >> 7))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
