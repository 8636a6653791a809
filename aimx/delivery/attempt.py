"""What the log says of one attempt, whoever made it: the accepting commit or the queue."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from aimx.audit import events
from aimx.delivery.transport import Delivered, Result
from aimx.store.contract import Buffered, Due, EventRow, SpanRef, Target, Tried
from aimx.telemetry.span import Span
from aimx.tlog.leaf import new_key

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

    @classmethod
    def of(cls, due: Due, span: Span, now_ms: int, final: bool) -> "Attempt":
        """The queue's; `final`: there will be no other."""
        return cls(
            eid=due.eid,
            key=due.key,
            agent=due.sender or None,
            number=due.attempt,
            now_ms=now_ms,
            created_ms=due.created_ms,
            next_ms=None if final else due.next_ms,
            span=SpanRef(span.trace_id, span.span_id),
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
