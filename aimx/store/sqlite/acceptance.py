"""Accepting messages: the hot path. Many acceptances become few statements; a refused one touches nothing."""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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
from aimx.store.sqlite import bodies, flags
from aimx.store.sqlite.events import record
from aimx.store.sqlite.keys import Keys
from aimx.store.sqlite.sets import as_json, insert, rows
from aimx.store.sqlite.writer import Tx

SENT, WAITING, FILED, DELIVERED = range(4)
"""party.role; of two, the higher one is kept."""

_MESSAGE = (
    "id, eid, t_ms, sender, agent, recipients, delivered_to, message_id, in_reply_to, subject, content_type, workflow,"
    " priority, origin_trace, origin_span, trace_flags, tracestate, baggage, context_source, received_trace,"
    " received_span, depth, loop_key, header_size, body_size, once_key"
)
_CONTENT = "message, header, data, body"
_PARTY = "address, message, role, trace"
_CHAIN = "loop_key, message, n, first_ms, t_ms, sender, recipients, payload, template, depth"
ENTRY = "owner, mailbox, uid, message, flags, modseq, internal_ms, saved_ms, size"
_DELIVERY = (
    "id, message, address, original, trace, span, queue, transport, destination, options, priority, folder, flags,"
    " internal_ms, attempt, created_ms, last_ms, next_ms, deadline_ms, reason, previous_trace, previous_span"
)


@dataclass(slots=True)
class Acceptance:
    """One `accept` call."""

    message: NewMessage
    targets: Sequence[Target]
    witness: Callable[[Sequence[Outcome]], Sequence[EventRow]]
    settles: int | None
    once: Once | None


@dataclass(slots=True)
class Owner:
    """An agent as this commit has made it."""

    number: int
    address: str
    max_unacked: int | None
    quota: int | None
    unacked: int
    """In INBOX; known only where there is a limit."""
    used: int
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
        unacked = sign if not bits & flags.ACKED else 0
        self.uidnext += sign
        self.modseq += sign
        self.arrived += sign
        self.unseen += sign if not bits & flags.SEEN else 0
        self.deleted += sign if bits & flags.DELETED else 0
        self.unacked += unacked
        self.octets += sign * size
        self.owner.used += sign * size
        if self.is_inbox:
            self.owner.unacked += unacked


Slots = dict[tuple[str, str], Slot]


# ── where a message can go ───────────────────────────────────────────────────────────────────────────────────────────


def load_slots(db: sqlite3.Connection, places: Iterable[tuple[str, str]]) -> Slots:
    """The mailboxes there are, by (address, folder)."""
    found = rows(
        db,
        "SELECT json_group_array(json_array(a.address, b.name, a.id, b.id, b.uidvalidity, b.uidnext, b.modseq,"
        " a.max_unacked, a.quota,"
        " CASE WHEN a.max_unacked IS NOT NULL"
        "  THEN (SELECT i.unacked FROM mailbox i WHERE i.owner = a.id AND i.name = 'INBOX') END,"
        " CASE WHEN a.quota IS NOT NULL THEN (SELECT sum(s.octets) FROM mailbox s WHERE s.owner = a.id) END))"
        " FROM json_each(?) j CROSS JOIN agent a ON a.address = j.value ->> 0"
        " CROSS JOIN mailbox b ON b.owner = a.id AND b.name = j.value ->> 1",
        (as_json(list(places)),),
    )
    owners: dict[str, Owner] = {}
    slots: Slots = {}
    for address, folder, number, mailbox, uidvalidity, uidnext, modseq, limit, quota, unacked, used in found:
        owner = owners.setdefault(address, Owner(number, address, limit, quota, unacked or 0, used or 0))
        key = MailboxKey(address, mailbox)
        slots[address, folder] = Slot(owner, key, uidvalidity, uidnext, modseq, folder == INBOX)
    return slots


