"""Erasing a message, and the legal holds that forbid it."""

import json
import sqlite3
from collections.abc import Sequence

from aimx.store.contract import AlreadyExists, EventRow, Held, Hold, MailboxKey, NotFound
from aimx.store.sqlite import entries
from aimx.store.sqlite.events import record
from aimx.store.sqlite.sets import as_json
from aimx.store.sqlite.writer import Tx


def erase(tx: Tx, eid: str, events: Sequence[EventRow]) -> int | None:
    """Returns the number of the large body that is now nobody's and has to be dropped, if there is one."""
    db = tx.db
    row = db.execute("SELECT id, erased FROM message WHERE eid = ?", (eid,)).fetchone()
    if row is None:
        raise NotFound("there is no such message")
    message, erased = row
    if erased:
        record(tx, events)
        return None
    people = _people(db, message)
    if held := _hold_on(db, message, eid, people):
        raise Held(f"a legal hold on the {held.kind} {held.subject} forbids it: {held.reason}")
    _vanish(tx, message)
    db.executemany("DELETE FROM party WHERE address = ? AND message = ?", [(person, message) for person in people])
    body = _forget_content(db, message)
    db.execute("DELETE FROM delivery WHERE message = ?", (message,))
    db.execute("UPDATE event SET key = NULL, detail = '{}' WHERE ref = ?", (eid,))
    record(tx, events)
    return body


def _people(db: sqlite3.Connection, message: int) -> set[str]:
    """Who sent or received it, also by another name: all that `party` has, and the envelope's own."""
    sender, agent, recipients, delivered_to = db.execute(
        "SELECT sender, agent, recipients, delivered_to FROM message WHERE id = ?", (message,)
    ).fetchone()
    return {sender, agent or sender, *json.loads(recipients), *json.loads(delivered_to)}


def _vanish(tx: Tx, message: int) -> None:
    found = tx.db.execute(
        "SELECT a.address, e.mailbox, json_group_array(e.uid) FROM entry e CROSS JOIN agent a ON a.id = e.owner"
        " WHERE e.message = ? GROUP BY e.owner, e.mailbox",
        (message,),
    ).fetchall()
    for address, mailbox, uids in found:
        entries.remove(tx, MailboxKey(address, mailbox), json.loads(uids))


def _forget_content(db: sqlite3.Connection, message: int) -> int | None:
    row = db.execute("SELECT body FROM content WHERE message = ?", (message,)).fetchone()
    body: int | None = row[0] if row else None
    db.execute("UPDATE content SET header = x'', data = x'', body = NULL WHERE message = ?", (message,))
    db.execute("UPDATE body SET message = NULL WHERE id = ?", (body,))
    db.execute(
        "UPDATE once SET digest = x'' WHERE (agent, key) = (SELECT agent, once_key FROM message WHERE id = ?)",
        (message,),
    )
    # The loop guard goes on counting it, and compares it with nothing.
    db.execute(
        "UPDATE chain SET sender = '', recipients = '[]', payload = x'', template = x''"
        " WHERE loop_key = (SELECT loop_key FROM message WHERE id = ?1) AND message = ?1",
        (message,),
    )
    db.execute(
        "UPDATE message SET erased = 1, sender = '', agent = NULL, recipients = '[]', delivered_to = '[]',"
        " message_id = '', in_reply_to = NULL, subject = '', content_type = '', workflow = NULL, tracestate = '',"
        " baggage = '', loop_key = '', once_key = NULL WHERE id = ?",
        (message,),
    )
    return body


# ── legal hold ───────────────────────────────────────────────────────────────────────────────────────────────────────

_HOLD = "kind, subject, reason, by, t_ms"


def _hold_on(db: sqlite3.Connection, message: int, eid: str, people: set[str]) -> Hold | None:
    (workflow,) = db.execute("SELECT workflow FROM message WHERE id = ?", (message,)).fetchone()
    asked = [("message", eid), ("workflow", workflow or ""), *(("agent", address) for address in sorted(people))]
    row = db.execute(
        f"SELECT {_HOLD} FROM json_each(?) j CROSS JOIN hold"  # noqa: S608
        " ON kind = j.value ->> 0 AND subject = j.value ->> 1 LIMIT 1",
        (as_json(asked),),
    ).fetchone()
    return Hold(*row) if row else None


def hold(tx: Tx, new: Hold, events: Sequence[EventRow]) -> None:
    done = tx.db.execute(
        f"INSERT INTO hold ({_HOLD}) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",  # noqa: S608
        (new.kind, new.subject, new.reason, new.by, new.t_ms),
    )
    if not done.rowcount:
        raise AlreadyExists(f"there is a hold on the {new.kind} {new.subject}")
    record(tx, events)


def release(tx: Tx, kind: str, subject: str, events: Sequence[EventRow]) -> None:
    if not tx.db.execute("DELETE FROM hold WHERE kind = ? AND subject = ?", (kind, subject)).rowcount:
        raise NotFound(f"there is no hold on the {kind} {subject}")
    record(tx, events)


def holds(db: sqlite3.Connection) -> list[Hold]:
    return [Hold(*row) for row in db.execute(f"SELECT {_HOLD} FROM hold ORDER BY t_ms, kind, subject")]  # noqa: S608
