"""Spans and metrics arrive at a real OTLP receiver, and a bad collector is never in the way."""

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from aimx.telemetry import export, metrics
from aimx.telemetry.context import Context
from aimx.telemetry.span import CLIENT, CONSUMER, INTERNAL, PRODUCER, SERVER
from tests.node_process import clean_environ
from tests.otlp_receiver import OtlpReceiver


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture(params=["grpc", "http/protobuf"])
def receiver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpReceiver]:
    with OtlpReceiver(request.param) as receiver:
        for name, value in receiver.environ.items():
            monkeypatch.setenv(name, value)
        yield receiver


def test_a_trace_arrives_with_ids_parents_kinds_links_events_and_nanoseconds(receiver: OtlpReceiver) -> None:
    tracer = export.open_tracer("aimx-test")
    creation = Context(b"\x12" * 16, b"\x34" * 8, 1, "vendor=1", remote=True)
    claim = Context(b"\xaa" * 16, b"\xbb" * 8, 0)
    smtp = tracer.start("smtp receive", SERVER, creation, links=[claim], start_ns=1_700_000_000_000_000_001)
    smtp.set("messaging.message.envelope.size", 2048)
    smtp.set("aimx.context.trusted", True)
    smtp.event("auth", {"mechanism": "PLAIN"}, 1_700_000_000_000_000_123)
    route = smtp.child("route default", INTERNAL)
    queue = route.child("enqueue mailbox", PRODUCER)
    attempt = queue.child("deliver mailbox", CONSUMER)
    attempt.error("4.2.2", "mailbox full")
    relay = attempt.child("relay mx", CLIENT)
    for span in (relay, attempt, queue, route):
        span.end()
    smtp.end(1_700_000_000_000_000_999)
    assert tracer.flush(10)

    spans = receiver.wait_for(lambda spans: len(spans) == 5)
    got = receiver.by_name("smtp receive")
    assert (got.trace_id, got.parent_id, got.kind) == ("12" * 16, "34" * 8, "SERVER")
    assert (got.start_ns, got.end_ns) == (1_700_000_000_000_000_001, 1_700_000_000_000_000_999)
    assert got.attributes == {"messaging.message.envelope.size": 2048, "aimx.context.trusted": True}
    assert [(event.name, event.t_ns, event.attributes) for event in got.events] == [
        ("auth", 1_700_000_000_000_000_123, {"mechanism": "PLAIN"})
    ]
    assert [(link.trace_id, link.span_id) for link in got.links] == [("aa" * 16, "bb" * 8)]
    assert got.tracestate == "vendor=1"
    assert got.parent_is_remote
    assert got.span_id == smtp.span_id.hex()
    assert {span.name: span.kind for span in spans} == {
        "smtp receive": "SERVER",
        "route default": "INTERNAL",
        "enqueue mailbox": "PRODUCER",
        "deliver mailbox": "CONSUMER",
        "relay mx": "CLIENT",
    }
    assert receiver.by_name("route default").parent_id == got.span_id
    assert not receiver.by_name("route default").parent_is_remote
    failed = receiver.by_name("deliver mailbox")
    assert failed.error
    assert failed.description == "mailbox full"
    assert failed.attributes == {"error.type": "4.2.2"}
    assert [span.span_id for span in receiver.orphans()] == [got.span_id]
    assert got.resource["service.name"] == "aimx-test"
    assert tracer.close(5)


def test_closing_sends_what_is_left(receiver: OtlpReceiver) -> None:
    tracer = export.open_tracer()
    for _ in range(1200):
        tracer.start("ack").end()
    assert tracer.close(10)
    assert len(receiver.spans) == 1200
    assert len({span.span_id for span in receiver.spans}) == 1200


def test_service_name_resource_and_headers_come_from_the_environment(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mail-north")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod,team=a%20b")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=seven")
    tracer = export.open_tracer()
    tracer.start("ack").end()
    assert tracer.close(5)
    resource = receiver.spans[0].resource
    assert resource["service.name"] == "mail-north"
    assert (resource["deployment.environment.name"], resource["team"]) == ("prod", "a b")
    assert receiver.headers[0]["x-tenant"] == "seven"


def test_a_hanging_collector_delays_neither_spans_nor_the_end(receiver: OtlpReceiver) -> None:
    receiver.behave("hang")
    tracer = export.open_tracer()
    tracer.start("ack").end()
    assert not tracer.flush(0.1)
    receiver.wait_for_requests(1)
    start = time.perf_counter()
    for _ in range(2000):
        tracer.start("ack").end()
    assert time.perf_counter() - start < 0.5
    start = time.monotonic()
    assert not tracer.close(0.3)
    assert time.monotonic() - start < 2


def test_a_refused_batch_is_counted_and_the_next_one_is_sent(receiver: OtlpReceiver) -> None:
    refused = metrics.counter("aimx.spans.dropped").labels("refused")
    before = refused.value
    receiver.behave("refuse")
    tracer = export.open_tracer()
    tracer.start("ack").end()
    assert tracer.flush(10)
    assert refused.value == before + 1
    receiver.behave("take")
    tracer.start("process").end()
    assert tracer.close(10)
    assert [span.name for span in receiver.spans] == ["process"]


def test_an_absent_collector_fills_a_bounded_buffer_and_drops_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as free:  # bound, never listening: connections are refused
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "50")
        full = metrics.counter("aimx.spans.dropped").labels("full")
        before = full.value
        tracer = export.open_tracer()
        for _ in range(500):
            tracer.start("ack").end()
        assert full.value - before >= 300
        start = time.monotonic()
        tracer.close(0.3)
        assert time.monotonic() - start < 2


def test_agents_of_the_command_line_choose_the_transport_as_the_node_does() -> None:
    """With nothing but an endpoint: HTTP, since the port is not gRPC's own."""
    program = (
        "from opentelemetry import trace\n"
        "from aimx.cli.tracing import exported\n"
        "with exported('agent'):\n"
        "    trace.get_tracer('agent').start_span('hello').end()\n"
    )
    with OtlpReceiver("http/protobuf") as receiver:
        environ = clean_environ({"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint})
        assert export.protocol(environ, "TRACES") == receiver.protocol
        subprocess.run([sys.executable, "-c", program], env=environ, check=True, timeout=60)
        assert [span.name for span in receiver.wait_for_names("hello")] == ["hello"]


def test_metrics_arrive_as_the_catalogue_describes_them(receiver: OtlpReceiver) -> None:
    own = metrics.Metrics()
    own.counter("aimx.messages.accepted").labels("agent").value += 3
    own.histogram("aimx.accept.duration").labels("agent").record(0.004)
    own.observe("aimx.queue.depth", lambda: [((), 7)])
    env = receiver.environ
    pump = export.MetricPump(lambda: export._metric_exporters(["otlp"], env), {"service.name": "x"}, {}, own)
    assert pump.close(10)
    accepted = receiver.metrics["aimx.messages.accepted"]
    assert accepted.sum.is_monotonic
    assert accepted.sum.data_points[0].as_int == 3
    assert receiver.metrics["aimx.queue.depth"].gauge.data_points[0].as_int == 7
    duration = receiver.metrics["aimx.accept.duration"].histogram.data_points[0]
    assert (duration.count, duration.sum, sum(duration.bucket_counts)) == (1, 0.004, 1)
    assert not duration.HasField("max")
