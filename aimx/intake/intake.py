"""Accept one message: context → stamp → route → commit → receipt.

`Intake._accept` reads top to bottom as the way of a message. Whatever refuses it on that way raises `_Refused`, caught
once, so that every refusal becomes a reply, a span with status ERROR and an audit event in the same manner.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from aimx.audit import events
from aimx.config import Settings
from aimx.delivery.retry import Backoff
from aimx.identity.agents import Directory
from aimx.identity.sender import header_refusal
from aimx.intake import stamp
from aimx.intake.commit import accepted, commit
from aimx.intake.envelope import Envelope, HeaderTooLarge, Octets, Reply, Upload
from aimx.intake.plan import Terms, facts, plan
from aimx.intake.told import Told, tell
from aimx.message import fingerprint, identifier
from aimx.message.header import HeaderBlock
from aimx.message.part import payload_leaf
from aimx.message.stamp import received
from aimx.routing import loop
from aimx.routing.table import Facts, Route, RoutingTable
from aimx.store.contract import (
    Agent,
    Ancestor,
    EventRow,
    Lineage,
    NewMessage,
    Outcome,
    Placed,
    SpanRef,
    Store,
    StoreError,
    Target,
    Unavailable,
)
from aimx.telemetry import metrics
from aimx.telemetry.context import Choice, Context, Door, Hop, Source, choose
from aimx.telemetry.span import INTERNAL, SERVER, Span, Tracer
from aimx.tlog.leaf import new_key
from aimx.tlog.note import Signer
from aimx.tlog.receipt import Promise, issue
from aimx.tlog.tree import leaf_hash

log = logging.getLogger("aimx.intake")

ACCEPTED = metrics.counter("aimx.messages.accepted")  # door: agent, imap, internal
REJECTED = metrics.counter("aimx.messages.rejected")  # by enhanced code
SIZE = metrics.histogram("aimx.message.size")
DURATION = metrics.histogram("aimx.accept.duration")
CONTEXTS = metrics.counter("aimx.context.extracted")
LOOPS = metrics.counter("aimx.loops.detected")
DEPTH = metrics.histogram("aimx.depth")
HOPS = metrics.histogram("aimx.hops")

TRY_LATER = Reply(451, "4.3.0", "the message could not be stored now and was not taken; send it again")


class _Refused(Exception):
    """The message may not come in."""

    def __init__(self, reply: Reply, rule: str, row: EventRow | None = None) -> None:
        self.reply = reply
        self.rule = rule
        self.row = row


@dataclass(slots=True)
class _Arrival:
    """One message on its way in."""

    eid: str
    now_ms: int
    octets: Octets
    told: Told
    lineage: Lineage
    choice: Choice
    span: Span
    payload: bytes
    template: bytes
    depth: int

    @property
    def creation(self) -> Context:
        """The sender's own context where it may stand, else the one this node stamps: its receiving span."""
        own = self.choice.context if self.choice.source is Source.HEADER else None
        return own or self.span.context

    @property
    def loop_key(self) -> str:
        return self.lineage.loop_key or self.told.workflow or self.creation.trace_id.hex()


