"""The accepting commit: message, first attempts and their events at once; the spans end with what it decided."""

import logging
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from aimx.audit import events
from aimx.delivery.attempt import Attempt, event
from aimx.delivery.trace import appended
from aimx.failpoint import reach
from aimx.intake.envelope import Octets
from aimx.intake.plan import First
from aimx.store.contract import EventRow, NewMessage, Once, Outcome, Queued, Repeated, SpanRef, Store
from aimx.telemetry.span import Span
from aimx.tlog.leaf import new_key

log = logging.getLogger("aimx.intake")


class Settled(NamedTuple):
    """What the message tells its recipient: the delivery that it (a DSN) ends, if any, and the event that says so."""

    delivery: int | None
    event: EventRow


def accepted(
    node: str,
    message: NewMessage,
    octets: Octets,
    span: Span,
    size: int,
    facts: Mapping[str, Any],
    auth: str = "aimx",
) -> EventRow:
    """The event of the acceptance, with its final leaf. `size`: octets as received; `auth`: see the catalogue."""
    stamp = events.Stamp(node, message.t_ms, SpanRef(span.trace_id, span.span_id), message.agent)
    return events.message_accepted(
        stamp,
        eid=message.eid,
        key=new_key(),
        data=octets.sha256,
        header=sha256(message.header).digest(),
        body=octets.body_sha256,
        sender=message.sender,
        recipients=message.recipients,
        size=size,
        auth=auth,
        facts=facts,
    )


async def commit(
    store: Store,
    node: str,
    message: NewMessage,
    firsts: Sequence[First],
    accepted: EventRow,
    span: Span,
    settled: Settled | None = None,
    once: Once | None = None,
) -> Sequence[Outcome]:
    """Durable when it returns. Raises what the store raises; then nothing was written."""
    began_ns = time.time_ns()
    attempts = [
        Attempt(
            eid=message.eid,
            key=accepted.key,
            agent=message.agent,
            number=1,
            now_ms=message.t_ms,
            created_ms=message.t_ms,
            next_ms=first.target.next_ms,
            span=first.target.attempt,
        )
        for first in firsts
    ]

    made: list[EventRow | None] = []

    def witness(outcomes: Sequence[Outcome]) -> list[EventRow]:
        made[:] = [
            None if isinstance(found, Queued) else event(node, attempt, found)
            for attempt, found in zip(attempts, outcomes, strict=True)
        ]
        rows = [accepted, *(row for row in made if row is not None)]
        return rows if settled is None else [settled.event, *rows]

    try:
        targets = [first.target for first in firsts]
        settles = None if settled is None else settled.delivery
        reach("accept.begin")
        outcomes = await store.accept(message, targets, witness, settles, once)
    except Repeated:
        raise  # it stands in the log since it came first
    except BaseException:
        appended(span, accepted, began_ns, error="unavailable")
        raise
    reach("accept.committed")
    appended(span, accepted, began_ns)
    try:
        for first, attempt, outcome, row in zip(firsts, attempts, outcomes, made, strict=True):
            first.end(attempt, outcome, row)
    except Exception:  # it is durable: whatever fails now must not make it a refusal
        log.exception("spans of an accepted message are missing", extra={"eid": message.eid, "context": span.context})
    return outcomes
