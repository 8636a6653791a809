"""Accepting messages: the hot path. Many acceptances become few statements; a refused one touches nothing."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aimx.store.contract import (
    INBOX,
    Buffered,
    BusyReason,
    EventRow,
    MailboxKey,
    NewMessage,
    NotFound,
    Once,
    Outcome,
    OverQuota,
    Placed,
    Queued,
    Staged,
    StoreError,
    Target,
)
from aimx.store.flags import ACKED, DELETED, SEEN, encode
from aimx.store.postgres import bodies, flags
from aimx.store.postgres.connection import Db
from aimx.store.postgres.events import RECORD, as_json, rows, witnessed
from aimx.store.postgres.once import Keys
from aimx.store.postgres.text import storable, storable_or_none
from aimx.store.postgres.writer import Tx

SENT, WAITING, FILED, DELIVERED = range(4)
"""party.role; of two, the higher one is kept."""

Place = tuple[str, str]
"""(address, folder)."""


@dataclass(slots=True)
class Acceptance:
    """One `accept` call."""

    message: NewMessage
    targets: Sequence[Target]
    witness: Callable[[Sequence[Outcome]], Sequence[EventRow]]
    settles: int | None
    once: Once | None

    @property
    def octets(self) -> int:
        """That have to be written now."""
        body = self.message.body
        return len(self.message.header) + (len(body) if isinstance(body, bytes) else 0)


@dataclass(slots=True)
class Owner:
    """An agent as this commit has made it."""

    number: int
    address: str
    max_unacked: int | None
    quota: int | None
    unacked: int = 0
    """In INBOX; known only where there is a limit."""
    used: int = 0
    """Octets; known only where there is a quota."""


@dataclass(slots=True)
class Slot:
    """A mailbox that takes entries, and how its row has to change."""

    owner: Owner
    key: MailboxKey
    uidvalidity: int
    uidnext: int
    modseq: int
    is_inbox: bool
    arrived: int = 0
    unseen: int = 0
    deleted: int = 0
    unacked: int = 0
    octets: int = 0

    def take(self, bits: int, size: int, sign: int = 1) -> None:
        """An entry comes in, or (-1) the last one is taken back."""
        unacked = sign if not bits & ACKED else 0
        self.uidnext += sign
        self.modseq += sign
        self.arrived += sign
        self.unseen += sign if not bits & SEEN else 0
        self.deleted += sign if bits & DELETED else 0
        self.unacked += unacked
        self.octets += sign * size
        self.owner.used += sign * size
        if self.is_inbox:
            self.owner.unacked += unacked


Slots = dict[Place, Slot]


# ── where a message can go ───────────────────────────────────────────────────────────────────────────────────────────

# Where there is a limit, what it is measured by is locked too: two nodes cannot both find the last free place.
_SLOTS = """
WITH place AS MATERIALIZED (
    SELECT a.id AS owner, p.folder, a.quota, a.max_unacked
    FROM unnest($1::text[], $2::text[]) p (address, folder) JOIN agent a ON a.address = p.address
), wanted AS MATERIALIZED (
    SELECT b.owner, b.id FROM place p JOIN mailbox b ON b.owner = p.owner AND b.name = p.folder
    UNION
    SELECT b.owner, b.id FROM place p JOIN mailbox b ON b.owner = p.owner AND b.name = 'INBOX'
        WHERE p.max_unacked IS NOT NULL
    UNION
    SELECT b.owner, b.id FROM place p JOIN mailbox b ON b.owner = p.owner WHERE p.quota IS NOT NULL
)
SELECT a.address, b.name, a.id, b.id, b.uidvalidity, b.uidnext, b.modseq, a.max_unacked, a.quota, b.unacked, b.octets
FROM wanted w JOIN mailbox b ON b.owner = w.owner AND b.id = w.id JOIN agent a ON a.id = b.owner
ORDER BY b.id FOR NO KEY UPDATE OF b
"""
_GROW = """
UPDATE mailbox b SET uidnext = g.uidnext, modseq = g.modseq, messages = b.messages + g.arrived,
    recent = b.recent + g.arrived, unseen = b.unseen + g.unseen, deleted = b.deleted + g.deleted,
    unacked = b.unacked + g.unacked, octets = b.octets + g.octets
