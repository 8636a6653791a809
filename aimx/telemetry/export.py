"""Export of spans and metrics by OTLP, on threads of its own, as the standard OTEL_* variables say.

Nothing configured means nothing exported and nothing slowed. A collector that is away or hangs costs no message and no
latency: finished spans wait in a bounded buffer, what does not fit is dropped and counted, shutting down waits no
longer than it was told.

Variables: OTEL_SDK_DISABLED; OTEL_TRACES_EXPORTER and OTEL_METRICS_EXPORTER (otlp, console, none);
OTEL_EXPORTER_OTLP_* with the _TRACES_ and _METRICS_ forms; OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG; OTEL_BSP_*;
OTEL_METRIC_EXPORT_INTERVAL; OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES. Where AIMX differs from a stock SDK: without
OTEL_TRACES_SAMPLER everything is recorded, also what a sender marked as unsampled (whether AIMX records is AIMX's
policy); the buffer holds 16,384 spans, in batches of 2,048 or one a second, instead of 2,048, 512 and five.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from aimx.telemetry import metrics
from aimx.telemetry.catalogue import MetricSpec
from aimx.telemetry.otlp import Encoder
from aimx.telemetry.pipeline import Limits, Pipeline, Transport, counted
from aimx.telemetry.span import AttributeValue, Sampler, Span, Tracer, always, never

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger(__name__)

Environ = Mapping[str, str]
Signal = Literal["TRACES", "METRICS"]
Sdk = Literal["aimx", "stock"]
"""Who exports spans: our own encoder, or opentelemetry-sdk from end to end."""

SCOPE = "aimx"


class TelemetrySettingError(ValueError):
    """An OTEL_* variable cannot be followed. The text names it and says what is allowed."""


# ── what the environment asks for ────────────────────────────────────────────────────────────────────────────────────


def open_tracer(service: str = "aimx", sdk: Sdk = "aimx") -> Tracer:
    """The tracer that the environment asks for; one that makes ids only when it asks for none.

    Call it once a process, after forking. End with `tracer.close(timeout_s)`.
    """
    env = os.environ  # the stock exporters read theirs from there too
    kinds = exporters_asked(env, "TRACES")
    if not kinds:
        return Tracer()
    about = resource(service, env, sdk)
    if sdk == "stock":
        from aimx.telemetry.stock import StockSink

        return Tracer(StockSink([_stock_exporter(kind, env) for kind in kinds], about, SCOPE, counted), sampler(env))
    limits = Limits(
        spans=_whole(env, "OTEL_BSP_MAX_QUEUE_SIZE", 16_384),
        batch=_whole(env, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 2_048),
        delay_s=_whole(env, "OTEL_BSP_SCHEDULE_DELAY", 1_000) / 1000,
    )
    return Tracer(Pipeline(lambda: _transports(kinds, about, env), limits), sampler(env))


def open_metrics(service: str = "aimx") -> "MetricPump | None":
    """A started pump that exports the process's metrics, or None when the environment asks for none."""
    env = os.environ  # the stock exporters read theirs from there too
    kinds = exporters_asked(env, "METRICS")
    return MetricPump(lambda: _metric_exporters(kinds, env), resource(service, env), env) if kinds else None


def exporters_asked(env: Environ, signal: Signal) -> list[str]:
    """Of otlp and console, those to use. OTLP needs no OTEL_*_EXPORTER when an endpoint is named."""
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    variable = f"OTEL_{signal}_EXPORTER"
    asked = [word.strip().lower() for word in env.get(variable, "").split(",") if word.strip()]
    if not asked:
        named = env.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        asked = ["otlp"] if named else []
    # The sidecar always answers a Prometheus scrape; asking for it is no error.
    asked = [word for word in asked if word != "none" and not (signal == "METRICS" and word == "prometheus")]
    for word in asked:
        if word not in ("otlp", "console"):
            raise TelemetrySettingError(f"{variable}={word}: use otlp, console or none")
    if "otlp" in asked:
        protocol(env, signal)
    return asked


def protocol(env: Environ, signal: Signal) -> Literal["grpc", "http/protobuf"]:
    """OTLP's transport. Not named: gRPC when the endpoint's port is 4317, gRPC's own, else HTTP."""
    for variable in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        match env.get(variable, "").strip().lower():
            case "":
                continue
            case "grpc":
                return "grpc"
            case "http/protobuf":
                return "http/protobuf"
            case other:
                raise TelemetrySettingError(f"{variable}={other}: use grpc or http/protobuf")
    endpoint = env.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    try:
        port = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}").port
    except ValueError:
        raise TelemetrySettingError(f"OTEL_EXPORTER_OTLP_ENDPOINT={endpoint}: not a URL") from None
    return "grpc" if port == 4317 else "http/protobuf"


