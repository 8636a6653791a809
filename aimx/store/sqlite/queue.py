"""Deliveries that wait: leases, attempts, ends.

`attempt` counts attempts begun and is the fence: who holds a delivery whose number has moved on has lost its lease.
`wake_ms`, by which deliveries are found, is computed by the schema: none for held ones.
"""

import json
import sqlite3
from collections.abc import Callable, Collection, Sequence
from typing import Any

from aimx.store.contract import (
    Backlog,
    Buffered,
    Due,
    EventRow,
    NotFound,
    Pending,
    Placed,
    SpanRef,
    Target,
    Tried,
)
from aimx.store.sqlite import acceptance, flags
from aimx.store.sqlite.acceptance import DELIVERED
from aimx.store.sqlite.events import outbox, record
from aimx.store.sqlite.sets import as_json, insert
from aimx.store.sqlite.writer import Tx

_DUE = (
    "SELECT d.id, m.eid, m.sender, d.address, d.original, d.trace, d.span, d.queue, d.transport, d.priority,"
    " d.next_ms, d.deadline_ms, d.folder, d.flags, d.internal_ms, d.attempt, d.created_ms, d.last_ms,"
    " m.origin_trace, m.origin_span, d.previous_trace, d.previous_span, m.workflow, m.trace_flags,"
    " (SELECT v.key FROM event v WHERE v.ref = m.eid AND v.key IS NOT NULL ORDER BY v.seq LIMIT 1),"
    " d.destination, d.options"
    " FROM delivery d CROSS JOIN message m ON m.id = d.message"
    " WHERE d.id IN (SELECT value FROM json_each(?))"
)


def claim(
    tx: Tx,
    now_ms: int,
    limit: int,
    owner: str,
    lease_ms: int,
    delay_ms: Callable[[int], int],
    closed: Collection[str],
) -> list[Due]:
    taken: list[Due] = []
    for priority in _priorities(tx.db):
        if len(taken) >= limit:
            break
        ready = _ready(tx.db, priority, now_ms, limit - len(taken), closed)
        found = {row[0]: row for row in tx.db.execute(_DUE, (as_json(ready),))}
        taken += [_due(found[number], now_ms, delay_ms) for number in ready]
    tx.db.executemany(
        "UPDATE delivery SET attempt = ?, last_ms = ?, next_ms = ?, leased_by = ?, leased_until_ms = ? WHERE id = ?",
        [(due.attempt, now_ms, due.next_ms, owner, now_ms + lease_ms, due.id) for due in taken],
    )
    return taken


_FRONT = 1024
"""So many are looked at before the lanes are."""
_LANES = (
    "WITH RECURSIVE lane (name) AS (SELECT min(destination) FROM delivery WHERE priority = :priority UNION ALL"
    " SELECT (SELECT min(destination) FROM delivery WHERE priority = :priority AND destination > lane.name) FROM lane"
    " WHERE lane.name IS NOT NULL),"
    " open (name) AS (SELECT name FROM lane WHERE name NOT IN (SELECT value FROM json_each(:closed)))"
)
"""The destinations that deliveries of a priority wait for, one step in the index for each, without the closed ones."""


_READY = "FROM delivery WHERE priority = :priority AND wake_ms <= :now ORDER BY wake_ms, id"
_OPEN = "destination NOT IN (SELECT value FROM json_each(:closed))"


