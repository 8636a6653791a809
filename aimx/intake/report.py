"""What became of a message, told to its sender as far as it asked for it (RFC 3461, RFC 3464).

A report has the null sender, so that nothing ever answers it, and there is none about a report (RFC 5321 §4.5.5). It
comes in like any message, in the trace of what it tells of; to a sender elsewhere it leaves the node as mail does.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aimx.audit import events
from aimx.config import MX, Settings
from aimx.delivery.transport import Delivered, Later, Never, Result
from aimx.identity.agents import Directory
from aimx.intake import notice
from aimx.intake.commit import Settled
from aimx.message import dsn, identifier
from aimx.message.header import HeaderBlock
from aimx.routing.table import Landing, RoutingTable, Step
from aimx.store.contract import Due, SpanRef, Store, Target
from aimx.telemetry import metrics
from aimx.telemetry.context import write
from aimx.telemetry.span import Span
from aimx.tlog.leaf import new_key

log = logging.getLogger("aimx.intake")

BOUNCES = metrics.counter("aimx.bounces")

EXPIRED = "4.4.7"
"""RFC 3463 §3.5: what failed for now until the deadline; a permanent failure keeps its own code."""
MAX_RETURNED = 256 * 1024
"""Octets of a body that goes back with `RET=FULL`; of larger ones the headers do (RFC 3461 §6.2 lets us)."""

Kind = Literal["FAILURE", "DELAY", "SUCCESS"]


@dataclass(frozen=True, slots=True)
class Subject:
    """The delivery that is told of."""

    eid: str
    sender: str
    target: Target
    attempt: int
    created_ms: int
    trace_id: bytes
    workflow: str | None

    @classmethod
    def of(cls, due: Due) -> "Subject":
        return cls(due.eid, due.sender, due.target, due.attempt, due.created_ms, due.origin.trace_id, due.workflow)


def wants(options: Mapping[str, Any], kind: Kind) -> bool:
    """Whether the sender is to hear of it: `NOTIFY`, or what is usual without (RFC 3461 §4.1)."""
    notify = options.get("notify")
    return kind != "SUCCESS" if notify is None else kind in str(notify).split(",")


class Reporter:
    """Tells senders. Called by the queue and, for what is delivered at once, by intake."""

    def __init__(self, settings: Settings, store: Store, directory: Directory, message_id_key: bytes) -> None:
        self._settings = settings
        self._store = store
        self._directory = directory
        self._table = RoutingTable(settings)
        self._message_id_key = message_id_key
        self._domain = settings.domains[0]

    async def failed(self, due: Due, result: Never | Later, span: Span) -> None:
        """Given up: the report and the end of the delivery are one commit. `span` is the `dead-letter` one."""
        now_ms, subject = _now(), Subject.of(due)
        landing = await self._landing(subject, "FAILURE")
        eid = None if landing is None else identifier.new_eid(now_ms)
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
        if landing is None or eid is None:
            await self._store.settle(due, [bounced])
        else:
            told = self._recipient(subject, landing, "failed", result, now_ms)
            await self._send(eid, subject, landing, told, span, now_ms, Settled(due.id, bounced))
        BOUNCES.labels(result.reason).add()

    async def delayed(self, due: Due, result: Later, span: Span) -> None:
        """It still waits; once a message. Never raises: that nobody is told now ends nothing."""
        await self._told(Subject.of(due), "DELAY", "delayed", result, span)

    async def delivered(self, about: Due | Subject, result: Delivered, span: Span) -> None:
        """It is there, or is with a server that will not tell of it (RFC 3461 §5.2.2). Never raises."""
        subject = Subject.of(about) if isinstance(about, Due) else about
        if not result.tells:
            relayed = subject.target.transport == "relay"
            await self._told(subject, "SUCCESS", "relayed" if relayed else "delivered", result, span)

    async def _told(self, subject: Subject, kind: Kind, action: dsn.Action, result: Result, span: Span) -> None:
        try:
            landing = await self._landing(subject, kind)
            if landing is not None:
                now_ms = _now()
                told = self._recipient(subject, landing, action, result, now_ms)
                await self._send(identifier.new_eid(now_ms), subject, landing, told, span, now_ms, None)
                BOUNCES.labels(action).add()
        except Exception:
            log.exception("a sender could not be told", extra={"eid": subject.eid, "context": span.context})

    async def _landing(self, subject: Subject, kind: Kind) -> Landing | None:
        """Where a report would go; None: it is not wanted, or there is nobody to tell (any more)."""
        sender = subject.sender
        if not sender or not wants(subject.target.options, kind):
            return None
        if await self._directory.agent(sender) is not None:
            return Landing(sender, (), "mailbox")
        step = self._table.relay(sender)
        if step is None and self._settings.listen.mx is not None and not self._table.serves(sender):
            step = Step("recipient", "relay", MX)  # who may write to us from outside hears what became of it
        return None if step is None else Landing(sender, (step,), step.target, "relay", step.target)

    async def _send(
        self,
        eid: str,
        subject: Subject,
        landing: Landing,
        told: dsn.Recipient,
        span: Span,
        now_ms: int,
        settled: Settled | None,
    ) -> None:
        context = span.context
        original, _ = HeaderBlock.parse(await self._store.header(subject.eid) or b"\r\n")
        if landing.transport != "mailbox":
            original.strip(lambda name: name.startswith(b"aimx-") or name == b"baggage")  # as the mail itself would
        report = dsn.Notice(
            domain=self._domain,
            host=self._domain,
            to=subject.sender,
            message_id=identifier.mint(context.trace_id, context.span_id, self._domain, self._message_id_key),
            recipients=[told],
            original=original,
            body=await self._returned(subject, told),
            envelope_id=subject.target.options.get("envid"),
            accepted_ms=subject.created_ms,
            now_ms=now_ms,
            eid=subject.eid,
            trace_id=subject.trace_id,
            event=None if settled is None else settled.event.eid,
            stamps=[b"Return-Path: <>\r\n", f"AIMX-ID: {eid}\r\n".encode(), *write(context)],
        )
        await notice.send(
            self._settings,
            self._store,
            dsn.write(report),
            eid=eid,
            now_ms=now_ms,
            to=landing,
            span=span,
            workflow=subject.workflow,
            facts={"dsn_for": subject.eid, "dsn": told.action},
            settled=settled,
        )

    async def _returned(self, subject: Subject, told: dsn.Recipient) -> bytes | None:
        """The body that goes back; only where the message failed and `RET=FULL` asked for it."""
        if told.action != "failed" or subject.target.options.get("ret") != "FULL":
            return None
        record = await self._store.message(subject.eid)
        if record is None or record.body_size > MAX_RETURNED:
            return None
        return await self._store.read_body(subject.eid, 0, record.body_size)

    def _recipient(
        self, subject: Subject, landing: Landing, action: dsn.Action, result: Result, now_ms: int
    ) -> dsn.Recipient:
        target = subject.target
        match result:
            case Delivered():
                status, said, text = "2.0.0", f"{result.code} {result.text}" if result.code else "", _PLAINLY[action]
            case Later():
                status, said, text = result.status if action == "delayed" else EXPIRED, result.said, result.text
            case Never():
                status, said, text = result.status, result.said, result.text
        address, host = target.address, result.host
        if target.original != target.address:
            if landing.transport == "mailbox" or landing.via in self._settings.peers:
                # The sender may never have heard of the member of a pool or list that a rule chose.
                text += f"; you wrote to {target.original}"
            else:  # RFC 3464 §4.2: nor is it for everybody to hear who stands behind an address
                address, host, said, text = target.original, "", "", _PLAINLY[action]
        return dsn.Recipient(
            address=address,
            original=target.options.get("orcpt"),
            action=action,
            status=status,
            reason=text,
            diagnostic=said or None,
            remote=host or None,
            last_attempt_ms=now_ms,
            attempts=subject.attempt,
            will_retry_until_ms=target.deadline_ms if action == "delayed" else None,
        )


_PLAINLY: dict[dsn.Action, str] = {
    "failed": "it could not be handed on from there",
    "delayed": "it has not been handed on from there yet",
    "delivered": "it was delivered",
    "relayed": "it was handed to a server that sends no reports, so nothing more will be heard of it",
}


def _now() -> int:
    return time.time_ns() // 1_000_000
