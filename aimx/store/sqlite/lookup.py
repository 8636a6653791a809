"""Messages by what is known of them, and lineage: what a message answers and what came before it."""

import json
import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple

from aimx.store.contract import Ancestor, Lineage, Located, MessageFilter, MessageRecord, Past, SpanRef
from aimx.store.sqlite import flags
from aimx.store.sqlite.acceptance import FILED

_RECORD = (
    "SELECT m.eid, m.t_ms, m.sender, m.agent, m.recipients, m.delivered_to, m.message_id, m.in_reply_to, m.subject,"
    " m.content_type, m.workflow, m.priority, m.origin_trace, m.origin_span, m.received_trace, m.received_span,"
    " m.context_source, m.depth, m.header_size, m.body_size FROM message m"
)


def one(db: sqlite3.Connection, eid: str) -> MessageRecord | None:
    row = db.execute(f"{_RECORD} WHERE m.eid = ?", (eid,)).fetchone()
    return _record(row) if row else None


def find(db: sqlite3.Connection, what: MessageFilter, limit: int, before: str | None) -> list[MessageRecord]:
    """Each condition that is given is a set of message numbers that an index gives."""
    held = {
        "trace_id": "m.id IN (SELECT id FROM message WHERE origin_trace = :trace_id UNION"
        " SELECT o.id FROM event v JOIN message o ON o.eid = v.ref WHERE v.trace_id = :trace_id)",
        "workflow": "m.workflow = :workflow",
        "message_id": "m.message_id = :message_id",
        "agent": "EXISTS (SELECT 1 FROM party p WHERE p.address = :agent AND p.message = m.id)",
        "viewer": "EXISTS (SELECT 1 FROM party w WHERE w.address = :viewer AND w.message = m.id)",
    }
    given = {name: getattr(what, name) for name in held if getattr(what, name) is not None}
    source, conditions = _RECORD, [held[name] for name in given]
    if given and given.keys() <= {"agent", "viewer"}:
        # Nothing narrower: walk the address's own messages, newest first.
        lead = "agent" if "agent" in given else "viewer"
        source = _RECORD.replace("FROM message m", "FROM party l CROSS JOIN message m ON m.id = l.message")
        conditions = [f"l.address = :{lead}", *(held[name] for name in given if name != lead)]
        order = "l.message"
    else:
        order = "m.id"
    if before is not None:
        conditions.append(f"{order} < (SELECT id FROM message WHERE eid = :before)")  # noqa: S608
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    sql = f"{source}{where} ORDER BY {order} DESC LIMIT :limit"
    return [_record(row) for row in db.execute(sql, {**given, "before": before, "limit": limit})]


def _record(row: tuple[Any, ...]) -> MessageRecord:
    eid, t_ms, sender, agent, recipients, delivered_to, message_id, in_reply_to, subject, content_type = row[:10]
    workflow, priority, trace, span, received_trace, received_span, source, depth, header_size, body_size = row[10:]
    return MessageRecord(
        eid=eid,
        t_ms=t_ms,
        sender=sender,
        agent=agent,
        recipients=tuple(json.loads(recipients)),
        delivered_to=tuple(json.loads(delivered_to)),
        message_id=message_id,
        in_reply_to=in_reply_to,
        subject=subject,
        content_type=content_type,
        workflow=workflow,
        priority=priority,
        origin=SpanRef(trace, span),
        received=SpanRef(received_trace, received_span),
        context_source=source,
        depth=depth,
        header_size=header_size,
        body_size=body_size,
    )


def located(db: sqlite3.Connection, eid: str) -> list[Located]:
    found = db.execute(
        "SELECT a.id, a.address, b.name, e.uid, e.flags FROM message m CROSS JOIN entry e ON e.message = m.id"
        " CROSS JOIN mailbox b ON b.id = e.mailbox CROSS JOIN agent a ON a.id = e.owner WHERE m.eid = ?"
        " ORDER BY a.address, b.name, e.uid",
        (eid,),
    ).fetchall()
    return [
        Located(
            address,
            name,
            uid,
            flags.decode(bits, flags.keywords(db, owner) if flags.has_keywords(bits) else ()),
        )
        for owner, address, name, uid, bits in found
    ]


