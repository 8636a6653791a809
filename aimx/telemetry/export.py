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
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from aimx.telemetry import metrics
from aimx.telemetry.catalogue import MetricSpec
from aimx.telemetry.context import Context
from aimx.telemetry.otlp import Encoder, encode_span
from aimx.telemetry.span import Kind, Sampler, Sink, Span, Tracer, always, never

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger(__name__)

Environ = Mapping[str, str]
Signal = Literal["TRACES", "METRICS"]

_EXPORTED = metrics.counter("aimx.spans.exported").labels()
_DROPPED = metrics.counter("aimx.spans.dropped")
_FULL = _DROPPED.labels("full")
"""The buffer was: spans come faster than the collector takes them, or it is away."""
_REFUSED = _DROPPED.labels("refused")
"""The collector did not take a batch, also when asked again."""
_CLOSED = _DROPPED.labels("closed")
"""Not sent when the process ended."""

SCOPE = "aimx"
MAX_OCTETS = 64 << 20
"""Of encoded spans in the buffer, beside its number of spans: those with many links are large."""
BATCH_OCTETS = 1 << 20
DROPS_EVERY = 60.0
"""Seconds between two log lines about dropped spans."""


class TelemetrySettingError(ValueError):
    """An OTEL_* variable cannot be followed. The text names it and says what is allowed."""


# ── what the environment asks for ────────────────────────────────────────────────────────────────────────────────────


def open_tracer(service: str = "aimx") -> Tracer:
    """The tracer that the environment asks for; one that makes ids only when it asks for none.

    Call it once a process, after forking. End with `tracer.close(timeout_s)`.
    """
    env = os.environ  # the stock exporters read theirs from there too
    kinds = exporters_asked(env, "TRACES")
    if not kinds:
        return Tracer()
    about = resource(service, env)
    return Tracer(Pipeline(lambda: _transports(kinds, about, env), env), sampler(env))


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
            allowed = "always_on, always_off, traceidratio, or one of these after parentbased_"
            raise TelemetrySettingError(f"OTEL_TRACES_SAMPLER={name}: use {allowed}")
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


def resource(service: str, env: Environ) -> dict[str, str]:
    """Resource attributes: ours, then OTEL_RESOURCE_ATTRIBUTES, then OTEL_SERVICE_NAME."""
    from urllib.parse import unquote

    try:
        release = version("aimx-server")
    except PackageNotFoundError:
        release = "0"
    attributes = {
        "service.name": service,
        "service.version": release,
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        "host.name": socket.gethostname(),
        "process.pid": str(os.getpid()),
        "telemetry.sdk.name": "aimx",
        "telemetry.sdk.language": "python",
    }
    for pair in env.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        key, equals, value = pair.partition("=")
        if equals and key.strip():
            attributes[key.strip()] = unquote(value.strip())
    if env.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = env["OTEL_SERVICE_NAME"]
    return attributes


def _whole(env: Environ, variable: str, default: int) -> int:
    try:
        number = int(env.get(variable, "").strip() or default)
    except ValueError:
        number = 0
    if number <= 0:
        raise TelemetrySettingError(f"{variable}={env.get(variable)}: use a whole number above 0")
    return number


# ── spans ────────────────────────────────────────────────────────────────────────────────────────────────────────────


Item = Span | bytes
"""A finished span, as it is or as `otlp.encode_span` wrote it."""


class Transport(NamedTuple):
    """One way out. `send` blocks, and says whether the collector took the batch; `shutdown` cancels it."""

    send: Callable[[Sequence[Any]], bool]
    shutdown: Callable[[], None]
    takes_bytes: bool
    """It takes encoded spans, too; else only spans as they are."""


