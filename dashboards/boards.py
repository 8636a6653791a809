"""The dashboards as code: `python -m dashboards.boards` writes `dashboards/*.json` for Grafana.

Queries are over the metrics of `aimx/telemetry/catalogue.py` (docs/spans.md) and the rules of `slo.py`. What all nodes
of a database see alike is a `max`, never a `sum`.
"""

from pathlib import Path
from string import ascii_uppercase
from typing import NamedTuple

from grafana_foundation_sdk.builders import dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef

from dashboards.slo import EVENTS, OBJECTIVES

FOLDER = Path(__file__).parent
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
RATE = "[$__rate_interval]"


class Panel(NamedTuple):
    title: str
    says: str
    queries: dict[str, str]
    """Legend → PromQL."""
    unit: str = "short"
    kind: str = "lines"
    """lines, number, or heat (of a histogram's buckets)."""
    exemplars: bool = False


class Board(NamedTuple):
    uid: str
    title: str
    says: str
    rows: dict[str, tuple[Panel, ...]]


def quantile(q: float, metric: str, by: str = "", window: str = RATE) -> str:
    return f"histogram_quantile({q}, sum by (le{', ' + by if by else ''}) (rate({metric}_bucket{window})))"


def total(metric: str, by: str = "", where: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{where}{RATE}))"


DELIVERY = Board(
    "aimx-delivery-slo",
    "AIMX: delivery SLO",
    "Are the promises kept, how fast is the budget spent, and which mail is it?",
    {
        "Budgets": (
            Panel(
                "Budget left of 3 days",
                "1 is all of it, 0 none. Of the objective's allowance over three days.",
                {
                    one.slo: f'1 - aimx:slo_errors:ratio_rate3d{{slo="{one.slo}"}} / {(100 - one.percent) / 100:.6g}'
                    for one in OBJECTIVES
                },
                "percentunit",
                "number",
            ),
            Panel(
                "Errors over an hour",
                "Share of what was bad; the alerts compare it with their budget.",
                {"{{slo}}": "aimx:slo_errors:ratio_rate1h"},
                "percentunit",
            ),
            Panel(
                "Errors over five minutes",
                "The short window.",
                {"{{slo}}": "aimx:slo_errors:ratio_rate5m"},
                "percentunit",
            ),
        ),
        "Submission": (
            Panel(
                "Accepted",
                "Messages answered 250, by door.",
                {"{{door}}": total("aimx_messages_accepted_total", "door")},
                "reqps",
            ),
            Panel(
                "Refused",
                "By enhanced status code.",
                {"{{code}}": total("aimx_messages_rejected_total", "code")},
                "reqps",
            ),
            Panel(
                "Why we could not take it",
                "Temporary refusals; all but `agent` and `address` count against the objective.",
                {"{{reason}}": total("aimx_pressure_refusals_total", "reason")},
                "reqps",
            ),
            Panel(
                "Time to accept",
                "From the end of the data to the reply. The dots lead to traces.",
                {
                    "p50": quantile(0.5, "aimx_accept_duration_seconds"),
                    "p99": quantile(0.99, "aimx_accept_duration_seconds"),
                },
                "s",
                exemplars=True,
            ),
        ),
        "Delivery": (
            Panel(
                "Attempts",
                "By transport and outcome.",
                {"{{transport}} {{outcome}}": total("aimx_deliveries_total", "transport, outcome")},
                "reqps",
            ),
            Panel(
                "Failures by class",
                "What attempts met that did not deliver.",
                {"{{error_type}}": total("aimx_deliveries_total", "error_type", '{outcome!="delivered"}')},
                "reqps",
            ),
            Panel(
                "Time to delivery",
                "From acceptance to the mailbox or the other server. The dots lead to traces.",
                {"{{transport}} p95": quantile(0.95, "aimx_delivery_duration_seconds", "transport")},
                "s",
                exemplars=True,
            ),
            Panel(
                "Time to delivery, all",
                "How many deliveries took how long.",
                {"{{le}}": f"sum by (le) (increase(aimx_delivery_duration_seconds_bucket{RATE}))"},
                "s",
                "heat",
            ),
            Panel("Notices", "DSNs, by reason.", {"{{reason}}": total("aimx_bounces_total", "reason")}, "reqps"),
        ),
    },
)

