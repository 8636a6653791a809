"""Spans: relations, states and limits; and the bridge to a program's own OpenTelemetry."""

from collections.abc import Iterator

import pytest
from opentelemetry import baggage, propagate, trace
from opentelemetry import context as otel

from aimx.telemetry import bridge
from aimx.telemetry.context import Context, carrier
from aimx.telemetry.span import CONSUMER, MAX_EVENTS, MAX_LINKS, SERVER, Kind, Span, Tracer

PARENT = Context(b"\x01" * 16, b"\x02" * 8, 3, "s=1", "b=1", True)


class Kept:
    def __init__(self) -> None:
        self.spans: list[Span] = []

    def take(self, span: Span) -> None:
        self.spans.append(span)

    def flush(self, timeout_s: float) -> bool:
        return True

    def close(self, timeout_s: float) -> bool:
        return True


def test_a_child_stays_in_the_trace_and_passes_on_what_came_with_it() -> None:
    span = Tracer(Kept()).start("smtp receive", SERVER, PARENT)
    child = span.child("route default")
    assert child.trace_id == PARENT.trace_id
    assert child.parent is not None
    assert child.parent.span_id == span.span_id
    assert child.context.tracestate == "s=1"
    assert child.context.baggage == "b=1"
    assert not child.context.remote
    assert child.kind is Kind.INTERNAL


def test_a_root_makes_a_random_trace_and_says_so() -> None:
    one, two = Tracer().start("ack"), Tracer().start("ack")
    assert one.trace_id != two.trace_id
    assert one.context.flags == 3


def test_a_span_is_handed_over_once_and_an_unsampled_one_never() -> None:
    kept = Kept()
    span = Tracer(kept).start("ack")
    span.end(5)
    span.end(9)
    assert (kept.spans, span.end_ns) == ([span], 5)
    Tracer(kept, lambda trace_id, parent: False).start("ack").end()
    assert len(kept.spans) == 1


def test_a_block_that_fails_is_an_error_without_its_text() -> None:
    kept = Kept()
    with pytest.raises(ValueError, match="secret"), Tracer(kept).start("process", CONSUMER):
        raise ValueError("secret")
    assert kept.spans[0].error_type == "ValueError"
    assert kept.spans[0].description == ""


def test_links_and_events_are_bounded_and_the_rest_is_counted() -> None:
    span = Tracer().start("imap fetch", links=[PARENT] * (MAX_LINKS + 5))
    for _ in range(MAX_EVENTS + 5):
        span.event("x")
    assert span.links is not None
    assert span.events is not None
    assert (len(span.links), span.dropped_links, len(span.events)) == (MAX_LINKS, 5, MAX_EVENTS)


@pytest.fixture
def inside() -> Iterator[None]:
    """The program works on the mail whose context is PARENT."""
    token = otel.attach(bridge.entered(PARENT))
    yield
    otel.detach(token)


def test_the_bridge_is_not_there_where_nothing_runs() -> None:
    assert bridge.current() is None
    assert bridge.running_baggage() == ""


@pytest.mark.usefixtures("inside")
def test_the_bridge_joins_a_programs_own_spans() -> None:
    assert trace.get_current_span().get_span_context().trace_id.to_bytes(16) == PARENT.trace_id
    assert baggage.get_all() == {"b": "1"}
    assert bridge.current() == PARENT
    token = otel.attach(baggage.set_baggage("weird key", "a,b"))
    assert bridge.running_baggage() == "b=1, weird%20key=a%2Cb"
    otel.detach(token)


@pytest.mark.usefixtures("inside")
def test_the_programs_w3c_propagators_write_what_came_with_the_mail() -> None:
    written: dict[str, str] = {}
    propagate.inject(written)
    assert written == carrier(PARENT)


def test_the_programs_w3c_propagators_read_the_headers_of_a_mail() -> None:
    found = otel.attach(propagate.extract(carrier(PARENT)))
    try:
        assert bridge.current() == PARENT
    finally:
        otel.detach(found)