class Pipeline(Sink):
    """A bounded buffer and the thread that empties it and owns the exporters.

    Where all of these take bytes, `take` encodes: a few microseconds on the thread that ends the span.
    """

    def __init__(self, make: "Callable[[], list[Transport]]", env: Environ) -> None:
        self._make = make
        self._capacity = _whole(env, "OTEL_BSP_MAX_QUEUE_SIZE", 16_384)
        self._batch = min(_whole(env, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 2_048), self._capacity)
        self._delay = _whole(env, "OTEL_BSP_SCHEDULE_DELAY", 1_000) / 1000
        self._encode = False
        self._buffer: deque[Item] = deque()
        self._octets_in = self._octets_out = 0
        self._wake = threading.Event()
        self._waiting: deque[threading.Event] = deque()
        self._closing = False
        self._transports: list[Transport] = []
        self._drops = Drops()
        self._thread = threading.Thread(target=self._run, name="aimx-spans", daemon=True)
        self._thread.start()

    def take(self, span: Span) -> None:
        waiting = len(self._buffer)
        if waiting >= self._capacity or self._octets_in - self._octets_out > MAX_OCTETS:
            _FULL.value += 1
        elif self._closing:
            _CLOSED.value += 1
        elif not self._encode:
            self._buffer.append(span)
        else:
            encoded = encode_span(span)
            self._octets_in += len(encoded)
            self._buffer.append(encoded)
        if waiting + 1 == self._batch:
            self._wake.set()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything taken so far was sent or given up; False when that took longer."""
        if not self._thread.is_alive():
            return not self._buffer
        done = threading.Event()
        self._waiting.append(done)
        self._wake.set()
        return done.wait(timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Flush, and end the thread. After `timeout_s` what is left is dropped and counted."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_s)
        in_time = not self._thread.is_alive()
        _CLOSED.value += len(self._buffer)
        self._buffer.clear()
        self._drops.tell(at_once=True)
        for transport in self._transports:
            # Cancels a call that hangs; the thread is a daemon and does not hold the process.
            threading.Thread(target=transport.shutdown, daemon=True).start()
        return in_time

    def _run(self) -> None:
        try:
            self._transports = self._make()
        except Exception:
            log.exception("span export is off: the exporter could not be made")
            self._closing = True
            return
        self._encode = all(transport.takes_bytes for transport in self._transports)
        while not (self._closing and not self._buffer):
            self._wake.wait(self._delay)
            self._wake.clear()
            waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
            while self._buffer:
                self._send(self._next_batch())
            for done in waiting:
                done.set()
            self._drops.tell()

    def _next_batch(self) -> list[Item]:
        """As many as a batch may have, and as a collector takes at once: by default gRPC refuses 4 MiB."""
        batch: list[Item] = []
        octets = 0
        while self._buffer and len(batch) < self._batch and octets < BATCH_OCTETS:
            item = self._buffer.popleft()
            octets += len(item) if isinstance(item, bytes) else 0
            batch.append(item)
        self._octets_out += octets
        return batch

    def _send(self, batch: list[Item]) -> None:
        for transport in self._transports:
            try:
                taken = transport.send(batch)
            except Exception:  # whatever a transport raises must not end the thread
                log.exception("spans could not be exported")
                taken = False
            (_EXPORTED if taken else _REFUSED).value += len(batch)
        self._drops.tell()


class Drops:
    """Says how many spans were dropped and why, at most once a minute. For the exporting thread."""

    def __init__(self) -> None:
        self._told = self._counts()
        self._next = 0.0

    def tell(self, at_once: bool = False) -> None:
        now, counts = time.monotonic(), self._counts()
        lost = {reason: count - self._told[reason] for reason, count in counts.items() if count > self._told[reason]}
        if lost and (at_once or now >= self._next):
            self._told, self._next = counts, now + DROPS_EVERY
            log.warning("spans dropped; mail is not concerned", extra={"event": "spans.dropped", **lost})

    @staticmethod
    def _counts() -> dict[str, int]:
        return {"full": int(_FULL.value), "refused": int(_REFUSED.value), "closed": int(_CLOSED.value)}


def stock_encoder(attributes: Mapping[str, str]) -> "Callable[[Sequence[Span]], list[ReadableSpan]]":
    """A function from our spans to the SDK's, for exporters that take nothing else."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

    home = Resource(attributes)
    scope = InstrumentationScope(SCOPE, attributes.get("service.version"))
    kinds = {kind: SpanKind[kind.name] for kind in Kind}
    unset, states = Status(StatusCode.UNSET), {"": TraceState()}

    def foreign(context: Context) -> SpanContext:
        state = states.get(context.tracestate)
        if state is None:
            state = TraceState.from_header([context.tracestate])
        trace, span = int.from_bytes(context.trace_id, "big"), int.from_bytes(context.span_id, "big")
        return SpanContext(trace, span, context.remote, TraceFlags(context.flags), state)

    def convert(span: Span) -> ReadableSpan:
        status, facts = unset, span.attributes
        if span.error_type is not None:
            status = Status(StatusCode.ERROR, span.description or None)
            facts = {**facts, "error.type": span.error_type}
        return ReadableSpan(
            name=span.name,
            context=foreign(span.context),
            parent=None if span.parent is None else foreign(span.parent),
            resource=home,
            attributes=facts,
            events=[Event(name, attributes, t_ns) for name, t_ns, attributes in span.events or ()],
            links=[Link(foreign(context), attributes) for context, attributes in span.links or ()],
            kind=kinds[span.kind],
            status=status,
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=scope,
        )

    return lambda spans: [convert(span) for span in spans]


