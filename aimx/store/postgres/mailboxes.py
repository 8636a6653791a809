"""Mailboxes as names and counts: list, create, delete, rename, subscribe, STATUS, SELECT.

What changes an owner's names is done by one at a time: it holds the owner's lock (`_owner`), taken before any row.
"""

import time
from array import array
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
from aimx.store.flags import SEEN
from aimx.store.names import MOST, below, canonical, moved, superiors
from aimx.store.postgres.connection import Db
from aimx.store.postgres.events import record
from aimx.store.postgres.text import storable
from aimx.store.postgres.writer import Tx
from aimx.store.recent import Claims

NAMES = 7301
"""Of the advisory locks, the class whose keys are agents: who holds one may change that agent's mailbox names."""


class Box(NamedTuple):
    """A mailbox's row, as far as changes of its entries need it."""

    owner: int
    id: int
    uidvalidity: int
    uidnext: int
    modseq: int
    recent_from: int
    deleted: int
    quota: int | None
    """Its owner's."""


async def lock(db: Db, *keys: MailboxKey) -> list[Box]:
    """The rows, held until the commit. Several are locked in the order of their ids. Raises NotFound."""
    rows = await db.fetch(
        "SELECT b.owner, b.id, b.uidvalidity, b.uidnext, b.modseq, b.recent_from, b.deleted, a.quota, a.address"
        " FROM unnest($1::text[], $2::bigint[]) k (address, id) JOIN agent a ON a.address = k.address"
        " JOIN mailbox b ON b.id = k.id AND b.owner = a.id ORDER BY b.id FOR NO KEY UPDATE OF b",
        [key.owner for key in keys],
        [key.id for key in keys],
    )
    found = {MailboxKey(address, row[1]): Box(*row) for *row, address in rows}
    if not found.keys() >= set(keys):
        raise NotFound("there is no such mailbox (any more)")
    return [found[key] for key in keys]


async def save_claims(tx: Tx, claims: Claims) -> None:
    r"""Write down what sessions were told is \Recent. Nothing waits for the disk: it may be forgotten in a crash."""
    unsaved = sorted(claims.take_unsaved().items())
    if not unsaved:
        return
    ids, firsts = [mailbox for mailbox, _ in unsaved], [first for _, first in unsaved]
    await tx.db.execute("SELECT set_config('synchronous_commit', 'off', true)")
    await tx.db.execute("SELECT 1 FROM mailbox WHERE id = ANY($1::bigint[]) ORDER BY id FOR NO KEY UPDATE", ids)
    await tx.db.execute(
        "UPDATE mailbox b SET recent_from = k.first, recent = (SELECT count(*) FROM entry e"
        " WHERE e.owner = b.owner AND e.mailbox = b.id AND e.uid >= k.first)"
        " FROM unnest($1::bigint[], $2::bigint[]) k (id, first) WHERE b.id = k.id AND b.recent_from < k.first",
        ids,
        firsts,
    )


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def make(tx: Tx, owner: int, name: str, special_use: str | None = None) -> int:
    number: int = await tx.db.fetchval(
        "WITH given AS (UPDATE counter SET value = greatest(value + 1, $4) WHERE name = 'uidvalidity' RETURNING value)"
        " INSERT INTO mailbox (owner, name, special_use, uidvalidity) SELECT $1, $2, $3, value FROM given RETURNING id",
        owner,
        name,
        special_use,
        int(time.time()),
    )
    return number


async def create(tx: Tx, owner: str, name: str, special_use: str | None) -> None:
    number, name = await _owner(tx.db, owner), _name(name)
    if await _ids(tx.db, number, [name]):
        raise AlreadyExists("there is a mailbox of that name")
    await _check_room(tx.db, "mailbox", number)
    await _make_superiors(tx, number, name)
    await make(tx, number, name, special_use)


async def delete(tx: Tx, key: MailboxKey, witness: Callable[[list[str]], Sequence[EventRow]]) -> None:
    await _owner(tx.db, key.owner)
    (own,) = await lock(tx.db, key)
    gone = await tx.db.fetch(
        "WITH gone AS (DELETE FROM entry WHERE owner = $1 AND mailbox = $2 RETURNING uid, message),"
        " tombs AS (DELETE FROM vanished WHERE owner = $1 AND mailbox = $2),"
        " box AS (DELETE FROM mailbox WHERE owner = $1 AND id = $2)"
        " SELECT m.eid FROM gone g JOIN message m ON m.id = g.message ORDER BY g.uid",
        own.owner,
        own.id,
    )
    await record(tx, witness([eid for (eid,) in gone]))
    tx.topics.add(key)


