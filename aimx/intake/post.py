"""The node's own mailbox, `witness@<first domain>`: checkpoints, requests to cosign and what is answered, as mail.

What C2SP's witness protocol says over HTTP is said here by mail, octet for octet, in base64: a request's body, the
signature lines of an answer, the size of a conflict. It goes through the normal intake and comes by the normal
delivery, so it is traced, logged and relayed like any mail. Nobody reads this mailbox: what was taken from it is
removed, and what is no such mail is removed unread.

A request is believed by the log's signature in it, an answer by the witness's. What bears neither is not answered, so
nobody can be sent mail by a forged sender.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from aimx.audit import events
from aimx.audit.anchoring import (
    TRIES,
    Failed,
    Outsider,
    Signed,
    anchor_of,
    cosignature,
    known_size,
    request,
    witness_key,
)
from aimx.audit.anchors import Anchor, Kind
from aimx.audit.log import LogError, Reader
from aimx.audit.witness import Witness
from aimx.config import Audit
from aimx.identity import scram
from aimx.intake.envelope import Envelope
from aimx.intake.intake import Intake
from aimx.message.compose import compose
from aimx.message.header import HeaderBlock
from aimx.message.identifier import message_ids, new_eid
from aimx.message.part import payload_leaf
from aimx.message.payload import Part
from aimx.store.contract import (
    INBOX,
    Agent,
    AlreadyExists,
    EventRow,
    Expunged,
    MailboxKey,
    Row,
    Store,
    StoreError,
)
from aimx.telemetry.context import write
from aimx.telemetry.span import Span, Tracer
from aimx.tlog.note import Verifier
from aimx.tlog.witness import MAX_REQUEST

log = logging.getLogger("aimx.intake")

NAME = "witness"
REQUEST, COSIGNATURES, SIZE, REFUSAL, CHECKPOINT = (
    f"application/vnd.aimx.tlog-{word}" for word in ("request", "cosignatures", "size", "refusal", "checkpoint")
)
LOOK_S = 15.0
"""Between looks into the mailbox without being woken: another process may have delivered."""
ONE_ROUND = 100
"""Messages taken from the mailbox at a time."""
STALE_MS = 600_000
"""An answer nobody waits for is left this long for another node of the deployment, which may have asked."""


class Taken(Exception):
    """The mailbox's address belongs to an agent. The text says what to do."""


@dataclass(slots=True)
class _Asked:
    """A request under way."""

    witness: "MailWitness"
    signed: Signed
    tries: int


