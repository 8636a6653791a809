"""The five service level objectives as Prometheus rules: `python -m dashboards.slo` writes `dashboards/rules/slo.yml`.

For each objective the ratio of errors over several windows is recorded; an alert fires when the budget of 30 days burns
too fast over a long window *and still does* over a short one (Google's SRE workbook, chapter 5, table 5-8): 14.4 times
(2 % of the budget in an hour) and 6 times (5 % in six hours) page somebody, 3 and 1 times (10 % in one and three days)
are a ticket. `for` is not needed: the windows are the patience.
"""

from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).parent / "rules" / "slo.yml"
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")


class Burn(NamedTuple):
    factor: float
    long: str
    short: str


PAGE = (Burn(14.4, "1h", "5m"), Burn(6, "6h", "30m"))
TICKET = (Burn(3, "1d", "2h"), Burn(1, "3d", "6h"))


class Objective(NamedTuple):
    """`bad` and `all` are queries with `[W]` for the window."""

    slo: str
    alert: str
    percent: float
    bad: str
    all: str
    says: str
    summary: str
    enough: int = 10
    """Events an hour under which nobody is woken; 0: it is a share of time, not of events."""


_PRESSURE = 'sum(rate(aimx_pressure_refusals_total{reason!~"agent|address"}[W]))'
_REPORTS = "delayed|delivered|relayed|expanded"  # asked for, or said on the way: nothing was given up
_GIVEN_UP = f'sum(rate(aimx_bounces_total{{reason!~"{_REPORTS}"}}[W]))'
_OUR_FAULT = f'sum(rate(aimx_bounces_total{{reason!~"{_REPORTS}|5[.][17][.].*"}}[W]))'
EVENTS = 'event=~"message.accepted|message.deferred|message.relayed|delivery.mailbox|delivery.webhook|delivery.lmtp"'
"""Of messages, those that each have a span `audit append`: acceptance, and every way a delivery goes."""

OBJECTIVES = (
    Objective(
        "submission-availability",
        "AimxSubmissionAvailability",
        99.9,
        f"({_PRESSURE} or vector(0))",
        f"(sum(rate(aimx_messages_accepted_total[W])) or vector(0)) + ({_PRESSURE} or vector(0))",
        "Of the messages handed over that were taken or that we could not take, those taken. A refusal by a rule, an"
        " unknown recipient or an agent's own haste is no failure of ours.",
        "Mail is refused because of us",
    ),
    Objective(
        "delivery-success",
        "AimxDeliverySuccess",
        99.9,
        f"({_OUR_FAULT} or vector(0))",
        f'(sum(rate(aimx_deliveries_total{{outcome="delivered"}}[W])) or vector(0)) + ({_GIVEN_UP} or vector(0))',
        "Of the deliveries that ended, those not given up. An unknown address (5.1.x) or a refusal by the other side's"
        " policy (5.7.x) is no failure of ours.",
        "Deliveries are given up",
    ),
    Objective(
        "delivery-freshness",
        "AimxDeliveryFreshness",
        99.0,
        "sum(rate(aimx_delivery_duration_seconds_count[W])) - ("
        '(sum(rate(aimx_delivery_duration_seconds_bucket{transport="mailbox",le=~"1(.0)?"}[W])) or vector(0))'
        ' + (sum(rate(aimx_delivery_duration_seconds_bucket{transport!="mailbox",le=~"60(.0)?"}[W])) or vector(0)))',
        "sum(rate(aimx_delivery_duration_seconds_count[W]))",
        "Of the deliveries made, those within a second of acceptance (mailboxes) or a minute (what leaves the node).",
        "Mail arrives late",
    ),
    Objective(
        "audit-completeness",
        "AimxAuditCompleteness",
        99.9,
        "avg_over_time(aimx:audit_behind:bool[W])",
        "vector(1)",
        "Of the time, that in which every event older than ten seconds was in the log.",
        "The audit log is behind",
        enough=0,
    ),
    Objective(
        "trace-completeness",
        "AimxTraceCompleteness",
        99.0,
        f"clamp_min(sum(rate(aimx_audit_leaves_total{{{EVENTS}}}[W]))"
        f" - (sum(rate(aimx_spans_events_total{{{EVENTS}}}[W])) or vector(0)), 0)"
        " and on() (sum(aimx_spans_exported_total) + sum(aimx_spans_dropped_total) > 0)",
        f"sum(rate(aimx_audit_leaves_total{{{EVENTS}}}[W]))",
        "Of the events of messages in the log (from the database), those whose span a collector took, or that the"
        " sampler left out. Silent on a node that exports no traces.",
        "Events leave no trace",
    ),
)

TIME = """\
  - name: aimx-audit-time
    rules:
      - record: aimx:audit_behind:bool
        expr: max(aimx_audit_lag_seconds) > bool 10
"""
CAUSES = """\
  - name: aimx-causes
    rules:
      - alert: AimxAuditInconsistent
        expr: max(aimx_audit_verdict{verdict="inconsistent"}) > 0
        labels: {severity: page}
        annotations:
          summary: The audit log is not the one the node has signed
          runbook: docs/runbooks/AimxAuditInconsistent.md
      - alert: AimxNodeDown
        expr: up{job="aimx"} == 0
        for: 1m
        labels: {severity: page}
        annotations:
          summary: "{{ $labels.instance }} does not answer"
          runbook: docs/runbooks/AimxNodeDown.md
"""


def rules() -> str:
    head = "# Written by `python -m dashboards.slo`: change it there.\ngroups:\n"
    return head + TIME + "".join(map(_group, OBJECTIVES)) + CAUSES


def _group(one: Objective) -> str:
    lines = [f"  - name: aimx-{one.slo}", "    rules:"]
    label = f'{{slo="{one.slo}"}}'
    if one.enough:
        _record(lines, "aimx:slo_events:per_hour", one, f"3600 * ({one.all.replace('[W]', '[1h]')})")
    for window in WINDOWS:
        bad, whole = (query.replace("[W]", f"[{window}]") for query in (one.bad, one.all))
        ratio = bad if one.all == "vector(1)" else f"({bad}) / ({whole})"
        _record(lines, f"aimx:slo_errors:ratio_rate{window}", one, ratio)
    budget = (100 - one.percent) / 100
    for severity, burns in (("page", PAGE), ("ticket", TICKET)):
        too_fast = "\n            or\n            ".join(
            f"(aimx:slo_errors:ratio_rate{burn.long}{label} > {burn.factor * budget:.6g}"
            f" and aimx:slo_errors:ratio_rate{burn.short}{label} > {burn.factor * budget:.6g})"
            for burn in burns
        )
        guard = f"\n          ) and aimx:slo_events:per_hour{label} >= {one.enough}" if one.enough else "\n          )"
        lines += [
            f"      - alert: {one.alert}",
            "        expr: |-",
            f"          (\n            {too_fast}{guard}",
            f"        labels: {{severity: {severity}, slo: {one.slo}}}",
            "        annotations:",
            f"          summary: {one.summary}",
            f"          description: {one.says}",
            f"          runbook: docs/runbooks/{one.alert}.md",
        ]
    return "\n".join(lines) + "\n"


def _record(lines: list[str], name: str, one: Objective, expression: str) -> None:
    lines += [
        f"      - record: {name}",
        f"        expr: |-\n          {expression}",
        f"        labels: {{slo: {one.slo}}}",
    ]


if __name__ == "__main__":
    FILE.write_text(rules())
