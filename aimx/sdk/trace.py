"""The agent's spans, `send`, `process` and `ack`, through the public OpenTelemetry API.

With an OpenTelemetry SDK configured the spans are its own: sampled, exported and parented like all others of the agent.
With none, trace context still travels: what is sent while a message is processed carries that message's context, and
what begins a conversation carries ids made here. Conventions: OpenTelemetry messaging; names and kinds stand in
`aimx.telemetry.catalogue`.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import quote, unquote

from opentelemetry import baggage, trace
from opentelemetry import context as otel
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from aimx.telemetry.context import RANDOM, SAMPLED, Context, clean_baggage

_tracer = trace.get_tracer("aimx.sdk")

Attributes = Mapping[str, str | int]


def describe(
    operation: str, kind: str, *, workflow: str | None, agent: str, size: int | None = None
) -> dict[str, str | int]:
    """The attributes all three spans share. `agent` is the agent's name, never its address."""
    attributes: dict[str, str | int] = {
        "messaging.system": "aimx",
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        "gen_ai.agent.id": agent,
        "aimx.agent.id": agent,
    }
    if workflow:
        for name in ("messaging.message.conversation_id", "gen_ai.conversation.id", "aimx.workflow.id"):
            attributes[name] = workflow
    if size is not None:
        attributes["messaging.message.body.size"] = size
    return attributes


@contextmanager
def sending(attributes: Attributes) -> Iterator[tuple[trace.Span, Context]]:
    """A PRODUCER span; its context is the creation context of the message sent inside."""
    with _span("send", SpanKind.PRODUCER, attributes) as span:
        yield span, _outgoing(span)


@contextmanager
def continuing(message: Context | None) -> Iterator[None]:
    """What is sent inside continues the message's trace, unless the running span already does."""
    if message is None or trace.get_current_span().get_span_context().trace_id == int.from_bytes(message.trace_id):
        yield
        return
    token = otel.attach(_inside(message))
    try:
        yield
    finally:
        otel.detach(token)


@contextmanager
def processing(message: Context | None, delivery: Context | None, attributes: Attributes) -> Iterator[trace.Span]:
    """A CONSUMER span under the message's creation context, linked to the hop that delivered it."""
    links = [Link(_remote(delivery))] if delivery is not None else []
    token = otel.attach(_inside(message) if message is not None else otel.get_current())
    try:
        with _span("process", SpanKind.CONSUMER, attributes, links) as span:
            yield span
    finally:
        otel.detach(token)


@contextmanager
def acknowledging(message: Context | None, attributes: Attributes) -> Iterator[trace.Span]:
    """A CLIENT span: under the current one while that is in the message's trace, else under the creation context."""
    current = trace.get_current_span().get_span_context()
    token = None
    if message is not None and current.trace_id != int.from_bytes(message.trace_id):
        token = otel.attach(trace.set_span_in_context(NonRecordingSpan(_remote(message))))
    try:
        with _span("ack", SpanKind.CLIENT, attributes) as span:
            yield span
    finally:
        if token is not None:
            otel.detach(token)


@contextmanager
def _span(name: str, kind: SpanKind, attributes: Attributes, links: list[Link] | None = None) -> Iterator[trace.Span]:
    with _tracer.start_as_current_span(
        name, kind=kind, attributes=dict(attributes), links=links, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield span
        except Exception as error:
            # The type and nothing of the text, which may quote what the mail says.
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(Status(StatusCode.ERROR, type(error).__qualname__))
            raise


def _inside(message: Context) -> otel.Context:
    """The running context with the message's span and baggage in place of its own."""
    current = baggage.clear(trace.set_span_in_context(NonRecordingSpan(_remote(message))))
    for name, value in _bag(message.baggage):
        current = baggage.set_baggage(name, value, current)
    return current


def _outgoing(span: trace.Span) -> Context:
    found = span.get_span_context()
    pairs = [(quote(name, safe=""), quote(str(value), safe="")) for name, value in baggage.get_all().items()]
    bags = ", ".join([f"{name}={value}" for name, value in pairs])
    bag = clean_baggage([bags]) if bags else ""
    if not found.is_valid:
        return Context(os.urandom(16), os.urandom(8), SAMPLED | RANDOM, baggage=bag)
    state = ", ".join(f"{name}={value}" for name, value in found.trace_state.items())
    return Context(found.trace_id.to_bytes(16), found.span_id.to_bytes(8), int(found.trace_flags), state, bag)


def _remote(context: Context) -> SpanContext:
    return SpanContext(
        int.from_bytes(context.trace_id),
        int.from_bytes(context.span_id),
        is_remote=True,
        trace_flags=TraceFlags(context.flags),
        trace_state=TraceState.from_header([context.tracestate]) if context.tracestate else None,
    )


def _bag(value: str) -> Iterator[tuple[str, str]]:
    for member in value.split(","):
        name, equals, rest = member.partition(";")[0].partition("=")
        if equals:
            yield unquote(name.strip()), unquote(rest.strip())
