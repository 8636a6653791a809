"""Accept one message: context → stamp → route → commit → receipt.

`Intake._accept` reads top to bottom as the way of a message. Whatever refuses it on that way raises `Refused`, caught
once, so that every refusal becomes a reply, a span with status ERROR and an audit event in the same manner.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from aimx.audit import events
from aimx.config import Settings
from aimx.delivery.retry import Backoff
from aimx.delivery.trace import appended
from aimx.delivery.transport import DELIVERED
from aimx.identity.agents import Directory
from aimx.intake import append, once, postmaster, refusal, rehearsal, stamp
from aimx.intake.ancestry import ask
from aimx.intake.arrival import Arrival, receive, ref, replied
from aimx.intake.commit import accepted, commit
from aimx.intake.envelope import Envelope, HeaderTooLarge, Octets, Reply, Upload
from aimx.intake.guard import guard, weigh
from aimx.intake.plan import Plan, Terms, facts, plan
from aimx.intake.pressure import Pressure, of_store
from aimx.intake.refusal import Refused
from aimx.intake.report import Reporter, Subject
from aimx.intake.told import Told, tell
from aimx.message import fingerprint, identifier
from aimx.message.header import HeaderBlock
from aimx.message.part import payload_leaf
from aimx.message.stamp import received
from aimx.rate import network
from aimx.routing.loop import Verdict, depth
from aimx.routing.table import Facts, Route, RoutingTable
from aimx.store.contract import (
    Agent,
    Ancestor,
    KeyReused,
    NewMessage,
    Once,
    Outcome,
    Placed,
    Repeated,
    Store,
    StoreError,
    Unavailable,
)
from aimx.telemetry import metrics
from aimx.telemetry.context import Context, Door, Hop, choose, hops, restate
from aimx.telemetry.span import Span, Tracer
from aimx.tlog.note import Signer
from aimx.tlog.receipt import Promise, issue
from aimx.tlog.tree import leaf_hash

log = logging.getLogger("aimx.intake")

ACCEPTED = {door: metrics.counter("aimx.messages.accepted").labels(door.value) for door in Door}
SIZE = {door: metrics.histogram("aimx.message.size").labels(door.value) for door in Door}
DURATION = {door: metrics.histogram("aimx.accept.duration").labels(door.value) for door in Door}
REPEATS = {outcome: metrics.counter("aimx.messages.repeated").labels(outcome) for outcome in ("replayed", "refused")}
HOPS = metrics.histogram("aimx.hops").labels()
RESPONSE = metrics.histogram("aimx.agent.response.duration").labels()

AUTH = {Door.AGENT: "agent", Door.PEER: "peer", Door.STRANGER: "none"}
"""How the log says that the sender is known."""


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
        receipts: Callable[[], Signer] | None = None,
        outbox_age: Callable[[], float] = lambda: 0.0,
        reports: Reporter | None = None,
    ) -> None:
        """`receipts`: the key that signs promises now; it may change. `outbox_age`: seconds the log is behind."""
        self.settings = settings
        self.table = RoutingTable(settings)
        self._store = store
        self._directory = directory
        self._tracer = tracer
        self._message_id_key = message_id_key
        self._receipts = receipts
        self.pressure = Pressure(settings, outbox_age)
        self._reports = reports
        self.clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000
        """When a message came, in Unix milliseconds; a test lets hours pass."""
        self._turned_away = refusal.TurnedAway()
        self._backoff = Backoff.of(settings.delivery)
        self._domains = settings.domains

    # ── doors ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def upload(self) -> Upload:
        """For the octets of the next message."""
        return Upload(self._store)

    def admit(self, agent: str) -> Reply | None:
        """At MAIL: None when `agent` may hand over a message now, else the refusal."""
        return self.pressure.refusal() or self.pressure.hasty(agent)

    def admit_stranger(self, host: str) -> Reply | None:
        """The same for somebody at this IP address who is no agent."""
        return self.pressure.refusal() or self.pressure.hasty_stranger(network(host))

    async def check_recipient(self, recipient: str, door: Door = Door.AGENT) -> Reply | None:
        """At RCPT: None when mail for `recipient` may come in by this door, else the refusal."""
        table = self.table
        serves = table.serves(recipient)
        try:
            takes = serves and _takes_mail(await self._directory.agent(recipient))
        except Unavailable as error:
            return of_store(error)
        if serves and not takes and postmaster.is_postmaster(recipient) and not table.may_reach(recipient, _nobody):
            return await self._provide_postmaster(recipient)
        may_leave = serves or door is not Door.STRANGER  # nobody outside sends to somebody else outside through us
        if may_leave and table.may_reach(recipient, lambda address: takes and address == recipient):
            return None
        if not serves:
            return Reply(550, "5.7.1", f"<{recipient}> is not served here, and its mail is not relayed")
        return Reply(550, "5.1.1", f"there is no agent, pool or list <{recipient}>")

    async def _provide_postmaster(self, address: str) -> Reply | None:
        if await self._directory.agent(address) is not None:
            return Reply(550, "5.1.1", f"<{address}> is disabled")
        stamp = events.Stamp(self.settings.node, self.clock(), events.no_span(), "aimx")
        try:
            await postmaster.provide(self._store, address, stamp)
        except StoreError as error:
            return of_store(error)
        return None

    async def accept(self, envelope: Envelope) -> Reply:
        """One mail transaction, from the final dot to the reply. Never raises for what the message is."""
        began = time.monotonic()
        arrival: Arrival | None = None
        failure: Exception | None = None
        try:
            if (later := self.pressure.refusal()) is not None:
                raise Refused(later, "pressure")
            arrival = await self._open(envelope)
            reply = await self._accept(envelope, arrival)
        except Refused as refused:
            reply = await self._refuse(envelope, arrival, refused)
        except HeaderTooLarge:
            reply = Reply(552, "5.3.4", "no empty line ends the header within 256 KiB; shorten it")
        except Exception as error:
            reply, failure = of_store(error), error
        span = arrival.span if arrival else receive(self._tracer, envelope)
        if not reply.accepted:
            _log_refusal(span, reply, failure)
            await self._discard(envelope.upload)
        replied(span, envelope, reply)
        DURATION[envelope.door].record(time.monotonic() - began, span)
        return reply

    def refused(self, envelope: Envelope, reply: Reply) -> None:
        """A transaction that ended without DATA because its recipients were refused: traced and counted."""
        replied(receive(self._tracer, envelope), envelope, reply)

    async def append(
        self, owner: str, folder: str, upload: Upload, flags: frozenset[str], internal_ms: int | None, span: Span
    ) -> Placed:
        """IMAP APPEND: into one folder of the owner's, as it is. Raises NotFound, OverQuota, HeaderTooLarge."""
        return await append.append(self._store, self.settings.node, owner, folder, upload, flags, internal_ms, span)

    # ── the way of a message ─────────────────────────────────────────────────────────────────────────────────────────

    async def _open(self, envelope: Envelope) -> Arrival:
        """Read it once, find what it answers, choose the trace it continues, and begin the span."""
        now_ms = self.clock()
        octets = await envelope.upload.finish()
        told = tell(octets.header, envelope.priority)
        behind = hops(octets.header) if envelope.door is Door.PEER else []
        newest = behind[0].context if behind else None
        lineage = await self._store.lineage(*ask(envelope, told, newest, self._message_id_key, self.table.serves))
        if envelope.door is Door.STRANGER:
            answered = lineage.replied or lineage.referenced
            told.workflow = answered.workflow if answered else None  # limits and budgets are not a stranger's to choose
        choice = choose(
            envelope.door,
            header=told.context,
            hop=newest,
            in_reply_to=_stored_context(lineage.replied),
            references=_stored_context(lineage.referenced),
        )
        said = payload_leaf(octets.header, octets.sample).data()
        return Arrival(
            eid=identifier.new_eid(now_ms),
            now_ms=now_ms,
            octets=octets,
            told=told,
            lineage=lineage,
            choice=choice,
            span=receive(self._tracer, envelope, choice, told),
            hops_before=max((hop.number for hop in behind), default=0),
            said=said,
            # Beyond the limit only the whole is told from the whole, which is hashed already.
            payload=fingerprint.payload_hash(said) if len(said) <= fingerprint.LIMIT else octets.body_sha256,
            depth=depth(lineage),
        )

    async def _accept(self, envelope: Envelope, arrival: Arrival) -> Reply:
        promise = once.promise(envelope, arrival, self.settings.idempotency.keep)
        try:
            return await self._take(envelope, arrival, promise)
        except Repeated as first:
            return await self._repeat(envelope, arrival, first.eid)
        except KeyReused:
            REPEATS["refused"].add()
            raise Refused(once.REUSED, "idempotency-key") from None
        except Refused:
            # Judged anew, what comes again may look like a loop, or its recipient may have gone since.
            eid = None if promise is None else await self._store.repeated(promise, arrival.now_ms)
            if eid is None:
                raise
            return await self._repeat(envelope, arrival, eid)

    async def _take(self, envelope: Envelope, arrival: Arrival, promise: Once | None) -> Reply:
        settings = self.settings
        refusal.check_hops(arrival.octets.header)
        if envelope.agent is not None:
            refusal.check_sender(arrival.octets.header, envelope.agent, self._domains)
        elif envelope.door is Door.STRANGER:
            refusal.check_stranger(arrival.octets.header, self.table.domains)
        if envelope.agent is not None and arrival.told.trace_only is not False:
            return await self._rehearse(envelope, arrival)
        routes = await self._route(envelope, arrival)
        for route in routes:
            if route.refusal is not None:
                raise refusal.by_route(route, arrival.span)
        verdict = guard(settings, envelope, arrival, routes)
        _prioritise(routes, await self._allowed(envelope, arrival.told))
        planned = plan(routes, arrival.span, self._terms(envelope, arrival, verdict.kind))
        HOPS.record(len(planned.hops), arrival.span)
        message = self._message(envelope, arrival, max(route.priority or 0 for route in routes), planned.hops)
        known = _known(envelope, message, routes, verdict)
        size = envelope.upload.size
        auth = "network" if envelope.by_network else AUTH[envelope.door]
        row = accepted(settings.node, message, arrival.octets, arrival.span, size, known, auth)
        await self._check_queue(planned)
        with self.pressure.committing():
            outcomes = await commit(
                self._store, settings.node, message, planned.firsts, row, arrival.span, once=promise
            )
        ACCEPTED[envelope.door].add()
        SIZE[envelope.door].record(size, arrival.span)
        if envelope.agent is not None and arrival.lineage.replied is not None:
            asked_ms = identifier.eid_time_ms(arrival.lineage.replied.eid)
            RESPONSE.record(max(0, arrival.now_ms - asked_ms) / 1000, arrival.span)
        if envelope.reports:
            await self._tell(message, outcomes, arrival.span)
        # Signed here: the store's thread would wait for the loop after each signature, and with it the whole group.
        return self._receipt(message, arrival.octets, leaf_hash(row.leaf))

    async def _check_queue(self, planned: Plan) -> None:
        """While the queue is full nothing is taken that may have to wait. Raises Refused."""
        full = self.pressure.queue_refusal()
        if full is None:
            return
        for target in (first.target for first in planned.firsts):
            agent = await self._directory.agent(target.address) if target.transport == "mailbox" else None
            if agent is None or agent.max_unacked is not None or agent.quota is not None:
                raise Refused(full, "queue")

    async def _repeat(self, envelope: Envelope, arrival: Arrival, eid: str) -> Reply:
        """It was accepted before: the first answer again. That this was asked is an event of the first message."""
        first = await once.acceptance(self._store, eid)
        span = arrival.span
        span.set("aimx.idempotent.replay", True)
        span.set("aimx.idempotent.first", eid)
        span.link(Context(first.trace_id, first.span_id, 0))
        if eid != arrival.eid:  # else it is its own: the commit was reported as failed, and had succeeded
            stamp = events.Stamp(self.settings.node, arrival.now_ms, ref(span.context), envelope.agent)
            row = events.message_repeated(stamp, message=eid, key=first.key, by=envelope.agent or "")
            began_ns = time.time_ns()
            await self._store.record([row])
            appended(span, row, began_ns)
            await self._discard(envelope.upload)
        REPEATS["replayed"].add()
        return self._answer(eid, lambda origin: once.promised(origin, first))

    async def _route(self, envelope: Envelope, arrival: Arrival) -> list[Route]:
        """Decide for every recipient. One refusal refuses the message: nobody has it yet, the sender can mend it."""
        table = self.table
        takers = await self._takers(table, envelope.recipients)
        routes = []
        for recipient in dict.fromkeys(envelope.recipients):
            asked = Facts(
                sender=envelope.sender,
                recipient=recipient,
                workflow=arrival.told.workflow,
                agent=stamp.agent_id(envelope.agent, self._domains) if envelope.agent else None,
                header=arrival.octets.header,
                content_type=arrival.told.content_type,
                size=envelope.upload.size,
                key=arrival.eid,
            )
            routes.append(table.route(asked, takers.__contains__))
        return routes

    async def _rehearse(self, envelope: Envelope, arrival: Arrival) -> Reply:
        """All of the above but for the commit: the sender is told what would have been."""
        if arrival.told.trace_only is None:
            raise Refused(Reply(550, "5.6.0", "X-Trace-Only is yes for a dry run, or left out"), "trace-only")
        settings, span = self.settings, arrival.span
        span.set("aimx.trace_only", True)
        routes = await self._route(envelope, arrival)
        _prioritise(routes, await self._allowed(envelope, arrival.told))
        verdict = weigh(settings, envelope, arrival, routes)
        planned = plan(routes, span, self._terms(envelope, arrival, verdict.kind))
        answer = rehearsal.answer(routes, verdict, arrival)
        fates = {}
        for first in planned.firsts if answer.accepted else ():
            address, way = first.target.address, first.target.transport
            agent = await self._directory.agent(address) if way == "mailbox" else None
            fates[address, way] = await rehearsal.fate(self._store, first.target, agent, envelope.upload.size)
        done = rehearsal.Rehearsed(arrival, routes, verdict, answer, len(planned.hops), fates)
        await rehearsal.report(settings, self._store, envelope, done, self._message_id_key)
        await self._discard(envelope.upload)
        return Reply(250, "2.0.0", f"<{arrival.eid}> traced only, nothing was delivered; the report is in your INBOX")

    def _message(self, envelope: Envelope, arrival: Arrival, priority: int, hops: Sequence[Hop]) -> NewMessage:
        told, creation, header = arrival.told, arrival.creation, arrival.octets.header
        own = arrival.own_context is not None
        agent = self._proved_agent(envelope, header)
        minted = None
        if told.message_id is None:
            minted = identifier.mint(creation.trace_id, creation.span_id, self._domains[0], self._message_id_key)
        claims = stamp.strip(header, self._domains, envelope.door, context=not own)
        plain = restate(header, creation) if own else []
        stored = stamp.stamp_accepted(
            header,
            eid=arrival.eid,
            sender=envelope.sender,
            agent=agent,
            workflow=told.workflow if envelope.door is Door.STRANGER else None,
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
            claims=[*claims, *plain],
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
            origin=ref(creation),
            trace_flags=creation.flags,
            tracestate=creation.tracestate,
            baggage=creation.baggage,
            context_source=arrival.choice.source.value,
            received=ref(arrival.span.context),
            depth=arrival.depth,
            loop_key=arrival.loop_key,
            payload=arrival.payload,
            template=arrival.template,
        )

    async def _tell(self, message: NewMessage, outcomes: Sequence[Outcome], span: Span) -> None:
        """Report what was delivered at once, to a sender that asked for it (RFC 3461)."""
        for found in outcomes:
            if isinstance(found, Placed) and self._reports is not None:
                subject = Subject(
                    eid=message.eid,
                    sender=message.sender,
                    target=found.target,
                    attempt=1,
                    created_ms=message.t_ms,
                    trace_id=message.origin.trace_id,
                    workflow=message.workflow,
                )
                await self._reports.delivered(subject, DELIVERED, span)

    def _receipt(self, message: NewMessage, octets: Octets, leaf: bytes) -> Reply:
        return self._answer(
            message.eid,
            lambda origin: Promise(
                origin, message.eid, leaf, message.t_ms, octets.sha256, message.sender, message.recipients
            ),
        )

    def _answer(self, eid: str, promise: Callable[[str], Promise]) -> Reply:
        """The 250: the message's id and, where a receipt key is at hand, the signed promise that it will be logged."""
        plain = Reply(250, "2.0.0", f"<{eid}> queued")
        if self._receipts is None:
            return plain
        signer = self._receipts()
        try:
            return Reply(250, "2.0.0", issue(promise(signer.verifier.name), signer).line())
        except Exception:
            log.exception("no receipt for an accepted message", extra={"eid": eid})
            return plain  # it is durable: whatever fails now must not make the sender send it again

    # ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _refuse(self, envelope: Envelope, arrival: Arrival | None, refused: Refused) -> Reply:
        """Record a permanent refusal. A temporary one is only traced: the same mail will come again."""
        if refused.reply.code < 500 or arrival is None:
            return refused.reply
        if envelope.door is Door.STRANGER:
            self._turned_away.add(refused.reply, arrival.now_ms)  # nobody outside may drive our log
            return refused.reply
        row = refusal.event(self.settings.node, envelope, arrival, refused)
        began_ns = time.time_ns()
        try:
            await self._store.record([row])
        except Exception as error:
            # A refusal that cannot be recorded is not made: the peer asks again later.
            _log_refusal(arrival.span, refused.reply, error)
            appended(arrival.span, row, began_ns, error="unavailable")
            return of_store(error)
        appended(arrival.span, row, began_ns)
        return refused.reply

    async def record_turned_away(self) -> None:
        """What strangers were refused since the last call, as one event for each code and minute, and the log-ins that
        were refused, as one for each door. Raises what the store raises.
        """
        turned_away, self._turned_away = self._turned_away, refusal.TurnedAway()
        logins = self._directory.refused.take()
        if not turned_away and not logins:
            return
        with self._tracer.start("audit append") as span:
            stamp = events.Stamp(self.settings.node, self.clock(), ref(span.context))
            try:
                await self._store.record([*turned_away.rows(stamp), *refusal.of_logins(stamp, logins)])
            except BaseException:
                self._turned_away.update(turned_away)
                self._directory.refused.give_back(logins)
                raise

    async def _discard(self, upload: Upload) -> None:
        try:
            await upload.discard()
        except StoreError:
            log.warning("parts of a refused message were left behind; the next start drops them")

    # ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _takers(self, table: RoutingTable, recipients: Sequence[str]) -> set[str]:
        """Which of the addresses that routing may ask about are agents that take mail."""
        takers = set()
        for address in table.mentions(recipients):
            known = self._directory.remembered(address)
            if _takes_mail(known[0] if known is not None else await self._directory.agent(address)):
                takers.add(address)
        return takers

    def _terms(self, envelope: Envelope, arrival: Arrival, verdict: str) -> Terms:
        return Terms(
            creation=arrival.creation,
            now_ms=arrival.now_ms,
            deadline_ms=arrival.now_ms + int(self.settings.delivery.deadline * 1000),
            backoff=self._backoff,
            by=self._domains[0],
            verdict=verdict,
            hops_before=arrival.hops_before,
            options=envelope.reports,
            trace_only=bool(arrival.told.trace_only),
        )

    def _proved_agent(self, envelope: Envelope, header: HeaderBlock) -> str | None:
        """What `X-Agent-ID` may say. A peer vouches for its own agents, never for ours."""
        if envelope.agent is not None:
            return stamp.agent_id(envelope.agent, self._domains)
        vouched = envelope.door is Door.PEER and "X-Agent-ID" in header and not self.table.serves(envelope.sender)
        return envelope.sender or None if vouched else None

    async def _allowed(self, envelope: Envelope, told: Told) -> int:
        """What was asked for; above normal only for agents that may and for peers (RFC 6710 §4.1 lets us lower it)."""
        agent = await self._directory.agent(envelope.agent) if envelope.agent else None
        may = envelope.door is Door.PEER or (agent is not None and agent.may_prioritise)
        return told.priority if may else min(told.priority, 0)