QUEUE = Board(
    "aimx-queue-audit",
    "AIMX: queue and audit",
    "Does the queue drain, does the log keep up, and is it whole?",
    {
        "Queue": (
            Panel("Waiting", "Deliveries.", {"waiting": "max(aimx_queue_depth)"}),
            Panel("Oldest", "How long the oldest has been due.", {"age": "max(aimx_queue_oldest_age_seconds)"}, "s"),
            Panel(
                "Attempts a delivery took",
                "Of finished ones.",
                {"{{transport}} p95": quantile(0.95, "aimx_delivery_attempts", "transport")},
            ),
            Panel(
                "Destinations left alone",
                "Their circuit is open, or lets one probe through.",
                {"{{state}}": "max by (state) (aimx_destination_circuits)"},
            ),
        ),
        "Log": (
            Panel(
                "Verdict",
                "Of the self-check, each half minute.",
                {"{{verdict}}": "max by (verdict) (aimx_audit_verdict)"},
                kind="number",
            ),
            Panel("Lag", "Age of the oldest event not in the tree.", {"lag": "max(aimx_audit_lag_seconds)"}, "s"),
            Panel("Leaves", "By event.", {"{{event}}": total("aimx_audit_leaves_total", "event")}, "reqps"),
            Panel("Size", "Leaves in the tree.", {"leaves": "max(aimx_audit_size)"}),
            Panel(
                "Since outsiders confirmed a checkpoint",
                "Witnesses, mailboxes, time stamps.",
                {"{{kind}} {{name}}": "max by (kind, name) (aimx_audit_anchor_age_seconds)"},
                "s",
            ),
            Panel(
                "Outsiders asked",
                "By outcome.",
                {"{{kind}} {{outcome}}": total("aimx_audit_anchors_total", "kind, outcome")},
                "reqps",
            ),
        ),
        "Store and node": (
            Panel(
                "Store calls, p99",
                "By operation.",
                {"{{db_operation_name}}": quantile(0.99, "db_client_operation_duration_seconds", "db_operation_name")},
                "s",
            ),
            Panel("Commit, p99", "One group.", {"commit": quantile(0.99, "aimx_store_commit_duration_seconds")}, "s"),
            Panel("Writes in a commit", "p50.", {"batch": quantile(0.5, "aimx_store_commit_batch")}),
            Panel(
                "Sessions",
                "Open ones.",
                {"smtp": "sum(aimx_smtp_sessions)", "imap {{state}}": "sum by (state) (aimx_imap_sessions)"},
            ),
            Panel("Octets in memory", "Of messages coming in.", {"held": "sum(aimx_bytes_held_bytes)"}, "bytes"),
            Panel(
                "Spans",
                "Taken by the collector, and lost.",
                {
                    "exported": total("aimx_spans_exported_total"),
                    "{{reason}}": total("aimx_spans_dropped_total", "reason"),
                },
                "reqps",
            ),
        ),
    },
)

AGENTS = Board(
    "aimx-agents-loops",
    "AIMX: agents and loops",
    "Do agents pick up, answer and end? Who goes round in circles?",
    {
        "Agents": (
            Panel(
                "Pick-up",
                "From the mailbox to the first FETCH. The dots lead to traces.",
                {
                    "p50": quantile(0.5, "aimx_pickup_latency_seconds"),
                    "p95": quantile(0.95, "aimx_pickup_latency_seconds"),
                },
                "s",
                exemplars=True,
            ),
            Panel(
                "Answer",
                "From a message's acceptance to its answer's.",
                {
                    "p50": quantile(0.5, "aimx_agent_response_duration_seconds"),
                    "p95": quantile(0.95, "aimx_agent_response_duration_seconds"),
                },
                "s",
                exemplars=True,
            ),
            Panel(
                "Sign-ins that failed",
                "By door and outcome.",
                {"{{door}} {{outcome}}": total("aimx_auth_attempts_total", "door, outcome", '{outcome!="ok"}')},
                "reqps",
            ),
            Panel(
                "IMAP commands",
                "By verb.",
                {"{{verb}} {{status}}": total("aimx_imap_commands_total", "verb, status")},
                "reqps",
            ),
        ),
        "Loops": (
            Panel(
                "Loops",
                "Warned and refused, by rule.",
                {"{{rule}} {{verdict}}": total("aimx_loops_detected_total", "rule, verdict")},
                "reqps",
            ),
            Panel(
                "Answers in a row",
                "Depth of what is accepted.",
                {"p50": quantile(0.5, "aimx_depth"), "p99": quantile(0.99, "aimx_depth")},
                exemplars=True,
            ),
            Panel("Route hops", "p95.", {"hops": quantile(0.95, "aimx_hops")}),
            Panel(
                "Sent again under the same key",
                "Replayed, or refused for other content.",
                {"{{outcome}}": total("aimx_messages_repeated_total", "outcome")},
                "reqps",
            ),
        ),
        "Traces": (
            Panel(
                "Where traces come from",
                "The sender's header, a peer's hop, the answered message, or new.",
                {"{{source}}": total("aimx_context_extracted_total", "source")},
                "reqps",
            ),
            Panel(
                "Events that have their span",
                "Of messages: exported against the log. 1 is all.",
                {
                    "complete": f"sum(rate(aimx_spans_events_total{{{EVENTS}}}{RATE}))"
                    f" / sum(rate(aimx_audit_leaves_total{{{EVENTS}}}{RATE}))"
                },
                "percentunit",
            ),
        ),
    },
)

BOARDS = (DELIVERY, QUEUE, AGENTS)


def render(board: Board) -> str:
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.says)
        .tags(["aimx"])
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .refresh("10s")
        .time("now-1h", "now")
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for title, panels in board.rows.items():
        made = made.with_row(dashboard.Row(title))
        for panel in panels:
            made = made.with_panel(_panel(panel))
    return JSONEncoder(sort_keys=True, indent=1).encode(made.build()) + "\n"


def _panel(panel: Panel) -> timeseries.Panel | stat.Panel | heatmap.Panel:
    made: timeseries.Panel | stat.Panel | heatmap.Panel
    match panel.kind:
        case "number":
            made = stat.Panel()
        case "heat":
            made = heatmap.Panel().calculate(False)
        case _:
            made = timeseries.Panel().fill_opacity(8).line_width(1)
    made = made.title(panel.title).description(panel.says).unit(panel.unit).datasource(SOURCE).span(8).height(7)
    for letter, (legend, expression) in zip(ascii_uppercase, panel.queries.items(), strict=False):
        query = prometheus.Dataquery().ref_id(letter).expr(expression).legend_format(legend).datasource(SOURCE)
        if panel.exemplars:
            query = query.exemplar(True)
        if panel.kind == "heat":
            query = query.format("heatmap")
        made = made.with_target(query)
    return made


if __name__ == "__main__":
    for each in BOARDS:
        (FOLDER / f"{each.uid}.json").write_text(render(each))
