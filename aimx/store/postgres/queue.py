"""Deliveries that wait: leases, attempts, ends.

`attempt` counts attempts begun and is the fence: who holds a delivery whose number has moved on has lost its lease.
`wake_ms`, by which deliveries are found, is computed by the schema: none for held ones.
"""

import json
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
from aimx.store.postgres import acceptance, flags
from aimx.store.postgres.acceptance import DELIVERED
from aimx.store.postgres.connection import Db
from aimx.store.postgres.events import record
from aimx.store.postgres.text import storable
from aimx.store.postgres.writer import Tx

_DUE = """
SELECT d.id, m.eid, m.sender, d.address, d.original, d.trace, d.span, d.queue, d.transport, d.priority, d.next_ms,
    d.deadline_ms, d.folder, d.flags, d.internal_ms, d.attempt, d.created_ms, d.last_ms, m.origin_trace, m.origin_span,
    d.previous_trace, d.previous_span, m.workflow, m.trace_flags,
    (SELECT v.key FROM event v WHERE v.ref = m.eid AND v.key IS NOT NULL ORDER BY v.seq LIMIT 1),
    d.destination, d.options
FROM unnest($1::bigint[]) WITH ORDINALITY g (id, n) JOIN delivery d ON d.id = g.id JOIN message m ON m.id = d.message
ORDER BY g.n
"""
_LEASE = """
UPDATE delivery d SET attempt = g.attempt, last_ms = $4, next_ms = g.next_ms, leased_by = $5, leased_until_ms = $6
FROM unnest($1::bigint[], $2::int[], $3::bigint[]) g (id, attempt, next_ms) WHERE d.id = g.id
"""


async def claim(
    tx: Tx,
    now_ms: int,
    limit: int,
    owner: str,
    lease_ms: int,
    delay_ms: Callable[[int], int],
    closed: Collection[str],
) -> list[Due]:
    """What another transaction is about to take is stepped over."""
    ready: list[int] = []
    for priority in await _priorities(tx.db):
        if len(ready) >= limit:
            break
        ready += await _ready(tx.db, priority, now_ms, limit - len(ready), closed)
    if not ready:
        return []
    taken = [_due(row, now_ms, delay_ms) for row in await tx.db.fetch(_DUE, ready)]
    rows = [(due.id, due.attempt, due.next_ms) for due in taken]
    await tx.db.execute(_LEASE, *zip(*rows, strict=True), now_ms, owner, now_ms + lease_ms)
    return taken


_FRONT = 64
"""So many more than asked for are looked at before the lanes are."""
_LOOK = """
SELECT id, destination FROM delivery WHERE NOT held AND priority = $1 AND wake_ms <= $2 ORDER BY wake_ms, id LIMIT $3
"""
_LOCK = """
SELECT id FROM delivery WHERE NOT held AND priority = $1 AND wake_ms <= $2 ORDER BY wake_ms, id LIMIT $3
FOR UPDATE SKIP LOCKED
"""
_LOCK_THESE = """
SELECT id FROM delivery WHERE id = ANY ($1::bigint[]) AND NOT held AND wake_ms <= $2 ORDER BY wake_ms, id LIMIT $3
FOR UPDATE SKIP LOCKED
"""
_LANES = """
WITH RECURSIVE lane (name) AS (
    (SELECT destination FROM delivery WHERE NOT held AND priority = $1 ORDER BY destination LIMIT 1)
    UNION ALL
    SELECT (SELECT destination FROM delivery WHERE NOT held AND priority = $1 AND destination > lane.name
        ORDER BY destination LIMIT 1) FROM lane WHERE lane.name IS NOT NULL
), open (name) AS (SELECT name FROM lane WHERE name <> ALL ($2::text[]))
"""
"""The destinations that deliveries of a priority wait for, one step in the index for each, without the closed ones."""
_LANES_READY = f"""
{_LANES} SELECT d.id FROM open CROSS JOIN LATERAL (
    SELECT id, wake_ms FROM delivery WHERE NOT held AND priority = $1 AND destination = open.name AND wake_ms <= $3
    ORDER BY wake_ms, id LIMIT $4
) d ORDER BY d.wake_ms, d.id LIMIT $4
"""  # noqa: S608


async def _ready(db: Db, priority: int, now_ms: int, limit: int, closed: Collection[str]) -> list[int]:
    """The ids that may be claimed, longest due first, locked.

    Closed destinations are rare among what waits, or they are most of it. So the front of the queue is looked at; only
    if it does not suffice each lane is asked, and those of closed destinations are not.
    """
    if not closed:
        return [row[0] for row in await db.fetch(_LOCK, priority, now_ms, limit)]
    look = limit + _FRONT
    front = await db.fetch(_LOOK, priority, now_ms, look)
    ready = [number for number, destination in front if destination not in closed]
    if len(ready) < limit and len(front) == look:
        found = await db.fetch(_LANES_READY, priority, list(closed), now_ms, look)
        ready = [row[0] for row in found]
    return [row[0] for row in await db.fetch(_LOCK_THESE, ready, now_ms, limit)] if ready else []


