"""Worker processes as the database knows them."""

import sqlite3
from typing import Any

from aimx.store.contract import SILENT_MS, NodeRecord, NotFound, worker_name
from aimx.store.sqlite import queue
from aimx.store.sqlite.writer import Tx


def beat(tx: Tx, record: NodeRecord) -> bool:
    (draining,) = tx.db.execute(
        "INSERT INTO node (node, worker, host, pid, started_ms, seen_ms, version, draining) VALUES (?1, ?2, ?3, ?4, ?5,"
        " ?6, ?7, EXISTS (SELECT 1 FROM node WHERE node = ?1 AND worker <> ?2 AND draining))"
        " ON CONFLICT (node, worker) DO UPDATE SET host = excluded.host, pid = excluded.pid,"
        " started_ms = excluded.started_ms, seen_ms = excluded.seen_ms, version = excluded.version,"
        " draining = iif(started_ms = excluded.started_ms, draining, excluded.draining) RETURNING draining",
        (
            record.node,
            record.worker,
            record.host,
            record.pid,
            record.started_ms,
            record.seen_ms,
            record.version,
        ),
    ).fetchone()
    return bool(draining)


def part(tx: Tx, node: str, worker: int) -> None:
    tx.db.execute("DELETE FROM node WHERE node = ? AND worker = ?", (node, worker))
    queue.free_leases(tx, worker_name(node, worker))


def every(db: sqlite3.Connection) -> list[NodeRecord]:
    found = db.execute(
        "SELECT node, worker, host, pid, started_ms, seen_ms, version, draining FROM node ORDER BY node, worker"
    )
    return [_record(row) for row in found]


def _record(row: tuple[Any, ...]) -> NodeRecord:
    node, worker, host, pid, started_ms, seen_ms, version, draining = row
    return NodeRecord(node, worker, host, pid, started_ms, seen_ms, version, bool(draining))


def drain(tx: Tx, node: str, on: bool) -> None:
    if not tx.db.execute("UPDATE node SET draining = ? WHERE node = ?", (on, node)).rowcount:
        raise NotFound(f"there is no node {node}")


def any_silent(db: sqlite3.Connection, now_ms: int) -> bool:
    return db.execute("SELECT 1 FROM node WHERE seen_ms <= ? LIMIT 1", (now_ms - SILENT_MS,)).fetchone() is not None


def sweep(tx: Tx, now_ms: int) -> None:
    tx.db.execute("DELETE FROM node WHERE seen_ms <= ?", (now_ms - SILENT_MS,))
