"""Registered Protocol Buffers descriptors."""

import sqlite3
from collections.abc import Sequence

from aimx.store.contract import EventRow
from aimx.store.sqlite.events import record
from aimx.store.sqlite.writer import Tx


def add(tx: Tx, name: str, descriptor_set: bytes, t_ms: int, events: Sequence[EventRow]) -> None:
    tx.db.execute(
        "INSERT INTO payload_schema (name, descriptor, t_ms) VALUES (?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET descriptor = excluded.descriptor, t_ms = excluded.t_ms",
        (name, descriptor_set, t_ms),
    )
    record(tx, events)


def every(db: sqlite3.Connection) -> list[tuple[str, bytes]]:
    return db.execute("SELECT name, descriptor FROM payload_schema ORDER BY name").fetchall()