def sampler(env: Environ) -> Sampler:
    """OTEL_TRACES_SAMPLER; without it everything is recorded."""
    name = env.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    parent_based = name.startswith("parentbased_")
    match name.removeprefix("parentbased_"):
        case "" | "always_on":
            root: Sampler = always
        case "always_off":
            root = never
        case "traceidratio":
            root = _ratio(env.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or "1.0")
        case _:
            from aimx.telemetry.stock import foreign_sampler

            found = foreign_sampler(env["OTEL_TRACES_SAMPLER"].strip(), env.get("OTEL_TRACES_SAMPLER_ARG", ""))
            if found is not None:
                return found
            allowed = "always_on, always_off, traceidratio, one of these after parentbased_, or an installed sampler's"
            raise TelemetrySettingError(f"OTEL_TRACES_SAMPLER={name}: use {allowed} name")
    if not parent_based:
        return root
    return lambda trace_id, parent: root(trace_id, None) if parent is None else parent.sampled


def _ratio(argument: str) -> Sampler:
    try:
        ratio = float(argument)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise TelemetrySettingError(f"OTEL_TRACES_SAMPLER_ARG={argument}: use a number from 0 to 1")
    # The same bound on the same bytes as other SDKs, so that all keep the same traces.
    bound = round(ratio * (1 << 64))
    return lambda trace_id, _parent: int.from_bytes(trace_id[8:], "big") < bound


def resource(service: str, env: Environ, sdk: Sdk = "aimx") -> dict[str, AttributeValue]:
    """Resource attributes: ours, then what the SDK finds: OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME and the detectors
    that OTEL_EXPERIMENTAL_RESOURCE_DETECTORS names."""
    from opentelemetry.sdk.resources import Resource

    try:
        release = version("aimx-server")
    except PackageNotFoundError:
        release = "0"
    attributes: dict[str, AttributeValue] = {
        "service.name": service,
        "service.version": release,
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        "host.name": socket.gethostname(),
        "process.pid": str(os.getpid()),
    }
    found: dict[str, Any] = dict(Resource.create().attributes)
    if str(found["service.name"]).startswith("unknown_service"):
        del found["service.name"]
    attributes |= found
    return (
        attributes if sdk == "stock" else attributes | {"telemetry.sdk.name": "aimx", "telemetry.sdk.version": release}
    )


def _whole(env: Environ, variable: str, default: int) -> int:
    try:
        number = int(env.get(variable, "").strip() or default)
    except ValueError:
        number = 0
    if number <= 0:
        raise TelemetrySettingError(f"{variable}={env.get(variable)}: use a whole number above 0")
    return number


# ── ways out for spans ───────────────────────────────────────────────────────────────────────────────────────────────


def _transports(kinds: Sequence[str], about: Mapping[str, AttributeValue], env: Environ) -> list[Transport]:
    """Made on the exporting thread, imports and all: gRPC alone takes a quarter of a second to load."""
    return [_console(about) if kind == "console" else _otlp(about, env) for kind in kinds]


def _otlp(about: Mapping[str, AttributeValue], env: Environ) -> Transport:
    """The stock exporters bring endpoints, headers, certificates, compression and retries by the standard variables;
    only their encoder is too slow. It is passed by where the installed version lets us, else all stays stock."""
    exporter: Any = _stock_exporter("otlp", env)
    encode = Encoder(about, SCOPE, str(about["service.version"])).encode
    post = getattr(getattr(exporter, "_client", None), "export", None)
    if protocol(env, "TRACES") == "http/protobuf" and callable(post):
        return Transport(lambda spans: bool(post(encode(spans)).success), exporter.shutdown, takes_bytes=True)
    if protocol(env, "TRACES") == "grpc" and hasattr(exporter, "_translate_data"):
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        exporter._translate_data = lambda spans: ExportTraceServiceRequest.FromString(encode(spans))
        return Transport(lambda spans: exporter.export(spans).value == 0, exporter.shutdown, takes_bytes=True)
    return _as_they_are(exporter, about)