def save_slots(tx: Tx, slots: Iterable[Slot]) -> None:
    touched = [slot for slot in slots if slot.arrived]
    if not touched:
        return
    tx.db.execute(
        "UPDATE mailbox SET uidnext = j.value ->> 1, modseq = j.value ->> 2, messages = messages + (j.value ->> 3),"
        " recent = recent + (j.value ->> 3), unseen = unseen + (j.value ->> 4), deleted = deleted + (j.value ->> 5),"
        " unacked = unacked + (j.value ->> 6), octets = octets + (j.value ->> 7)"
        " FROM json_each(?) j WHERE mailbox.id = j.value ->> 0",
        (
            as_json(
                [(s.key.id, s.uidnext, s.modseq, s.arrived, s.unseen, s.deleted, s.unacked, s.octets) for s in touched]
            ),
        ),
    )
    tx.topics.update(slot.key for slot in touched)


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


def entry(slot: Slot, bits: int, message: int, internal_ms: int, saved_ms: int, size: int) -> tuple[Any, ...]:
    """Take the next UID and MODSEQ of a mailbox: the row of `entry`."""
    uid = slot.uidnext
    slot.take(bits, size)
    return (slot.owner.number, slot.key.id, uid, message, bits, slot.modseq, internal_ms, saved_ms, size)


# ── the batch ────────────────────────────────────────────────────────────────────────────────────────────────────────


def accept(tx: Tx, calls: list[Acceptance]) -> list[list[Outcome] | StoreError]:
    """All of them in one go. Raises if the database refuses something: then each has to be tried alone."""
    db = tx.db
    slots = load_slots(db, {(target.address, target.folder) for call in calls for target in call.targets})
    chains = _load_chains(db, {call.message.loop_key for call in calls})
    (message, delivery, tx.next_seq) = db.execute(
        "SELECT coalesce((SELECT max(id) FROM message), 0),"
        " coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'delivery'), 0),"
        " coalesce((SELECT max(seq) FROM event), 0) + 1"
    ).fetchone()
    keys = Keys(db, [call.once for call in calls if call.once is not None])
    lot = _Lot(db, slots, chains, keys, message, delivery)
    results: list[list[Outcome] | StoreError] = []
    for call in calls:
        try:
            results.append(lot.add(call))
        except StoreError as refused:
            results.append(refused)
    insert(db, "message", _MESSAGE, lot.messages)
    insert(db, "content", _CONTENT, lot.contents)
    if lot.used_bodies:
        db.executemany("UPDATE body SET message = ? WHERE id = ?", lot.used_bodies)
    insert(db, "party", _PARTY, lot.parties)
    insert(db, "chain", _CHAIN, lot.chain_rows)
    insert(db, "entry", ENTRY, lot.entries)
    insert(db, "delivery", _DELIVERY, lot.deliveries)
    keys.save()
    save_slots(tx, slots.values())
    record(tx, lot.events)
    if lot.deliveries:
        tx.topics.add("queue")
    return results


