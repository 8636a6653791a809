"""Erasing a message, and the legal holds that forbid it."""

import json
from collections.abc import Sequence
from typing import Any

from aimx.store.contract import AlreadyExists, EventRow, Held, Hold, MailboxKey, NotFound
from aimx.store.postgres import entries
from aimx.store.postgres.connection import Db
from aimx.store.postgres.events import record
from aimx.store.postgres.text import storable
from aimx.store.postgres.writer import Tx

_ENTRIES = """
SELECT a.address, e.mailbox, e.uid FROM entry e JOIN agent a ON a.id = e.owner WHERE e.message = $1
ORDER BY e.mailbox, e.uid
"""
_MAILBOXES = """
SELECT id FROM mailbox WHERE id IN (SELECT mailbox FROM entry WHERE message = $1) ORDER BY id FOR NO KEY UPDATE
"""


async def erase(tx: Tx, eid: str, events: Sequence[EventRow]) -> int | None:
    """Returns the number of the large body that is now nobody's and has to be dropped, if there is one."""
    db = tx.db
    message = await db.fetchval("SELECT id FROM message WHERE eid = $1", storable(eid))
    if message is None:
        raise NotFound("there is no such message")
    # First, and it may have to wait: an attempt that is under way becomes an entry or finds nothing.
    await db.execute("DELETE FROM delivery WHERE message = $1", message)
    found = await _lock(db, message)
    row = await db.fetchrow(
        "SELECT erased, workflow, sender, agent, recipients, delivered_to FROM message WHERE id = $1 FOR UPDATE",
        message,
    )
    if row[0]:
        await record(tx, events)
        return None
    people = {row[2], row[3] or row[2], *json.loads(row[4]), *json.loads(row[5])}
    if held := await _hold_on(db, eid, row[1], people):
        raise Held(f"a legal hold on the {held.kind} {held.subject} forbids it: {held.reason}")
    for key, uids in found.items():
        await entries.remove(tx, key, uids)
    body = await _forget(db, message, people)
    await db.execute("UPDATE event SET key = NULL, detail = '{}' WHERE ref = $1", eid)
    await record(tx, events)
    return body


async def _lock(db: Db, message: int) -> dict[MailboxKey, list[int]]:
    """The UIDs of its entries, their mailboxes locked. A copy made meanwhile is looked for again."""
    locked: set[int] = set()
    while True:
        found: dict[MailboxKey, list[int]] = {}
        for address, mailbox, uid in await db.fetch(_ENTRIES, message):
            found.setdefault(MailboxKey(address, mailbox), []).append(uid)
        if {key.id for key in found} <= locked:
            return found
        locked |= {row[0] for row in await db.fetch(_MAILBOXES, message)}


async def _forget(db: Db, message: int, people: set[str]) -> int | None:
    addresses = [storable(person) for person in people]
    await db.execute("DELETE FROM party WHERE message = $1 AND address = ANY ($2::text[])", message, addresses)
    body: int | None = await db.fetchval("SELECT body FROM content WHERE message = $1", message)
    await db.execute("UPDATE content SET header = '', data = '', body = NULL WHERE message = $1", message)
    if body is not None:
        await db.execute("UPDATE body SET used = false WHERE id = $1", body)
    await db.execute(
        "UPDATE once o SET digest = '' FROM message m WHERE m.id = $1 AND o.agent = m.agent AND o.key = m.once_key",
        message,
    )
    # The loop guard goes on counting it, and compares it with nothing.
    await db.execute(
        "UPDATE chain c SET sender = '', recipients = '[]', payload = '', template = '' FROM message m"
        " WHERE m.id = $1 AND c.loop_key = m.loop_key AND c.message = m.id",
        message,
    )
    await db.execute(
        "UPDATE message SET erased = true, sender = '', agent = NULL, recipients = '[]', delivered_to = '[]',"
        " message_id = '', in_reply_to = NULL, subject = '', content_type = '', workflow = NULL, tracestate = '',"
        " baggage = '', loop_key = '', once_key = NULL WHERE id = $1",
        message,
    )
    return body


# ── legal hold ───────────────────────────────────────────────────────────────────────────────────────────────────────

_HOLD = "kind, subject, reason, by, t_ms"


async def _hold_on(db: Db, eid: str, workflow: str | None, people: set[str]) -> Hold | None:
    asked = [("message", eid), ("workflow", workflow or ""), *(("agent", address) for address in sorted(people))]
    kinds, subjects = zip(*[(kind, storable(subject)) for kind, subject in asked], strict=True)
    row: Sequence[Any] | None = await db.fetchrow(
        "SELECT h.kind, h.subject, h.reason, h.by, h.t_ms FROM unnest($1::text[], $2::text[]) g (kind, subject)"
        " JOIN hold h ON h.kind = g.kind AND h.subject = g.subject LIMIT 1",
        kinds,
        subjects,
    )
    return Hold(*row) if row else None


async def hold(tx: Tx, new: Hold, events: Sequence[EventRow]) -> None:
    done = await tx.db.execute(
        f"INSERT INTO hold ({_HOLD}) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",  # noqa: S608
        new.kind,
        storable(new.subject),
        storable(new.reason),
        storable(new.by),
        new.t_ms,
    )
    if done.endswith(" 0"):
        raise AlreadyExists(f"there is a hold on the {new.kind} {new.subject}")
    await record(tx, events)


async def release(tx: Tx, kind: str, subject: str, events: Sequence[EventRow]) -> None:
    done = await tx.db.execute("DELETE FROM hold WHERE kind = $1 AND subject = $2", kind, storable(subject))
    if done.endswith(" 0"):
        raise NotFound(f"there is no hold on the {kind} {subject}")
    await record(tx, events)


async def holds(db: Db) -> list[Hold]:
    return [Hold(*row) for row in await db.fetch(f"SELECT {_HOLD} FROM hold ORDER BY t_ms, kind, subject")]  # noqa: S608
