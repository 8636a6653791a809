"""Our finished spans through the stock OpenTelemetry SDK: its span objects, batch processor and exporters.

For those who would rather trust what everybody runs (`trace.sdk = "stock"`) and for exporters that take nothing else.
A span costs some ten times as much this way. Ids, parents, sampling and what a span says are the same.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanKind, Status, StatusCode, set_span_in_context

from aimx.telemetry.bridge import span_context
from aimx.telemetry.context import Context
from aimx.telemetry.span import AttributeValue, Kind, Sampler, Sink, Span

Counted = Callable[[Sequence[ReadableSpan], bool], None]
"""Told which spans a batch had and whether the collector took them."""


class StockSink(Sink):
    """One batch processor for each exporter; OTEL_BSP_* are the SDK's to read."""

    def __init__(
        self, exporters: Sequence[SpanExporter], resource: Mapping[str, AttributeValue], scope: str, counted: Counted
    ) -> None:
        self._convert = converter(resource, scope)
        self._processors = [BatchSpanProcessor(_Counting(exporter, counted)) for exporter in exporters]

    def take(self, span: Span) -> None:
        converted = self._convert(span)
        for processor in self._processors:
            processor.on_end(converted)

    def flush(self, timeout_s: float) -> bool:
        return self._all(lambda processor: processor.force_flush(int(timeout_s * 1000)), timeout_s)

    def close(self, timeout_s: float) -> bool:
        return self._all(
            lambda processor: processor.shutdown(),  # type: ignore[no-untyped-call]
            timeout_s,
        )

    def _all(self, end: Callable[[BatchSpanProcessor], object], timeout_s: float) -> bool:
        """The SDK's own time limits are not kept while an exporter waits for its collector, so these are threads."""

        def work() -> None:
            for processor in self._processors:
                end(processor)

        thread = threading.Thread(target=work, name="aimx-spans-end", daemon=True)
        thread.start()
        thread.join(timeout_s)
        return not thread.is_alive()


class _Counting(SpanExporter):
    def __init__(self, exporter: SpanExporter, counted: Counted) -> None:
        self._exporter = exporter
        self._counted = counted

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self._counted(spans, result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def foreign_sampler(name: str, argument: str) -> Sampler | None:
    """The sampler that an installed package offers under this name, as the SDK finds it; None when none does."""
    found = next(iter(entry_points(group="opentelemetry_traces_sampler", name=name)), None)
    if found is None:
        return None
    decide = found.load()(argument)

    def sample(trace_id: bytes, parent: Context | None) -> bool:
        around = None if parent is None else set_span_in_context(NonRecordingSpan(span_context(parent)))
        return bool(decide.should_sample(around, int.from_bytes(trace_id), "").decision.is_sampled())

    return sample


def converter(resource: Mapping[str, AttributeValue], scope: str) -> Callable[[Span], ReadableSpan]:
    """A function from our spans to the SDK's. `resource` has the service's version."""
    home = Resource(resource)
    here = InstrumentationScope(scope, str(resource.get("service.version", "")) or None)
    kinds = {kind: SpanKind[kind.name] for kind in Kind}
    unset = Status(StatusCode.UNSET)

    def convert(span: Span) -> ReadableSpan:
        status, facts = unset, span.attributes
        if span.error_type is not None:
            status = Status(StatusCode.ERROR, span.description or None)
            facts = {**facts, "error.type": span.error_type}
        return ReadableSpan(
            name=span.name,
            context=span_context(span.context),
            parent=None if span.parent is None else span_context(span.parent),
            resource=home,
            attributes=facts,
            events=[Event(name, attributes, t_ns) for name, t_ns, attributes in span.events or ()],
            links=[Link(span_context(context), attributes) for context, attributes in span.links or ()],
            kind=kinds[span.kind],
            status=status,
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=here,
        )

    return convert
