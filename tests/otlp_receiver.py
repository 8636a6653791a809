"""A real OTLP receiver for tests: gRPC or HTTP on a port of its own, keeping what arrives in plain form.

    with OtlpReceiver("grpc") as receiver:
        ... OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=receiver.protocol
        spans = receiver.wait_for(lambda spans: len(spans) >= 7)

`receiver.environ` holds those variables. Failure is asked for by `receiver.behave("hang" | "refuse" | "busy")`, and
slowness by `receiver.pace(spans_per_s)`.
"""

import gzip
import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

Behaviour = Literal["take", "refuse", "hang", "busy"]


@dataclass
class Event:
    name: str
    t_ns: int
    attributes: dict[str, Any]


@dataclass
class Link:
    trace_id: str
    span_id: str
    attributes: dict[str, Any]


@dataclass
class Received:
    """One span as the collector sees it. Ids are lowercase hex; `parent_id` is "" for a root; times are nanoseconds."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: list[Event]
    links: list[Link]
    error: bool
    description: str
    tracestate: str
    parent_is_remote: bool
    resource: dict[str, Any] = field(default_factory=dict)


class OtlpReceiver:
    """Serves from construction to `close` (or the end of the `with`). Thread-safe."""

    def __init__(self, protocol: Literal["grpc", "http/protobuf"] = "grpc") -> None:
        self.protocol = protocol
        self.spans: list[Received] = []
        self.metrics: dict[str, Any] = {}
        """Newest state by name: the decoded `opentelemetry.proto.metrics.v1.Metric`."""
        self.requests = 0
        self.headers: list[dict[str, str]] = []
        self._behaviour: Behaviour = "take"
        self._spans_per_s: float | None = None
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._stop = self._serve_grpc() if protocol == "grpc" else self._serve_http()

    @property
    def environ(self) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": self.protocol}

    def behave(self, behaviour: Behaviour) -> None:
        """refuse: for good; busy: come again in a second; hang: answer nothing until told otherwise or closed."""
        with self._changed:
            self._behaviour = behaviour
            self._changed.notify_all()

    def wait_for(self, enough: Callable[[list[Received]], bool], timeout_s: float = 10.0) -> list[Received]:
        """The spans, once they satisfy `enough`; AssertionError with what there is when they do not in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: enough(self.spans), timeout_s):
                raise AssertionError(f"not in {timeout_s} s; have {[span.name for span in self.spans]}")
            return list(self.spans)

    def wait_for_names(self, *names: str, timeout_s: float = 10.0) -> list[Received]:
        return self.wait_for(lambda spans: set(names) <= {span.name for span in spans}, timeout_s)

    def wait_for_requests(self, count: int, timeout_s: float = 10.0) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.requests >= count, timeout_s), f"{self.requests} requests"

    def by_name(self, name: str) -> Received:
        found = [span for span in self.spans if span.name == name]
        assert len(found) == 1, f"{len(found)} spans {name!r} among {[span.name for span in self.spans]}"
        return found[0]

    def trace(self, trace_id: str) -> list[Received]:
        return sorted((span for span in self.spans if span.trace_id == trace_id), key=lambda span: span.start_ns)

    def orphans(self) -> list[Received]:
        """Spans whose parent did not arrive. A parent that a sender typed by hand is here too: the test knows which."""
        known = {(span.trace_id, span.span_id) for span in self.spans}
        return [span for span in self.spans if span.parent_id and (span.trace_id, span.parent_id) not in known]

    def close(self) -> None:
        self._closing.set()
        self.behave("take")
        self._stop()

    def __enter__(self) -> "OtlpReceiver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # ── taking ──

    def pace(self, spans_per_s: float | None) -> None:
        """Take no more than so many spans a second: each request is held as long as its spans need."""
        self._spans_per_s = spans_per_s

    def _obeyed(self) -> Behaviour:
        """Counts the request; what is to be done with it. Holds it while the behaviour is to hang."""
        with self._changed:
            self.requests += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._behaviour != "hang")
            return "refuse" if self._closing.is_set() else self._behaviour

    def _take_spans(self, request: trace_service_pb2.ExportTraceServiceRequest) -> None:
        found = [
            _received(span, _attributes(group.resource.attributes))
            for group in request.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]
        if self._spans_per_s is not None:
            self._closing.wait(len(found) / self._spans_per_s)
        with self._changed:
            self.spans += found
            self._changed.notify_all()

    def _take_metrics(self, request: metrics_service_pb2.ExportMetricsServiceRequest) -> None:
        with self._changed:
            for group in request.resource_metrics:
                for scope in group.scope_metrics:
                    self.metrics.update({metric.name: metric for metric in scope.metrics})
            self._changed.notify_all()

    # ── serving ──

    def _serve_grpc(self) -> Callable[[], None]:
        receiver = self

        def export(request: Any, context: Any, take: Callable[[Any], None], answer: Any) -> Any:
            receiver.headers.append(
                {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
            )
            match receiver._obeyed():
                case "refuse":
                    context.abort(grpc.StatusCode.INVALID_ARGUMENT, "refused by the test")
                case "busy":
                    again = RetryInfo(retry_delay=Duration(seconds=1)).SerializeToString()
                    context.set_trailing_metadata([("google.rpc.retryinfo-bin", again)])
                    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy by the test")
            take(request)
            return answer

        class Traces(trace_service_pb2_grpc.TraceServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:
                answer = trace_service_pb2.ExportTraceServiceResponse()
                return export(request, context, receiver._take_spans, answer)

        class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:
                answer = metrics_service_pb2.ExportMetricsServiceResponse()
                return export(request, context, receiver._take_metrics, answer)

        server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)  # type: ignore[no-untyped-call]
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self.endpoint = f"http://127.0.0.1:{port}"
        return lambda: server.stop(0.2).wait(2)

    def _serve_http(self) -> Callable[[], None]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.headers.append({key.lower(): value for key, value in self.headers.items()})
                match receiver._obeyed():
                    case "refuse":
                        return self.answer(400)
                    case "busy":
                        return self.answer(503, {"Retry-After": "1"})
                if self.path == "/v1/traces":
                    receiver._take_spans(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
                elif self.path == "/v1/metrics":
                    receiver._take_metrics(metrics_service_pb2.ExportMetricsServiceRequest.FromString(body))
                else:
                    return self.answer(404)
                return self.answer(200)

            def answer(self, status: int, headers: Mapping[str, str] | None = None) -> None:
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/x-protobuf")
                    self.send_header("Content-Length", "0")
                    for name, value in (headers or {}).items():
                        self.send_header(name, value)
                    self.end_headers()
                except OSError:
                    pass  # the exporter gave up, which is what some tests want

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        self.endpoint = f"http://127.0.0.1:{server.server_address[1]}"

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join(2)

        return stop


def _received(span: trace_pb2.Span, resource: dict[str, Any]) -> Received:
    return Received(
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        events=[Event(event.name, event.time_unix_nano, _attributes(event.attributes)) for event in span.events],
        links=[Link(link.trace_id.hex(), link.span_id.hex(), _attributes(link.attributes)) for link in span.links],
        error=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        description=span.status.message,
        tracestate=span.trace_state,
        parent_is_remote=bool(span.flags & trace_pb2.SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK),
        resource=resource,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs if isinstance(pair, KeyValue)}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """For what has no event to wait for."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "condition not met in time"
        time.sleep(0.01)
