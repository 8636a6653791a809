"""Deliveries that wait: leases, attempts, ends.

`attempt` counts attempts begun and is the fence: who holds a delivery whose number has moved on has lost its lease.
"""

import json
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from aimx.store.contract import (
    Backlog,
    Buffered,
    Due,
    EventRow,
    NotFound,
    Outcome,
    Pending,
    Placed,
    SpanRef,
    Target,
)
from aimx.store.sqlite import acceptance, flags
from aimx.store.sqlite.acceptance import DELIVERED
from aimx.store.sqlite.events import outbox, record
from aimx.store.sqlite.sets import insert
from aimx.store.sqlite.writer import Tx

_DUE = (
    "SELECT d.id, m.eid, m.sender, d.address, d.original, d.trace, d.span, d.queue, d.transport, d.priority,"
    " d.next_ms, d.deadline_ms, d.folder, d.flags, d.internal_ms, d.attempt, d.created_ms, d.last_ms,"
    " m.origin_trace, m.origin_span, d.previous_trace, d.previous_span, m.workflow, m.trace_flags,"
    " (SELECT v.key FROM event v WHERE v.ref = m.eid AND v.key IS NOT NULL ORDER BY v.seq LIMIT 1)"
    " FROM delivery d CROSS JOIN message m ON m.id = d.message"
    " WHERE d.priority = ? AND d.wake_ms <= ? ORDER BY d.wake_ms, d.id LIMIT ?"
)


def claim(tx: Tx, now_ms: int, limit: int, owner: str, lease_ms: int, delay_ms: Callable[[int], int]) -> list[Due]:
    taken: list[Due] = []
    for priority in _priorities(tx.db):
        if len(taken) >= limit:
            break
        found = tx.db.execute(_DUE, (priority, now_ms, limit - len(taken))).fetchall()
        taken += [_due(row, now_ms, delay_ms) for row in found]
    tx.db.executemany(
        "UPDATE delivery SET attempt = ?, last_ms = ?, next_ms = ?, leased_by = ?, wake_ms = ? WHERE id = ?",
        [(due.attempt, now_ms, due.next_ms, owner, max(due.next_ms, now_ms + lease_ms), due.id) for due in taken],
    )
    return taken


def _priorities(db: sqlite3.Connection) -> list[int]:
    """Those there are, highest first: one step in the index for each."""
    sql = (
        "WITH RECURSIVE p (n) AS (SELECT max(priority) FROM delivery UNION ALL"
        " SELECT (SELECT max(priority) FROM delivery WHERE priority < p.n) FROM p WHERE p.n IS NOT NULL)"
        " SELECT n FROM p WHERE n IS NOT NULL"
    )
    return [priority for (priority,) in db.execute(sql)]


def _due(row: tuple[Any, ...], now_ms: int, delay_ms: Callable[[int], int]) -> Due:
    (number, eid, sender, address, original, trace, span, queue, transport, priority, due_ms, deadline_ms) = row[:12]
    folder, names, internal_ms, begun, created_ms, last_ms = row[12:18]
    origin_trace, origin_span, previous_trace, previous_span, workflow, trace_flags, key = row[18:]
    attempt = begun + 1
    next_ms = now_ms + delay_ms(attempt)
    previous = SpanRef(previous_trace, previous_span)
    target = Target(
        address,
        original,
        SpanRef(trace, span),
        attempt=previous,
        queue=queue,
        transport=transport,
        priority=priority,
        next_ms=next_ms,
        deadline_ms=deadline_ms,
        folder=folder,
        flags=frozenset(json.loads(names)),
        internal_ms=internal_ms,
    )
    return Due(
        id=number,
        eid=eid,
        sender=sender,
        target=target,
        attempt=attempt,
        created_ms=created_ms,
        due_ms=due_ms,
        next_ms=next_ms,
        origin=SpanRef(origin_trace, origin_span),
        trace_flags=trace_flags,
        key=key,
        previous=previous,
        last_ms=last_ms,
        workflow=workflow,
    )