async def rename(tx: Tx, owner: str, old: str, new: str) -> None:
    db, number = tx.db, await _owner(tx.db, owner)
    old, new = _name(old), _name(new)
    ids = await _ids(db, number, [old, new])
    if old not in ids:
        raise NotFound("there is no such mailbox")
    if new in ids:
        raise AlreadyExists("there is a mailbox of that name")
    if old == INBOX:
        await _check_room(db, "mailbox", number)
        await _empty_into(tx, MailboxKey(owner, ids[old]), number, new)
        return
    rows = await db.fetch(
        "SELECT name, id FROM mailbox WHERE owner = $1 AND (name = $2 OR name > $3 AND name < $4)"
        " ORDER BY id FOR UPDATE",
        number,
        old,
        *below(old),
    )
    going: dict[str, int] = dict(rows)
    pairs = moved(old, new, list(going))
    if await _ids(db, number, [name for _, name in pairs if name not in going]):
        raise AlreadyExists("there is a mailbox of that name")
    await db.executemany(
        "UPDATE mailbox SET name = $3 WHERE owner = $1 AND id = $2",
        [(number, going[now], then) for now, then in pairs],
    )
    await _make_superiors(tx, number, new)


async def _empty_into(tx: Tx, inbox: MailboxKey, owner: int, name: str) -> None:
    """INBOX's messages go, INBOX stays (RFC 3501 §6.3.5)."""
    (own,) = await lock(tx.db, inbox)
    await _make_superiors(tx, owner, name)
    to = await make(tx, owner, name)
    await tx.db.execute(
        "WITH gone AS (UPDATE entry SET mailbox = $3, modseq = 2 WHERE owner = $1 AND mailbox = $2 RETURNING uid)"
        " INSERT INTO vanished (owner, mailbox, modseq, uid) SELECT $1, $2, $4, uid FROM gone",
        owner,
        own.id,
        to,
        own.modseq + 1,
    )
    await tx.db.execute(
        "UPDATE mailbox b SET modseq = 2, uidnext = i.uidnext, messages = i.messages, recent = i.messages,"
        " unseen = i.unseen, deleted = i.deleted, unacked = i.unacked, octets = i.octets"
        " FROM mailbox i WHERE i.owner = $1 AND i.id = $2 AND b.owner = $1 AND b.id = $3",
        owner,
        own.id,
        to,
    )
    await tx.db.execute(
        "UPDATE mailbox SET modseq = $3, messages = 0, recent = 0, unseen = 0, deleted = 0, unacked = 0, octets = 0"
        " WHERE owner = $1 AND id = $2",
        owner,
        own.id,
        own.modseq + 1,
    )
    tx.topics.update((inbox, MailboxKey(inbox.owner, to)))


async def _make_superiors(tx: Tx, owner: int, name: str) -> None:
    above = superiors(name)
    there = await _ids(tx.db, owner, above) if above else {}
    for superior in above:
        if superior not in there:
            await make(tx, owner, superior)


async def _check_room(db: Db, table: str, owner: int) -> None:
    count = await db.fetchval(f"SELECT count(*) FROM {table} WHERE owner = $1", owner)  # noqa: S608
    if count >= MOST:
        raise OverQuota(f"at most {MOST}")


async def _ids(db: Db, owner: int, names: Sequence[str]) -> dict[str, int]:
    """Of those that there are."""
    rows = await db.fetch("SELECT name, id FROM mailbox WHERE owner = $1 AND name = ANY($2::text[])", owner, names)
    return dict(rows)


async def _owner(db: Db, address: str) -> int:
    """The agent's number, and its names for this transaction alone."""
    number: int | None = await db.fetchval(
        f"SELECT id FROM (SELECT id, pg_advisory_xact_lock({NAMES}, id::integer) FROM agent WHERE address = $1"  # noqa: S608
        " OFFSET 0) a",
        storable(address),
    )
    if number is None:
        raise NotFound(f"there is no agent {address}")
    return number


def _name(name: str) -> str:
    return storable(canonical(name))


# ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────────────

