"""What the OTEL_* variables turn on, and that a wrong one is named."""

import pytest

from aimx.telemetry import export
from aimx.telemetry.context import Context
from aimx.telemetry.span import Tracer, never

PARENT = Context(b"\x01" * 16, b"\x02" * 8, 1)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def test_nothing_configured_means_ids_only() -> None:
    tracer = export.open_tracer()
    assert not tracer.exporting
    assert export.open_metrics() is None
    span = tracer.start("ack")
    assert (len(span.trace_id), len(span.span_id)) == (16, 8)
    span.end()
    assert tracer.flush()
    assert tracer.close()


@pytest.mark.parametrize(
    ("env", "kinds"),
    [
        ({}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4318/v1/metrics"}, []),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, []),
        ({"OTEL_TRACES_EXPORTER": "otlp, console"}, ["otlp", "console"]),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, []),
    ],
)
def test_what_turns_the_export_of_spans_on(env: dict[str, str], kinds: list[str]) -> None:
    assert export.exporters_asked(env, "TRACES") == kinds


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, "grpc"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4317"}, "grpc"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "grpc"),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
            "http/protobuf",
        ),
    ],
)
def test_which_transport_is_taken(env: dict[str, str], expected: str) -> None:
    assert export.protocol(env, "TRACES") == expected


@pytest.mark.parametrize(
    "env",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
        {"OTEL_TRACES_EXPORTER": "console", "OTEL_TRACES_SAMPLER": "sometimes"},
        {"OTEL_TRACES_EXPORTER": "console", "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "7"},
        {"OTEL_TRACES_EXPORTER": "console", "OTEL_BSP_MAX_QUEUE_SIZE": "-1"},
        {"OTEL_TRACES_EXPORTER": "console", "OTEL_BSP_SCHEDULE_DELAY": "soon"},
    ],
)
def test_a_wrong_variable_is_named(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    wrong = list(env)[-1]
    with pytest.raises(export.TelemetrySettingError, match=wrong):
        export.open_tracer()


def test_a_senders_unsampled_flag_is_overruled_unless_a_parent_based_sampler_was_asked_for() -> None:
    unsampled = PARENT._replace(flags=0)
    assert export.sampler({})(unsampled.trace_id, unsampled)
    asked = export.sampler({"OTEL_TRACES_SAMPLER": "parentbased_always_on"})
    assert not asked(unsampled.trace_id, unsampled)
    assert asked(PARENT.trace_id, PARENT)
    assert asked(PARENT.trace_id, None)


def test_the_ratio_sampler_keeps_the_traces_that_other_sdks_keep() -> None:
    from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
    from opentelemetry.trace import SpanKind

    ours = export.sampler({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"})
    theirs = TraceIdRatioBased(0.25)
    kept = 0
    for i in range(400):
        trace_id = Tracer().start("ack").trace_id
        decision = theirs.should_sample(None, int.from_bytes(trace_id, "big"), "x", SpanKind.INTERNAL).decision
        assert ours(trace_id, None) is bool(decision.value), i
        kept += ours(trace_id, None)
    assert 40 < kept < 180


def test_an_unsampled_span_still_has_ids_and_says_so_in_its_context() -> None:
    span = Tracer(sampler=never).start("ack", parent=PARENT)
    span.event("x")
    span.link(PARENT)
    assert span.events is None
    assert span.links is None
    assert span.context.traceparent.endswith("-00")
    assert span.context.trace_id == PARENT.trace_id