_PRIORITIES = """
WITH RECURSIVE p (n) AS (
    (SELECT priority FROM delivery WHERE NOT held ORDER BY priority DESC LIMIT 1)
    UNION ALL
    SELECT (SELECT priority FROM delivery WHERE NOT held AND priority < p.n ORDER BY priority DESC LIMIT 1) FROM p
    WHERE p.n IS NOT NULL
) SELECT n FROM p WHERE n IS NOT NULL
"""


async def _priorities(db: Db) -> list[int]:
    """Those there are, highest first: one step in the index for each."""
    return [row[0] for row in await db.fetch(_PRIORITIES)]


def _due(row: Sequence[Any], now_ms: int, delay_ms: Callable[[int], int]) -> Due:
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


# ── ends of an attempt ───────────────────────────────────────────────────────────────────────────────────────────────


async def place(tx: Tx, due: Due, span: SpanRef, now_ms: int, witness: Callable[[Tried], Sequence[EventRow]]) -> Tried:
    db, target = tx.db, due.target
    slots = await acceptance.lock_slots(db, [(target.address, target.folder)])
    slot = slots.get((target.address, target.folder))
    bits = await flags.allot(db, slot.owner.number, target.flags) if slot is not None and target.flags else 0
    message, sent_ms, size, trace = await _message(db, due)
    reason = acceptance.busy(slot, target, size)
    outcome: Tried
    if slot is None or reason is not None:
        outcome = Buffered(target, due.id, reason or "no-mailbox")
        await _release(tx, due, span, now_ms, reason or "no-mailbox")
    else:
        internal_ms = sent_ms if target.internal_ms is None else target.internal_ms
        outcome = Placed(target, slot.key, slot.uidnext, slot.uidvalidity)
        row = acceptance.entry(slot, bits, message, internal_ms, now_ms, size)
        await acceptance.add_entry(tx, slot, row)
        await db.execute(
            "INSERT INTO party (address, message, role, trace) VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (address, message) DO UPDATE SET role = excluded.role",
            target.address,
            message,
            DELIVERED,
            trace,
        )
        await db.execute("DELETE FROM delivery WHERE id = $1", due.id)
    await record(tx, witness(outcome))
    return outcome


async def defer(tx: Tx, due: Due, span: SpanRef, now_ms: int, reason: str, events: Sequence[EventRow]) -> None:
    await _release(tx, due, span, now_ms, reason)
    await record(tx, events)


async def _release(tx: Tx, due: Due, span: SpanRef, now_ms: int, reason: str) -> None:
    done = await tx.db.execute(
        "UPDATE delivery SET leased_by = NULL, leased_until_ms = NULL, last_ms = $1, reason = $2, previous_trace = $3,"
        " previous_span = $4 WHERE id = $5 AND attempt = $6",
        now_ms,
        reason,
        *span,
        due.id,
        due.attempt,
    )
    _check(done)


async def renew(tx: Tx, due: Due, until_ms: int) -> None:
    done = await tx.db.execute(
        "UPDATE delivery SET leased_until_ms = $1 WHERE id = $2 AND attempt = $3 AND leased_by IS NOT NULL",
        until_ms,
        due.id,
        due.attempt,
    )
    _check(done)


async def settle(tx: Tx, due: Due, events: Sequence[EventRow]) -> None:
    _check(await tx.db.execute("DELETE FROM delivery WHERE id = $1 AND attempt = $2", due.id, due.attempt))
    await record(tx, events)


def _check(done: str) -> None:
    if done.endswith(" 0"):
        raise NotFound("there is no such delivery (any more)")


async def _message(db: Db, due: Due) -> Sequence[Any]:
    """(id, time, octets, trace) of the message; its delivery is locked."""
    row: Sequence[Any] | None = await db.fetchrow(
        "SELECT m.id, m.t_ms, m.header_size + m.body_size, m.origin_trace FROM delivery d JOIN message m"
        " ON m.id = d.message WHERE d.id = $1 AND d.attempt = $2 FOR UPDATE OF d",
        due.id,
        due.attempt,
    )
    if row is None:
        raise NotFound("there is no such delivery (any more)")
    return row


async def free_leases(tx: Tx, owner: str) -> None:
    """Nobody works on them any more."""
    done = await tx.db.execute(
        "UPDATE delivery SET leased_by = NULL, leased_until_ms = NULL WHERE id IN"
        " (SELECT id FROM delivery WHERE leased_by = $1 ORDER BY id FOR UPDATE)",
        owner,
    )
    if not done.endswith(" 0"):
        tx.topics.add("queue")


_LANES_EARLIEST = f"""
{_LANES} SELECT min(d.wake_ms) FROM open CROSS JOIN LATERAL (
    SELECT wake_ms FROM delivery WHERE NOT held AND priority = $1 AND destination = open.name
    ORDER BY wake_ms, id LIMIT 1
) d
"""  # noqa: S608