_LISTED = (
    "SELECT b.id, b.name, b.uidvalidity, b.special_use,"
    " EXISTS (SELECT 1 FROM subscription s WHERE s.owner = b.owner AND s.name = b.name),"
    " EXISTS (SELECT 1 FROM mailbox i WHERE i.owner = b.owner AND i.name > b.name || '/' AND i.name < b.name || '0')"
    " FROM agent a JOIN mailbox b ON b.owner = a.id WHERE a.address = $1"
)


async def listed(db: Db, owner: str) -> list[Mailbox]:
    return [_mailbox(owner, row) for row in await db.fetch(f"{_LISTED} ORDER BY b.name", storable(owner))]


async def named(db: Db, owner: str, name: str) -> Mailbox | None:
    row = await db.fetchrow(f"{_LISTED} AND b.name = $2", storable(owner), _name(name))
    return _mailbox(owner, row) if row else None


def _mailbox(owner: str, row: Sequence[Any]) -> Mailbox:
    number, name, uidvalidity, special_use, subscribed, has_children = row
    return Mailbox(MailboxKey(owner, number), name, uidvalidity, special_use, subscribed, has_children)


async def set_subscribed(tx: Tx, owner: str, name: str, on: bool) -> None:
    number, name = await _owner(tx.db, owner), _name(name)
    if on:
        await _check_room(tx.db, "subscription", number)
        await tx.db.execute(
            "INSERT INTO subscription (owner, name) VALUES ($1, $2) ON CONFLICT DO NOTHING", number, name
        )
    else:
        await tx.db.execute("DELETE FROM subscription WHERE owner = $1 AND name = $2", number, name)


async def subscribed(db: Db, owner: str) -> list[str]:
    sql = "SELECT s.name FROM agent a JOIN subscription s ON s.owner = a.id WHERE a.address = $1 ORDER BY s.name"
    return [name for (name,) in await db.fetch(sql, storable(owner))]


async def status(db: Db, claims: Claims, keys: Sequence[MailboxKey]) -> dict[MailboxKey, Status]:
    rows = await db.fetch(
        "SELECT k.address, b.id, b.messages, CASE WHEN k.first > b.recent_from THEN (SELECT count(*) FROM entry e"
        " WHERE e.owner = b.owner AND e.mailbox = b.id AND e.uid >= k.first) ELSE b.recent END,"
        " b.uidnext, b.uidvalidity, b.unseen, b.deleted, b.octets, b.modseq"
        " FROM unnest($1::text[], $2::bigint[], $3::bigint[]) k (address, id, first)"
        " JOIN agent a ON a.address = k.address JOIN mailbox b ON b.id = k.id AND b.owner = a.id",
        [key.owner for key in keys],
        [key.id for key in keys],
        [claims.first_recent(key.id, 0, 0, claim=False) for key in keys],
    )
    return {MailboxKey(address, mailbox): Status(*counts) for address, mailbox, *counts in rows}


_SELECT = _LISTED.replace(
    " FROM agent a",
    ", b.uidnext, b.modseq, b.recent_from,"  # noqa: S608
    " ARRAY(SELECT e.uid FROM entry e WHERE e.owner = b.owner AND e.mailbox = b.id ORDER BY e.uid),"
    " CASE WHEN b.unseen > 0 THEN (SELECT e.uid FROM entry e WHERE e.owner = b.owner AND e.mailbox = b.id"
    f" AND e.flags & {SEEN} = 0 ORDER BY e.uid LIMIT 1) END,"
    " ARRAY(SELECT k.name FROM keyword k WHERE k.owner = b.owner ORDER BY k.bit)"
    " FROM agent a",
)


async def select(db: Db, claims: Claims, key: MailboxKey, claim_recent: bool) -> Snapshot:
    row = await db.fetchrow(f"{_SELECT} AND b.id = $2", key.owner, key.id)
    if row is None:
        raise NotFound("there is no such mailbox (any more)")
    *listed, uidnext, modseq, recent_from, uids, first_unseen, names = row
    first = claims.first_recent(key.id, recent_from, uidnext, claim_recent)
    mailbox = _mailbox(key.owner, listed)
    return Snapshot(mailbox, array("I", uids), first, first_unseen, uidnext, modseq, (DONE, *names))


async def usage(db: Db, owner: str) -> int:
    sql = "SELECT coalesce(sum(b.octets), 0)::bigint FROM agent a JOIN mailbox b ON b.owner = a.id WHERE a.address = $1"
    octets: int = await db.fetchval(sql, storable(owner))
    return octets
