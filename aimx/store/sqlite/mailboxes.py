"""Mailboxes as names and counts: list, create, delete, rename, subscribe, STATUS, SELECT."""

import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from aimx.store.contract import (
    DONE,
    INBOX,
    AlreadyExists,
    EventRow,
    Mailbox,
    MailboxKey,
    NotFound,
    OverQuota,
    Snapshot,
    Status,
)
from aimx.store.names import MOST, below, canonical, moved, superiors
from aimx.store.recent import Claims
from aimx.store.sqlite import flags
from aimx.store.sqlite.events import record
from aimx.store.sqlite.sets import numbers
from aimx.store.sqlite.writer import Tx


class Box(NamedTuple):
    """A mailbox's row, as far as changes of its entries need it."""

    owner: int
    id: int
    name: str
    uidvalidity: int
    uidnext: int
    modseq: int
    recent_from: int
    deleted: int


def box(db: sqlite3.Connection, key: MailboxKey) -> Box:
    """Raises NotFound."""
    row = db.execute(
        "SELECT b.owner, b.id, b.name, b.uidvalidity, b.uidnext, b.modseq, b.recent_from, b.deleted"
        " FROM mailbox b JOIN agent a ON a.id = b.owner WHERE b.id = ? AND a.address = ?",
        (key.id, key.owner),
    ).fetchone()
    if row is None:
        raise NotFound("there is no such mailbox (any more)")
    return Box(*row)


def save_claims(tx: Tx, claims: Claims) -> None:
    for mailbox, first in claims.take_unsaved().items():
        tx.db.execute(
            "UPDATE mailbox SET recent_from = ?1, recent = (SELECT count(*) FROM entry e"
            " WHERE e.owner = mailbox.owner AND e.mailbox = mailbox.id AND e.uid >= ?1) WHERE id = ?2",
            (first, mailbox),
        )


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def make(tx: Tx, owner: int, name: str, special_use: str | None = None) -> int:
    (uidvalidity,) = tx.db.execute(
        "UPDATE counter SET value = max(value + 1, ?) WHERE name = 'uidvalidity' RETURNING value", (int(time.time()),)
    ).fetchone()
    made = tx.db.execute(
        "INSERT INTO mailbox (owner, name, special_use, uidvalidity) VALUES (?, ?, ?, ?)",
        (owner, name, special_use, uidvalidity),
    )
    assert made.lastrowid is not None
    return made.lastrowid


def create(tx: Tx, owner: str, name: str, special_use: str | None) -> None:
    number, name = _owner(tx.db, owner), canonical(name)
    if _id(tx.db, number, name) is not None:
        raise AlreadyExists("there is a mailbox of that name")
    _check_room(tx.db, "mailbox", number)
    _make_superiors(tx, number, name)
    make(tx, number, name, special_use)


def delete(tx: Tx, key: MailboxKey, witness: Callable[[list[str]], Sequence[EventRow]]) -> None:
    own = box(tx.db, key)
    eids = tx.db.execute(
        "SELECT m.eid FROM entry e CROSS JOIN message m ON m.id = e.message WHERE e.owner = ? AND e.mailbox = ?"
        " ORDER BY e.uid",
        (own.owner, own.id),
    ).fetchall()
    tx.db.execute("DELETE FROM mailbox WHERE id = ?", (own.id,))
    record(tx, witness([eid for (eid,) in eids]))
    tx.topics.add(key)


def rename(tx: Tx, owner: str, old: str, new: str) -> None:
    db, number = tx.db, _owner(tx.db, owner)
    old, new = canonical(old), canonical(new)
    source = _id(db, number, old)
    if source is None:
        raise NotFound("there is no such mailbox")
    if _id(db, number, new) is not None:
        raise AlreadyExists("there is a mailbox of that name")
    if old == INBOX:
        _check_room(db, "mailbox", number)
        _make_superiors(tx, number, new)
        _empty_into(tx, MailboxKey(owner, source), make(tx, number, new))
        return
    pairs = moved(old, new, [old, *_inferiors(db, number, old)])
    going = {name for name, _ in pairs}
    if any(name not in going and _id(db, number, name) is not None for _, name in pairs):
        raise AlreadyExists("there is a mailbox of that name")
    for now, then in pairs:
        db.execute("UPDATE mailbox SET name = ? WHERE owner = ? AND name = ?", (then, number, now))
    _make_superiors(tx, number, new)


def _empty_into(tx: Tx, inbox: MailboxKey, to: int) -> None:
    """INBOX's messages go, INBOX stays (RFC 3501 §6.3.5)."""
    own, modseq = box(tx.db, inbox), box(tx.db, inbox).modseq + 1
    here = (own.owner, own.id)
    tx.db.execute(
        "INSERT INTO vanished (owner, mailbox, modseq, uid) SELECT owner, mailbox, ?, uid FROM entry"
        " WHERE owner = ? AND mailbox = ?",
        (modseq, *here),
    )
    tx.db.execute("UPDATE entry SET mailbox = ?, modseq = 2 WHERE owner = ? AND mailbox = ?", (to, *here))
    tx.db.execute(
        "UPDATE mailbox SET modseq = 2, uidnext = i.uidnext, messages = i.messages, recent = i.messages,"
        " unseen = i.unseen, deleted = i.deleted, unacked = i.unacked, octets = i.octets"
        " FROM mailbox i WHERE i.id = ? AND mailbox.id = ?",
        (own.id, to),
    )
    tx.db.execute(
        "UPDATE mailbox SET modseq = ?, messages = 0, recent = 0, unseen = 0, deleted = 0, unacked = 0, octets = 0"
        " WHERE id = ?",
        (modseq, own.id),
    )
    tx.topics.update((inbox, MailboxKey(inbox.owner, to)))


