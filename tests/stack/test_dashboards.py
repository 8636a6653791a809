"""Dashboards: in step with their code, and every query answered by a real Prometheus that scraped a busy node."""

import json
import math
import re
from collections.abc import Iterator

import httpx
import pytest

from aimx.telemetry.catalogue import METRICS
from aimx.telemetry.exposition import prometheus_label, prometheus_name
from dashboards import slo
from dashboards.boards import BOARDS, FOLDER, Board, Panel, render
from tests.otlp_receiver import OtlpReceiver, wait_until
from tests.stack.servers import Prometheus, prometheus
from tests.system.traffic import busy_node, traffic

KNOWN = {prometheus_name(spec): {prometheus_label(label) for label in spec.labels} for spec in METRICS}
PANELS = [
    pytest.param(panel, id=f"{board.uid}: {panel.title}")
    for board in BOARDS
    for panels in board.rows.values()
    for panel in panels
]


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_the_json_is_what_the_code_says(board: Board) -> None:
    assert (FOLDER / f"{board.uid}.json").read_text() == render(board), "run `python -m dashboards.boards`"


def test_no_other_dashboard_lies_about() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {board.uid for board in BOARDS}
    for board in BOARDS:
        made = json.loads(render(board))
        assert made["uid"] == board.uid
        assert made["panels"]


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_asks_for_what_there_is(panel: Panel) -> None:
    for expression in panel.queries.values():
        names = {
            re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"\b(?:aimx|db|http)_[a-z_]+", expression)
        }
        names -= {"db_operation_name"}
        assert names <= KNOWN.keys(), expression
        asked = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
        assert asked - {"le"} <= set().union(*(KNOWN[name] for name in names)), expression


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Traffic twice, for a rate needs two scrapes that differ."""
    folder = tmp_path_factory.mktemp("dashboards")
    with (
        OtlpReceiver("grpc") as receiver,
        busy_node(folder / "node", receiver.environ) as node,
        prometheus(folder / "prometheus", node, slo.FILE) as made,
    ):
        traffic(node)
        bounced = "sum(aimx_bounces_total)"
        wait_until(lambda: made.value(bounced) > 0, 30)
        before = made.value(bounced)
        traffic(node)
        wait_until(lambda: made.value(bounced) > before, 30)
        # And some more scrapes: for the rules, too.
        scraped = made.value("count_over_time(up[10m])")
        wait_until(lambda: made.value("count_over_time(up[10m])") >= scraped + 3, 30)
        yield made


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_shows_something(watched: Prometheus, panel: Panel) -> None:
    for legend, expression in panel.queries.items():
        found = watched.query(expression.replace("$__rate_interval", "2m"))
        numbers = [float(one["value"][1]) for one in found]
        assert any(not math.isnan(number) for number in numbers), (panel.title, legend, expression)


def test_a_slow_bucket_has_a_trace_in_prometheus(watched: Prometheus) -> None:
    answer = httpx.get(
        f"{watched.url}/api/v1/query_exemplars",
        params={"query": "aimx_accept_duration_seconds_bucket", "start": 0, "end": 1 << 32},
    ).json()
    found = [one for series in answer["data"] for one in series["exemplars"]]
    assert found
    assert all(re.fullmatch("[0-9a-f]{32}", one["labels"]["trace_id"]) for one in found)


def test_nothing_fires_that_should_not(watched: Prometheus) -> None:
    """The node was busy, and well."""
    firing = {one["metric"]["alertname"] for one in watched.query('ALERTS{alertstate="firing",severity="page"}')}
    assert not firing & {"AimxAuditInconsistent", "AimxNodeDown", "AimxAuditCompleteness"}
