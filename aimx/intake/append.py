"""IMAP APPEND: into one folder of the owner's, as it is, but for our own names."""

import time
from collections.abc import Sequence
from hashlib import sha256

from aimx.audit import events
from aimx.intake import stamp
from aimx.intake.arrival import ref
from aimx.intake.envelope import Upload
from aimx.intake.told import tell
from aimx.message import identifier
from aimx.store.contract import EventRow, NewMessage, Outcome, Placed, SpanRef, Store, Target
from aimx.telemetry import metrics
from aimx.telemetry.context import Context, Source
from aimx.telemetry.span import Span
from aimx.tlog.leaf import new_key

ACCEPTED = metrics.counter("aimx.messages.accepted").labels("imap")


async def append(
    store: Store,
    node: str,
    owner: str,
    folder: str,
    upload: Upload,
    flags: frozenset[str],
    internal_ms: int | None,
    span: Span,
) -> Placed:
    """One commit. Raises NotFound, OverQuota, HeaderTooLarge."""
    now_ms = time.time_ns() // 1_000_000
    octets = await upload.finish()
    told = tell(octets.header)
    own = told.context if isinstance(told.context, Context) else span.context
    here = SpanRef(span.trace_id, span.span_id)
    eid = identifier.new_eid(now_ms)
    message = NewMessage(
        eid=eid,
        t_ms=now_ms,
        sender=owner,
        agent=owner,
        recipients=(),
        header=stamp.stamp_appended(octets.header, eid),
        body=octets.body,
        message_id=told.message_id or "",
        in_reply_to=told.in_reply_to,
        subject=told.subject,
        content_type=told.content_type,
        workflow=told.workflow,
        priority=0,
        origin=ref(own),
        trace_flags=own.flags,
        tracestate=own.tracestate,
        baggage=own.baggage,
        context_source=Source.HEADER.value if own is told.context else Source.NEW.value,
        received=here,
        depth=0,
        loop_key="",  # an append is nobody's turn: it counts in no loop
        payload=b"",
        template=b"",
    )
    target = Target(
        address=owner,
        original=owner,
        span=here,
        attempt=here,
        folder=folder,
        flags=flags,
        internal_ms=internal_ms,
        queueable=False,
    )

    def witness(outcomes: Sequence[Outcome]) -> list[EventRow]:
        return [
            events.message_appended(
                events.Stamp(node, now_ms, here, owner),
                eid=eid,
                key=new_key(),
                data=octets.sha256,
                header=sha256(message.header).digest(),
                body=octets.body_sha256,
                by=owner,
                box=(owner, folder),
                size=upload.size,
                facts={"folder": folder, "uid": [o.uid for o in outcomes if isinstance(o, Placed)]},
            )
        ]

    outcomes = await store.accept(message, [target], witness)
    ACCEPTED.add()
    placed = outcomes[0]
    assert isinstance(placed, Placed), "an append is placed or refused"
    return placed
