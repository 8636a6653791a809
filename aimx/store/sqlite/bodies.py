"""Large bodies in parts, and the octets of messages."""

import json
import sqlite3

from aimx.store.contract import NotFound, Staged
from aimx.store.sqlite.sets import as_json
from aimx.store.sqlite.writer import Tx

PART = 256 * 1024
"""Octets of one part. One 50 MB blob in one commit would make every other commit wait for it."""
READ = 4 * 1024 * 1024
"""Octets read by one step, so that one reader does not hold much more."""


def pieces(chunk: bytes) -> list[bytes]:
    return [chunk[start : start + PART] for start in range(0, len(chunk), PART)] or [b""]


def add(tx: Tx, staged: Staged | None, piece: bytes) -> Staged:
    if staged is None:
        made = tx.db.execute("INSERT INTO body (size) VALUES (?)", (len(piece),))
        assert made.lastrowid is not None
        staged = Staged(made.lastrowid, 0)
    else:
        grown = tx.db.execute(
            "UPDATE body SET size = size + ? WHERE id = ? AND message IS NULL AND size = ?",
            (len(piece), staged.id, staged.size),
        )
        if not grown.rowcount:
            raise NotFound("there is no such staged body")
    if piece:
        tx.db.execute("INSERT INTO part (body, start, data) VALUES (?, ?, ?)", (staged.id, staged.size, piece))
    return Staged(staged.id, staged.size + len(piece))


def put(db: sqlite3.Connection, body: bytes) -> Staged:
    """A large body that came in one piece, kept in parts all the same."""
    made = db.execute("INSERT INTO body (size) VALUES (?)", (len(body),))
    assert made.lastrowid is not None
    parts = [(made.lastrowid, n * PART, piece) for n, piece in enumerate(pieces(body))]
    db.executemany("INSERT INTO part (body, start, data) VALUES (?, ?, ?)", parts)
    return Staged(made.lastrowid, len(body))


def drop(tx: Tx, body: int, limit: int = 16) -> bool:
    """Drop some parts of an unused body; True when all is gone. In short commits: `secure_delete` writes zeros."""
    gone = tx.db.execute(
        "DELETE FROM part WHERE rowid IN (SELECT p.rowid FROM body b JOIN part p ON p.body = b.id"
        " WHERE b.id = ? AND b.message IS NULL LIMIT ?)",
        (body, limit),
    )
    if gone.rowcount == limit:
        return False
    tx.db.execute("DELETE FROM body WHERE id = ? AND message IS NULL", (body,))
    return True


def unused(db: sqlite3.Connection) -> list[int]:
    return [body for (body,) in db.execute("SELECT id FROM body WHERE message IS NULL")]


def is_unused(db: sqlite3.Connection, staged: Staged) -> bool:
    row = db.execute("SELECT 1 FROM body WHERE id = ? AND message IS NULL AND size = ?", (staged.id, staged.size))
    return row.fetchone() is not None


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def header(db: sqlite3.Connection, eid: str) -> bytes | None:
    sql = "SELECT c.header FROM message m JOIN content c ON c.message = m.id WHERE m.eid = ?"
    row = db.execute(sql, (eid,)).fetchone()
    return row[0] if row else None


def read(db: sqlite3.Connection, eid: str, start: int, length: int) -> bytes:
    """Raises NotFound. Shorter, or empty, past the end."""
    row = db.execute(
        "SELECT c.body, substr(c.data, ?, ?) FROM message m JOIN content c ON c.message = m.id WHERE m.eid = ?",
        (start + 1, max(length, 0), eid),
    ).fetchone()
    if row is None:
        raise NotFound("there is no such message")
    body, data = row
    return bytes(data or b"") if body is None else _read_parts(db, body, start, length)


def _read_parts(db: sqlite3.Connection, body: int, start: int, length: int) -> bytes:
    found = db.execute(
        "SELECT start, data FROM part WHERE body = :body AND start < :end AND start >= coalesce("
        "(SELECT max(start) FROM part WHERE body = :body AND start <= :start), 0) ORDER BY start",
        {"body": body, "start": start, "end": start + length},
    )
    return b"".join(data[max(start - at, 0) : max(start + length - at, 0)] for at, data in found)


def headers(db: sqlite3.Connection, sizes: dict[int, int]) -> dict[int, bytes]:
    """Header blocks of messages, given their sizes."""
    return _blobs(db, "header", sizes)


def whole(db: sqlite3.Connection, sizes: dict[int, int]) -> dict[int, bytes]:
    """Bodies of messages, given their sizes."""
    found = _blobs(db, "data", sizes)
    for message in sizes.keys() - found.keys():
        row = db.execute("SELECT body FROM content WHERE message = ? AND body IS NOT NULL", (message,)).fetchone()
        if row is not None:
            found[message] = _read_parts(db, row[0], 0, sizes[message])
    return found


def _blobs(db: sqlite3.Connection, column: str, sizes: dict[int, int]) -> dict[int, bytes]:
    """Many blobs by few steps: joined end to end, and their lengths beside them (see sets.py)."""
    found: dict[int, bytes] = {}
    for group in _groups(sizes):
        lengths, joined = db.execute(
            f"SELECT json_group_array(json_array(c.message, length(c.{column}))),"  # noqa: S608
            f" CAST(group_concat(c.{column}, '') AS BLOB) FROM json_each(?) j CROSS JOIN content c"
            f" ON c.message = j.value WHERE c.{column} IS NOT NULL",
            (as_json(group),),
        ).fetchone()
        at = 0
        for message, length in json.loads(lengths):
            found[message] = joined[at : at + length] if length else b""
            at += length
    return found


def _groups(sizes: dict[int, int]) -> list[list[int]]:
    groups: list[list[int]] = [[]]
    room = READ
    for message, size in sizes.items():
        if size > room and groups[-1]:
            groups.append([])
            room = READ
        groups[-1].append(message)
        room -= size
    return groups
