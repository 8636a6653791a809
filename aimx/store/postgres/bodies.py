"""Large bodies in parts, put aside by short transactions, and given up again."""

from aimx.store.contract import NotFound, Staged
from aimx.store.postgres.connection import Db
from aimx.store.postgres.writer import Tx

PART = 256 * 1024
"""Octets of one part. One 50 MB value in one commit would make every other commit wait for it."""


def pieces(chunk: bytes) -> list[bytes]:
    return [chunk[start : start + PART] for start in range(0, len(chunk), PART)] or [b""]


async def add(tx: Tx, writer: int, staged: Staged | None, piece: bytes) -> Staged:
    if staged is None:
        body = await tx.db.fetchval("INSERT INTO body (size, writer) VALUES ($1, $2) RETURNING id", len(piece), writer)
        staged = Staged(body, 0)
    else:
        grown = await tx.db.fetchval(
            "UPDATE body SET size = size + $1 WHERE id = $2 AND NOT used AND size = $3 RETURNING id",
            len(piece),
            staged.id,
            staged.size,
        )
        if grown is None:
            raise NotFound("there is no such staged body")
    if piece:
        await _add_part(tx.db, staged, piece)
    return Staged(staged.id, staged.size + len(piece))


async def put(db: Db, writer: int, body: bytes) -> Staged:
    """A large body that came in one piece, kept in parts all the same."""
    made = await db.fetchval("INSERT INTO body (size, writer) VALUES ($1, $2) RETURNING id", len(body), writer)
    at = 0
    for piece in pieces(body):
        await _add_part(db, Staged(made, at), piece)
        at += len(piece)
    return Staged(made, len(body))


async def _add_part(db: Db, staged: Staged, piece: bytes) -> None:
    await db.execute("INSERT INTO part (body, start, data) VALUES ($1, $2, $3)", staged.id, staged.size, piece)


async def drop(tx: Tx, body: int, limit: int = 16) -> bool:
    """Drop some parts of an unused body; True when all is gone. In short transactions, as they came."""
    own = await tx.db.fetchval("SELECT id FROM body WHERE id = $1 AND NOT used FOR UPDATE", body)
    if own is None:
        return True
    gone = await tx.db.fetch(
        "DELETE FROM part WHERE body = $1 AND start IN (SELECT start FROM part WHERE body = $1 ORDER BY start LIMIT $2)"
        " RETURNING start",
        body,
        limit,
    )
    if len(gone) == limit:
        return False
    await tx.db.execute("DELETE FROM body WHERE id = $1", body)
    return True


async def unused(db: Db, writer: int) -> list[int]:
    """What an earlier life of this writer has left."""
    return [row[0] for row in await db.fetch("SELECT id FROM body WHERE writer = $1 AND NOT used", writer)]
