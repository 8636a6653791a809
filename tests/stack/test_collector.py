"""The project's collector configuration in a real collector: all spans are counted, and the telling traces are kept."""

import subprocess
from collections.abc import Iterator

import httpx
import pytest

from tests.otlp_receiver import OtlpReceiver, Received, wait_until
from tests.stack.servers import ROOT, collector, otelcol
from tests.system.traffic import address, busy_node, send, traffic

pytestmark = pytest.mark.stack
ORDINARY = "0af7651916cd43dd8448eb211c80319c"


def test_the_collector_takes_the_configuration() -> None:
    command = [otelcol(), "validate", "--config", str(ROOT / "otel-collector.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Kept:
    def __init__(self, spans: list[Received], metrics: str) -> None:
        self.spans, self.metrics = spans, metrics

    def traces(self) -> dict[str, list[Received]]:
        found: dict[str, list[Received]] = {}
        for span in self.spans:
            found.setdefault(span.trace_id, []).append(span)
        return found


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    folder = tmp_path_factory.mktemp("collector")
    with OtlpReceiver("grpc") as jaeger:
        at = jaeger.endpoint.rpartition("/")[2]
        # None of the ordinary ones, so that what comes out came for its reason.
        with collector(folder, at, DECISION_WAIT="3s", ORDINARY_PERCENT="0", METRICS_EVERY="1s") as urls:
            environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": urls["otlp"], "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
            with busy_node(folder / "node", environ | {"OTEL_BSP_SCHEDULE_DELAY": "200"}) as node:
                traceparent = f"00-{ORDINARY}-00f067aa0ba902b7-01"
                assert send(node, "zelda", address("yorick"), traceparent=traceparent, X_Workflow_ID="plain")
                traffic(node)
                wait_until(lambda: any(span.name.startswith("dead-letter") for span in list(jaeger.spans)), 30)
                wait_until(lambda: "traces_service_graph_request_total" in httpx.get(urls["metrics"]).text, 20)
                metrics = httpx.get(urls["metrics"]).text
        yield Kept(list(jaeger.spans), metrics)


def test_errors_loops_and_retries_are_kept_whole(kept: Kept) -> None:
    traces = kept.traces()
    assert any(span.attributes.get("aimx.loop.detected") for span in kept.spans)
    retried = [span for span in kept.spans if span.attributes.get("aimx.delivery.attempt", 1) >= 2]
    assert retried
    assert any(span.name == "smtp receive" and span.error for span in kept.spans)
    whole = traces[retried[0].trace_id]
    assert {"smtp receive", "audit append"} <= {span.name for span in whole}


def test_an_ordinary_trace_is_not_kept_and_yet_counted(kept: Kept) -> None:
    assert ORDINARY not in kept.traces()
    for trace in kept.traces().values():
        assert any(
            span.error
            or span.attributes.get("aimx.loop.detected")
            or span.attributes.get("aimx.delivery.attempt", 1) >= 2
            or span.end_ns - min(other.start_ns for other in trace) > 4e9
            for span in trace
        ), [span.name for span in trace]
    assert 'span_name="smtp receive"' in kept.metrics
    calls = [line for line in kept.metrics.splitlines() if line.startswith("traces_span_metrics_calls_total")]
    counted = sum(float(line.split("} ")[1].split()[0]) for line in calls if 'span_name="smtp receive"' in line)
    assert counted > len([span for span in kept.spans if span.name == "smtp receive"])
    assert "@" not in kept.metrics