def _ready(db: sqlite3.Connection, priority: int, now_ms: int, limit: int, closed: Collection[str]) -> list[int]:
    """The ids that may be claimed, longest due first.

    What waits for closed destinations gathers at the front of the queue. So the front is looked at, as far as that is
    cheap; only if it does not suffice each lane is asked, and those of closed destinations are not.
    """
    here: dict[str, Any] = {"priority": priority, "now": now_ms, "limit": limit}
    if not closed:
        return [number for (number,) in db.execute(f"SELECT id {_READY} LIMIT :limit", here)]
    here |= {"closed": as_json(sorted(closed)), "front": _FRONT}
    front = db.execute(
        f"SELECT id FROM (SELECT id, destination {_READY} LIMIT :front) WHERE {_OPEN} LIMIT :limit",  # noqa: S608
        here,
    ).fetchall()
    if len(front) < limit and db.execute(f"SELECT 1 {_READY} LIMIT 1 OFFSET :front", here).fetchone():
        front = db.execute(  # so many of each lane, then the first of all
            f"{_LANES} SELECT d.id FROM open CROSS JOIN delivery d ON d.id IN (SELECT id FROM delivery"  # noqa: S608
            " WHERE priority = :priority AND destination = open.name AND wake_ms <= :now ORDER BY wake_ms, id"
            " LIMIT :limit) ORDER BY d.wake_ms, d.id LIMIT :limit",
            here,
        ).fetchall()
    return [number for (number,) in front]


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
    origin_trace, origin_span, previous_trace, previous_span, workflow, trace_flags, key = row[18:25]
    destination, options = row[25:]
    attempt = begun + 1
    next_ms = now_ms + delay_ms(attempt)
    previous = None if previous_trace is None else SpanRef(previous_trace, previous_span)
    target = Target(
        address,
        original,
        SpanRef(trace, span),
        attempt=previous or SpanRef(trace, span),
        queue=queue,
        transport=transport,
        priority=priority,
        next_ms=next_ms,
        deadline_ms=deadline_ms,
        folder=folder,
        flags=frozenset(json.loads(names)),
        internal_ms=internal_ms,
        destination=destination,
        options=json.loads(options),
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


def place(tx: Tx, due: Due, span: SpanRef, now_ms: int, witness: Callable[[Tried], Sequence[EventRow]]) -> Tried:
    db, target = tx.db, due.target
    message, sent_ms, size, trace = _message(db, due)
    slots = acceptance.load_slots(db, [(target.address, target.folder)])
    slot = slots.get((target.address, target.folder))
    reason = acceptance.busy(slot, target, size)
    outcome: Tried
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
        "UPDATE delivery SET leased_by = NULL, leased_until_ms = NULL, last_ms = ?, reason = ?, previous_trace = ?,"
        " previous_span = ? WHERE id = ? AND attempt = ?",
        (now_ms, reason, *span, due.id, due.attempt),
    )
    if not done.rowcount:
        raise NotFound("there is no such delivery (any more)")


