"""Trace context in mail headers: read strictly, written so that every mail library reads it back, chosen by one rule.

Formats: W3C Trace Context level 2 (traceparent, tracestate) and W3C Baggage. What is special to mail: a value may
arrive folded or as RFC 2047 words (both undone before reading), and a list is written with ", " between members so
that it folds.
"""

import re
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote

from aimx.message.header import Field, HeaderBlock
from aimx.message.stamp import fold

SAMPLED = 0x01
RANDOM = 0x02
"""The trace id's right seven bytes are random (Trace Context level 2 §3.2.2.5.2)."""
KNOWN_FLAGS = SAMPLED | RANDOM

MAX_TRACESTATE_MEMBERS = 32
MAX_BAGGAGE_MEMBERS = 64
MAX_BAGGAGE_BYTES = 8192
MAX_HOPS_READ = 64

_ZERO_TRACE = bytes(16)
_ZERO_SPAN = bytes(8)

_PLAIN = re.compile(rb"[^:]{11,}+:(?:\r?\n[ \t]|[ \t])*+[0-9a-f]{2}-[0-9a-f]{32}-")
"""Of a field that `read` has found valid: it is no RFC 2047 word."""
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII | re.DOTALL)
# Level 2 lets a simple key begin with a digit; level 1's tenant@system form is kept, so one stray "@" is an error.
_STATE_KEY = re.compile(r"[a-z0-9][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13}", re.ASCII)
_STATE_VALUE = re.compile(r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]", re.ASCII)
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"  # noqa: S105 — RFC 9110's word for it
_BAGGAGE_VALUE = r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*+"
_BAGGAGE_MEMBER = re.compile(
    rf"{_TOKEN}[ \t]*+=[ \t]*+{_BAGGAGE_VALUE}(?:[ \t]*+;[ \t]*+{_TOKEN}(?:[ \t]*+=[ \t]*+{_BAGGAGE_VALUE})?+)*+",
    re.ASCII,
)
_PROPAGATED = ("traceparent", "tracestate", "baggage")


class Context(NamedTuple):
    """Where in which trace somebody is. `tracestate` and `baggage` are header values, "" when there is none."""

    trace_id: bytes
    span_id: bytes
    flags: int = SAMPLED
    tracestate: str = ""
    baggage: str = ""
    remote: bool = False
    """It came from outside this process."""

    @property
    def sampled(self) -> bool:
        return bool(self.flags & SAMPLED)

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id.hex()}-{self.span_id.hex()}-{self.flags & KNOWN_FLAGS:02x}"


class Invalid(NamedTuple):
    """No context can be continued. `reason` is one of: absent, duplicate, malformed, version, zero."""

    reason: str


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def parse_traceparent(value: str) -> Context | Invalid:
    """One `traceparent` value by the version rules of Trace Context §3.2.2; unknown flags are masked off."""
    match = _TRACEPARENT.fullmatch(value.strip(" \t"))
    if match is None:
        return Invalid("malformed")
    version, trace, span, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest is not None):
        return Invalid("version")
    trace_id, span_id = bytes.fromhex(trace), bytes.fromhex(span)
    if trace_id == _ZERO_TRACE or span_id == _ZERO_SPAN:
        return Invalid("zero")
    return Context(trace_id, span_id, int(flags, 16) & KNOWN_FLAGS, remote=True)


def read(headers: HeaderBlock) -> Context | Invalid:
    """The creation context in the headers: exactly one valid `traceparent`, with what tracestate and baggage hold.

    An invalid tracestate is dropped alone; without a valid traceparent nothing is continued.
    """
    values = headers.get_all("traceparent")
    if not values:
        return Invalid("absent")
    if len(values) > 1:
        return Invalid("duplicate")
    context = parse_traceparent(values[0])
    if isinstance(context, Invalid):
        return context
    state = headers.get_all("tracestate")
    bags = headers.get_all("baggage")
    if not state and not bags:
        return context
    return context._replace(tracestate=clean_tracestate(state), baggage=clean_baggage(bags))