def _nobody(_address: str) -> bool:
    return False


def _takes_mail(agent: Agent | None) -> bool:
    return agent is not None and not agent.disabled


def _prioritise(routes: Sequence[Route], asked: int) -> None:
    """A rule's priority is the node's word, for the recipients it holds for; the others have what was asked for."""
    for route in routes:
        if route.priority is None:
            route.priority = asked


def _known(envelope: Envelope, message: NewMessage, routes: Sequence[Route], verdict: Verdict) -> dict[str, Any]:
    """For the timeline."""
    known: dict[str, Any] = {
        "context_source": message.context_source,
        "depth": message.depth,
        "workflow": message.workflow,
        "agent": envelope.agent,
        **({"peer": envelope.by_peer} if envelope.by_peer else {}),
        "size": envelope.upload.size,
        "recipients": list(envelope.recipients),
        "message_id": message.message_id,
        "in_reply_to": message.in_reply_to,
        "route": facts(routes),
    }
    if verdict.kind == "warn":
        known["loop"] = {"rule": verdict.rule, "count": verdict.count, "limit": verdict.limit}
    return known


def _log_refusal(span: Span, reply: Reply, failure: Exception | None) -> None:
    told = {"event": "message.refused", "reply": f"{reply.code} {reply.enhanced}", "context": span.context}
    if failure is None:
        log.info("message refused", extra=told)
    elif isinstance(failure, Unavailable):
        log.warning("message not taken: the store is unavailable", extra=told)
    else:
        log.error("message not taken", exc_info=failure, extra=told)


def _stored_context(ancestor: Ancestor | None) -> Context | None:
    if ancestor is None:
        return None
    trace_id, span_id = ancestor.origin
    return Context(trace_id, span_id, ancestor.trace_flags, ancestor.tracestate, ancestor.baggage, remote=True)
