"""Events: written with what they witness, read as outbox and as timeline."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from aimx.store.contract import EventRow, StoredEvent
from aimx.store.postgres.connection import Db
from aimx.store.postgres.text import storable, storable_or_none
from aimx.store.postgres.writer import Tx

as_json = json.JSONEncoder(separators=(",", ":")).encode
"""Made once: `json.dumps` with arguments makes an encoder at each call."""

RECORD = """
recorded AS (
    INSERT INTO event (seq, eid, ev, t_ms, trace_id, span_id, leaf, ref, agent, key, detail)
    SELECT nextval('event_seq'), g.* FROM unnest({events}::event_row[]) g RETURNING seq, eid, t_ms
), waiting AS (INSERT INTO outbox (seq, t_ms) SELECT seq, t_ms FROM recorded)
INSERT INTO event_message (message_eid, seq, n)
SELECT l.message_eid, r.seq, l.n FROM unnest({links}::link_row[]) l JOIN recorded r ON r.eid = l.event
"""
"""The end of a statement that begins with WITH. Parameters: what `rows` makes."""
_RECORD = "WITH " + RECORD.format(events="$1", links="$2")


async def record(tx: Tx, events: Sequence[EventRow]) -> None:
    """Write them in the order given, into timeline and outbox."""
    if events:
        await tx.db.execute(_RECORD, *rows(events))
        witnessed(tx, events)


Rows = list[tuple[Any, ...]]


def rows(events: Iterable[EventRow]) -> tuple[Rows, Rows]:
    """Event and link rows."""
    made: Rows = []
    links: Rows = []
    for event in events:
        detail = as_json(event.detail) if event.detail else "{}"
        what = (event.eid, event.ev, event.t_ms, event.trace_id, event.span_id, event.leaf)
        made.append((*what, event.ref, storable_or_none(event.agent), event.key, detail))
        links += [(eid, event.eid, n) for n, eid in enumerate(dict.fromkeys(event.messages))]
    return made, links


def witnessed(tx: Tx, events: Sequence[EventRow]) -> None:
    """The transaction has written these."""
    if events:
        tx.proofs.append(events[0].eid)
        tx.topics.add("events")


# What is marked for the first time leaves the outbox; of what is next to each other on both sides one run is made.
_MARK = """
WITH placed AS (
    DELETE FROM outbox o USING unnest($1::bigint[], $2::bigint[]) p (seq, index) WHERE o.seq = p.seq
    RETURNING p.seq, p.index
), numbered AS (SELECT seq, index, seq - row_number() OVER (ORDER BY seq) AS run FROM placed)
INSERT INTO sequenced (first, last, log_index)
SELECT min(seq), max(seq), min(index) FROM numbered GROUP BY run, index - seq
"""


async def mark_sequenced(tx: Tx, placed: Sequence[tuple[int, int]]) -> None:
    if placed:
        await tx.db.execute(_MARK, *zip(*sorted(placed), strict=True))


async def unsequenced(db: Db, limit: int) -> list[tuple[int, str, bytes]]:
    found = await db.fetch(
        "SELECT o.seq, v.eid, v.leaf FROM (SELECT seq FROM outbox ORDER BY seq LIMIT $1) o"
        " JOIN event v ON v.seq = o.seq ORDER BY o.seq",
        limit,
    )
    return [tuple(row) for row in found]


# ── the timeline ─────────────────────────────────────────────────────────────────────────────────────────────────────

_SELECT = """
SELECT v.seq, v.eid, v.ev, v.t_ms, v.trace_id, v.span_id, v.leaf, v.ref, v.agent, v.key, v.detail,
    (SELECT array_agg(l.message_eid ORDER BY l.n) FROM event_message l WHERE l.seq = v.seq),
    (SELECT CASE WHEN v.seq <= s.last THEN s.log_index + v.seq - s.first END
        FROM sequenced s WHERE s.first <= v.seq ORDER BY s.first DESC LIMIT 1)
FROM event v
"""
_OWN = "SELECT seq FROM event WHERE ref = $1 UNION SELECT seq FROM event_message WHERE message_eid = $1"


async def after(db: Db, seq: int, limit: int) -> list[StoredEvent]:
    return _stored(await db.fetch(f"{_SELECT} WHERE v.seq > $1 ORDER BY v.seq LIMIT $2", seq, limit))


async def of_message(db: Db, eid: str) -> list[StoredEvent]:
    return _stored(await db.fetch(f"{_SELECT} WHERE v.seq IN ({_OWN}) ORDER BY v.seq", storable(eid)))


async def of_trace(db: Db, trace_id: bytes, limit: int) -> list[StoredEvent]:
    return _stored(await db.fetch(f"{_SELECT} WHERE v.trace_id = $1 ORDER BY v.seq LIMIT $2", trace_id, limit))


async def traces_of(db: Db, eid: str) -> list[bytes]:
    sql = f"SELECT trace_id FROM event WHERE seq IN ({_OWN}) GROUP BY trace_id ORDER BY min(seq)"  # noqa: S608
    return [row[0] for row in await db.fetch(sql, storable(eid))]


def _stored(found: Iterable[Sequence[Any]]) -> list[StoredEvent]:
    events = []
    for seq, eid, ev, t_ms, trace_id, span_id, leaf, ref, agent, key, detail, messages, index in found:
        row = EventRow(
            eid, ev, t_ms, trace_id, span_id, leaf, ref, tuple(messages or ()), agent, key, json.loads(detail)
        )
        events.append(StoredEvent(seq, row, index))
    return events
