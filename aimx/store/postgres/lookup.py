"""Messages by what is known of them, and lineage: what a message answers and what came before it."""

import json
from collections.abc import Sequence
from typing import Any

from aimx.store.contract import Ancestor, Lineage, Located, MessageFilter, MessageRecord, Past, SpanRef
from aimx.store.flags import decode, has_keywords
from aimx.store.postgres import flags
from aimx.store.postgres.acceptance import FILED
from aimx.store.postgres.connection import Db
from aimx.store.postgres.text import storable, storable_or_none

_RECORD = (
    "m.eid, m.t_ms, m.sender, m.agent, m.recipients, m.delivered_to, m.message_id, m.in_reply_to, m.subject,"
    " m.content_type, m.workflow, m.priority, m.origin_trace, m.origin_span, m.received_trace, m.received_span,"
    " m.context_source, m.depth, m.header_size, m.body_size"
)


async def one(db: Db, eid: str) -> MessageRecord | None:
    row = await db.fetchrow(f"SELECT {_RECORD} FROM message m WHERE m.eid = $1", storable(eid))  # noqa: S608
    return _record(row) if row else None


# What leads gives message numbers from an index, newest first; what else is asked is looked up for each of them.
# Nothing here is a join or an EXISTS that a planner could turn round, and walk everything newer instead.
_LEADS = {
    "trace_id": "SELECT id FROM message WHERE origin_trace = {0} UNION"
    " SELECT o.id FROM event v JOIN message o ON o.eid = v.ref WHERE v.trace_id = {0}",
    "message_id": "SELECT id FROM message WHERE message_id = {0}",
    "workflow": "SELECT id FROM message WHERE workflow = {0}",
    "agent": "SELECT message AS id FROM party WHERE address = {0}",
    "viewer": "SELECT message AS id FROM party WHERE address = {0}",
}
_HOLDS = {
    "message_id": "m.message_id = {0}",
    "workflow": "m.workflow = {0}",
    "agent": "(SELECT true FROM party WHERE address = {0} AND message = m.id)",
    "viewer": "(SELECT true FROM party WHERE address = {0} AND message = m.id)",
}


async def find(db: Db, what: MessageFilter, limit: int, before: str | None) -> list[MessageRecord]:
    given = {name: value for name in _LEADS if (value := getattr(what, name)) is not None}
    values = [value if isinstance(value, bytes) else storable(value) for value in given.values()]
    slots = {name: f"${n}" for n, name in enumerate(given, 2)}
    order, bound = "id", ""
    if before is not None:
        values.append(storable(before))
        bound = f" < (SELECT id FROM message WHERE eid = ${len(values) + 1})"  # noqa: S608
    if slots:
        name, slot = next(iter(slots.items()))
        lead, order = _LEADS[name].format(slot), "message" if name in ("agent", "viewer") else "id"
    else:
        lead = "SELECT id FROM message WHERE true"
    if "UNION" in lead:
        lead = f"SELECT id FROM ({lead}) u WHERE true"  # noqa: S608
    if bound:
        lead += f" AND {order}{bound}"
    others = "".join(f" AND {_HOLDS[name].format(slot)}" for name, slot in list(slots.items())[1:])
    found = await db.fetch(
        f"SELECT {_RECORD} FROM ({lead} ORDER BY {order} DESC) k CROSS JOIN LATERAL"  # noqa: S608
        f" (SELECT * FROM message m WHERE m.id = k.id{others} OFFSET 0) m ORDER BY k.id DESC LIMIT $1",
        limit,
        *values,
    )
    return [_record(row) for row in found]


def _record(row: Sequence[Any]) -> MessageRecord:
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


async def located(db: Db, eid: str) -> list[Located]:
    found = await db.fetch(
        "SELECT a.id, a.address, b.name, e.uid, e.flags FROM message m JOIN entry e ON e.message = m.id"
        " JOIN mailbox b ON b.id = e.mailbox JOIN agent a ON a.id = e.owner WHERE m.eid = $1"
        " ORDER BY a.address, b.name, e.uid",
        storable(eid),
    )
    names = {owner: await flags.keywords(db, owner) for owner, *_, bits in found if has_keywords(bits)}
    return [
        Located(address, name, uid, decode(bits, names[owner] if has_keywords(bits) else ()))
        for owner, address, name, uid, bits in found
    ]