FROM unnest({growths}::growth_row[]) g WHERE b.owner = g.owner AND b.id = g.id
"""


async def lock_slots(db: Db, places: Iterable[Place]) -> Slots:
    """The mailboxes there are, locked until the commit."""
    wanted = sorted({(storable(address), storable(folder)) for address, folder in places})
    if not wanted:
        return {}
    owners: dict[str, Owner] = {}
    slots: Slots = {}
    found = await db.fetch(_SLOTS, *zip(*wanted, strict=True))
    for address, name, number, mailbox, uidvalidity, uidnext, modseq, limit, quota, unacked, octets in found:
        owner = owners.setdefault(address, Owner(number, address, limit, quota))
        owner.used += octets
        if name == INBOX:
            owner.unacked = unacked
        slots[address, name] = Slot(owner, MailboxKey(address, mailbox), uidvalidity, uidnext, modseq, name == INBOX)
    return slots


def grown(tx: Tx, slots: Iterable[Slot]) -> list[tuple[int, ...]]:
    """The rows for `_GROW`, of those that take something."""
    touched = [slot for slot in slots if slot.arrived]
    tx.topics.update(slot.key for slot in touched)
    return [
        (s.owner.number, s.key.id, s.uidnext, s.modseq, s.arrived, s.unseen, s.deleted, s.unacked, s.octets)
        for s in touched
    ]


def busy(slot: Slot | None, target: Target, size: int) -> BusyReason | None:
    """Why the target cannot take it now."""
    if slot is None:
        return "no-mailbox"
    owner = slot.owner
    if target.queueable and owner.max_unacked is not None and owner.unacked >= owner.max_unacked:
        return "unacknowledged"
    if owner.quota is not None and owner.used + size > owner.quota:
        return "quota"
    return None


def entry(slot: Slot, bits: int, message: int, internal_ms: int, saved_ms: int, size: int) -> tuple[int, ...]:
    """Take the next UID and MODSEQ of a mailbox: the row of `entry`."""
    uid = slot.uidnext
    slot.take(bits, size)
    return (slot.owner.number, slot.key.id, uid, message, bits, slot.modseq, internal_ms, saved_ms, size)


# ── the batch ────────────────────────────────────────────────────────────────────────────────────────────────────────


_ENTRY = """
INSERT INTO entry (owner, mailbox, uid, message, flags, modseq, internal_ms, saved_ms, size)
SELECT * FROM unnest({entries}::entry_row[])
"""
# A group in one trip: each costs as much as some messages, over a network as much as many.
_ACCEPT = f"""
WITH messages AS (
    INSERT INTO message (id, eid, t_ms, sender, agent, recipients, delivered_to, message_id, in_reply_to, subject,
        content_type, workflow, priority, origin_trace, origin_span, trace_flags, tracestate, baggage, context_source,
        received_trace, received_span, depth, loop_key, header_size, body_size, once_key)
    SELECT * FROM unnest($1::message_row[])
), contents AS (
    INSERT INTO content (message, header, data, body) SELECT * FROM unnest($2::content_row[])
), parties AS (
    INSERT INTO party (address, message, role, trace) SELECT * FROM unnest($3::party_row[])
), chains AS (
    INSERT INTO chain (loop_key, message, writer, n, first_ms, t_ms, sender, recipients, payload, template, depth)
    SELECT * FROM unnest($4::chain_row[])
), entries AS ({_ENTRY.format(entries="$5")}), mailboxes AS ({_GROW.format(growths="$6")}),
{RECORD.format(events="$7", links="$8")}
"""  # noqa: S608
_ADD_ENTRY = f"WITH entries AS ({_ENTRY.format(entries='$1')}) {_GROW.format(growths='$2')}"
_ADD_DELIVERIES = """
INSERT INTO delivery (id, message, address, original, trace, span, queue, transport, destination, options, priority,
    folder, flags, internal_ms, attempt, created_ms, last_ms, next_ms, deadline_ms, reason, previous_trace,
    previous_span)
