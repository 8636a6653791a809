"""Idempotency keys: under one key of one agent there is one message, until the key runs out."""

import sqlite3
from collections.abc import Iterable
from typing import Any

from aimx.store.contract import KeyReused, Once, Repeated
from aimx.store.sqlite.sets import as_json, rows
from aimx.store.sqlite.writer import Tx


class Keys:
    """The keys that one group commit meets: those used before, and those it uses itself."""

    def __init__(self, db: sqlite3.Connection, asked: Iterable[Once]) -> None:
        self._db = db
        pairs = [(once.agent, once.key) for once in asked]
        self._used: dict[tuple[str, str], tuple[bytes, str, int]] = {}
        for agent, key, digest, eid, until_ms in _load(db, pairs) if pairs else ():
            self._used[agent, key] = bytes.fromhex(digest), eid, until_ms
        self._new: dict[tuple[str, str], tuple[str, str, bytes, str, int]] = {}

    def check(self, once: Once, now_ms: int) -> None:
        """Raises Repeated, KeyReused."""
        digest, eid, until_ms = self._used.get((once.agent, once.key), (b"", "", 0))
        if until_ms <= now_ms:
            return
        if digest == once.digest:
            raise Repeated(eid)
        raise KeyReused("the key was used for another message")

    def use(self, once: Once, eid: str) -> None:
        place = once.agent, once.key
        self._used[place] = once.digest, eid, once.until_ms
        self._new[place] = (*place, once.digest, eid, once.until_ms)

    def save(self) -> None:
        if self._new:
            self._db.executemany(
                "INSERT INTO once (agent, key, digest, eid, until_ms) VALUES (?, ?, ?, ?, ?) ON CONFLICT (agent, key)"
                " DO UPDATE SET digest = excluded.digest, eid = excluded.eid, until_ms = excluded.until_ms",
                self._new.values(),
            )


def _load(db: sqlite3.Connection, pairs: list[tuple[str, str]]) -> list[list[Any]]:
    return rows(
        db,
        "SELECT json_group_array(json_array(o.agent, o.key, hex(o.digest), o.eid, o.until_ms)) FROM json_each(?) j"
        " CROSS JOIN once o ON o.agent = j.value ->> 0 AND o.key = j.value ->> 1",
        (as_json(pairs),),
    )


def repeated(db: sqlite3.Connection, once: Once, now_ms: int) -> str | None:
    row = db.execute(
        "SELECT eid FROM once WHERE agent = ? AND key = ? AND digest = ? AND until_ms > ?",
        (once.agent, once.key, once.digest, now_ms),
    ).fetchone()
    return row[0] if row else None


def any_ran_out(db: sqlite3.Connection, now_ms: int) -> bool:
    return db.execute("SELECT 1 FROM once WHERE until_ms <= ? LIMIT 1", (now_ms,)).fetchone() is not None


def sweep(tx: Tx, now_ms: int, limit: int) -> None:
    tx.db.execute(
        "DELETE FROM once WHERE (agent, key) IN (SELECT agent, key FROM once WHERE until_ms <= ? LIMIT ?)",
        (now_ms, limit),
    )