def clean_tracestate(values: Sequence[str]) -> str:
    """All tracestate headers as one value, members joined by ", "; "" when one is malformed or there are over 32.

    Of two members with one key the first (leftmost, newest) stays.
    """
    members: dict[str, str] = {}
    for member in _members(values):
        key, equals, value = member.partition("=")
        if not equals or not _STATE_KEY.fullmatch(key) or not _STATE_VALUE.fullmatch(value):
            return ""
        members.setdefault(key, value)
    if len(members) > MAX_TRACESTATE_MEMBERS:
        return ""
    return ", ".join([f"{key}={value}" for key, value in members.items()])


def clean_baggage(values: Sequence[str]) -> str:
    """All baggage headers as one value, members joined by ", ".

    Malformed members are left out. Past 64 members or 8,192 bytes the rest is left out; a member is never cut.
    """
    kept: list[str] = []
    size = 0
    for member in _members(values):
        if not _BAGGAGE_MEMBER.fullmatch(member):
            continue
        size += len(member) + (2 if kept else 0)
        if size > MAX_BAGGAGE_BYTES or len(kept) == MAX_BAGGAGE_MEMBERS:
            break
        kept.append(member)
    return ", ".join(kept)


def _members(values: Sequence[str]) -> list[str]:
    return [member for value in values for part in value.split(",") if (member := part.strip(" \t"))]


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def write(context: Context) -> list[bytes]:
    """Header lines (CRLF included) of a creation context: traceparent, and tracestate and baggage when it has them."""
    lines = [b"traceparent: %s\r\n" % context.traceparent.encode()]
    if context.tracestate:
        lines.append(fold("tracestate", _members([context.tracestate])))
    if context.baggage:
        lines.append(fold("baggage", _members([context.baggage])))
    return lines


def restate(headers: HeaderBlock, context: Context) -> list[bytes]:
    """Lines for what other readers would read differently, which is taken out of `headers`: usually nothing.

    The creation context is never changed, only said plainly: an agent's library undoes no RFC 2047 words, takes the
    first of several fields, and knows no limits. What it reads as we do stays byte for byte.
    """
    lines: list[bytes] = []
    (parent,) = headers.raw_fields("traceparent")
    if not _PLAIN.match(parent):
        headers.strip(lambda name: name == b"traceparent")
        lines.append(b"traceparent: %s\r\n" % context.traceparent.encode())
    for name, kept in (("tracestate", context.tracestate), ("baggage", context.baggage)):
        if name not in headers:
            continue
        found = headers.raw_fields(name)
        if len(found) == 1 and ", ".join(_members([_said(found[0])])) == kept != "":
            continue
        lower = name.encode()
        headers.strip(lambda other, lower=lower: other == lower)  # type: ignore[misc]
        if kept:
            lines.append(fold(name, _members([kept])))
    return lines


def _said(raw: bytes) -> str:
    """A field's value to one who only unfolds."""
    return raw.partition(b":")[2].replace(b"\r\n", b"").decode("latin-1").strip(" \t\r\n")


def is_context_header(name: bytes) -> bool:
    """Predicate for `HeaderBlock.strip`: traceparent, tracestate, baggage."""
    return name in (b"traceparent", b"tracestate", b"baggage")


def claimed(fields: Sequence[Field]) -> list[bytes]:
    """What a stranger claimed, under names no propagator continues: `AIMX-Claimed-Traceparent` and so on.

    `fields` are what `HeaderBlock.strip` took out, maybe `X-Workflow-ID` too; their values are kept as they came.
    """
    names = {
        b"traceparent": b"Traceparent",
        b"tracestate": b"Tracestate",
        b"baggage": b"Baggage",
        b"x-workflow-id": b"Workflow-ID",
    }
    lines = []
    for field in fields:
        raw = field.raw if field.raw.endswith(b"\n") else field.raw + b"\r\n"
        lines.append(b"AIMX-Claimed-" + names[field.name] + raw[raw.index(b":") :])
    return lines