class Intake:
    """One for a node. `settings` and `table` are replaced by a reload of the rules."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        directory: Directory,
        tracer: Tracer,
        *,
        message_id_key: bytes,
        receipts: tuple[str, Signer] | None = None,
        outbox_age: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`receipts`: the log's origin and the key that signs its promises. `outbox_age`: seconds the log is behind."""
        self.settings = settings
        self.table = RoutingTable(settings)
        self._store = store
        self._directory = directory
        self._tracer = tracer
        self._message_id_key = message_id_key
        self._receipts = receipts
        self._outbox_age = outbox_age
        self._backoff = Backoff.of(settings.delivery)
        self._domains = settings.domains

    # ── doors ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def upload(self) -> Upload:
        """For the octets of the next message."""
        return Upload(self._store)

    async def check_recipient(self, agent: str, recipient: str) -> Reply | None:
        """At RCPT: None when `agent` may send to `recipient`, else the refusal."""
        table = self.table
        if not table.serves(recipient):
            return Reply(550, "5.7.1", f"<{recipient}> is not served here and this node relays for nobody")
        takers = await self._takers(table, (recipient,))
        if not table.may_reach(recipient, takers.__contains__):
            return Reply(550, "5.1.1", f"there is no agent, pool or list <{recipient}>")
        return None

    async def accept(self, envelope: Envelope) -> Reply:
        """One mail transaction, from the final dot to the reply. Never raises for what the message is."""
        began = time.monotonic()
        arrival: _Arrival | None = None
        try:
            self._check_outbox()
            arrival = await self._open(envelope)
            reply = await self._accept(envelope, arrival)
        except _Refused as refused:
            reply = await self._refuse(envelope, arrival, refused)
        except HeaderTooLarge:
            reply = Reply(552, "5.3.4", "the header block is larger than 256 KiB; shorten it")
        except Unavailable:
            log.warning("message not stored: the store is unavailable", extra=_ids(arrival))
            reply = TRY_LATER
        except Exception:
            log.exception("message not accepted", extra=_ids(arrival))
            reply = TRY_LATER
        if not reply.accepted:
            await self._discard(envelope.upload)
        self._finish(envelope, arrival.span if arrival else self._receiving(envelope, None), reply)
        DURATION.labels("agent").record(time.monotonic() - began)
        return reply

    def refused(self, envelope: Envelope, reply: Reply) -> None:
        """A transaction that ended without DATA because its recipients were refused: traced and counted."""
        self._finish(envelope, self._receiving(envelope, None), reply)

    async def append(
        self, owner: str, folder: str, upload: Upload, flags: frozenset[str], internal_ms: int | None, span: Span
    ) -> Placed:
        """IMAP APPEND: into one folder of the owner's, as it is. Raises NotFound, OverQuota, HeaderTooLarge."""
        now_ms = _now_ms()
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
            origin=_ref(own),
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
                    self._stamp(now_ms, here, owner),
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

        outcomes = await self._store.accept(message, [target], witness)
        ACCEPTED.labels("imap").add()
        placed = outcomes[0]
        assert isinstance(placed, Placed), "an append is placed or refused"
        return placed

    # ── the way of a message ─────────────────────────────────────────────────────────────────────────────────────────

    async def _open(self, envelope: Envelope) -> _Arrival:
        """Read it once, find what it answers, choose the trace it continues, and begin the span."""
        now_ms = _now_ms()
        octets = await envelope.upload.finish()
        told = tell(octets.header, envelope.priority)
        claimed = told.context if isinstance(told.context, Context) else None
        lineage = await self._store.lineage(
            envelope.agent, told.in_reply_to, told.references, claimed.trace_id if claimed else None, told.workflow
        )
        choice = choose(
            Door.AGENT,
            header=told.context,
            in_reply_to=_stored_context(lineage.replied),
            references=_stored_context(lineage.referenced),
        )
        said = payload_leaf(octets.header, octets.sample).data()
        return _Arrival(
            eid=identifier.new_eid(now_ms),
            now_ms=now_ms,
            octets=octets,
            told=told,
            lineage=lineage,
            choice=choice,
            span=self._receiving(envelope, choice, told),
            payload=fingerprint.payload_hash(said),
            template=fingerprint.template_hash(said),
            depth=loop.depth(lineage),
        )

    async def _accept(self, envelope: Envelope, arrival: _Arrival) -> Reply:
        self._check_sender(arrival.octets.header, envelope.agent)
        routes = await self._route(envelope, arrival)
        verdict = self._guard(envelope, arrival, routes)
        priority = self._priority(await self._directory.agent(envelope.agent), arrival.told, routes)
        planned = plan(routes, arrival.span, self._terms(arrival.creation, priority, arrival.now_ms))
        HOPS.labels().record(len(planned.hops))
        message = self._message(envelope, arrival, priority, planned.hops)
        known: dict[str, Any] = {
            "context_source": message.context_source,
            "depth": message.depth,
            "workflow": message.workflow,
            "agent": envelope.agent,
            "size": envelope.upload.size,
            "recipients": list(envelope.recipients),
            "message_id": message.message_id,
            "in_reply_to": message.in_reply_to,
            "route": facts(routes),
        }
        if verdict.kind == "warn":
            known["loop"] = {"rule": verdict.rule, "count": verdict.count, "limit": verdict.limit}
        node = self.settings.node
        row = accepted(node, message, arrival.octets, arrival.span, envelope.upload.size, known)
        await commit(self._store, node, message, planned.firsts, row, arrival.span)
        ACCEPTED.labels("agent").add()
        SIZE.labels("agent").record(envelope.upload.size)
        return self._receipt(message, arrival.octets, leaf_hash(row.leaf))

    def _check_outbox(self) -> None:
        """The log must keep up with the mail: what cannot be proved soon is not accepted now."""
        if self._outbox_age() > self.settings.audit.max_lag:
            raise _Refused(Reply(451, "4.3.2", "the audit log is behind; send the message again in a minute"), "audit")

    def _check_sender(self, header: HeaderBlock, agent: str) -> None:
        """An agent may send only as itself."""
        for field in ("From", "Sender"):
            refusal = header_refusal(field, header.get_all(field), agent)
            if refusal is not None:
                raise _Refused(Reply(550, "5.7.1", refusal), "sender")
        if stamp.claims_another(header, agent, self._domains):
            own = stamp.agent_id(agent, self._domains)
            raise _Refused(Reply(550, "5.7.1", f"X-Agent-ID must be {own} or left out; you are {agent}"), "agent-id")

    async def _route(self, envelope: Envelope, arrival: _Arrival) -> list[Route]:
        """Decide for every recipient. One refusal refuses the message: nobody has it yet, the sender can mend it."""
        table = self.table
        takers = await self._takers(table, envelope.recipients)
        routes = []
        for recipient in dict.fromkeys(envelope.recipients):
            asked = Facts(
                sender=envelope.sender,
                recipient=recipient,
                workflow=arrival.told.workflow,
                agent=stamp.agent_id(envelope.agent, self._domains),
                header=arrival.octets.header,
                content_type=arrival.told.content_type,
                size=envelope.upload.size,
                key=arrival.eid,
            )
            route = table.route(asked, takers.__contains__)
            if route.refusal is not None:
                raise self._refused_by(route, arrival.span)
            routes.append(route)
        return routes

    def _refused_by(self, route: Route, span: Span) -> _Refused:
        assert route.refusal is not None
        status = "5.1.1" if route.unknown else "5.7.1"
        rule = route.refusal.rule
        hop = span.child(
            f"route {rule}", INTERNAL, attributes={"aimx.route.rule": rule, "aimx.route.decision": "refuse"}
        )
        hop.error(status)
        hop.end()
        return _Refused(Reply(550, status, f"<{route.recipient}>: {route.refusal.target}; nobody got it"), rule)

    def _guard(self, envelope: Envelope, arrival: _Arrival, routes: Sequence[Route]) -> loop.Verdict:
        finals = tuple(sorted({landing.address for route in routes for landing in route.landings}))
        told, span = arrival.told, arrival.span
        candidate = loop.Candidate(
            sender=envelope.agent,
            recipients=finals,
            payload=arrival.payload,
            template=arrival.template,
            depth=arrival.depth,
            t_ms=arrival.now_ms,
            workflow=told.workflow,
        )
        verdict = loop.judge(candidate, arrival.lineage, loop.limits_for(self.settings, envelope.agent, told.workflow))
        span.set("aimx.depth", arrival.depth)
        DEPTH.labels().record(arrival.depth)
        if verdict.rule is None:
            return verdict
        said = "loop.refused" if verdict.kind == "refuse" else "loop.warned"
        span.set("aimx.loop.detected", True)
        span.event(
            said, {"aimx.loop.rule": verdict.rule, "aimx.loop.count": verdict.count, "aimx.loop.limit": verdict.limit}
        )
        LOOPS.labels(verdict.rule, verdict.kind).add()
        if verdict.kind == "warn":
            return verdict
        row = events.loop_refused(
            self._stamp(arrival.now_ms, _ref(span.context), envelope.agent),
            rule=verdict.rule,
            count=verdict.count,
            by=envelope.agent,
            loop=arrival.loop_key,
            recipients=envelope.recipients,
            facts=_refusal_facts(envelope, arrival, verdict.rule, Reply(554, "5.4.6", verdict.text)),
        )
        raise _Refused(Reply(554, "5.4.6", f"loop refused: {verdict.text}"), f"loop.{verdict.rule}", row)

    def _priority(self, agent: Agent | None, told: Told, routes: Sequence[Route]) -> int:
        """A rule's priority is the node's word; what an agent asks for above normal must be allowed to it."""
        ruled = [route.priority for route in routes if route.priority is not None]
        if ruled:
            return max(ruled)
        if told.priority > 0 and not (agent is not None and agent.may_prioritise):
            return 0  # RFC 6710 §4.1: a server may lower it
        return told.priority

    def _message(self, envelope: Envelope, arrival: _Arrival, priority: int, hops: Sequence[Hop]) -> NewMessage:
        told, creation, header = arrival.told, arrival.creation, arrival.octets.header
        own = arrival.choice.source is Source.HEADER
        minted = None
        if told.message_id is None:
            minted = identifier.mint(creation.trace_id, creation.span_id, self._domains[0], self._message_id_key)
        stamp.strip(header, self._domains, context=not own)
        stored = stamp.stamp_accepted(
            header,
            eid=arrival.eid,
            sender=envelope.sender,
            agent=stamp.agent_id(envelope.agent, self._domains),
            received=received(
                helo=envelope.helo,
                peer=envelope.peer.rpartition(":")[0].strip("[]"),
                by=self._domains[0],
                protocol=envelope.protocol,
                eid=arrival.eid,
                t_ms=arrival.now_ms,
                rcpt=envelope.recipients[0] if len(envelope.recipients) == 1 else None,
                tls=envelope.tls or None,
            ),
            hops=hops,
            context=None if own else creation,
            message_id=minted,
            date_ms=None if "Date" in header else arrival.now_ms,
        )
        return NewMessage(
            eid=arrival.eid,
            t_ms=arrival.now_ms,
            sender=envelope.sender,
            agent=envelope.agent,
            recipients=envelope.recipients,
            header=stored,
            body=arrival.octets.body,
            message_id=told.message_id or minted or "",
            in_reply_to=told.in_reply_to,
            subject=told.subject,
            content_type=told.content_type,
            workflow=told.workflow,
            priority=priority,
            origin=_ref(creation),
            trace_flags=creation.flags,
            tracestate=creation.tracestate,
            baggage=creation.baggage,
            context_source=arrival.choice.source.value,
            received=_ref(arrival.span.context),
            depth=arrival.depth,
            loop_key=arrival.loop_key,
            payload=arrival.payload,
            template=arrival.template,
        )

    def _receipt(self, message: NewMessage, octets: Octets, leaf: bytes) -> Reply:
        """The 250: the message's id and, where a receipt key is at hand, the signed promise that it will be logged."""
        if self._receipts is None:
            return Reply(250, "2.0.0", f"<{message.eid}> queued")
        origin, signer = self._receipts
        promise = Promise(origin, message.eid, leaf, message.t_ms, octets.sha256, message.sender, message.recipients)
        return Reply(250, "2.0.0", issue(promise, signer).line())

    # ── refusals and ends ────────────────────────────────────────────────────────────────────────────────────────────

    async def _refuse(self, envelope: Envelope, arrival: _Arrival | None, refused: _Refused) -> Reply:
        """Record a permanent refusal. A temporary one is only traced: the same mail will come again."""
        reply = refused.reply
        if reply.code < 500 or arrival is None:
            return reply
        row = refused.row or events.message_rejected(
            self._stamp(arrival.now_ms, _ref(arrival.span.context), envelope.agent),
            code=reply.code,
            status=reply.enhanced,
            by=envelope.agent,
            recipients=envelope.recipients,
            facts=_refusal_facts(envelope, arrival, refused.rule, reply),
        )
        append = arrival.span.child("audit append", INTERNAL, attributes={"aimx.audit.event": row.ev})
        try:
            await self._store.record([row])
        except StoreError:
            # A refusal that cannot be recorded is not made: the peer asks again later.
            append.error("unavailable")
            return TRY_LATER
        finally:
            append.end()
        return reply

    async def _discard(self, upload: Upload) -> None:
        try:
            await upload.discard()
        except StoreError:
            log.warning("parts of a refused message were left behind; the next start drops them")

    def _receiving(self, envelope: Envelope, choice: Choice | None, told: Told | None = None) -> Span:
        """The span of the transaction, begun when MAIL came."""
        span = self._tracer.start(
            "smtp receive",
            SERVER,
            choice.context if choice else None,
            links=choice.links if choice else (),
            start_ns=envelope.started_ns,
        )
        agent = stamp.agent_id(envelope.agent, self._domains)
        span.attributes |= {
            "messaging.system": "aimx",
            "gen_ai.agent.id": agent,
            "aimx.agent.id": agent,
            "aimx.context.trusted": True,
        }
        if choice is not None:
            span.set("aimx.context.source", choice.source.value)
            CONTEXTS.labels(choice.source.value, "true").add()
        if told is None:
            return span
        if not isinstance(told.context, Context) and told.context.reason != "absent":
            span.set("aimx.context.invalid", told.context.reason)
        if told.message_id is not None:
            span.set("messaging.message.id", told.message_id)
        if told.workflow is not None:
            span.attributes |= {
                "messaging.message.conversation_id": told.workflow,
                "gen_ai.conversation.id": told.workflow,
                "aimx.workflow.id": told.workflow,
            }
        return span

    def _finish(self, envelope: Envelope, span: Span, reply: Reply) -> None:
        for name, t_ns, attributes in envelope.events:
            span.event(name, attributes, t_ns)
        span.attributes |= {
            "tls.protocol.version": envelope.tls,
            "messaging.message.envelope.size": envelope.upload.size,
            "messaging.batch.message_count": len(envelope.recipients),
            "smtp.response.status_code": reply.code,
            "smtp.response.enhanced_code": reply.enhanced,
        }
        if not reply.accepted:
            span.error(reply.enhanced)
            REJECTED.labels(reply.enhanced).add()
        span.end()

    # ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _takers(self, table: RoutingTable, recipients: Sequence[str]) -> set[str]:
        """Which of the addresses that routing may ask about are agents that take mail."""
        takers = set()
        for address in table.mentions(recipients):
            agent = await self._directory.agent(address)
            if agent is not None and not agent.disabled:
                takers.add(address)
        return takers

    def _terms(self, creation: Context, priority: int, now_ms: int) -> Terms:
        return Terms(
            creation=creation,
            priority=priority,
            now_ms=now_ms,
            deadline_ms=now_ms + int(self.settings.delivery.deadline * 1000),
            backoff=self._backoff,
            by=self._domains[0],
        )

    def _stamp(self, t_ms: int, span: SpanRef, agent: str | None) -> events.Stamp:
        return events.Stamp(self.settings.node, t_ms, span, agent)


def _refusal_facts(envelope: Envelope, arrival: _Arrival, rule: str, reply: Reply) -> dict[str, Any]:
    return {
        "sender": envelope.sender,
        "recipients": list(envelope.recipients),
        "rule": rule,
        "text": reply.text,
        "reply": f"{reply.code} {reply.enhanced}",
        "depth": arrival.depth,
        "workflow": arrival.told.workflow,
        "message_id": arrival.told.message_id,
        "in_reply_to": arrival.told.in_reply_to,
    }


def _stored_context(ancestor: Ancestor | None) -> Context | None:
    if ancestor is None:
        return None
    trace_id, span_id = ancestor.origin
    return Context(trace_id, span_id, ancestor.trace_flags, ancestor.tracestate, ancestor.baggage, remote=True)


def _ref(context: Context) -> SpanRef:
    return SpanRef(context.trace_id, context.span_id)


def _ids(arrival: _Arrival | None) -> dict[str, str]:
    if arrival is None:
        return {}
    return {"trace_id": arrival.span.trace_id.hex(), "span_id": arrival.span.span_id.hex()}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