def place(tx: Tx, due: Due, span: SpanRef, now_ms: int, witness: Callable[[Outcome], Sequence[EventRow]]) -> Outcome:
    db, target = tx.db, due.target
    message, sent_ms, size, trace = _message(db, due)
    slots = acceptance.load_slots(db, [(target.address, target.folder)])
    slot = slots.get((target.address, target.folder))
    reason = acceptance.busy(slot, target, size)
    outcome: Outcome
    if reason is not None:
        outcome = Buffered(target, due.id, reason)
        _release(tx, due, span, now_ms, reason)
    else:
        assert slot is not None
        bits = flags.allot(db, slot.owner.number, target.flags)
        internal_ms = sent_ms if target.internal_ms is None else target.internal_ms
        outcome = Placed(target, slot.key, slot.uidnext, slot.uidvalidity)
        insert(db, "entry", acceptance.ENTRY, [acceptance.entry(slot, bits, message, internal_ms, now_ms, size)])
        acceptance.save_slots(tx, [slot])
        db.execute(
            "INSERT INTO party (address, message, role, trace) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (address, message) DO UPDATE SET role = excluded.role",
            (target.address, message, DELIVERED, trace),
        )
        db.execute("DELETE FROM delivery WHERE id = ?", (due.id,))
    record(tx, witness(outcome))
    return outcome


def defer(tx: Tx, due: Due, span: SpanRef, now_ms: int, reason: str, events: Sequence[EventRow]) -> None:
    _release(tx, due, span, now_ms, reason)
    record(tx, events)


def _release(tx: Tx, due: Due, span: SpanRef, now_ms: int, reason: str) -> None:
    done = tx.db.execute(
        "UPDATE delivery SET leased_by = NULL, wake_ms = next_ms, last_ms = ?, reason = ?, previous_trace = ?,"
        " previous_span = ? WHERE id = ? AND attempt = ?",
        (now_ms, reason, *span, due.id, due.attempt),
    )
    if not done.rowcount:
        raise NotFound("there is no such delivery (any more)")


def settle(tx: Tx, due: Due, events: Sequence[EventRow]) -> None:
    gone = tx.db.execute("DELETE FROM delivery WHERE id = ? AND attempt = ?", (due.id, due.attempt))
    if not gone.rowcount:
        raise NotFound("there is no such delivery (any more)")
    record(tx, events)


def _message(db: sqlite3.Connection, due: Due) -> tuple[int, int, int, bytes]:
    row: tuple[int, int, int, bytes] | None = db.execute(
        "SELECT m.id, m.t_ms, m.header_size + m.body_size, m.origin_trace FROM delivery d JOIN message m"
        " ON m.id = d.message WHERE d.id = ? AND d.attempt = ?",
        (due.id, due.attempt),
    ).fetchone()
    if row is None:
        raise NotFound("there is no such delivery (any more)")
    return row


def free_leases(tx: Tx, node: str) -> None:
    """Of an earlier life of this node: nobody works on them any more."""
    tx.db.execute("UPDATE delivery SET wake_ms = next_ms, leased_by = NULL WHERE leased_by = ?", (node,))


def next_due(db: sqlite3.Connection) -> int | None:
    """A leased one counts from its lease's end: should its holder be gone, somebody must wake for it."""
    (wake_ms,) = db.execute("SELECT min(wake_ms) FROM delivery").fetchone()
    return None if wake_ms is None else int(wake_ms)


def pending(db: sqlite3.Connection, eid: str | None, limit: int) -> list[Pending]:
    only = "" if eid is None else " WHERE d.message = (SELECT id FROM message WHERE eid = :eid)"
    found = db.execute(
        "SELECT d.id, m.eid, d.address, d.original, d.queue, d.transport, d.priority, d.attempt, d.created_ms,"  # noqa: S608
        " d.next_ms, d.deadline_ms, d.reason FROM delivery d CROSS JOIN message m ON m.id = d.message"
        f"{only} ORDER BY d.id LIMIT :limit",
        {"eid": eid, "limit": limit},
    )
    return [Pending(*row) for row in found]


def backlog(db: sqlite3.Connection) -> Backlog:
    """Ids rise with time, so the oldest is the first."""
    depth, oldest = db.execute(
        "SELECT (SELECT count(*) FROM delivery), (SELECT created_ms FROM delivery ORDER BY id LIMIT 1)"
    ).fetchone()
    return Backlog(depth, oldest, *outbox(db))
