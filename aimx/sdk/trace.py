"""The agent's spans, `send`, `process` and `ack`, through the public OpenTelemetry API.

With an OpenTelemetry SDK configured the spans are its own: sampled, exported and parented like all others of the agent.
With none, trace context still travels: what is sent while a message is processed carries that message's context, and
what begins a conversation carries ids made here. Conventions: OpenTelemetry messaging; names and kinds stand in
`aimx.telemetry.catalogue`.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.trace import Link, NonRecordingSpan, SpanKind, Status, StatusCode

from aimx.telemetry import bridge
from aimx.telemetry.context import RANDOM, SAMPLED, Context

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
    token = otel.attach(bridge.entered(message))
    try:
        yield
    finally:
        otel.detach(token)


@contextmanager
def processing(message: Context | None, delivery: Context | None, attributes: Attributes) -> Iterator[trace.Span]:
    """A CONSUMER span under the message's creation context, linked to the hop that delivered it."""
    links = [Link(bridge.span_context(delivery))] if delivery is not None else []
    token = otel.attach(bridge.entered(message) if message is not None else otel.get_current())
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
        token = otel.attach(trace.set_span_in_context(NonRecordingSpan(bridge.span_context(message))))
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


def _outgoing(span: trace.Span) -> Context:
    own = bridge.current(span)
    if own is None:
        return Context(os.urandom(16), os.urandom(8), SAMPLED | RANDOM, baggage=bridge.running_baggage())
    return own