# ── lineage ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_ANCESTOR = (
    "m.eid, m.message_id, m.origin_trace, m.origin_span, m.trace_flags, m.tracestate, m.baggage, m.depth,"
    " m.workflow, m.loop_key"
)
_SAME_ID = 64
"""How many of each end are looked at, where several messages bear one Message-ID: a flood of copies must cost nothing
and hide nothing, and what is answered came either before it or after it."""
_BEARERS = (
    f"(SELECT id FROM message WHERE message_id = {{0}} ORDER BY id DESC LIMIT {_SAME_ID}) UNION"  # noqa: S608
    f" (SELECT id FROM message WHERE message_id = {{0}} ORDER BY id LIMIT {_SAME_ID})"
)
# What a client filed by APPEND knows less of its conversation than what was sent or delivered: it comes last.
_BORNE = (
    f"SELECT p.message FROM ({_BEARERS}) b CROSS JOIN LATERAL"  # noqa: S608
    " (SELECT message, role FROM party WHERE address = $1 AND message = b.id OFFSET 0) p"
    f" ORDER BY p.role = {FILED}, p.message DESC LIMIT 1"
)
_NAMED = f"SELECT {_ANCESTOR} FROM message m WHERE m.id = ({_BORNE.format('$2')})"  # noqa: S608
_REFERENCED = (
    f"SELECT {_ANCESTOR} FROM unnest($2::text[]) WITH ORDINALITY r (message_id, n)"  # noqa: S608
    f" CROSS JOIN LATERAL ({_BORNE.format('r.message_id')}) f JOIN message m ON m.id = f.message ORDER BY r.n LIMIT 1"
)
# The writers of a loop key, one step of the index for each, with their newest numbers.
_PAST = (
    "WITH RECURSIVE head (writer, n, first_ms) AS ("  # noqa: S608
    " (SELECT writer, n, first_ms FROM chain WHERE loop_key = $3 ORDER BY writer DESC, n DESC LIMIT 1) UNION ALL"
    " SELECT c.* FROM head h CROSS JOIN LATERAL (SELECT writer, n, first_ms FROM chain"
    "  WHERE loop_key = $3 AND writer < h.writer ORDER BY writer DESC, n DESC LIMIT 1) c)"
    f" SELECT h.*, p.*, {_ANCESTOR}"
    " FROM (SELECT sum(n)::bigint, min(first_ms) FROM head) h"
    " CROSS JOIN (SELECT array_agg(sender), array_agg(recipients), array_agg(payload), array_agg(template),"
    "  array_agg(depth), array_agg(t_ms) FROM (SELECT * FROM chain WHERE loop_key = $3"
    "  ORDER BY message DESC LIMIT $4) c) p"
    " LEFT JOIN message m ON m.id ="
    " (SELECT max(message) FROM party WHERE address = $1 AND trace = $2 AND role = 3)"
)
MAX_REFERENCES = 100
"""The newest so many of a References field are looked up. RFC 5322 §3.6.4 sets no limit; a sender could."""


async def lineage(
    db: Db,
    sender: str,
    in_reply_to: str | None,
    references: Sequence[str],
    trace_id: bytes | None,
    workflow: str | None,
    window: int,
) -> Lineage:
    in_reply_to, workflow = storable_or_none(in_reply_to), storable_or_none(workflow)
    newest_first = [storable(reference) for reference in references[: -MAX_REFERENCES - 1 : -1]]
    replied = referenced = None
    if in_reply_to:
        replied = _ancestor(await db.fetchrow(_NAMED, sender, in_reply_to))
    if replied is not None and newest_first[:1] == [in_reply_to]:
        referenced = replied
    elif newest_first:
        referenced = _ancestor(await db.fetchrow(_REFERENCED, sender, newest_first))
    answered = replied or referenced
    # Most messages name a trace and answer nothing: for these one statement finds both trace and past.
    key = workflow or (answered.loop_key if answered else None) or (trace_id.hex() if trace_id else None)
    found = await db.fetchrow(_PAST, sender, trace_id, key or "", window)
    traced = _ancestor(found[8:])
    if traced is not None and traced.loop_key and not workflow and answered is None and traced.loop_key != key:
        key = traced.loop_key
        found = await db.fetchrow(_PAST, sender, None, key, window)
    count, first_ms, *columns = found[:8]
    return Lineage(replied, referenced, traced, key, _past(columns), count or 0, first_ms)


def _past(columns: Sequence[Sequence[Any] | None]) -> tuple[Past, ...]:
    senders, recipients, *others = (column or () for column in columns)
    return tuple(map(Past, senders, (tuple(json.loads(each)) for each in recipients), *others))


def _ancestor(row: Sequence[Any] | None) -> Ancestor | None:
    if row is None or row[0] is None:
        return None
    eid, message_id, trace, span, trace_flags, tracestate, baggage, depth, workflow, loop_key = row
    return Ancestor(eid, message_id, SpanRef(trace, span), trace_flags, tracestate, baggage, depth, workflow, loop_key)