class Post:
    """Start it once mail can be accepted. All methods belong to the loop's thread."""

    def __init__(
        self, store: Store, intake: Intake, tracer: Tracer, *, node: str, domain: str, witness: Witness | None
    ) -> None:
        """`witness`: what answers others' requests; None: this node cosigns for nobody."""
        self.address = f"{NAME}@{domain}"
        self.confirm: Callable[[Anchor], Awaitable[None]] | None = None
        """Where cosignatures go that come by mail."""
        self._store = store
        self._intake = intake
        self._tracer = tracer
        self._node = node
        self._domain = domain
        self._witness = witness
        self._asked: dict[str, _Asked] = {}
        """By Message-ID."""
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._box: MailboxKey

    async def start(self) -> None:
        """Raises Taken, StoreError."""
        found = await self._store.agent(self.address)
        if found is None:
            with contextlib.suppress(AlreadyExists):  # another node was first
                await self._store.add_agent(Agent(self.address, scram.NOBODYS, _now_ms()), [self._added()])
        elif found.credential != scram.NOBODYS:
            raise Taken(f"{self.address} is an agent, and [audit] needs the address for the node; remove the agent")
        box = await self._store.mailbox(self.address, INBOX)
        assert box is not None
        self._box = box.key
        self._unsubscribe = self._store.subscribe(self._box, self._woken.set)
        self._woken.set()
        self._task = asyncio.create_task(self._read(), name="aimx-post")

    async def stop(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # --- writing ---

    async def send(
        self, to: str, subject: str, payload: Part, text: str, span: Span, *, answers: str | None = None
    ) -> str:
        """One mail from the node; returns its Message-ID. Raises Failed when it is not accepted."""
        message_id = f"<tlog.{new_eid().lower()}@{self._domain}>"
        octets = compose(
            sender=self.address,
            to=[to],
            payload=payload,
            subject=subject,
            text=text,
            message_id=message_id,
            in_reply_to=answers,
            # RFC 3834 §5: no person wrote it, and none of the programs that answer people should answer it.
            headers={"Auto-Submitted": "auto-replied" if answers else "auto-generated"},
            stamps=write(span.context),
        )
        upload = self._intake.upload()
        upload.write(octets)
        envelope = Envelope(
            agent=self.address,
            sender=self.address,
            recipients=(to,),
            upload=upload,
            peer="127.0.0.1:0",
            helo="localhost",
            protocol="local",
            tls="",
            started_ns=time.time_ns(),
        )
        reply = await self._intake.accept(envelope)
        if not reply.accepted:
            raise Failed("refused" if reply.code >= 500 else "unreachable", f"mail to {to}: {reply}")
        return message_id

    async def ask(self, witness: "MailWitness", signed: Signed, old: int, span: Span, tries: int = 1) -> None:
        """Mail a request to cosign. Raises Failed, LogError."""
        body = (await asyncio.to_thread(request, witness.reader, old, signed)).body()
        origin, size = signed.checkpoint.origin, signed.checkpoint.size
        text = f"{origin} asks {witness.key.name} to cosign its checkpoint of {size} leaves (c2sp.org/tlog-witness).\n"
        part = Part(REQUEST, body, "add-checkpoint")
        message_id = await self.send(witness.mail, f"add-checkpoint {origin} {size}", part, text, span)
        for older in [known for known, asked in self._asked.items() if asked.witness is witness]:
            del self._asked[older]
        self._asked[message_id] = _Asked(witness, signed, tries)

    # --- reading ---

    async def _read(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), LOOK_S)
            self._woken.clear()
            try:
                await self._empty()
            except (StoreError, LogError, Failed) as error:
                log.warning("the node's own mailbox waits: %s", error, extra={"event": "post.waits"})
                await asyncio.sleep(1)
            except Exception:
                log.exception("a fault in the node's own mailbox")
                await asyncio.sleep(1)

    async def _empty(self) -> None:
        """Take what is there, oldest first, and remove what is done with."""
        uids = list((await self._store.select(self._box, False)).uids)
        for start in range(0, len(uids), ONE_ROUND):
            some = uids[start : start + ONE_ROUND]
            rows = await self._store.fetch(self._box, ((some[0], some[-1]),), header=True, body=2 * MAX_REQUEST)
            done = [row for row in rows if await self._take(row)]
            if done:
                await self._remove(done)

    async def _take(self, row: Row) -> bool:
        """Deal with one mail. False: leave it for now."""
        header, _ = HeaderBlock.parse(row.header or b"\r\n")
        if row.body is None:
            return True  # longer than any of ours
        part = payload_leaf(header, row.body)
        answered = next(iter(message_ids(header.get("In-Reply-To"))), None)
        match part.full_type:
            case kind if kind == REQUEST:
                await self._answer(row, header, part.data())
            case kind if kind in (COSIGNATURES, SIZE, REFUSAL):
                asked = self._asked.pop(answered or "", None)
                if asked is None:
                    return _now_ms() - row.saved_ms > STALE_MS
                await self._heard(kind, part.data(), asked)
        return True

    async def _answer(self, row: Row, header: HeaderBlock, body: bytes) -> None:
        record = await self._store.message(row.eid)
        if self._witness is None or record is None or not record.sender:
            return
        answer = await asyncio.to_thread(self._witness.add_checkpoint, body)
        kind = _KINDS.get(answer.outcome)
        if kind is None:
            log.info("a request to cosign was not answered: %s", answer.outcome, extra={"event": "post.ignored"})
            return
        with self._tracer.start("audit append", parent=None) as span:
            asked = next(iter(message_ids(header.get("Message-ID"))), None)
            text = f"{self._witness.verifier.name}: {answer.outcome}\n"
            part = Part(kind, answer.text.encode(), answer.outcome)
            try:
                await self.send(record.sender, f"{answer.outcome}: {record.subject}", part, text, span, answers=asked)
            except Failed as failed:
                log.warning("an answer could not be sent: %s", failed, extra={"event": "post.unanswered"})

    async def _heard(self, kind: str, data: bytes, asked: _Asked) -> None:
        """A witness's answer to a request of ours. What does not hold is said in the log and asked again in time."""
        witness, signed = asked.witness, asked.signed
        try:
            if kind == COSIGNATURES:
                held = cosignature(data, signed, witness.key)
                witness.known = signed.checkpoint.size
                if self.confirm is not None:
                    await self.confirm(anchor_of(witness.name, signed, held))
            elif kind == SIZE:
                witness.known = known_size(data, signed.checkpoint.size)
                if asked.tries < TRIES:
                    with self._tracer.start("checkpoint witness") as span:
                        await self.ask(witness, signed, witness.known, span, asked.tries + 1)
            else:
                raise Failed("inconsistent", f"witness {witness.name} says that the log is not the one it has cosigned")
        except Failed as failed:
            log.error("checkpoint not anchored: %s", failed, extra={"event": "anchor.failed"})

    async def _remove(self, rows: Sequence[Row]) -> None:
        ranges = tuple((row.uid, row.uid) for row in rows)
        await self._store.mark(self._box, ranges, "add", frozenset(("\\Deleted",)), lambda flagged: ())

        def witness(gone: Expunged) -> list[EventRow]:
            command = events.Command(self.address, (self.address, INBOX), gone.eids)
            return [events.message_expunged(self._stamp(), command)] if gone.eids else []

        await self._store.expunge(self._box, ranges, witness)

    def _added(self) -> EventRow:
        return events.config_changed(self._stamp(), what="agent.added", by="aimx", subject=self.address)

    def _stamp(self) -> events.Stamp:
        return events.Stamp(self._node, _now_ms(), events.no_span(), "aimx")


