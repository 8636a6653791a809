"""The octets of messages: header blocks and bodies, whole and in pieces. How large bodies come in: bodies.py."""

from collections.abc import Sequence

from aimx.store.contract import NotFound
from aimx.store.postgres.connection import Db
from aimx.store.postgres.text import storable

_MOST = 2**31 - 2
"""PostgreSQL counts the octets of a value in 31 bits."""


async def header(db: Db, eid: str) -> bytes | None:
    sql = "SELECT c.header FROM message m JOIN content c ON c.message = m.id WHERE m.eid = $1"
    block: bytes | None = await db.fetchval(sql, storable(eid))
    return block


async def read(db: Db, eid: str, start: int, length: int) -> bytes:
    """Raises NotFound. Shorter, or empty, past the end."""
    row = await db.fetchrow(
        "SELECT c.body, substr(c.data, $2, $3) FROM message m JOIN content c ON c.message = m.id WHERE m.eid = $1",
        storable(eid),
        min(start, _MOST) + 1,
        min(max(length, 0), _MOST),
    )
    if row is None:
        raise NotFound("there is no such message")
    body, data = row
    return (data or b"") if body is None else await _read_parts(db, body, start, length)


async def _read_parts(db: Db, body: int, start: int, length: int) -> bytes:
    found = await db.fetch(
        "SELECT start, data FROM part WHERE body = $1 AND start < $3 AND start >= coalesce("
        "(SELECT max(start) FROM part WHERE body = $1 AND start <= $2), 0) ORDER BY start",
        body,
        start,
        start + length,
    )
    return b"".join(data[max(start - at, 0) : max(start + length - at, 0)] for at, data in found)


async def whole(db: Db, bodies: Sequence[int]) -> dict[int, bytes]:
    """Large bodies by their id in `body`."""
    if not bodies:
        return {}
    rows = await db.fetch(
        "SELECT b.id, string_agg(p.data, ''::bytea ORDER BY p.start) FROM unnest($1::bigint[]) b (id)"
        " JOIN part p ON p.body = b.id GROUP BY b.id",
        bodies,
    )
    return dict(rows)
