"""What one attempt says of itself, whoever made it: the accepting commit or the queue. One event, one span's end."""

import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from aimx.audit import events
from aimx.delivery.transport import Delivered, Later, Never, Result
from aimx.store.contract import Buffered, EventRow, Placed, SpanRef, Target, Tried
from aimx.telemetry import metrics
from aimx.telemetry.span import Facts, Span
from aimx.tlog.leaf import new_key
from aimx.tlog.tree import leaf_hash

DELIVERIES = metrics.counter("aimx.deliveries")
DURATION = metrics.histogram("aimx.delivery.duration")
ATTEMPTS = metrics.histogram("aimx.delivery.attempts")
TOLD = metrics.counter("aimx.spans.events")

DEPARTED = {"relay": events.message_relayed, "webhook": events.delivery_webhook, "lmtp": events.delivery_lmtp}
"""The event of a delivery that left the node, by transport."""


class Attempt(NamedTuple):
    """One try to bring one message to one target. Times are Unix milliseconds."""

    eid: str
    key: bytes | None
    """What the message's events are committed under; None once it is erased."""
    agent: str | None
    number: int
    now_ms: int
    created_ms: int
    """When the message was accepted."""
    next_ms: int | None
    """When the next attempt will be, if this one fails; None: there will be none."""
    span: SpanRef


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


def event(node: str, attempt: Attempt, outcome: Tried) -> EventRow:
    """What the log says of a mailbox's outcome."""
    target = outcome.target
    if isinstance(outcome, Buffered):
        return deferred(node, attempt, target, outcome.reason)
    stamp, key, facts = _said(node, attempt, target)
    return events.delivery_mailbox(
        stamp,
        message=attempt.eid,
        key=key,
        recipient=target.address,
        box=(target.address, target.folder),
        uid=outcome.uid,
        attempt=attempt.number,
        facts=facts | {"folder": target.folder, "uid": outcome.uid},
    )


def deferred(
    node: str, attempt: Attempt, target: Target, reason: str, answer: Mapping[str, Any] | None = None
) -> EventRow:
    """`message.deferred`; `answer` are the facts of what the other side said."""
    stamp, key, facts = _said(node, attempt, target)
    waits: dict[str, Any] = {"reason": reason, "next_ms": attempt.next_ms, **(answer or {})}
    if attempt.next_ms is not None:
        waits["delay_ms"] = attempt.next_ms - attempt.now_ms
    return events.message_deferred(
        stamp,
        message=attempt.eid,
        key=key,
        recipient=target.address,
        why=reason,
        attempt=attempt.number,
        next_ms=attempt.next_ms,
        facts=facts | waits,
    )


def departed(node: str, attempt: Attempt, target: Target, result: Delivered) -> EventRow:
    """`message.relayed`, `delivery.webhook` or `delivery.lmtp`."""
    stamp, key, facts = _said(node, attempt, target)
    departure = events.Departure(
        message=attempt.eid,
        key=key,
        recipient=target.address,
        via=str(target.options.get("via", "")),
        host=result.host,
        code=result.code,
        attempt=attempt.number,
    )
    return DEPARTED[target.transport](stamp, departure, facts | answered(result) | {"via": departure.via})


def answered(result: Result) -> dict[str, Any]:
    """What the other side said, for the timeline."""
    said = result.text if isinstance(result, Delivered) else result.said or result.text
    return {name: value for name, value in (("host", result.host), ("code", result.code), ("said", said)) if value}


def _said(node: str, attempt: Attempt, target: Target) -> tuple[events.Stamp, bytes, dict[str, Any]]:
    """Stamp, key and facts that every event of an attempt has."""
    t_ms = max(attempt.now_ms, time.time_ns() // 1_000_000)  # this runs inside the commit: the moment it happens
    facts: dict[str, Any] = {
        "recipient": target.address,
        "original": target.original,
        "queue": target.queue,
        "attempt": attempt.number,
        "waited_ms": t_ms - attempt.created_ms,
    }
    # A message erased while it waited has no key: its last events get one that nobody keeps with it.
    return events.Stamp(node, t_ms, attempt.span, attempt.agent), attempt.key or new_key(), facts


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


def end(span: Span, attempt: Attempt, outcome: Tried, row: EventRow) -> None:
    """Close the `deliver` span of a mailbox's attempt, with the spans of the commit under it. `row`: its event."""
    if isinstance(outcome, Placed):
        if span.recorded:
            span.child("mailbox append", attributes={"aimx.mailbox.uid": outcome.uid}, start_ns=span.start_ns).end()
        _finish(span, attempt, outcome.target.transport, "delivered", row)
    else:
        span.error(outcome.reason)
        _finish(span, attempt, outcome.target.transport, "deferred", row)


def finish(span: Span, attempt: Attempt, target: Target, result: Result, row: EventRow | None) -> None:
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
    _finish(span, attempt, target.transport, said, row)


def _finish(span: Span, attempt: Attempt, transport: str, said: str, row: EventRow | None) -> None:
    now_ns = time.time_ns()
    if said == "delivered":
        DURATION.labels(transport).record(max(0, now_ns // 1_000_000 - attempt.created_ms) / 1000, span)
        ATTEMPTS.labels(transport).record(attempt.number, span)
    elif said == "deferred" and attempt.next_ms is not None:
        delay = (attempt.next_ms - attempt.now_ms) / 1000
        span.event("retry.scheduled", {"delay": delay, "next_at": attempt.next_ms})
    span.set("aimx.outcome", said)
    DELIVERIES.labels(transport, said, span.error_type or "").add()
    if row is not None:
        appended(span, row, span.start_ns, now_ns)
    span.end(now_ns)