class MailWitness:
    """A witness that is another AIMX node's mailbox; its answer comes when it comes."""

    kind: Kind = "witness"

    def __init__(self, name: str, mail: str, key: Verifier, every: float, reader: Reader, post: Post) -> None:
        self.name, self.mail, self.key, self.every = name, mail, key, every
        self.reader = reader
        self.known = 0
        """The size it last cosigned, as far as we know."""
        self._post = post

    async def anchor(self, signed: Signed, span: Span) -> None:
        await self._post.ask(self, signed, min(self.known, signed.checkpoint.size), span)


class MailedCheckpoint:
    """A mailbox elsewhere that collects checkpoints; `aimx audit check-mail` compares them."""

    kind: Kind = "mail"

    def __init__(self, address: str, every: float, post: Post) -> None:
        self.name, self.every = address, every
        self._post = post

    async def anchor(self, signed: Signed, span: Span) -> Anchor:
        found = signed.checkpoint
        text = (
            f"The audit log {found.origin} has {found.size} leaves. Its signed checkpoint is attached.\n"
            "Keep this mail where the log's owner cannot reach it. `aimx audit check-mail` compares all of them.\n"
        )
        signed_note = str(signed.note)
        part = Part(CHECKPOINT, signed_note.encode(), "checkpoint")
        await self._post.send(self.name, f"checkpoint {found.origin} {found.size}", part, text, span)
        return Anchor(self.kind, self.name, found.origin, found.size, _now_ms(), signed_note)


def correspondents(settings: Audit, reader: Reader, post: Post) -> list[Outsider]:
    """Those of the settings that are reached by mail. Raises SettingError."""
    found: list[Outsider] = []
    for name, asked in settings.witness.items():
        if asked.mail is not None:
            key = witness_key(name, asked.vkey)
            found.append(MailWitness(name, asked.mail.lower(), key, asked.every or settings.mail_every, reader, post))
    return [*found, *(MailedCheckpoint(address.lower(), settings.mail_every, post) for address in settings.mail_to)]


_KINDS: dict[str, str] = {"cosigned": COSIGNATURES, "conflict": SIZE, "inconsistent": REFUSAL}
"""What is answered at all: only what bears a known log's signature."""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
