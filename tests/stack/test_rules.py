"""The rules as Prometheus itself judges them: each alert fires when it must and is silent when it must be."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from dashboards import slo
from tests.interop.programs import run

RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks"


def test_the_file_is_what_the_objectives_say() -> None:
    assert slo.FILE.read_text() == slo.rules(), "run `python -m dashboards.slo`"


def test_prometheus_takes_the_rules() -> None:
    run("promtool", "check", "rules", str(slo.FILE))


def test_every_alert_has_a_page_that_says_what_to_look_at_and_what_to_type() -> None:
    alerts = set(re.findall(r"alert: (\w+)", slo.rules()))
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == alerts
    for alert in alerts:
        text = (RUNBOOKS / f"{alert}.md").read_text()
        assert text.startswith(f"# {alert}\n")
        for part in ("## What it means", "## Look at", "## Do"):
            assert part in text, (alert, part)
        assert "aimx " in text, alert


class Case(NamedTuple):
    """`series` are what nodes say, each with a value a minute for a fast burn, or one in ten minutes for a slow one."""

    alert: str
    severity: str
    series: dict[str, str]
    fires: bool


def up(per_step: float) -> str:
    return f"0+{per_step}x500"


def level(value: float) -> str:
    return f"{value}x500"


def burning(severity: str, good: float, bad: float) -> dict[str, dict[str, str]]:
    """For each objective by events, what a node says of so many good and bad ones a step."""
    both = good + bad
    return {
        "AimxSubmissionAvailability": {
            'aimx_messages_accepted_total{door="agent"}': up(good),
            'aimx_pressure_refusals_total{reason="disk"}': up(bad),
        },
        "AimxDeliverySuccess": {
            'aimx_deliveries_total{transport="mailbox",outcome="delivered"}': up(good),
            'aimx_bounces_total{reason="circuit-open"}': up(bad),
        },
        "AimxDeliveryFreshness": {
            'aimx_delivery_duration_seconds_bucket{transport="mailbox",le="1"}': up(good / 2),
            'aimx_delivery_duration_seconds_bucket{transport="relay",le="60"}': up(good / 2),
            'aimx_delivery_duration_seconds_count{transport="mailbox"}': up(both / 2),
            'aimx_delivery_duration_seconds_count{transport="relay"}': up(both / 2),
        },
        "AimxTraceCompleteness": {
            'aimx_audit_leaves_total{event="message.accepted"}': up(both),
            'aimx_audit_leaves_total{event="heartbeat"}': up(100),
            'aimx_spans_events_total{event="message.accepted",fate="exported"}': up(good / 2),
            'aimx_spans_events_total{event="message.accepted",fate="unsampled"}': up(good / 2),
            "aimx_spans_exported_total": up(good),
            'aimx_spans_dropped_total{reason="full"}': up(bad),
        },
    }


def cases() -> list[Case]:
    found = []
    for one in slo.OBJECTIVES:
        if not one.enough:
            continue
        budget = (100 - one.percent) / 100
        # A page at 20 times the budget, not at twice; a ticket at one and a half times, not at half.
        for severity, most, least in (("page", 20, 2), ("ticket", 1.5, 0.5)):
            for share, fires in ((most * budget, True), (least * budget, False)):
                series = burning(severity, 1000 * (1 - share), 1000 * share)[one.alert]
                found.append(Case(one.alert, severity, series, fires))
    submission = burning("page", 0, 0.1)["AimxSubmissionAvailability"]
    found.append(Case("AimxSubmissionAvailability", "page", submission, False))  # six an hour: nobody is woken
    rules_of_others = {
        'aimx_messages_accepted_total{door="agent"}': up(10),
        'aimx_messages_rejected_total{code="5.7.1"}': up(90),
        'aimx_pressure_refusals_total{reason="agent"}': up(90),
    }
    found.append(Case("AimxSubmissionAvailability", "page", rules_of_others, False))
    policy = {
        'aimx_deliveries_total{transport="relay",outcome="delivered"}': up(10),
        'aimx_bounces_total{reason="5.7.1"}': up(10),
        'aimx_bounces_total{reason="delivered"}': up(10),
    }
    found.append(Case("AimxDeliverySuccess", "page", policy, False))
    untraced = {'aimx_audit_leaves_total{event="message.accepted"}': up(100), "aimx_spans_exported_total": level(0)}
    untraced['aimx_spans_dropped_total{reason="full"}'] = level(0)
    found.append(Case("AimxTraceCompleteness", "page", untraced, False))
    behind, level_with = {"aimx_audit_lag_seconds": level(30)}, {"aimx_audit_lag_seconds": level(0.2)}
    found += [Case("AimxAuditCompleteness", severity, behind, True) for severity in ("page", "ticket")]
    found += [Case("AimxAuditCompleteness", severity, level_with, False) for severity in ("page", "ticket")]
    verdict = 'aimx_audit_verdict{verdict="inconsistent",instance="a"}'
    found += [Case("AimxAuditInconsistent", "page", {verdict: level(bad)}, bool(bad)) for bad in (0, 1)]
    found += [Case("AimxNodeDown", "page", {'up{job="aimx",instance="a"}': level(up_)}, not up_) for up_ in (0, 1)]
    return found


def test_every_alert_fires_in_one_case_and_is_silent_in_another() -> None:
    every = set(re.findall(r"alert: (\w+)", slo.rules()))
    assert {case.alert for case in cases() if case.fires} == {case.alert for case in cases() if not case.fires} == every


@pytest.mark.parametrize(
    ("severity", "every", "step", "at"), [("page", "10m", "1m", "70m"), ("ticket", "2h", "10m", "80h")]
)
def test_alerts_fire_and_are_silent(tmp_path: Path, severity: str, every: str, step: str, at: str) -> None:
    """One run of promtool for many cases, for it reads the rules each time."""
    text = f"rule_files: [{slo.FILE}]\nevaluation_interval: {every}\ntests:\n"
    for case in cases():
        if case.severity != severity:
            continue
        text += f"  - interval: {step}\n    input_series:\n"
        for series, values in case.series.items():
            text += f"      - {{series: '{series}', values: '{values}'}}\n"
        # Counted, so that a case need not repeat labels and annotations.
        asked = f'count(ALERTS{{alertname="{case.alert}",severity="{severity}",alertstate="firing"}}) or vector(0)'
        text += f"    promql_expr_test:\n      - expr: '{asked}'\n        eval_time: {at}\n"
        text += f"        exp_samples: [{{labels: '{{}}', value: {int(case.fires)}}}]\n"
    tests = tmp_path / "tests.yml"
    tests.write_text(text)
    run("promtool", "test", "rules", str(tests))
