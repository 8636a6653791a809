"""Events: written with what they witness, read as outbox and as timeline."""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from aimx.store.contract import EventRow, StoredEvent
from aimx.store.sqlite.sets import as_json, insert
from aimx.store.sqlite.writer import Tx

_parse = json.JSONDecoder().raw_decode
"""Our own JSON has no white space around it: a third of what json.loads takes, which a long verification feels."""

_COLUMNS = "seq, eid, ev, t_ms, trace_id, span_id, leaf, ref, agent, key, detail"
_SELECT = f"SELECT {_COLUMNS} FROM event v"  # noqa: S608


def record(tx: Tx, events: Iterable[EventRow]) -> None:
    """Give each its number and write them."""
    if tx.next_seq is None:
        (tx.next_seq,) = tx.db.execute("SELECT coalesce(max(seq), 0) + 1 FROM event").fetchone()
    seq = tx.next_seq
    rows, links = [], []
    for row in events:
        detail = as_json(row.detail) if row.detail else "{}"
        rows.append(
            (seq, row.eid, row.ev, row.t_ms, row.trace_id, row.span_id, row.leaf, row.ref, row.agent, row.key, detail)
        )
        links += [(eid, seq, n) for n, eid in enumerate(dict.fromkeys(row.messages))]
        seq += 1
    if rows:
        insert(tx.db, "event", _COLUMNS, rows)
        insert(tx.db, "event_message", "message_eid, seq, n", links)
        tx.next_seq = seq
        tx.topics.add("events")


def mark_sequenced(tx: Tx, placed: Sequence[tuple[int, int]]) -> None:
    """Runs of numbers that go up by one on both sides become one row; one that carries on another makes it longer."""
    db = tx.db
    for first, last, index in _runs(sorted(placed)):
        for low, high in _gaps(db, first, last):
            at = index + low - first
            grown = db.execute(
                "UPDATE sequenced SET last = :high WHERE last = :low - 1 AND log_index + last - first = :at - 1"
                " AND first = (SELECT max(first) FROM sequenced WHERE first < :low)",
                {"low": low, "high": high, "at": at},
            )
            if not grown.rowcount:
                db.execute("INSERT INTO sequenced (first, last, log_index) VALUES (?, ?, ?)", (low, high, at))


def _runs(placed: Iterable[tuple[int, int]]) -> list[tuple[int, int, int]]:
    runs: list[tuple[int, int, int]] = []
    for seq, index in placed:
        if runs and seq == runs[-1][1] + 1 and index == runs[-1][2] + seq - runs[-1][0]:
            runs[-1] = (runs[-1][0], seq, runs[-1][2])
        else:
            runs.append((seq, seq, index))
    return runs


def _gaps(db: sqlite3.Connection, first: int, last: int) -> list[tuple[int, int]]:
    """The parts of first..last that are in no run yet."""
    covered = db.execute(
        "SELECT first, last FROM sequenced WHERE first <= :last AND first >= coalesce("
        "(SELECT max(first) FROM sequenced WHERE first <= :first), 0) ORDER BY first",
        {"first": first, "last": last},
    ).fetchall()
    gaps, low = [], first
    for begin, end in covered:
        if begin > low:
            gaps.append((low, begin - 1))
        low = max(low, end + 1)
    if low <= last:
        gaps.append((low, last))
    return gaps


def unsequenced(db: sqlite3.Connection, limit: int) -> list[tuple[int, str, bytes]]:
    found: list[tuple[int, str, bytes]] = []
    for low, high in _open_gaps(db):
        if len(found) >= limit:
            break
        found += db.execute(
            "SELECT seq, eid, leaf FROM event WHERE seq BETWEEN ? AND ? ORDER BY seq LIMIT ?",
            (low, high, limit - len(found)),
        ).fetchall()
    return found


def outbox(db: sqlite3.Connection) -> tuple[int, int | None]:
    """How many events wait, and the time of the first. Numbers have no gaps, so this reads runs and two events."""
    gaps = _open_gaps(db)
    if not gaps:
        return 0, None
    (oldest,) = db.execute("SELECT t_ms FROM event WHERE seq = ?", (gaps[0][0],)).fetchone()
    return sum(high - low + 1 for low, high in gaps), oldest


def _open_gaps(db: sqlite3.Connection) -> list[tuple[int, int]]:
    (newest,) = db.execute("SELECT coalesce(max(seq), 0) FROM event").fetchone()
    return _gaps(db, 1, newest) if newest else []


def after(db: sqlite3.Connection, seq: int, limit: int) -> list[StoredEvent]:
    return _stored(db, f"{_SELECT} WHERE v.seq > ? ORDER BY v.seq LIMIT ?", (seq, limit))


def of_message(db: sqlite3.Connection, eid: str) -> list[StoredEvent]:
    own = "SELECT seq FROM event WHERE ref = ?1 UNION SELECT seq FROM event_message WHERE message_eid = ?1"
    return _stored(db, f"{_SELECT} WHERE v.seq IN ({own}) ORDER BY v.seq", (eid,))


def of_trace(db: sqlite3.Connection, trace_id: bytes, limit: int) -> list[StoredEvent]:
    return _stored(db, f"{_SELECT} WHERE v.trace_id = ? ORDER BY v.seq LIMIT ?", (trace_id, limit))


def traces_of(db: sqlite3.Connection, eid: str) -> list[bytes]:
    own = "SELECT seq FROM event WHERE ref = ?1 UNION SELECT seq FROM event_message WHERE message_eid = ?1"
    sql = f"SELECT trace_id FROM event WHERE seq IN ({own}) GROUP BY trace_id ORDER BY min(seq)"  # noqa: S608
    return [trace for (trace,) in db.execute(sql, (eid,))]


def _stored(db: sqlite3.Connection, sql: str, parameters: Sequence[Any]) -> list[StoredEvent]:
    found = db.execute(sql, parameters).fetchall()
    if not found:
        return []
    seqs = [row[0] for row in found]
    runs = db.execute(
        "SELECT first, last, log_index FROM sequenced WHERE first <= :last AND first >= coalesce("
        "(SELECT max(first) FROM sequenced WHERE first <= :first), 0) ORDER BY first",
        {"first": seqs[0], "last": seqs[-1]},
    ).fetchall()
    links: dict[int, list[str]] = {}
    for seq, eid in db.execute(
        "SELECT seq, message_eid FROM json_each(?) j CROSS JOIN event_message ON seq = j.value ORDER BY seq, n",
        (as_json(seqs),),
    ):
        links.setdefault(seq, []).append(eid)
    return [_event(row, tuple(links.get(row[0], ())), _index(runs, row[0])) for row in found]


def _index(runs: list[tuple[int, int, int]], seq: int) -> int | None:
    for first, last, index in reversed(runs):
        if first <= seq:
            return index + seq - first if seq <= last else None
    return None


def _event(row: tuple[Any, ...], messages: tuple[str, ...], index: int | None) -> StoredEvent:
    seq, eid, ev, t_ms, trace_id, span_id, leaf, ref, agent, key, detail = row
    event = EventRow(eid, ev, t_ms, trace_id, span_id, leaf, ref, messages, agent, key, _parse(detail)[0])
    return StoredEvent(seq, event, index)