SELECT * FROM unnest($1::delivery_row[])
"""
# For each message its number, and of its loop key this writer's newest number and first time.
_NUMBERS = """
SELECT nextval('message_id'), c.n, c.first_ms FROM unnest($1::text[]) k (loop_key) LEFT JOIN LATERAL
    (SELECT n, first_ms FROM chain WHERE loop_key = k.loop_key AND writer = $2 ORDER BY n DESC LIMIT 1) c ON true
"""
_DELIVERY_NUMBERS = "SELECT nextval('delivery_id') FROM generate_series(1, $1::int)"


async def add_entry(tx: Tx, slot: Slot, row: tuple[int, ...]) -> None:
    """A row that `entry` made, and what it changes in the mailbox."""
    await tx.db.execute(_ADD_ENTRY, [row], grown(tx, [slot]))


class Acceptor:
    """Accepts for one writer."""

    def __init__(self, writer: int) -> None:
        self._writer = writer

    async def __call__(self, tx: Tx, calls: list[Acceptance]) -> list[list[Outcome] | StoreError]:
        """All of them in one go. Raises if the database refuses something: then each has to be tried alone."""
        lot = await self._prepare(tx.db, calls)
        results: list[list[Outcome] | StoreError] = []
        for call in calls:
            try:
                results.append(lot.add(call))
            except StoreError as refused:
                results.append(refused)
        await self._write(tx, lot)
        return results

    async def _prepare(self, db: Db, calls: list[Acceptance]) -> "_Lot":
        """Lock and read all that decides, in the order in which everybody locks."""
        targets = [target for call in calls for target in call.targets]
        mailboxes = [target for target in targets if target.transport == "mailbox"]
        slots = await lock_slots(db, {(target.address, target.folder) for target in mailboxes})
        bits = await _allot(db, slots, mailboxes)
        keys = Keys(db)
        await keys.take([(call.once, call.message.eid) for call in calls if call.once is not None])
        settled = {call.settles for call in calls if call.settles is not None}
        staged = {call.message.body.id for call in calls if isinstance(call.message.body, Staged)}
        found = await db.fetch(_NUMBERS, [storable(call.message.loop_key) for call in calls], self._writer)
        queued = _most_queued(calls, slots)
        return _Lot(
            writer=self._writer,
            slots=slots,
            bits=bits,
            keys=keys,
            chains={
                storable(call.message.loop_key): (n, first_ms)
                for call, (_, n, first_ms) in zip(calls, found, strict=True)
                if n is not None
            },
            messages_from=iter([row[0] for row in found]),
            deliveries_from=iter([row[0] for row in await db.fetch(_DELIVERY_NUMBERS, queued)] if queued else ()),
            open_deliveries=await _open_deliveries(db, settled) if settled else set(),
            unused_bodies=await _unused_bodies(db, staged) if staged else set(),
        )

    async def _write(self, tx: Tx, lot: "_Lot") -> None:
        db = tx.db
        for place, data in lot.large:
            row = lot.contents[place]
            body = await bodies.put(db, self._writer, data)
            lot.contents[place] = (*row[:3], body.id)
            lot.used_bodies.append(body.id)
        if lot.deliveries:
            await db.execute(_ADD_DELIVERIES, lot.deliveries)
            tx.topics.add("queue")
        if lot.used_bodies:
            await db.execute("UPDATE body SET used = true WHERE id = ANY ($1::bigint[])", lot.used_bodies)
        if lot.settled:
            await db.execute("DELETE FROM delivery WHERE id = ANY ($1::bigint[])", lot.settled)
        await lot.keys.save()
        if lot.messages:
            growths = grown(tx, lot.slots.values())
            events, links = rows(lot.events)
            await db.execute(
                _ACCEPT, lot.messages, lot.contents, lot.parties, lot.chain_rows, lot.entries, growths, events, links
            )
            tx.proofs.append(lot.messages[0][1])
            witnessed(tx, lot.events)


def _most_queued(calls: list[Acceptance], slots: Slots) -> int:
    """How many deliveries may have to be numbered."""
    return sum(
        1
        for call in calls
        for target in call.targets
        if (slot := slots.get((target.address, target.folder))) is None
        or target.transport != "mailbox"
        or slot.owner.quota is not None
        or slot.owner.max_unacked is not None
    )


async def _open_deliveries(db: Db, ids: set[int]) -> set[int]:
    sql = "SELECT id FROM delivery WHERE id = ANY ($1::bigint[]) ORDER BY id FOR UPDATE"
    return {row[0] for row in await db.fetch(sql, list(ids))}


async def _unused_bodies(db: Db, ids: set[int]) -> set[tuple[int, int]]:
    """(id, size)."""
    sql = "SELECT id, size FROM body WHERE id = ANY ($1::bigint[]) AND NOT used ORDER BY id FOR UPDATE"
    return {(row[0], row[1]) for row in await db.fetch(sql, list(ids))}


Bits = dict[tuple[str, frozenset[str]], int | StoreError]
"""The bit set of some flags of an address, or why there is none."""


async def _allot(db: Db, slots: Slots, targets: Sequence[Target]) -> Bits:
    owners = {slot.owner.address: slot.owner.number for slot in slots.values()}
    found: Bits = {}
    for address, names in sorted({(t.address, t.flags) for t in targets if t.flags}, key=lambda one: one[0]):
        known, missing = encode(names)
        if not missing:
            found[address, names] = known
        elif address in owners:
            try:
                found[address, names] = await flags.allot(db, owners[address], names)
            except StoreError as refused:
                found[address, names] = refused
    return found


@dataclass(slots=True)
class _Lot:
    """What decides about a batch, and its rows while they are put together."""

    writer: int
    slots: Slots
    bits: Bits
    keys: Keys
    chains: dict[str, tuple[int, int]]
    messages_from: Any
    deliveries_from: Any
    open_deliveries: set[int]
    unused_bodies: set[tuple[int, int]]
    messages: list[tuple[Any, ...]] = field(default_factory=list)
    contents: list[tuple[Any, ...]] = field(default_factory=list)
    large: list[tuple[int, bytes]] = field(default_factory=list)
    """Place in `contents`, and a body that has to be put into parts."""
    used_bodies: list[int] = field(default_factory=list)
    parties: list[tuple[Any, ...]] = field(default_factory=list)
    chain_rows: list[tuple[Any, ...]] = field(default_factory=list)
    entries: list[tuple[int, ...]] = field(default_factory=list)
    deliveries: list[tuple[Any, ...]] = field(default_factory=list)
    settled: list[int] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)

    def add(self, call: Acceptance) -> list[Outcome]:
        """Raises StoreError, having added nothing."""
        message = call.message
        size = len(message.header) + (message.body.size if isinstance(message.body, Staged) else len(message.body))
        self._check(call)
        number = next(self.messages_from)
        outcomes: list[Outcome] = []
        entries: list[tuple[int, ...]] = []
        deliveries: list[tuple[Any, ...]] = []
        taken: list[tuple[Slot, int]] = []
        try:
            for target in call.targets:
                slot = self.slots.get((target.address, target.folder)) if target.transport == "mailbox" else None
                reason = busy(slot, target, size) if target.transport == "mailbox" else None
                if slot is not None and reason is None:
                    bits = self._bits(target)
                    internal_ms = message.t_ms if target.internal_ms is None else target.internal_ms
                    outcomes.append(Placed(target, slot.key, slot.uidnext, slot.uidvalidity))
                    entries.append(entry(slot, bits, number, internal_ms, message.t_ms, size))
                    taken.append((slot, bits))
                    continue
                if not target.queueable:
                    raise OverQuota("the mailboxes are full") if reason == "quota" else NotFound("no such mailbox")
                delivery = next(self.deliveries_from)
                outcomes.append(Queued(target, delivery) if reason is None else Buffered(target, delivery, reason))
                deliveries.append(_delivery(delivery, number, message.t_ms, target, reason))
        except StoreError:
            for slot, bits in reversed(taken):
                slot.take(bits, size, -1)
            raise
        self.entries += entries
        self.deliveries += deliveries
        self._add_message(number, message, call, outcomes, size)
        self._use(call)
        self.events += call.witness(outcomes)
        return outcomes

    def _check(self, call: Acceptance) -> None:
        message = call.message
        if call.once is not None:
            self.keys.check(call.once, message.t_ms)
        if isinstance(message.body, Staged) and (message.body.id, message.body.size) not in self.unused_bodies:
            raise NotFound("there is no such staged body")
        if call.settles is not None and call.settles not in self.open_deliveries:
            raise NotFound("there is no such delivery (any more)")

    def _use(self, call: Acceptance) -> None:
        if call.once is not None:
            self.keys.use(call.once, call.message.eid)
        if call.settles is not None:
            self.open_deliveries.discard(call.settles)
            self.settled.append(call.settles)

    def _bits(self, target: Target) -> int:
        if not target.flags:
            return 0
        bits = self.bits[target.address, target.flags]
        if isinstance(bits, StoreError):
            raise bits
        return bits

    def _add_message(
        self, number: int, message: NewMessage, call: Acceptance, outcomes: Sequence[Outcome], size: int
    ) -> None:
        targets, header_size = call.targets, len(message.header)
        self.messages.append(
            (
                number,
                message.eid,
                message.t_ms,
                storable(message.sender),
                message.agent,
                as_json(message.recipients),
                as_json(list(dict.fromkeys([target.address for target in targets]))),
                storable(message.message_id),
                storable_or_none(message.in_reply_to),
                storable(message.subject),
                storable(message.content_type),
                storable_or_none(message.workflow),
                message.priority,
                *message.origin,
                message.trace_flags,
                storable(message.tracestate),
                storable(message.baggage),
                message.context_source,
                *message.received,
                message.depth,
                storable(message.loop_key),
                header_size,
                size - header_size,
                None if call.once is None else storable(call.once.key),
            )
        )
        self._add_content(number, message)
        parties: dict[str, int] = {}
        for outcome in outcomes:
            address, role = outcome.target.address, WAITING
            if isinstance(outcome, Placed):
                role = DELIVERED if outcome.target.queueable else FILED
            parties[address] = max(role, parties.get(address, SENT))
        for sender in (message.agent, message.sender):
            if sender:
                parties.setdefault(sender, SENT)
        trace = message.origin.trace_id
        self.parties += [(storable(address), number, role, trace) for address, role in parties.items()]
        if not targets or any(target.queueable for target in targets):
            self._add_chain(number, message, targets)

    def _add_chain(self, number: int, message: NewMessage, targets: Sequence[Target]) -> None:
        key = storable(message.loop_key)
        n, first_ms = self.chains.get(key, (0, message.t_ms))
        self.chains[key] = (n + 1, first_ms)
        self.chain_rows.append(
            (
                key,
                number,
                self.writer,
                n + 1,
                first_ms,
                message.t_ms,
                storable(message.sender),
                as_json(sorted({target.address for target in targets})),
                message.payload,
                message.template,
                message.depth,
            )
        )

    def _add_content(self, number: int, message: NewMessage) -> None:
        body = message.body
        if isinstance(body, Staged):
            self.contents.append((number, message.header, None, body.id))
            self.used_bodies.append(body.id)
            self.unused_bodies.discard((body.id, body.size))
        elif len(body) > bodies.PART:
            self.large.append((len(self.contents), body))
            self.contents.append((number, message.header, None, None))
        else:
            self.contents.append((number, message.header, body, None))


def _delivery(number: int, message: int, now_ms: int, target: Target, reason: BusyReason | None) -> tuple[Any, ...]:
    """`reason`: why attempt 1 failed; None: none was made yet, and it is due."""
    return (
        number,
        message,
        storable(target.address),
        storable(target.original),
        *target.span,
        target.queue,
        target.transport,
        storable(target.destination),
        as_json(target.options) if target.options else "{}",
        target.priority,
        storable(target.folder),
        as_json(sorted(target.flags)),
        target.internal_ms,
        0 if reason is None else 1,
        now_ms,
        now_ms,
        now_ms if reason is None else target.next_ms,
        target.deadline_ms,
        reason or "",
        *((None, None) if reason is None else target.attempt),
    )
