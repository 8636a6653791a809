"""What a delivery shows of itself besides its event in the log: spans, and the numbers that are counted at their end.

span = trace.begin(tracer, due, now_ms, max_idle_ms)          # deliver …
with span.child("relay mx", CLIENT) as talk:                  #   the dialogue: relay …, lmtp …, webhook …
    trace.addressed(talk, host, port)
    trace.smtp_said(talk, result)
trace.finish(span, attempt, due.target, result, row)          #   audit append, and the end
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from aimx.delivery.attempt import Attempt
from aimx.delivery.transport import Delivered, Later, Never, Result
from aimx.store.contract import Due, EventRow, Placed, Target, Tried
from aimx.telemetry import metrics
from aimx.telemetry.context import Context
from aimx.telemetry.span import CONSUMER, PRODUCER, Facts, Span, Tracer
from aimx.tlog.tree import leaf_hash

DELIVERIES = metrics.counter("aimx.deliveries")
DURATION = metrics.histogram("aimx.delivery.duration")
ATTEMPTS = metrics.histogram("aimx.delivery.attempts")
TOLD = metrics.counter("aimx.spans.events")


@lru_cache(1024)
def attributes(queue: str, number: int, waited_ms: int = 0) -> Facts:
    """Of a `deliver` span, at its start."""
    return Facts(
        {
            "messaging.system": "aimx",
            "messaging.operation.name": "deliver",
            "messaging.operation.type": "process",
            "messaging.destination.name": queue,
            "aimx.delivery.attempt": number,
            "aimx.queue.wait": waited_ms / 1000,
        }
    )


def begin(tracer: Tracer, due: Due, now_ms: int, max_idle_ms: int) -> Span:
    """Every attempt is a sibling under `enqueue`; after a long silence it begins a new, linked trace."""
    origin = Context(*due.origin, due.trace_flags, remote=True)
    links = [origin] if due.previous is None else [origin, Context(*due.previous, due.trace_flags)]
    rollover = now_ms - due.last_ms > max_idle_ms
    # Whoever samples by parent keeps all of a message's spans or none, at whichever attempt.
    parent = None if rollover else Context(*due.target.span, due.trace_flags)
    said = attributes(due.target.queue, due.attempt, max(0, now_ms - due.created_ms))
    span = tracer.start(f"deliver {due.target.transport}", CONSUMER, parent, links=links, attributes=said)
    if rollover:
        span.set("aimx.trace.rollover", True)
    return span


@contextmanager
def given_up(tracer: Tracer, due: Due, result: Never | Later, last: Span) -> Iterator[Span]:
    """`dead-letter …`, under the last attempt."""
    span = tracer.start(
        f"dead-letter {due.target.queue}",
        PRODUCER,
        last.context,
        links=[Context(*due.origin, due.trace_flags, remote=True)],
        attributes={"aimx.queue.reason": result.reason, "aimx.delivery.attempt": due.attempt},
    )
    try:
        yield span
    finally:
        span.error(result.reason)
        span.end()


def addressed(talk: Span, host: str, port: int) -> None:
    """Whom the dialogue is with; `port` 0 is a Unix socket."""
    talk.set("server.address", host)
    if port:
        talk.set("server.port", port)


def smtp_said(talk: Span, result: Result) -> None:
    """The end of a dialogue by SMTP or LMTP."""
    talk.set("messaging.system", "aimx")
    if result.code:
        talk.set("smtp.response.status_code", result.code)
    if not isinstance(result, Delivered):
        talk.set("smtp.response.enhanced_code", result.status)
        talk.error(result.reason)


def http_said(request: Span, result: Result) -> None:
    if result.code:
        request.set("http.response.status_code", result.code)
    if not isinstance(result, Delivered):
        request.error(result.reason)


def appended(span: Span, row: EventRow, start_ns: int, end_ns: int | None = None, error: str | None = None) -> None:
    """An event's own span under what caused it: from its leaf to the commit that made it durable, or did not."""
    if not span.recorded:
        if span.tracer.exporting:
            TOLD.labels(row.ev, "unsampled").add()
        return
    append = span.child("audit append", attributes=_audited(row.ev), start_ns=start_ns)
    append.set("aimx.audit.leaf", leaf_hash(row.leaf)[:8].hex())  # enough of it to find it in the log
    if error is not None:
        append.error(error)
    append.end(end_ns)


_audited = lru_cache(lambda ev: Facts({"aimx.audit.event": ev}))


def end(span: Span, this: Attempt, outcome: Tried, row: EventRow) -> None:
    """Close the `deliver` span of a mailbox's attempt, with the spans of the commit under it. `row`: its event."""
    if isinstance(outcome, Placed):
        if span.recorded:
            span.child("mailbox append", attributes={"aimx.mailbox.uid": outcome.uid}, start_ns=span.start_ns).end()
        _finish(span, this, outcome.target.transport, "delivered", row)
    else:
        span.error(outcome.reason)
        _finish(span, this, outcome.target.transport, "deferred", row)


def finish(span: Span, this: Attempt, target: Target, result: Result, row: EventRow | None) -> None:
    """The same where it left the node. `row`: the event; None where the queue is to give up."""
    match result:
        case Delivered():
            said = "delivered"
        case Later():
            said = "deferred"
            span.error(result.reason)
        case Never():
            said = "failed"
            span.error(result.reason)
    _finish(span, this, target.transport, said, row)


def _finish(span: Span, this: Attempt, transport: str, said: str, row: EventRow | None) -> None:
    now_ns = time.time_ns()
    if said == "delivered":
        DURATION.labels(transport).record(max(0, now_ns // 1_000_000 - this.created_ms) / 1000, span)
        ATTEMPTS.labels(transport).record(this.number, span)
    elif said == "deferred" and this.next_ms is not None:
        delay = (this.next_ms - this.now_ms) / 1000
        span.event("retry.scheduled", {"delay": delay, "next_at": this.next_ms})
    span.set("aimx.outcome", said)
    DELIVERIES.labels(transport, said, span.error_type or "").add()
    if row is not None:
        appended(span, row, span.start_ns, now_ns)
    span.end(now_ns)
