"""Registered Protocol Buffers descriptors."""

from collections.abc import Sequence

from aimx.store.contract import EventRow
from aimx.store.postgres.connection import Db
from aimx.store.postgres.events import record
from aimx.store.postgres.writer import Tx


async def add(tx: Tx, name: str, descriptor_set: bytes, t_ms: int, events: Sequence[EventRow]) -> None:
    await tx.db.execute(
        "INSERT INTO payload_schema (name, descriptor, t_ms) VALUES ($1, $2, $3)"
        " ON CONFLICT (name) DO UPDATE SET descriptor = excluded.descriptor, t_ms = excluded.t_ms",
        name,
        descriptor_set,
        t_ms,
    )
    await record(tx, events)


async def every(db: Db) -> list[tuple[str, bytes]]:
    return [tuple(row) for row in await db.fetch("SELECT name, descriptor FROM payload_schema ORDER BY name")]