def _transports(kinds: Sequence[str], about: Mapping[str, str], env: Environ) -> list[Transport]:
    """Made on the exporting thread, imports and all: gRPC alone takes a quarter of a second to load."""
    found: list[Transport] = []
    for kind in kinds:
        if kind == "console":
            from opentelemetry.sdk.trace.export import ConsoleSpanExporter

            found.append(_stock(ConsoleSpanExporter(), about))
        elif protocol(env, "TRACES") == "grpc":
            found.append(_grpc(about))
        else:
            found.append(_http(about))
    return found


def _stock(exporter: "SpanExporter", about: Mapping[str, str]) -> Transport:
    convert = stock_encoder(about)
    # 0 is SUCCESS
    return Transport(lambda spans: exporter.export(convert(spans)).value == 0, exporter.shutdown, takes_bytes=False)


# The stock exporters bring endpoints, headers, certificates, compression and retries by the standard variables; only
# their encoder is too slow. It is passed by where the installed version lets us, else everything stays stock.


def _grpc(about: Mapping[str, str]) -> Transport:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    if not hasattr(OTLPSpanExporter, "_translate_data"):
        return _stock(OTLPSpanExporter(), about)
    encoder = Encoder(about, SCOPE, about.get("service.version", ""))

    class Exporter(OTLPSpanExporter):
        def _translate_data(self, data: Any) -> Any:
            return ExportTraceServiceRequest.FromString(encoder.encode(data))

    exporter: Any = Exporter()
    return Transport(lambda spans: exporter.export(spans).value == 0, exporter.shutdown, takes_bytes=True)


def _http(about: Mapping[str, str]) -> Transport:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    exporter = OTLPSpanExporter()
    post = getattr(getattr(exporter, "_client", None), "export", None)
    if not callable(post):
        return _stock(exporter, about)
    encoder = Encoder(about, SCOPE, about.get("service.version", ""))
    return Transport(lambda spans: bool(post(encoder.encode(spans)).success), exporter.shutdown, takes_bytes=True)


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class MetricPump:
    """Sends a snapshot of the metrics at an interval, and once more at the end. Temporality is cumulative."""

    def __init__(
        self,
        make: Callable[[], list[Any]],
        attributes: Mapping[str, str],
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
    attributes: Mapping[str, str],
    start_ns: int,
) -> "MetricsData":
    """A snapshot as the SDK's export data, so that the stock OTLP exporters can send it."""
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
        counts, total = value
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
        )

    found = [sdk.Metric(spec.name, spec.doc, spec.unit, data(spec, points)) for spec, points in snapshot]
    home = Resource(attributes)
    scopes = [sdk.ScopeMetrics(InstrumentationScope(SCOPE, attributes.get("service.version")), found, "")]
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
