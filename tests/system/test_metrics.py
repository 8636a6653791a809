"""What a real node measures: all of the catalogue and nothing else, of bounded cardinality, with exemplars."""

import re
from collections.abc import Iterator

import pytest

from aimx.telemetry.catalogue import METRICS
from aimx.telemetry.exposition import prometheus_label, prometheus_name
from dashboards import slo
from tests.node_process import NodeProcess
from tests.otlp_receiver import OtlpReceiver, wait_until
from tests.system.traffic import NAMES, busy_node, http, traffic

NOT_HERE = {"aimx_audit_verify_failures_total"}
"""Nothing is wrong with this node's log; `tests/system/test_audit_watch.py` spoils one."""
TOLD = slo.EVENTS.split('"')[1].split("|")


def samples(text: str) -> dict[str, float]:
    """Series → value."""
    rows = (line.partition(" # ")[0].rpartition(" ") for line in text.splitlines() if line and line[0] != "#")
    return {series: float(value) for series, _, value in rows}


class Watched:
    def __init__(self, node: NodeProcess, receiver: OtlpReceiver) -> None:
        self.node, self.receiver = node, receiver

    def scrape(self, accept: str = "") -> str:
        with http(self.node) as client:
            answer = client.get("/metrics", headers={"Accept": accept} if accept else {})
        assert answer.status_code == 200
        return answer.text

    def sum(self, name: str, **labels: str) -> float:
        return sum(
            value
            for series, value in samples(self.scrape()).items()
            if series.partition("{")[0] == name and all(f'{key}="{said}"' in series for key, said in labels.items())
        )


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with OtlpReceiver("grpc") as receiver:
        environ = receiver.environ | {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_METRIC_EXPORT_INTERVAL": "500"}
        receiver.behave("refuse")
        with busy_node(tmp_path_factory.mktemp("metrics"), environ) as node:
            made = Watched(node, receiver)
            # What came before the collector did is lost, and counted.
            wait_until(lambda: made.sum("aimx_spans_dropped_total") > 0, 20)
            receiver.behave("take")
            traffic(node)
            wait_until(lambda: made.sum("aimx_bounces_total") > 0, 20)
            wait_until(lambda: made.sum("aimx_audit_anchors_total", outcome="cosigned") > 0, 20)
            yield made


def test_every_metric_of_the_catalogue_is_moved_and_no_other_is_there(watched: Watched) -> None:
    found = samples(watched.scrape())
    names = {re.sub("_(bucket|sum|count)$", "", series.partition("{")[0]) for series in found}
    known = {prometheus_name(spec): spec for spec in METRICS}
    assert names <= known.keys()
    moved = {series.partition("{")[0] for series, value in found.items() if value}
    for name, spec in known.items():
        match spec.kind:
            case "histogram":
                assert f"{name}_count" in moved, name
            case "counter":
                assert name in moved or name in NOT_HERE, name
            case _:
                assert name in names, name


def test_labels_are_the_catalogues_and_tell_of_nobody(watched: Watched) -> None:
    text = watched.scrape()
    labels = {prometheus_name(spec): {prometheus_label(label) for label in spec.labels} for spec in METRICS}
    for series in samples(text):
        name = re.sub("_(bucket|sum|count)$", "", series.partition("{")[0])
        assert set(re.findall(r'(\w+)="', series)) - {"le"} == labels[name], series
    for secret in (*NAMES, "nobody", "@", "fabric.local", "outside.example", "wf-secret"):
        assert secret not in text.lower(), secret
    assert not re.search(r'"[0-9A-HJKMNP-TV-Z]{26}"|"[0-9a-f]{16,}"', text), "an id among the labels"
    assert len(samples(text)) < 2500


def test_a_bucket_leads_to_a_trace_that_the_collector_has(watched: Watched) -> None:
    text = watched.scrape("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert text.endswith("# EOF\n")
    for name in ("aimx_accept_duration", "aimx_delivery_duration", "aimx_pickup_latency"):
        traces = re.findall(rf'^{name}_seconds_bucket.* # {{trace_id="(\w+)"', text, re.MULTILINE)
        assert traces, name
        kept = {span.trace_id for span in list(watched.receiver.spans)}
        assert kept & set(traces), name
    wait_until(lambda: "aimx.accept.duration" in watched.receiver.metrics, 30)  # it was refused at first
    pushed = watched.receiver.metrics["aimx.accept.duration"]
    assert [one.trace_id for point in pushed.histogram.data_points for one in point.exemplars]


def test_the_log_is_looked_at_and_found_consistent(watched: Watched) -> None:
    wait_until(lambda: watched.sum("aimx_audit_verdict", verdict="consistent") == 1, 10)
    assert watched.sum("aimx_audit_verdict") == 1


def test_every_event_in_the_log_has_its_span_at_the_collector(watched: Watched) -> None:
    """What the SLO of trace completeness divides: from the database, and from what was exported."""

    def complete() -> bool:
        found = samples(watched.scrape())
        return all(
            found.get(f'aimx_spans_events_total{{event="{event}",fate="exported"}}')
            == found[f'aimx_audit_leaves_total{{event="{event}"}}']
            for event in TOLD
        )

    wait_until(complete, 10)
