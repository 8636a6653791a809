"""The bridge to the OpenTelemetry API in an agent's own process: its spans and AIMX's join by themselves."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import baggage, trace
from opentelemetry import context as otel_context

from aimx.telemetry.context import KNOWN_FLAGS, Context, clean_baggage


def current() -> Context | None:
    """The program's current span as a context, with its baggage; None when it has none."""
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return None
    from urllib.parse import quote

    bag = clean_baggage([f"{key}={quote(str(value), safe='')}" for key, value in baggage.get_all().items()])
    return Context(
        span.trace_id.to_bytes(16, "big"),
        span.span_id.to_bytes(8, "big"),
        int(span.trace_flags) & KNOWN_FLAGS,
        ", ".join(f"{key}={value}" for key, value in span.trace_state.items()),
        bag,
        span.is_remote,
    )


@contextmanager
def attached(context: Context) -> Iterator[None]:
    """Spans that the program starts inside are children of `context`."""
    from urllib.parse import unquote

    state = trace.TraceState.from_header([context.tracestate]) if context.tracestate else trace.TraceState()
    there = trace.SpanContext(
        int.from_bytes(context.trace_id, "big"),
        int.from_bytes(context.span_id, "big"),
        context.remote,
        trace.TraceFlags(context.flags),
        state,
    )
    inside = trace.set_span_in_context(trace.NonRecordingSpan(there))
    for member in filter(None, context.baggage.split(",")):
        key, _, value = member.partition(";")[0].partition("=")
        inside = baggage.set_baggage(key.strip(), unquote(value.strip()), inside)
    token = otel_context.attach(inside)
    try:
        yield
    finally:
        otel_context.detach(token)
