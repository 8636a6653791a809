"""Worker processes as the database knows them, and the numbers under which they write."""

from aimx.store.contract import SILENT_MS, NodeRecord, NotFound, worker_name
from aimx.store.postgres import queue
from aimx.store.postgres.connection import Db
from aimx.store.postgres.writer import Tx

_COLUMNS = "node, worker, host, pid, started_ms, seen_ms, version"


async def number(tx: Tx, name: str) -> int:
    """The writer's number: the same in each of its lives."""
    await tx.db.execute("INSERT INTO writer (name) SELECT $1 ON CONFLICT DO NOTHING", name)
    found: int = await tx.db.fetchval("SELECT id FROM writer WHERE name = $1", name)
    return found


async def beat(tx: Tx, record: NodeRecord) -> bool:
    draining: bool = await tx.db.fetchval(
        f"INSERT INTO node AS n ({_COLUMNS}, draining) VALUES ($1, $2, $3, $4, $5, $6, $7,"  # noqa: S608
        " EXISTS (SELECT 1 FROM node WHERE node = $1 AND worker <> $2 AND draining))"
        " ON CONFLICT (node, worker) DO UPDATE SET host = excluded.host, pid = excluded.pid,"
        " started_ms = excluded.started_ms, seen_ms = excluded.seen_ms, version = excluded.version,"
        " draining = CASE WHEN n.started_ms = excluded.started_ms THEN n.draining ELSE excluded.draining END"
        " RETURNING draining",
        record.node,
        record.worker,
        record.host,
        record.pid,
        record.started_ms,
        record.seen_ms,
        record.version,
    )
    return draining


async def part(tx: Tx, node: str, worker: int) -> None:
    await tx.db.execute("DELETE FROM node WHERE node = $1 AND worker = $2", node, worker)
    await queue.free_leases(tx, worker_name(node, worker))


async def every(db: Db) -> list[NodeRecord]:
    sql = f"SELECT {_COLUMNS}, draining FROM node ORDER BY node, worker"  # noqa: S608
    return [NodeRecord(*row) for row in await db.fetch(sql)]


async def drain(tx: Tx, node: str, on: bool) -> None:
    if await tx.db.execute("UPDATE node SET draining = $1 WHERE node = $2", on, node) == "UPDATE 0":
        raise NotFound(f"there is no node {node}")


async def sweep(tx: Tx, now_ms: int) -> None:
    await tx.db.execute("DELETE FROM node WHERE seen_ms <= $1", now_ms - SILENT_MS)
