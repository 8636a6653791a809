"""The end of a delivery that was given up: the sender is told by a DSN (RFC 3464), which comes in like any message."""

import time

from aimx.audit import events
from aimx.config import Settings
from aimx.delivery.retry import Backoff
from aimx.delivery.transport import Later, Never
from aimx.identity.agents import Directory
from aimx.intake.commit import Settled, accepted, commit
from aimx.intake.envelope import Octets
from aimx.intake.plan import Terms, first
from aimx.message import dsn, identifier
from aimx.message.header import HeaderBlock
from aimx.routing.table import Landing
from aimx.store.contract import Due, EventRow, NewMessage, SpanRef, Store
from aimx.telemetry import metrics
from aimx.telemetry.context import Source, write
from aimx.telemetry.span import Span
from aimx.tlog.leaf import new_key

ACCEPTED = metrics.counter("aimx.messages.accepted").labels("internal")
BOUNCES = metrics.counter("aimx.bounces")

EXPIRED = "4.4.7"
"""RFC 3463 §3.5: what failed for now until the deadline; a permanent failure keeps its own code."""


class Bouncer:
    """Tells senders. Called by the queue with the `dead-letter` span, whose trace the DSN continues."""

    def __init__(self, settings: Settings, store: Store, directory: Directory, message_id_key: bytes) -> None:
        self._settings = settings
        self._store = store
        self._directory = directory
        self._message_id_key = message_id_key
        self._domain = settings.domains[0]
        self._backoff = Backoff.of(settings.delivery)

    async def __call__(self, due: Due, result: Never | Later, span: Span) -> None:
        """DSN and end of the delivery are one commit. There is no DSN for a DSN, nor for a sender who is gone."""
        now_ms = time.time_ns() // 1_000_000
        sender = await self._directory.agent(due.sender) if due.sender else None
        eid = None if sender is None else identifier.new_eid(now_ms)
        bounced = events.message_bounced(
            events.Stamp(self._settings.node, now_ms, SpanRef(span.trace_id, span.span_id)),
            message=due.eid,
            key=due.key or new_key(),
            recipient=due.target.address,
            why=result.reason,
            attempt=due.attempt,
            dsn=eid,
            facts={
                "recipient": due.target.address,
                "reason": result.reason,
                "text": result.text,
                "attempt": due.attempt,
                "dsn": eid,
            },
        )
        if eid is None:
            await self._store.settle(due, [bounced])
        else:
            await self._send(eid, due, result, span, now_ms, bounced)
        BOUNCES.labels(result.reason).add()

    async def _send(
        self, eid: str, due: Due, result: Never | Later, span: Span, now_ms: int, bounced: EventRow
    ) -> None:
        context = span.context
        message_id = identifier.mint(context.trace_id, context.span_id, self._domain, self._message_id_key)
        original, _ = HeaderBlock.parse(await self._store.header(due.eid) or b"\r\n")
        notice = self._notice(eid, message_id, due, result, span, now_ms, original, bounced)
        octets = Octets.of(dsn.write(notice))
        assert isinstance(octets.body, bytes)
        header = octets.header.to_bytes()
        replied = identifier.message_ids(octets.header.get("In-Reply-To"))
        origin = SpanRef(context.trace_id, context.span_id)
        message = NewMessage(
            eid=eid,
            t_ms=now_ms,
            sender="",
            agent=None,
            recipients=(due.sender,),
            header=header,
            body=octets.body,
            message_id=message_id,
            in_reply_to=replied[0] if replied else None,
            subject=octets.header.get("Subject") or "",
            content_type="multipart/report",
            workflow=due.workflow,
            priority=0,
            origin=origin,
            trace_flags=context.flags,
            tracestate="",
            baggage="",
            context_source=Source.HOP.value,
            received=origin,
            depth=0,
            loop_key="",  # a report is nobody's turn: it counts in no loop
            payload=b"",
            template=b"",
        )
        facts = {"dsn_for": due.eid, "recipients": [due.sender], "agent": None, "in_reply_to": message.in_reply_to}
        event = accepted(self._settings.node, message, octets, span, len(header) + len(octets.body), facts)
        terms = Terms(
            creation=context,
            now_ms=now_ms,
            deadline_ms=now_ms + int(self._settings.delivery.deadline * 1000),
            backoff=self._backoff,
            by=self._domain,
        )
        firsts = [first(Landing(due.sender, (), "mailbox"), due.sender, span, terms)]
        await commit(self._store, self._settings.node, message, firsts, event, span, Settled(due.id, bounced))
        ACCEPTED.add()

    def _notice(
        self,
        eid: str,
        message_id: str,
        due: Due,
        result: Never | Later,
        span: Span,
        now_ms: int,
        original: HeaderBlock,
        bounced: EventRow,
    ) -> dsn.Notice:
        return dsn.Notice(
            domain=self._domain,
            host=self._domain,
            to=due.sender,
            message_id=message_id,
            recipients=[
                dsn.Recipient(
                    address=due.target.address,
                    action="failed",
                    status=result.status if isinstance(result, Never) else EXPIRED,
                    reason=_reason(due, result),
                    last_attempt_ms=now_ms,
                    attempts=due.attempt,
                )
            ],
            original=original,
            accepted_ms=due.created_ms,
            now_ms=now_ms,
            eid=due.eid,
            trace_id=due.origin.trace_id,
            event=bounced.eid,
            stamps=[b"Return-Path: <>\r\n", f"AIMX-ID: {eid}\r\n".encode(), *write(span.context)],
        )


def _reason(due: Due, result: Never | Later) -> str:
    """For the sender, who may never have heard of the member of a pool or list that a rule chose."""
    target = due.target
    return result.text if target.original == target.address else f"{result.text}; you wrote to {target.original}"
