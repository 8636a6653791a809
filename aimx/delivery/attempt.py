"""What one attempt says of itself, whoever made it: the accepting commit or the queue. One event, one span's end."""

import time
from typing import Any, NamedTuple

from aimx.audit import events
from aimx.store.contract import EventRow, Placed, SpanRef, Tried
from aimx.telemetry import metrics
from aimx.telemetry.span import INTERNAL, Attributes, Span
from aimx.tlog.leaf import new_key
from aimx.tlog.tree import leaf_hash

DELIVERIES = metrics.counter("aimx.deliveries")
DURATION = metrics.histogram("aimx.delivery.duration")
ATTEMPTS = metrics.histogram("aimx.delivery.attempts")


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


def attributes(queue: str, number: int, waited_ms: int = 0) -> Attributes:
    """Of a `deliver` span, at its start."""
    return {
        "messaging.system": "aimx",
        "messaging.operation.name": "deliver",
        "messaging.operation.type": "process",
        "messaging.destination.name": queue,
        "aimx.delivery.attempt": number,
        "aimx.queue.wait": waited_ms / 1000,
    }


def event(node: str, attempt: Attempt, outcome: Tried) -> EventRow:
    """What the log says of the outcome."""
    target = outcome.target
    t_ms = max(attempt.now_ms, time.time_ns() // 1_000_000)  # this runs inside the commit: the moment it happens
    stamp = events.Stamp(node, t_ms, attempt.span, attempt.agent)
    # A message erased while it waited has no key: its last events get one that nobody keeps with it.
    key = attempt.key or new_key()
    facts: dict[str, Any] = {
        "recipient": target.address,
        "original": target.original,
        "queue": target.queue,
        "attempt": attempt.number,
        "waited_ms": t_ms - attempt.created_ms,
    }
    if isinstance(outcome, Placed):
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
    waits: dict[str, Any] = {"reason": outcome.reason, "next_ms": attempt.next_ms}
    if attempt.next_ms is not None:
        waits["delay_ms"] = attempt.next_ms - attempt.now_ms
    return events.message_deferred(
        stamp,
        message=attempt.eid,
        key=key,
        recipient=target.address,
        why=outcome.reason,
        attempt=attempt.number,
        next_ms=attempt.next_ms,
        facts=facts | waits,
    )


def leaf_prefix(leaf: bytes) -> str:
    """`aimx.audit.leaf`: enough of the leaf's hash to find it in the log."""
    return leaf_hash(leaf).hex()[:16]


def end(span: Span, attempt: Attempt, outcome: Tried, leaf: bytes) -> None:
    """Close the `deliver` span of the attempt, with the spans of the commit under it. `leaf`: of its event."""
    now_ns = time.time_ns()
    transport = outcome.target.transport
    if isinstance(outcome, Placed):
        audited, said = "delivery.mailbox", "delivered"
        DURATION.labels(transport).record(max(0, now_ns // 1_000_000 - attempt.created_ms) / 1000)
        ATTEMPTS.labels(transport).record(attempt.number)
    else:
        audited, said = "message.deferred", "deferred"
        span.error(outcome.reason)
        if attempt.next_ms is not None:
            span.event(
                "retry.scheduled", {"delay": (attempt.next_ms - attempt.now_ms) / 1000, "next_at": attempt.next_ms}
            )
    span.set("aimx.outcome", said)
    DELIVERIES.labels(transport, said, span.error_type or "").add()
    if span.recorded:
        if isinstance(outcome, Placed):
            where: Attributes = {"aimx.mailbox.uid": outcome.uid}
            span.child("mailbox append", INTERNAL, attributes=where, start_ns=span.start_ns).end(now_ns)
        told: Attributes = {"aimx.audit.event": audited, "aimx.audit.leaf": leaf_prefix(leaf)}
        span.child("audit append", INTERNAL, attributes=told, start_ns=span.start_ns).end(now_ns)
    span.end(now_ns)