class _Lot:
    """The rows of a batch while they are put together."""

    def __init__(
        self,
        db: sqlite3.Connection,
        slots: Slots,
        chains: dict[str, tuple[int, int]],
        keys: Keys,
        message: int,
        delivery: int,
    ) -> None:
        self.db = db
        self.slots = slots
        self.chains = chains
        self.keys = keys
        self.message = message
        self.delivery = delivery
        self.messages: list[tuple[Any, ...]] = []
        self.contents: list[tuple[Any, ...]] = []
        self.used_bodies: list[tuple[int, int]] = []
        self.parties: list[tuple[Any, ...]] = []
        self.chain_rows: list[tuple[Any, ...]] = []
        self.entries: list[tuple[Any, ...]] = []
        self.deliveries: list[tuple[Any, ...]] = []
        self.events: list[EventRow] = []

    def add(self, call: Acceptance) -> list[Outcome]:
        """Raises StoreError, having added nothing."""
        message = call.message
        size = len(message.header) + (message.body.size if isinstance(message.body, Staged) else len(message.body))
        number, delivery = self.message + 1, self.delivery
        if call.once is not None:
            self.keys.check(call.once, message.t_ms)
        outcomes: list[Outcome] = []
        entries, deliveries = [], []
        taken: list[tuple[Slot, int]] = []
        try:
            for target in call.targets:
                if target.transport != "mailbox":
                    delivery += 1
                    outcomes.append(Queued(target, delivery))
                    deliveries.append(_delivery(delivery, number, message.t_ms, target, None))
                    continue
                slot = self.slots.get((target.address, target.folder))
                reason = busy(slot, target, size)
                if reason is None:
                    assert slot is not None
                    bits = flags.allot(self.db, slot.owner.number, target.flags) if target.flags else 0
                    internal_ms = message.t_ms if target.internal_ms is None else target.internal_ms
                    outcomes.append(Placed(target, slot.key, slot.uidnext, slot.uidvalidity))
                    entries.append(entry(slot, bits, number, internal_ms, message.t_ms, size))
                    taken.append((slot, bits))
                    continue
                if not target.queueable:
                    raise OverQuota("the mailboxes are full") if reason == "quota" else NotFound("no such mailbox")
                delivery += 1
                outcomes.append(Buffered(target, delivery, reason))
                deliveries.append(_delivery(delivery, number, message.t_ms, target, reason))
            if isinstance(message.body, Staged) and not self._is_unused(message.body):
                raise NotFound("there is no such staged body")
            if call.settles is not None:
                gone = self.db.execute("DELETE FROM delivery WHERE id = ?", (call.settles,))
                if not gone.rowcount:
                    raise NotFound("there is no such delivery (any more)")
        except StoreError:
            for slot, bits in reversed(taken):
                slot.take(bits, size, -1)
            raise
        self.message, self.delivery = number, delivery
        self.entries += entries
        self.deliveries += deliveries
        self._add_message(number, message, call, outcomes, size)
        if call.once is not None:
            self.keys.use(call.once, message.eid)
        self.events += call.witness(outcomes)
        return outcomes

    def _add_message(
        self, number: int, message: NewMessage, call: Acceptance, outcomes: Sequence[Outcome], size: int
    ) -> None:
        targets, header_size = call.targets, len(message.header)
        recipients = as_json(message.recipients)
        self.messages.append(
            (
                number,
                message.eid,
                message.t_ms,
                message.sender,
                message.agent,
                recipients,
                as_json(list(dict.fromkeys([target.address for target in targets]))),
                message.message_id,
                message.in_reply_to,
                message.subject,
                message.content_type,
                message.workflow,
                message.priority,
                *message.origin,
                message.trace_flags,
                message.tracestate,
                message.baggage,
                message.context_source,
                *message.received,
                message.depth,
                message.loop_key,
                header_size,
                size - header_size,
                None if call.once is None else call.once.key,
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
        self.parties += [(address, number, role, trace) for address, role in parties.items()]
        if not targets or any(target.queueable for target in targets):
            n, first_ms = self.chains.get(message.loop_key, (0, message.t_ms))
            self.chains[message.loop_key] = (n + 1, first_ms)
            self.chain_rows.append(
                (
                    message.loop_key,
                    number,
                    n + 1,
                    first_ms,
                    message.t_ms,
                    message.sender,
                    as_json(sorted({target.address for target in targets})),
                    message.payload,
                    message.template,
                    message.depth,
                )
            )

    def _is_unused(self, body: Staged) -> bool:
        return all(used != body.id for _, used in self.used_bodies) and bodies.is_unused(self.db, body)

    def _add_content(self, number: int, message: NewMessage) -> None:
        body = message.body
        if isinstance(body, bytes) and len(body) > bodies.PART:
            body = bodies.put(self.db, body)
        if isinstance(body, bytes):
            self.contents.append((number, message.header, body, None))
        else:
            self.contents.append((number, message.header, None, body.id))
            self.used_bodies.append((number, body.id))


def _load_chains(db: sqlite3.Connection, keys: Iterable[str]) -> dict[str, tuple[int, int]]:
    """(number of the newest message, time of the first), by loop key."""
    found = rows(
        db,
        "SELECT json_group_array(json_array(c.loop_key, c.n, c.first_ms)) FROM json_each(?) j CROSS JOIN chain c"
        " ON c.loop_key = j.value"
        " AND c.message = (SELECT max(x.message) FROM chain x WHERE x.loop_key = j.value)",
        (as_json(list(keys)),),
    )
    return {key: (n, first_ms) for key, n, first_ms in found}


def _delivery(number: int, message: int, now_ms: int, target: Target, reason: BusyReason | None) -> tuple[Any, ...]:
    """`reason`: why attempt 1 failed; None: none was made yet, and it is due."""
    return (
        number,
        message,
        target.address,
        target.original,
        *target.span,
        target.queue,
        target.transport,
        target.destination,
        as_json(target.options) if target.options else "{}",
        target.priority,
        target.folder,
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
