"""OpenTelemetry for the programs the command line runs as agents, when the standard variables ask for it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from aimx.telemetry.export import protocol


@contextmanager
def exported(service: str) -> Iterator[None]:
    """Spans of the SDK go to the collector that OTEL_EXPORTER_OTLP_* names; with none named, nothing is loaded."""
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if off or os.environ.get("OTEL_TRACES_EXPORTER") == "none" or not any(os.environ.get(name) for name in names):
        yield
        return
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

    exporter: SpanExporter
    if protocol(os.environ, "TRACES") == "http/protobuf":  # as the node decides, for they are given the same variables
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        exporter = HttpExporter(timeout=3)
    else:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        exporter = GrpcExporter(timeout=3)
    provider = TracerProvider(resource=Resource.create().merge(Resource({"service.name": service})))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.force_flush(3000)
        provider.shutdown()
