"""What each request leaves: a duration, and a span that says which operation, for whom, with what result.

Polls of health and metrics leave no span.
"""

import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aimx.telemetry import metrics
from aimx.telemetry.context import Context, parse_traceparent
from aimx.telemetry.span import SERVER, Attributes, Span, Tracer

DURATION = metrics.histogram("http.server.request.duration")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

UNTRACED = frozenset({"/healthz", "/readyz", "/metrics"})


class Traced:
    """ASGI middleware. The route and the caller are known once the request was answered, so the span is made then."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began_ns, began, status = time.time_ns(), time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, answer)
        finally:
            route, tracer = scope.get("route"), scope["app"].state.context.tracer
            span = None
            if route is not None and route.path not in UNTRACED and tracer.exporting:
                span = _tell(tracer, scope, route, status, began_ns)
            method = scope["method"] if scope["method"] in METHODS else "_OTHER"
            cell = DURATION.labels(method, "" if route is None else route.path, str(status))
            cell.record(time.perf_counter() - began, span)


def _tell(tracer: Tracer, scope: Scope, route: Any, status: int, began_ns: int) -> Span:
    caller = scope.get("state", {}).get("caller")
    claimed = _context(scope)
    # A stranger's context is believed no more than over SMTP: it is linked, not continued.
    known = claimed is not None and caller is not None
    said: Attributes = {
        "http.request.method": scope["method"],
        "http.route": route.path,
        "http.response.status_code": status,
        "url.scheme": scope["scheme"],
    }
    if caller is not None and caller.agent is not None:
        said["aimx.agent.id"] = said["gen_ai.agent.id"] = caller.agent.partition("@")[0]
    span = tracer.start(
        f"http {route.operation_id}",
        SERVER,
        claimed if known else None,
        links=() if known or claimed is None else (claimed._replace(flags=0, tracestate=""),),
        attributes=said,
        start_ns=began_ns,
    )
    if status >= 500:
        span.error(str(status))
    span.end()
    return span


def _context(scope: Scope) -> Context | None:
    values = [value for name, value in scope["headers"] if name == b"traceparent"]
    found = parse_traceparent(values[0].decode("latin-1")) if len(values) == 1 else None
    return found if isinstance(found, Context) else None
