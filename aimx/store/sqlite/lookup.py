"""Messages by what is known of them, and lineage: what a message answers and what came before it."""

import json
import sqlite3
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from aimx.store.contract import Ancestor, Lineage, Located, MessageFilter, MessageRecord, Past, SpanRef
from aimx.store.sqlite import flags
from aimx.store.sqlite.acceptance import FILED

_RECORD = (
    "SELECT m.eid, m.t_ms, m.sender, m.agent, m.recipients, m.delivered_to, m.message_id, m.in_reply_to, m.subject,"
    " m.content_type, m.workflow, m.priority, m.origin_trace, m.origin_span, m.received_trace, m.received_span,"
    " m.context_source, m.depth, m.header_size, m.body_size, m.erased FROM message m"
)


def one(db: sqlite3.Connection, eid: str) -> MessageRecord | None:
    row = db.execute(f"{_RECORD} WHERE m.eid = ?", (eid,)).fetchone()
    return _record(row) if row else None


def older(db: sqlite3.Connection, before_ms: int, after: str | None, limit: int) -> list[MessageRecord]:
    last = db.execute("SELECT id FROM message WHERE eid = ?", (after,)).fetchone() if after else None
    rows = db.execute(f"{_RECORD} WHERE m.id > ? ORDER BY m.id LIMIT ?", (last[0] if last else 0, limit))
    return list(takewhile(lambda record: record.t_ms < before_ms, map(_record, rows.fetchall())))


class _Set(NamedTuple):
    """Message numbers in the order of an index."""

    source: str
    """What follows FROM."""
    number: str

    def has(self, number: str) -> str:
        return f"EXISTS (SELECT 1 FROM {self.source} AND {self.number} = {number})"  # noqa: S608


_SETS = {
    "message_id": _Set("message WHERE message_id = :message_id", "id"),
    "workflow": _Set("message WHERE workflow = :workflow", "id"),
    "agent": _Set("party WHERE address = :agent", "message"),
    "viewer": _Set("party WHERE address = :viewer", "message"),
}
_ALL = _Set("message WHERE true", "id")
_OF_TRACE = _Set(
    "(SELECT id FROM message WHERE origin_trace = :trace_id UNION"
    " SELECT o.id FROM event v JOIN message o ON o.eid = v.ref WHERE v.trace_id = :trace_id) t WHERE true",
    "t.id",
)


def find(db: sqlite3.Connection, what: MessageFilter, limit: int, before: str | None) -> list[MessageRecord]:
    given = {name: value for name in (*_SETS, "trace_id") if (value := getattr(what, name)) is not None}
    sets = [_SETS[name] for name in _SETS if name in given]
    last = str(2**63 - 1) if before is None else "(SELECT id - 1 FROM message WHERE eid = :before)"
    if what.trace_id is not None:
        others = "".join(f" AND {known.has(_OF_TRACE.number)}" for known in sets)
        numbers = _down(_Set(_OF_TRACE.source + others, _OF_TRACE.number), last)
    elif len(sets) > 1:
        numbers = _common(sets, last)
    else:
        numbers = _down((*sets, _ALL)[0], last)
    sql = f"{_RECORD} WHERE m.id = ?"
    found = db.execute(f"{numbers} LIMIT :limit", {**given, "before": before, "limit": limit}).fetchall()
    return [_record(db.execute(sql, number).fetchone()) for number in found]


def _down(known: _Set, last: str) -> str:
    number = known.number
    return f"SELECT {number} FROM {known.source} AND {number} <= {last} ORDER BY {number} DESC"  # noqa: S608


def _common(sets: Sequence[_Set], last: str) -> str:
    """What all the sets have, newest first: each in turn names its newest number that is not above the one before.

    Where the last one names what the first did, all have it. So the smallest set bounds the steps, whichever it is.
    A recursive query gives its rows in the order of its steps, and makes no more of them than LIMIT asks for.
    `json_each` of one value stands for the LATERAL that SQLite has not.
    """
    seeks, at = "", "w.next"
    for n, (source, number) in enumerate(sets):
        seeks += f" CROSS JOIN json_each((SELECT json_array(max({number})) FROM {source} AND {number} <= {at})) s{n}"  # noqa: S608
        at = f"s{n}.value"
    return (
        f"WITH RECURSIVE walk (next, id) AS (SELECT {last}, NULL UNION ALL"  # noqa: S608
        f" SELECT {at} - (s0.value = {at}), CASE WHEN s0.value = {at} THEN {at} END FROM walk w{seeks}"
        f" WHERE {at} IS NOT NULL) SELECT id FROM walk WHERE id IS NOT NULL"
    )


def _record(row: tuple[Any, ...]) -> MessageRecord:
    eid, t_ms, sender, agent, recipients, delivered_to, message_id, in_reply_to, subject, content_type = row[:10]
    workflow, priority, trace, span, received_trace, received_span, source, depth, header_size, body_size = row[10:20]
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
        erased=bool(row[20]),
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