# ── lineage ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_ANCESTOR = (
    "SELECT m.eid, m.message_id, m.origin_trace, m.origin_span, m.trace_flags, m.tracestate, m.baggage, m.depth,"
    " m.workflow, m.loop_key FROM "
)
_SAME_ID = 64
"""How many of each end are looked at, where several messages bear one Message-ID: a flood of copies must cost nothing
and hide nothing, and what is answered came either before it or after it."""
_BEARERS = (
    f"SELECT id FROM (SELECT id FROM message WHERE message_id = ?2 ORDER BY id DESC LIMIT {_SAME_ID}) UNION"  # noqa: S608
    f" SELECT id FROM (SELECT id FROM message WHERE message_id = ?2 ORDER BY id LIMIT {_SAME_ID})"
)
# What a client filed by APPEND knows less of its conversation than what was sent or delivered: it comes last.
_BORNE = (
    f"SELECT message FROM party WHERE address = ?1 AND message IN ({_BEARERS})"  # noqa: S608
    f" ORDER BY role = {FILED}, message DESC LIMIT 1"
)
_NAMED = f"{_ANCESTOR} message m WHERE m.id = ({_BORNE})"
# The planner, left alone, walks all messages of the address: it cannot know how rare a trace is.
_NEWEST = "SELECT max(message) FROM party INDEXED BY party_trace WHERE address = ?1 AND trace = ?2 AND role = 3"
_PAST = (
    "SELECT * FROM (SELECT 0, sender, recipients, payload, template, depth, t_ms, message, n, first_ms, NULL FROM chain"
    " WHERE loop_key = ?3 AND message > ?4 ORDER BY message DESC LIMIT ?5)"
)
_TRACED_AND_PAST = _ANCESTOR.replace("SELECT", "SELECT 1,") + f"message m WHERE m.id = ({_NEWEST}) UNION ALL {_PAST}"
MAX_REFERENCES = 100
"""The newest so many of a References field are looked up. RFC 5322 §3.6.4 sets no limit; a sender could."""


def lineage(
    db: sqlite3.Connection,
    pasts: "Pasts",
    sender: str,
    in_reply_to: str | None,
    references: Sequence[str],
    trace_id: bytes | None,
    workflow: str | None,
    window: int,
) -> Lineage:
    replied = _ancestor(db, sender, in_reply_to) if in_reply_to else None
    referenced = None
    for reference in list(references)[: -MAX_REFERENCES - 1 : -1]:
        same = replied is not None and reference == in_reply_to
        referenced = replied if same else _ancestor(db, sender, reference)
        if referenced is not None:
            break
    answered = replied or referenced
    # Most messages name a trace and answer nothing: for these one statement finds both trace and past.
    key = workflow or (answered.loop_key if answered else None) or (trace_id.hex() if trace_id else None)
    traced, known = pasts.read(db, key or "", window, sender, trace_id)
    if traced is not None and traced.loop_key and not workflow and answered is None and traced.loop_key != key:
        key = traced.loop_key
        _, known = pasts.read(db, key, window, sender, None)
    return Lineage(replied, referenced, traced, key, known.past[:window], known.total, known.first_ms)


class _Known(NamedTuple):
    newest: int
    """Number of the newest message."""
    past: tuple[Past, ...]
    total: int
    first_ms: int | None


_NO_PAST = _Known(0, (), 0, None)


class Pasts:
    """The pasts of the workflows that are busy now. What was read stays true, so only newer messages are read.

    For one thread: the event loop's.
    """

    MOST = 512
    """Workflows kept; at the usual window of 128 that is at most some 30 MB."""
    WINDOW = 128

    def __init__(self) -> None:
        self._kept: dict[str, _Known] = {}

    def read(
        self, db: sqlite3.Connection, loop_key: str, window: int, sender: str, trace_id: bytes | None
    ) -> tuple[Ancestor | None, _Known]:
        """With the newest of the trace that `sender` was given; by one statement, for each gives way to the writer."""
        keep = window <= self.WINDOW
        known = self._kept.pop(loop_key, _NO_PAST) if keep else _NO_PAST
        found = db.execute(
            _PAST if trace_id is None else _TRACED_AND_PAST,
            (sender, trace_id, loop_key, known.newest, max(window, self.WINDOW)),
        ).fetchall()
        traced = _as_ancestor(found.pop(0)[1:]) if found and found[0][0] else None
        if found:
            newer = tuple(Past(row[1], tuple(json.loads(row[2])), *row[3:7]) for row in found)
            known = _Known(found[0][7], (newer + known.past)[: max(window, self.WINDOW)], *found[0][8:10])
        if keep and known.newest:
            self._kept[loop_key] = known  # last in, so that the first is the one unused longest
            if len(self._kept) > self.MOST:
                del self._kept[next(iter(self._kept))]
        return traced, known


def _ancestor(db: sqlite3.Connection, sender: str, message_id: str) -> Ancestor | None:
    row = db.execute(_NAMED, (sender, message_id)).fetchone()
    return None if row is None else _as_ancestor(row)


def _as_ancestor(row: tuple[Any, ...]) -> Ancestor:
    eid, message_id, trace, span, trace_flags, tracestate, baggage, depth, workflow, loop_key = row
    return Ancestor(eid, message_id, SpanRef(trace, span), trace_flags, tracestate, baggage, depth, workflow, loop_key)