async def next_due(db: Db, closed: Collection[str]) -> int | None:
    """A leased one counts from its lease's end: should its holder be gone, somebody must wake for it."""
    found = [await _earliest(db, priority, closed) for priority in await _priorities(db)]
    return min((wake_ms for wake_ms in found if wake_ms is not None), default=None)


async def _earliest(db: Db, priority: int, closed: Collection[str]) -> int | None:
    """As `_ready`: first the front, then the lanes."""
    look = 1 + (_FRONT if closed else 0)
    front = await db.fetch(
        "SELECT wake_ms, destination FROM delivery WHERE NOT held AND priority = $1 ORDER BY wake_ms, id LIMIT $2",
        priority,
        look,
    )
    for wake_ms, destination in front:
        if destination not in closed:
            return int(wake_ms)
    if len(front) < look:
        return None
    earliest: int | None = await db.fetchval(_LANES_EARLIEST, priority, list(closed))
    return earliest


# ── looking at the queue, and steering it ────────────────────────────────────────────────────────────────────────────

_PENDING = """
SELECT d.id, m.eid, d.address, d.original, d.queue, d.transport, d.priority, d.attempt, d.created_ms, d.next_ms,
    d.deadline_ms, d.reason, d.destination, d.held, d.leased_by
FROM delivery d JOIN message m ON m.id = d.message
"""


async def pending(db: Db, eid: str | None, limit: int, after: int, destination: str | None) -> list[Pending]:
    only: dict[str, str] = {}
    if eid is not None:
        only["d.message = (SELECT id FROM message WHERE eid = $3)"] = storable(eid)
    if destination is not None:
        named = f"d.destination = ${len(only) + 3}" + (" AND d.destination <> ''" if destination else "")
        only[named] = storable(destination)
    where = " AND ".join(("d.id > $1", *only))
    found = await db.fetch(f"{_PENDING} WHERE {where} ORDER BY d.id LIMIT $2", after, limit, *only.values())
    return [Pending(*row) for row in found]


async def _these(db: Db, ids: Sequence[int], which: str = "true", *parameters: object) -> list[Pending]:
    sql = f"{_PENDING} WHERE d.id = ANY ($1::bigint[]) AND {which} ORDER BY d.id FOR UPDATE OF d"
    return [Pending(*row) for row in await db.fetch(sql, list(ids), *parameters)]


Witness = Callable[[list[Pending]], Sequence[EventRow]]


async def hasten(tx: Tx, ids: Sequence[int], now_ms: int, witness: Witness) -> list[Pending]:
    found = await _these(tx.db, ids, "coalesce(d.leased_until_ms, 0) <= $2", now_ms)
    await tx.db.execute(
        "UPDATE delivery SET next_ms = $2, held = false, leased_by = NULL, leased_until_ms = NULL"
        " WHERE id = ANY ($1::bigint[])",
        [pending.id for pending in found],
        now_ms,
    )
    return await _steered(tx, found, witness)


async def suspend(tx: Tx, ids: Sequence[int], held: bool, witness: Witness) -> list[Pending]:
    found = await _these(tx.db, ids, "d.held <> $2", held)
    sql = "UPDATE delivery SET held = $2 WHERE id = ANY ($1::bigint[])"
    await tx.db.execute(sql, [pending.id for pending in found], held)
    return await _steered(tx, found, witness)


async def drop(tx: Tx, ids: Sequence[int], witness: Witness) -> list[Pending]:
    found = await _these(tx.db, ids)
    await tx.db.execute("DELETE FROM delivery WHERE id = ANY ($1::bigint[])", [pending.id for pending in found])
    return await _steered(tx, found, witness)


async def _steered(tx: Tx, found: list[Pending], witness: Witness) -> list[Pending]:
    await record(tx, witness(found))
    if found:
        tx.topics.add("queue")
    return found


# ── how much waits ───────────────────────────────────────────────────────────────────────────────────────────────────

COUNTED = 20_000
"""Rows counted one by one; of more there is an estimate, so that asking costs no more."""


async def backlog(db: Db) -> Backlog:
    """Ids rise with time, so the oldest is the first."""
    row = await db.fetchrow(
        "SELECT (SELECT created_ms FROM delivery ORDER BY id LIMIT 1), (SELECT t_ms FROM outbox ORDER BY seq LIMIT 1)"
    )
    return Backlog(await _depth(db, "delivery"), row[0], await _depth(db, "outbox"), row[1])


_DEPTH = """
SELECT count(*), (SELECT reltuples::bigint FROM pg_class WHERE oid = '{0}'::regclass)
FROM (SELECT 1 FROM {0} LIMIT $1) t
"""


async def _depth(db: Db, table: str) -> int:
    count, estimate = await db.fetchrow(_DEPTH.format(table), COUNTED)
    return max(int(count), int(estimate)) if count == COUNTED else int(count)