def carrier(context: Context) -> dict[str, str]:
    """The same for HTTP (a webhook request): header name to value."""
    pairs = (context.traceparent, context.tracestate, context.baggage)
    return {name: value for name, value in zip(_PROPAGATED, pairs, strict=True) if value}


# ── AIMX-Trace: the transport context of each hop ────────────────────────────────────────────────────────────────────


class Hop(NamedTuple):
    """One `AIMX-Trace` line. `rule` is a rule, pool or list name; `by` a host name."""

    number: int
    context: Context
    by: str
    rule: str


def hop_line(hop: Hop) -> bytes:
    """`AIMX-Trace: hop=1; traceparent=00-…-01; by=mx.example; rule=…`, CRLF included."""
    members = [
        f"hop={hop.number}",
        f"traceparent={hop.context.traceparent}",
        f"by={_quoted(hop.by, '.-:[]')}",
        f"rule={_quoted(hop.rule, '.-_/')}",
    ]
    return fold("AIMX-Trace", members, separator="; ")


_quoted = lru_cache(256)(quote)
"""A node's own name and its rules' names: the same for every message."""


def hops(headers: HeaderBlock) -> list[Hop]:
    """The hops, newest (topmost) first; malformed lines are skipped, at most 64 are read."""
    return [hop for value in headers.get_all("AIMX-Trace")[:MAX_HOPS_READ] if (hop := _parse_hop(value))]


def _parse_hop(value: str) -> Hop | None:
    pairs = dict(part.strip().partition("=")[::2] for part in value.split(";"))
    number = pairs.get("hop", "")
    context = parse_traceparent(pairs.get("traceparent", ""))
    if isinstance(context, Invalid) or not (number.isascii() and number.isdigit()) or len(number) > 4:
        return None
    return Hop(int(number), context, unquote(pairs.get("by", "")), unquote(pairs.get("rule", "")))


# ── choosing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Door(StrEnum):
    """Who handed the message over."""

    AGENT = "agent"
    """An authenticated agent."""
    PEER = "peer"
    """An authenticated AIMX node."""
    STRANGER = "stranger"


class Source(StrEnum):
    """Attribute `aimx.context.source`."""

    HOP = "hop"
    HEADER = "header"
    IN_REPLY_TO = "in_reply_to"
    REFERENCES = "references"
    NEW = "new"


class Choice(NamedTuple):
    """What a message continues. `context` is None for a new root; `links` go on the first span."""

    context: Context | None
    source: Source
    links: tuple[Context, ...] = ()


def choose(
    door: Door,
    *,
    header: Context | Invalid,
    hop: Context | None = None,
    in_reply_to: Context | None = None,
    references: Context | None = None,
) -> Choice:
    """The first that applies: hop (peers only), header (agents and peers), reply, references, a new root.

    `in_reply_to` and `references` are *stored* contexts that the caller found under the rule of the binding (in the
    replier's own mailbox, or by a valid MAC for a message sent to that address). What a stranger claims becomes a
    link of a new trace: its flags are ignored and its baggage is dropped. A trusted header that leads into another
    trace than the message it answers is linked to that one, so that neither trace loses the conversation.
    """
    inside = door is not Door.STRANGER
    own = header if isinstance(header, Context) else None
    answered = in_reply_to or references
    if door is Door.PEER and hop is not None:
        return Choice(hop, Source.HOP, _other_trace(hop, answered))
    if inside and own is not None:
        return Choice(own, Source.HEADER, _other_trace(own, answered))
    claim = () if inside or own is None else (own._replace(flags=0, tracestate="", baggage=""),)
    if in_reply_to is not None:
        return Choice(in_reply_to, Source.IN_REPLY_TO, claim)
    if references is not None:
        return Choice(references, Source.REFERENCES, claim)
    return Choice(None, Source.NEW, claim)


def _other_trace(context: Context, answered: Context | None) -> tuple[Context, ...]:
    return (answered,) if answered is not None and answered.trace_id != context.trace_id else ()