def renew(tx: Tx, due: Due, until_ms: int) -> None:
    done = tx.db.execute(
        "UPDATE delivery SET leased_until_ms = ? WHERE id = ? AND attempt = ? AND leased_by IS NOT NULL",
        (until_ms, due.id, due.attempt),
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


def free_leases(tx: Tx, owner: str) -> None:
    """Nobody works on them any more."""
    tx.db.execute("UPDATE delivery SET leased_by = NULL, leased_until_ms = NULL WHERE leased_by = ?", (owner,))


def next_due(db: sqlite3.Connection, closed: Collection[str]) -> int | None:
    """A leased one counts from its lease's end: should its holder be gone, somebody must wake for it."""
    found = [wake_ms for priority in _priorities(db) if (wake_ms := _earliest(db, priority, closed)) is not None]
    return min(found, default=None)


_WAITING = "FROM delivery WHERE priority = :priority AND wake_ms IS NOT NULL ORDER BY wake_ms"


def _earliest(db: sqlite3.Connection, priority: int, closed: Collection[str]) -> int | None:
    """As `_ready`: first the front, then the lanes."""
    here: dict[str, Any] = {"priority": priority}
    if not closed:
        row = db.execute(f"SELECT wake_ms {_WAITING} LIMIT 1", here).fetchone()
        return row[0] if row else None
    here |= {"closed": as_json(sorted(closed)), "front": _FRONT}
    row = db.execute(
        f"SELECT wake_ms FROM (SELECT wake_ms, destination {_WAITING} LIMIT :front) WHERE {_OPEN} LIMIT 1",  # noqa: S608
        here,
    ).fetchone()
    if row is None and db.execute(f"SELECT 1 {_WAITING} LIMIT 1 OFFSET :front", here).fetchone():
        row = db.execute(
            f"{_LANES} SELECT min((SELECT min(wake_ms) FROM delivery WHERE priority = :priority"  # noqa: S608
            " AND destination = open.name)) FROM open",
            here,
        ).fetchone()
    return row[0] if row else None


# ── looking at the queue, and steering it ────────────────────────────────────────────────────────────────────────────

_PENDING = (
    "SELECT d.id, m.eid, d.address, d.original, d.queue, d.transport, d.priority, d.attempt, d.created_ms, d.next_ms,"
    " d.deadline_ms, d.reason, d.destination, d.held, d.leased_by"
    " FROM delivery d CROSS JOIN message m ON m.id = d.message"
)


def pending(db: sqlite3.Connection, eid: str | None, limit: int, after: int, destination: str | None) -> list[Pending]:
    only = "" if eid is None else " AND d.message = (SELECT id FROM message WHERE eid = :eid)"
    if destination is not None:
        only += " AND d.destination = :destination" + (" AND d.destination <> ''" if destination else "")
    found = db.execute(
        f"{_PENDING} WHERE d.id > :after{only} ORDER BY d.id LIMIT :limit",
        {"eid": eid, "limit": limit, "after": after, "destination": destination},
    )
    return [_pending(row) for row in found]


def _these(db: sqlite3.Connection, ids: Sequence[int], which: str, **parameters: int) -> list[Pending]:
    given = "d.id IN (SELECT value FROM json_each(:ids))"
    sql = f"{_PENDING} WHERE {given} AND {which} ORDER BY d.id"
    return [_pending(row) for row in db.execute(sql, {"ids": as_json(list(ids)), **parameters})]


def _pending(row: tuple[Any, ...]) -> Pending:
    fields: list[Any] = [*row]
    fields[-2] = bool(fields[-2])
    return Pending(*fields)


Witness = Callable[[list[Pending]], Sequence[EventRow]]


def hasten(tx: Tx, ids: Sequence[int], now_ms: int, witness: Witness) -> list[Pending]:
    found = _these(tx.db, ids, "coalesce(d.leased_until_ms, :now) <= :now", now=now_ms)
    tx.db.executemany(
        "UPDATE delivery SET next_ms = ?, held = 0, leased_by = NULL, leased_until_ms = NULL WHERE id = ?",
        [(now_ms, pending.id) for pending in found],
    )
    return _steered(tx, found, witness)


def suspend(tx: Tx, ids: Sequence[int], held: bool, witness: Witness) -> list[Pending]:
    found = _these(tx.db, ids, "d.held <> :held", held=held)
    tx.db.executemany("UPDATE delivery SET held = ? WHERE id = ?", [(held, pending.id) for pending in found])
    return _steered(tx, found, witness)


def drop(tx: Tx, ids: Sequence[int], witness: Witness) -> list[Pending]:
    found = _these(tx.db, ids, "true")
    tx.db.executemany("DELETE FROM delivery WHERE id = ?", [(pending.id,) for pending in found])
    return _steered(tx, found, witness)


def _steered(tx: Tx, found: list[Pending], witness: Witness) -> list[Pending]:
    record(tx, witness(found))
    if found:
        tx.topics.add("queue")
    return found


def backlog(db: sqlite3.Connection) -> Backlog:
    """Ids rise with time, so the oldest is the first."""
    depth, oldest = db.execute(
        "SELECT (SELECT count(*) FROM delivery), (SELECT created_ms FROM delivery ORDER BY id LIMIT 1)"
    ).fetchone()
    return Backlog(depth, oldest, *outbox(db))
