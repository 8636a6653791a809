"""The agent's spans join the trace by themselves, with an OpenTelemetry SDK and without one."""

import asyncio
from collections.abc import Iterator

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from aimx.sdk import trace as ours
from aimx.telemetry.context import RANDOM, SAMPLED, Context

CREATION = Context(b"t" * 16, b"s" * 8, SAMPLED, "vendor=x", "tenant=blue%20team", remote=True)
DELIVERY = Context(b"t" * 16, b"d" * 8, SAMPLED, remote=True)
ABOUT = ours.describe("send", "send", workflow="w-1", agent="planner", size=3)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(ours, "_tracer", provider.get_tracer("aimx.sdk"))
    yield exporter
    provider.shutdown()


@pytest.fixture
def no_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_tracer", trace.NoOpTracer())


def named(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def test_a_message_carries_its_send_span(spans: InMemorySpanExporter) -> None:
    with ours.sending(ABOUT) as (_, context):
        pass
    sent = named(spans)["send"]
    assert sent.kind is SpanKind.PRODUCER
    assert sent.context is not None
    assert context.span_id == sent.context.span_id.to_bytes(8)
    assert context.trace_id == sent.context.trace_id.to_bytes(16)
    assert context.sampled
    assert dict(sent.attributes or {})["aimx.workflow.id"] == "w-1"


def test_what_is_sent_while_processing_stays_in_the_trace(spans: InMemorySpanExporter) -> None:
    with ours.processing(CREATION, DELIVERY, ABOUT), ours.sending(ABOUT) as (_, context):
        assert context.trace_id == CREATION.trace_id
        assert context.tracestate == "vendor=x"
        assert context.baggage == "tenant=blue%20team"
    found = named(spans)
    assert found["process"].kind is SpanKind.CONSUMER
    assert parent_of(found["process"]) == int.from_bytes(CREATION.span_id)
    assert [link.context.span_id for link in found["process"].links] == [int.from_bytes(DELIVERY.span_id)]
    process = found["process"].context
    assert process is not None
    assert parent_of(found["send"]) == process.span_id


def test_ack_hangs_under_process_or_else_under_the_creation(spans: InMemorySpanExporter) -> None:
    with ours.acknowledging(CREATION, ABOUT):
        pass
    alone = named(spans)["ack"]
    assert alone.kind is SpanKind.CLIENT
    assert parent_of(alone) == int.from_bytes(CREATION.span_id)
    spans.clear()
    with ours.processing(CREATION, None, ABOUT), ours.acknowledging(CREATION, ABOUT):
        pass
    process = named(spans)["process"].context
    assert process is not None
    assert parent_of(named(spans)["ack"]) == process.span_id


def test_a_failure_is_seen_and_its_text_is_not(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="secret"), ours.processing(CREATION, None, ABOUT):
        raise ValueError("secret")
    span = named(spans)["process"]
    assert span.status.status_code is StatusCode.ERROR
    assert dict(span.attributes or {})["error.type"] == "ValueError"
    assert "secret" not in span.to_json()


@pytest.mark.usefixtures("no_sdk")
def test_without_an_sdk_a_conversation_begins_with_fresh_ids() -> None:
    with ours.sending(ABOUT) as (_, one), ours.sending(ABOUT) as (_, other):
        pass
    assert one.trace_id != other.trace_id
    assert one.flags == SAMPLED | RANDOM


@pytest.mark.usefixtures("no_sdk")
def test_without_an_sdk_the_trace_still_goes_on() -> None:
    with ours.processing(CREATION, DELIVERY, ABOUT), ours.sending(ABOUT) as (_, context):
        assert (context.trace_id, context.span_id) == (CREATION.trace_id, CREATION.span_id)
        assert (context.tracestate, context.baggage) == ("vendor=x", "tenant=blue%20team")


def test_processing_leaves_no_trace_behind(spans: InMemorySpanExporter) -> None:
    before = otel.get_current()
    with ours.processing(CREATION, None, ABOUT):
        assert baggage.get_baggage("tenant") == "blue team"
    assert otel.get_current() == before


async def test_two_messages_processed_at_once_keep_to_their_traces(spans: InMemorySpanExporter) -> None:
    other = CREATION._replace(trace_id=b"u" * 16)

    async def work(context: Context) -> bytes:
        with ours.processing(context, None, ABOUT):
            await asyncio.sleep(0)
            with ours.sending(ABOUT) as (_, out):
                await asyncio.sleep(0)
                return out.trace_id

    assert await asyncio.gather(work(CREATION), work(other)) == [b"t" * 16, b"u" * 16]