def _make_superiors(tx: Tx, owner: int, name: str) -> None:
    for superior in superiors(name):
        if _id(tx.db, owner, superior) is None:
            make(tx, owner, superior)


def _inferiors(db: sqlite3.Connection, owner: int, name: str) -> list[str]:
    sql = "SELECT name FROM mailbox WHERE owner = ? AND name > ? AND name < ?"
    return [found for (found,) in db.execute(sql, (owner, *below(name)))]


def _check_room(db: sqlite3.Connection, table: str, owner: int) -> None:
    (count,) = db.execute(f"SELECT count(*) FROM {table} WHERE owner = ?", (owner,)).fetchone()  # noqa: S608
    if count >= MOST:
        raise OverQuota(f"at most {MOST}")


def _id(db: sqlite3.Connection, owner: int, name: str) -> int | None:
    row = db.execute("SELECT id FROM mailbox WHERE owner = ? AND name = ?", (owner, name)).fetchone()
    return row[0] if row else None


def _owner(db: sqlite3.Connection, address: str) -> int:
    row = db.execute("SELECT id FROM agent WHERE address = ?", (address,)).fetchone()
    if row is None:
        raise NotFound(f"there is no agent {address}")
    return int(row[0])


# ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────────────

_LISTED = (
    "SELECT b.id, b.name, b.uidvalidity, b.special_use,"
    " EXISTS (SELECT 1 FROM subscription s WHERE s.owner = b.owner AND s.name = b.name),"
    " EXISTS (SELECT 1 FROM mailbox i WHERE i.owner = b.owner AND i.name > b.name || '/' AND i.name < b.name || '0')"
    " FROM agent a JOIN mailbox b ON b.owner = a.id WHERE a.address = ?"
)


def listed(db: sqlite3.Connection, owner: str) -> list[Mailbox]:
    return [_mailbox(owner, row) for row in db.execute(f"{_LISTED} ORDER BY b.name", (owner,))]


def named(db: sqlite3.Connection, owner: str, name: str) -> Mailbox | None:
    row = db.execute(f"{_LISTED} AND b.name = ?", (owner, canonical(name))).fetchone()
    return _mailbox(owner, row) if row else None


def _mailbox(owner: str, row: tuple[Any, ...]) -> Mailbox:
    number, name, uidvalidity, special_use, subscribed, has_children = row
    return Mailbox(MailboxKey(owner, number), name, uidvalidity, special_use, bool(subscribed), bool(has_children))


def set_subscribed(tx: Tx, owner: str, name: str, on: bool) -> None:
    number, name = _owner(tx.db, owner), canonical(name)
    if on:
        _check_room(tx.db, "subscription", number)
        tx.db.execute("INSERT OR IGNORE INTO subscription (owner, name) VALUES (?, ?)", (number, name))
    else:
        tx.db.execute("DELETE FROM subscription WHERE owner = ? AND name = ?", (number, name))


def subscribed(db: sqlite3.Connection, owner: str) -> list[str]:
    sql = "SELECT s.name FROM agent a JOIN subscription s ON s.owner = a.id WHERE a.address = ? ORDER BY s.name"
    return [name for (name,) in db.execute(sql, (owner,))]


def status(db: sqlite3.Connection, claims: Claims, keys: Sequence[MailboxKey]) -> dict[MailboxKey, Status]:
    found = {}
    for key in keys:
        row = db.execute(
            "SELECT b.owner, b.recent_from, b.messages, b.recent, b.uidnext, b.uidvalidity, b.unseen, b.deleted,"
            " b.octets, b.modseq FROM mailbox b JOIN agent a ON a.id = b.owner WHERE b.id = ? AND a.address = ?",
            (key.id, key.owner),
        ).fetchone()
        if row is None:
            continue
        owner, stored, *counts = row
        first = claims.first_recent(key.id, stored, counts[2], claim=False)
        if first > stored:
            (counts[1],) = db.execute(
                "SELECT count(*) FROM entry WHERE owner = ? AND mailbox = ? AND uid >= ?", (owner, key.id, first)
            ).fetchone()
        found[key] = Status(*counts)
    return found


def select(db: sqlite3.Connection, claims: Claims, key: MailboxKey, claim_recent: bool) -> Snapshot:
    own = box(db, key)
    mailbox = named(db, key.owner, own.name)
    assert mailbox is not None
    here = (own.owner, own.id)
    uids = numbers(db, "SELECT uid AS n FROM entry WHERE owner = ? AND mailbox = ?", here)
    unseen = db.execute(
        f"SELECT uid FROM entry WHERE owner = ? AND mailbox = ? AND flags & {flags.SEEN} = 0"  # noqa: S608
        " ORDER BY uid LIMIT 1",
        here,
    ).fetchone()
    first = claims.first_recent(own.id, own.recent_from, own.uidnext, claim_recent)
    names = (DONE, *flags.keywords(db, own.owner))
    return Snapshot(mailbox, uids, first, unseen[0] if unseen else None, own.uidnext, own.modseq, names)


def usage(db: sqlite3.Connection, owner: str) -> int:
    sql = "SELECT coalesce(sum(b.octets), 0) FROM agent a JOIN mailbox b ON b.owner = a.id WHERE a.address = ?"
    (octets,) = db.execute(sql, (owner,)).fetchone()
    return int(octets)
