"""Idempotency keys: under one key of one agent there is one message, until the key runs out.

A key is written before it is known whether its message can be accepted: so another transaction that meets it waits
until this one has ended. Keys are taken in order, first new ones, then known ones: no two can wait for each other.
"""

from collections.abc import Iterable
from typing import NamedTuple

import asyncpg

from aimx.store.contract import KeyReused, Once, Repeated
from aimx.store.postgres.connection import Db
from aimx.store.postgres.text import storable
from aimx.store.postgres.writer import Tx

Place = tuple[str, str]
"""(agent, key)."""


class Use(NamedTuple):
    digest: bytes
    eid: str
    until_ms: int


_TAKE = """
INSERT INTO once (agent, key, digest, eid, until_ms)
SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::text[], $5::bigint[])
ON CONFLICT DO NOTHING RETURNING agent, key
"""
_KNOWN = """
SELECT o.agent, o.key, o.digest, o.eid, o.until_ms FROM unnest($1::text[], $2::text[]) g (agent, key)
JOIN once o ON o.agent = g.agent AND o.key = g.key ORDER BY o.agent, o.key FOR UPDATE OF o
"""
_CORRECT = """
UPDATE once o SET digest = g.digest, eid = g.eid, until_ms = g.until_ms
FROM unnest($1::text[], $2::text[], $3::bytea[], $4::text[], $5::bigint[]) g (agent, key, digest, eid, until_ms)
WHERE o.agent = g.agent AND o.key = g.key
"""
_GIVE_BACK = """
DELETE FROM once o USING unnest($1::text[], $2::text[]) g (agent, key) WHERE o.agent = g.agent AND o.key = g.key
"""


class Keys:
    """The keys that one group commit meets: those used before, and those it uses itself."""

    def __init__(self, db: Db) -> None:
        self._db = db
        self._used: dict[Place, Use] = {}
        self._written: dict[Place, Use] = {}
        self._new: dict[Place, Use] = {}

    async def take(self, asked: Iterable[tuple[Once, str]]) -> None:
        """Keys with the eids of the messages that bear them. The first of a key has it, for now."""
        first: dict[Place, Use] = {}
        for once, eid in asked:
            first.setdefault(_place(once), Use(once.digest, eid, once.until_ms))
        if not first:
            return
        places = sorted(first)
        rows = [(*place, *first[place]) for place in places]
        taken = {tuple(row) for row in await self._db.fetch(_TAKE, *zip(*rows, strict=True))}
        self._written = {place: first[place] for place in places if place in taken}
        known = [place for place in places if place not in taken]
        if known:
            found = await self._db.fetch(_KNOWN, *zip(*known, strict=True))
            self._used = {(agent, key): Use(digest, eid, until_ms) for agent, key, digest, eid, until_ms in found}
            if len(self._used) < len(known):
                raise asyncpg.SerializationError("a key was swept this very moment")  # the transaction is tried again

    def check(self, once: Once, now_ms: int) -> None:
        """Raises Repeated, KeyReused."""
        use = self._used.get(_place(once))
        if use is None or use.until_ms <= now_ms:
            return
        if use.digest == once.digest:
            raise Repeated(use.eid)
        raise KeyReused("the key was used for another message")

    def use(self, once: Once, eid: str) -> None:
        use = Use(once.digest, eid, once.until_ms)
        self._used[_place(once)] = self._new[_place(once)] = use

    async def save(self) -> None:
        """Where the first of a key was refused, another one has it or nobody."""
        wrong = [(*place, *use) for place, use in sorted(self._new.items()) if self._written.get(place) != use]
        unused = sorted(self._written.keys() - self._new.keys())
        if wrong:
            await self._db.execute(_CORRECT, *zip(*wrong, strict=True))
        if unused:
            await self._db.execute(_GIVE_BACK, *zip(*unused, strict=True))


def _place(once: Once) -> Place:
    return once.agent, storable(once.key)


async def repeated(db: Db, once: Once, now_ms: int) -> str | None:
    eid: str | None = await db.fetchval(
        "SELECT eid FROM once WHERE agent = $1 AND key = $2 AND digest = $3 AND until_ms > $4",
        *_place(once),
        once.digest,
        now_ms,
    )
    return eid


async def sweep(tx: Tx, now_ms: int, limit: int) -> bool:
    """Whether there may be more."""
    done: str = await tx.db.execute(
        "DELETE FROM once WHERE (agent, key) IN (SELECT agent, key FROM once WHERE until_ms <= $1"
        " ORDER BY agent, key LIMIT $2 FOR UPDATE SKIP LOCKED)",
        now_ms,
        limit,
    )
    return done == f"DELETE {limit}"
