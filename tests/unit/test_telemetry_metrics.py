"""Metrics: right numbers, in a form that Prometheus reads, bounded whatever peers do."""

import pytest

from aimx.telemetry.exposition import negotiate, render
from aimx.telemetry.metrics import MAX_SERIES, Metrics, merge
from aimx.telemetry.span import Span, Tracer


def test_a_scrape_reads_as_prometheus_expects() -> None:
    own = Metrics()
    own.counter("aimx.messages.accepted").labels("agent").value += 2
    own.gauge("aimx.smtp.sessions").labels().set(3)
    duration = own.histogram("aimx.accept.duration").labels("agent")
    for seconds in (0.001, 0.002, 99):
        duration.record(seconds)
    lines = render(own.snapshot()).splitlines()
    assert 'aimx_messages_accepted_total{door="agent"} 2' in lines
    assert "# TYPE aimx_messages_accepted_total counter" in lines
    assert "aimx_smtp_sessions 3" in lines
    assert 'aimx_accept_duration_seconds_bucket{door="agent",le="0.001"} 1' in lines
    assert 'aimx_accept_duration_seconds_bucket{door="agent",le="0.0025"} 2' in lines
    assert 'aimx_accept_duration_seconds_bucket{door="agent",le="10"} 2' in lines
    assert 'aimx_accept_duration_seconds_bucket{door="agent",le="+Inf"} 3' in lines
    assert 'aimx_accept_duration_seconds_count{door="agent"} 3' in lines
    assert 'aimx_accept_duration_seconds_sum{door="agent"} 99.003' in lines


def test_label_values_are_escaped() -> None:
    own = Metrics()
    own.counter("aimx.bounces").labels('a"b\\c\nd').add()
    assert 'aimx_bounces_total{reason="a\\"b\\\\c\\nd"} 1' in render(own.snapshot())


def test_no_peer_can_make_the_number_of_series_grow() -> None:
    own = Metrics()
    commands = own.counter("aimx.smtp.commands")
    for i in range(3 * MAX_SERIES):
        commands.labels(f"VERB{i}", "5").add()
    assert len(commands.cells) <= MAX_SERIES + 1
    assert sum(cell.value for cell in commands.cells.values()) == 3 * MAX_SERIES
    assert commands.cells[("other", "other")].value > 0


def test_what_is_not_in_the_catalogue_is_refused() -> None:
    own = Metrics()
    with pytest.raises(KeyError):
        own.counter("aimx.made.up")
    with pytest.raises(ValueError, match="gauge"):
        own.counter("aimx.queue.depth")
    with pytest.raises(ValueError, match="labels"):
        own.counter("aimx.messages.accepted").labels("agent", "surplus")


def test_an_observed_gauge_is_asked_at_each_scrape_and_a_broken_one_spoils_nothing() -> None:
    own = Metrics()
    depth = [1]
    own.observe("aimx.queue.depth", lambda: [((), depth[0])])
    own.observe("aimx.audit.size", lambda: [((), 1 // 0)])
    assert "aimx_queue_depth 1" in render(own.snapshot())
    depth[0] = 5
    assert "aimx_queue_depth 5" in render(own.snapshot())


def test_processes_are_summed_for_a_scrape() -> None:
    one, two = Metrics(), Metrics()
    for own in (one, two):
        own.counter("aimx.messages.accepted").labels("agent").value += 2
        own.histogram("aimx.depth").labels().record(4)
    two.counter("aimx.messages.accepted").labels("peer").value += 1
    text = render(merge([one.snapshot(), two.snapshot()]))
    assert 'aimx_messages_accepted_total{door="agent"} 4' in text
    assert 'aimx_messages_accepted_total{door="peer"} 1' in text
    assert "aimx_depth_count 2" in text
    assert "aimx_depth_sum 8" in text


def test_what_all_workers_see_alike_is_not_summed() -> None:
    one, two = Metrics(), Metrics()
    one.gauge("aimx.queue.depth").labels().set(7)
    two.gauge("aimx.queue.depth").labels().set(6)
    one.gauge("aimx.smtp.sessions").labels().set(3)
    two.gauge("aimx.smtp.sessions").labels().set(2)
    text = render(merge([one.snapshot(), two.snapshot()]))
    assert "aimx_queue_depth 7" in text
    assert "aimx_smtp_sessions 5" in text


class Sink(list[Span]):
    def take(self, span: Span) -> None:
        self.append(span)

    def flush(self, timeout_s: float) -> bool:
        return True

    close = flush


def test_a_slow_bucket_leads_to_a_trace_that_was_collected_and_to_no_other() -> None:
    own = Metrics()
    duration = own.histogram("aimx.accept.duration").labels("agent")
    seen, unseen = Tracer(Sink()).start("smtp receive"), Tracer().start("smtp receive")
    duration.record(0.3, seen)
    duration.record(0.004, unseen)
    duration.record(0.002)
    text = render(own.snapshot(), "openmetrics")
    (marked,) = [line for line in text.splitlines() if " # " in line]
    assert marked.startswith('aimx_accept_duration_seconds_bucket{door="agent",le="0.5"} 3 # ')
    assert f'{{trace_id="{seen.trace_id.hex()}",span_id="{seen.span_id.hex()}"}} 0.3 ' in marked
    assert text.endswith("# EOF\n")
    assert "# TYPE aimx_messages_accepted counter" not in text, "a family without a series is left out"
    assert " # {" not in render(own.snapshot()), "the older format knows no exemplars"


def test_openmetrics_is_given_to_those_who_ask_for_it() -> None:
    assert negotiate("") == negotiate("*/*") == negotiate("text/plain;version=0.0.4") == "text"
    prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75"
    assert negotiate(prometheus) == "openmetrics"
    assert negotiate("application/openmetrics-text;q=0, text/plain") == "text"
