"""Between our contexts and OpenTelemetry's public API: a program's own spans and AIMX's join by themselves.

What `entered` gives can be attached, and every W3C propagator of the program (`opentelemetry.propagate.inject`) then
writes what came with the mail.
"""

from collections.abc import Iterator
from urllib.parse import quote, unquote

from opentelemetry import baggage, trace
from opentelemetry import context as otel
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from aimx.telemetry.context import KNOWN_FLAGS, Context, clean_baggage


def span_context(context: Context) -> SpanContext:
    """Ours as the API's. Baggage has no place in it."""
    return SpanContext(
        int.from_bytes(context.trace_id),
        int.from_bytes(context.span_id),
        context.remote,
        TraceFlags(context.flags),
        TraceState.from_header([context.tracestate]) if context.tracestate else TraceState(),
    )


def entered(context: Context) -> otel.Context:
    """The running context with this span and its baggage in place of its own, to be attached."""
    found = baggage.clear(trace.set_span_in_context(NonRecordingSpan(span_context(context))))
    for name, value in _members(context.baggage):
        found = baggage.set_baggage(name, value, found)
    return found


def current(span: trace.Span | None = None) -> Context | None:
    """The span (the program's current one) as a context, with the running baggage; None where there is no span."""
    found = (trace.get_current_span() if span is None else span).get_span_context()
    if not found.is_valid:
        return None
    return Context(
        found.trace_id.to_bytes(16),
        found.span_id.to_bytes(8),
        int(found.trace_flags) & KNOWN_FLAGS,
        ", ".join(f"{key}={value}" for key, value in found.trace_state.items()),
        running_baggage(),
        found.is_remote,
    )


def running_baggage() -> str:
    """As a header value. A member that cannot be written is left out."""
    members = [f"{quote(key, safe='')}={quote(str(value), safe='')}" for key, value in baggage.get_all().items()]
    return clean_baggage(members) if members else ""


def _members(value: str) -> Iterator[tuple[str, str]]:
    for member in value.split(","):
        name, equals, rest = member.partition(";")[0].partition("=")
        if equals:
            yield unquote(name.strip()), unquote(rest.strip())