def _console(about: Mapping[str, AttributeValue]) -> Transport:
    return _as_they_are(_stock_exporter("console", {}), about)


def _as_they_are(exporter: "SpanExporter", about: Mapping[str, AttributeValue]) -> Transport:
    from aimx.telemetry.stock import converter

    convert = converter(about, SCOPE)

    def send(spans: Sequence[Span]) -> bool:
        return exporter.export([convert(span) for span in spans]).value == 0  # SUCCESS

    return Transport(send, exporter.shutdown, takes_bytes=False)


def _stock_exporter(kind: str, env: Environ) -> "SpanExporter":
    if kind == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if protocol(env, "TRACES") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http()


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class MetricPump:
    """Sends a snapshot of the metrics at an interval, and once more at the end. Temporality is cumulative."""

    def __init__(
        self,
        make: Callable[[], list[Any]],
        attributes: Mapping[str, AttributeValue],
        env: Environ,
        source: metrics.Metrics = metrics.PROCESS,
    ) -> None:
        self._make = make
        self._attributes = attributes
        self._source = source
        self._interval = _whole(env, "OTEL_METRIC_EXPORT_INTERVAL", 60_000) / 1000
        self._started_ns = time.time_ns()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aimx-metrics", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """Send once more and end; False when that took longer than `timeout_s`."""
        self._closing.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            exporters = self._make()
        except Exception:
            log.exception("metric export is off: the exporter could not be made")
            return
        while True:
            last = self._closing.wait(self._interval)
            data = metrics_data(self._source.snapshot(), self._attributes, self._started_ns)
            for exporter in exporters:
                try:
                    exporter.export(data)
                except Exception:  # as above
                    log.exception("metrics could not be exported")
            if last:
                return


def metrics_data(
    snapshot: "Sequence[tuple[MetricSpec, Sequence[metrics.Point]]]",
    attributes: Mapping[str, AttributeValue],
    start_ns: int,
) -> "MetricsData":
    """A snapshot as the SDK's export data, so that the stock OTLP exporters can send it."""
    from opentelemetry.sdk.metrics import Exemplar
    from opentelemetry.sdk.metrics import export as sdk
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    now = time.time_ns()
    cumulative = sdk.AggregationTemporality.CUMULATIVE

    def data(spec: MetricSpec, points: Sequence[metrics.Point]) -> Any:
        named = [(dict(zip(spec.labels, point.labels, strict=True)), point.value) for point in points]
        if spec.kind == "histogram":
            return sdk.Histogram([histogram(spec, labels, value) for labels, value in named], cumulative)
        numbers = [sdk.NumberDataPoint(labels, start_ns, now, value) for labels, value in named]  # type: ignore[arg-type]
        return sdk.Sum(numbers, cumulative, True) if spec.kind == "counter" else sdk.Gauge(numbers)

    def histogram(spec: MetricSpec, labels: dict[str, str], value: Any) -> "sdk.HistogramDataPoint":
        counts, total, exemplars = value
        return sdk.HistogramDataPoint(
            attributes=labels,
            start_time_unix_nano=start_ns,
            time_unix_nano=now,
            count=sum(counts),
            sum=total,
            bucket_counts=list(counts),
            explicit_bounds=list(spec.buckets),
            # Not kept: a process-long minimum says nothing after the first minute.
            min=None,  # type: ignore[arg-type]
            max=None,  # type: ignore[arg-type]
            exemplars=[
                Exemplar({}, one.value, one.t_ns, int(one.span_id, 16), int(one.trace_id, 16))
                for one in exemplars
                if one is not None
            ],
        )

    found = [sdk.Metric(spec.name, spec.doc, spec.unit, data(spec, points)) for spec, points in snapshot]
    home = Resource(attributes)
    scopes = [sdk.ScopeMetrics(InstrumentationScope(SCOPE, str(attributes.get("service.version", ""))), found, "")]
    return sdk.MetricsData([sdk.ResourceMetrics(home, scopes, "")])


def _metric_exporters(kinds: Sequence[str], env: Environ) -> list[Any]:
    found: list[Any] = []
    for kind in kinds:
        if kind == "console":
            from opentelemetry.sdk.metrics.export import ConsoleMetricExporter

            found.append(ConsoleMetricExporter())
        elif protocol(env, "METRICS") == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as Grpc

            found.append(Grpc())
        else:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as Http

            found.append(Http())
    return found
