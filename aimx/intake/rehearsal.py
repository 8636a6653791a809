"""The dry run that an agent asks for by `X-Trace-Only: yes`: every decision is made and traced, nothing is delivered.

Whoever asked finds a report in its INBOX, as text and as JSON: each recipient's route, rule by rule, what the loop
guard says, and what would have become of every copy now.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aimx.audit import events
from aimx.config import Settings
from aimx.intake import guard, notice, refusal
from aimx.intake.arrival import Arrival, ref
from aimx.intake.commit import Settled
from aimx.intake.envelope import Envelope, Reply
from aimx.message import identifier
from aimx.message.compose import compose
from aimx.message.payload import encode
from aimx.routing.loop import Verdict
from aimx.routing.table import Landing, Route, described
from aimx.store.contract import DONE, INBOX, Agent, Store, Target
from aimx.store.search import And, HasFlag, Not
from aimx.telemetry.context import write

_RETURN_PATH = b"Return-Path: <>\r\n"
_REPORT = b"AIMX-Report: trace-only\r\n"


async def fate(store: Store, target: Target, agent: Agent | None, size: int) -> str:
    """What would become of a copy now: `delivered`, `queued` for its way out, or `waits` and why.

    Reads what the commit would read. `agent` is whose mailbox it is.
    """
    if target.transport != "mailbox":
        return f"queued: {target.transport} {target.options.get('via', '')}".rstrip()
    if agent is None:
        return "waits: no-mailbox"
    if agent.max_unacked is not None:
        inbox = await store.mailbox(agent.address, INBOX)
        pending = And((Not(HasFlag(DONE)), Not(HasFlag("\\Deleted"))))
        if inbox is None or len((await store.search(inbox.key, pending))[0]) >= agent.max_unacked:
            return "waits: unacknowledged"
    if agent.quota is not None and await store.usage(agent.address) + size > agent.quota:
        return "waits: quota"
    return "delivered"


def answer(routes: Sequence[Route], verdict: Verdict, arrival: Arrival) -> Reply:
    """What the message would have been answered; the spans of rules that refuse it are made."""
    refused = [refusal.by_route(route, arrival.span) for route in routes if route.refusal is not None]
    if refused:
        return refused[0].reply
    return guard.reply(verdict) if verdict.kind == "refuse" else Reply(250, "2.0.0", f"<{arrival.eid}> queued")


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What would have become of a message."""

    arrival: Arrival
    routes: Sequence[Route]
    verdict: Verdict
    reply: Reply
    hops: int
    fates: Mapping[tuple[str, str], str]
    """By final address and transport; empty where the message would have been refused."""

    def document(self) -> dict[str, Any]:
        """For programs."""
        arrival, told, verdict = self.arrival, self.arrival.told, self.verdict
        return {
            "trace_only": True,
            "accepted": self.reply.accepted,
            "reply": str(self.reply),
            "message": arrival.eid,
            "message_id": told.message_id,
            "workflow": told.workflow,
            "trace_id": arrival.creation.trace_id.hex(),
            "context_source": arrival.choice.source.value,
            "depth": arrival.depth,
            "hops": self.hops,
            "loop": {"verdict": verdict.kind, "rule": verdict.rule, "count": verdict.count, "limit": verdict.limit},
            "recipients": [self._recipient(route) for route in self.routes],
        }

    def _recipient(self, route: Route) -> dict[str, Any]:
        return {
            "recipient": route.recipient,
            "priority": route.priority or 0,
            "rules": [asdict(tried) for tried in route.tried],
            "refused": route.refusal and {"rule": route.refusal.rule, "text": route.refusal.target},
            "landings": [
                {
                    "address": landing.address,
                    "transport": landing.transport,
                    "queue": landing.queue,
                    "steps": [asdict(step) for step in landing.steps],
                    "fate": self._fate(landing),
                }
                for landing in route.landings
            ],
        }

    def _fate(self, landing: Landing) -> str:
        return self.fates.get((landing.address, landing.transport), "nothing: the message is refused")

    def text(self) -> str:
        """For people."""
        arrival, verdict = self.arrival, self.verdict
        lines = [
            "This was a dry run: nothing was delivered.",
            "",
            f"answer    {self.reply}",
            f"workflow  {arrival.told.workflow or '(none)'}",
            f"trace     {arrival.creation.trace_id.hex()} ({arrival.choice.source.value})",
            f"loop      {verdict.kind}, depth {arrival.depth}" + (f": {verdict.text}" if verdict.text else ""),
        ]
        for route in self.routes:
            lines += ["", *described(route), f"  priority {route.priority or 0}"]
            lines += [f"  copy for {landing.address}: {self._fate(landing)}" for landing in route.landings]
        return "\n".join(lines)


async def report(settings: Settings, store: Store, envelope: Envelope, rehearsed: Rehearsed, key: bytes) -> None:
    """Tell who asked, and the log. `key`: of Message-IDs."""
    assert envelope.agent is not None
    arrival = rehearsed.arrival
    span, here = arrival.span, arrival.told
    eid = identifier.new_eid(arrival.now_ms)
    context = span.context
    asked = here.message_id
    octets = compose(
        sender=f"postmaster@{settings.domains[0]}",
        to=[envelope.agent],
        subject=f"Dry run: {here.subject}".rstrip(),
        payload=encode(rehearsed.document()),
        text=rehearsed.text(),
        message_id=identifier.mint(context.trace_id, context.span_id, settings.domains[0], key),
        in_reply_to=asked if asked and identifier.message_ids(asked) == [asked] else None,
        workflow=here.workflow,
        headers={"Auto-Submitted": "auto-replied"},  # RFC 3834 §5
        stamps=[_RETURN_PATH, f"AIMX-ID: {eid}\r\n".encode(), _REPORT, *write(context)],
        t_ms=arrival.now_ms,
    )
    traced = events.message_traced(
        events.Stamp(settings.node, arrival.now_ms, ref(context), envelope.agent),
        eid=arrival.eid,
        data=arrival.octets.sha256,
        by=envelope.agent,
        recipients=envelope.recipients,
        facts={"report": eid, "reply": str(rehearsed.reply), "message_id": asked, "workflow": here.workflow},
    )
    await notice.send(
        settings,
        store,
        octets,
        eid=eid,
        now_ms=arrival.now_ms,
        to=Landing(envelope.agent, (), "mailbox"),
        span=span,
        workflow=here.workflow,
        facts={"report_for": arrival.eid},
        settled=Settled(None, traced),
    )
