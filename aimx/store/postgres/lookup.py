"""Messages by what is known of them, and lineage: what a message answers and what came before it."""

import json
import time
from collections.abc import Sequence
from itertools import takewhile
from operator import itemgetter
from typing import Any, NamedTuple

from aimx.store.contract import Ancestor, Lineage, Located, MessageFilter, MessageRecord, Past, SpanRef
from aimx.store.flags import decode, has_keywords
from aimx.store.postgres import flags
from aimx.store.postgres.acceptance import FILED
from aimx.store.postgres.connection import Db
from aimx.store.postgres.text import storable, storable_or_none

_RECORD = (
    "m.eid, m.t_ms, m.sender, m.agent, m.recipients, m.delivered_to, m.message_id, m.in_reply_to, m.subject,"
    " m.content_type, m.workflow, m.priority, m.origin_trace, m.origin_span, m.received_trace, m.received_span,"
    " m.context_source, m.depth, m.header_size, m.body_size, m.erased"
)


async def one(db: Db, eid: str) -> MessageRecord | None:
    row = await db.fetchrow(f"SELECT {_RECORD} FROM message m WHERE m.eid = $1", storable(eid))  # noqa: S608
    return _record(row) if row else None


async def older(db: Db, before_ms: int, after: str | None, limit: int) -> list[MessageRecord]:
    rows = await db.fetch(
        f"SELECT {_RECORD} FROM message m"  # noqa: S608
        " WHERE m.id > coalesce((SELECT id FROM message WHERE eid = $1), 0) ORDER BY m.id LIMIT $2",
        storable_or_none(after),
        limit,
    )
    return list(takewhile(lambda record: record.t_ms < before_ms, map(_record, rows)))


class _Set(NamedTuple):
    """Message numbers in the order of an index."""

    source: str
    """What follows FROM; `{}` is the value."""
    number: str

    def given(self, value: str) -> "_Set":
        return _Set(self.source.format(value), self.number)

    def down_from(self, last: str) -> str:
        return f"SELECT {self.number} AS id FROM {self.source} AND {self.number} <= {last} ORDER BY {self.number} DESC"  # noqa: S608

    def has(self, number: str) -> str:
        """No EXISTS, for that may be planned the other way round: walking this set first."""
        return f"(SELECT true FROM {self.source} AND {self.number} = {number})"  # noqa: S608


_SETS = {
    "message_id": _Set("message i WHERE i.message_id = {}", "i.id"),
    "workflow": _Set("message w WHERE w.workflow = {}", "w.id"),
    "agent": _Set("party p WHERE p.address = {}", "p.message"),
    "viewer": _Set("party v WHERE v.address = {}", "v.message"),
}
_ALL = _Set("message m WHERE true", "m.id")
_COUNTED = 5_000
"""How far sets are counted to see which is the smallest: what is larger is large."""
_OF_TRACE = _Set(
    "(SELECT id FROM message WHERE origin_trace = {0} UNION"
    " SELECT o.id FROM event v JOIN message o ON o.eid = v.ref WHERE v.trace_id = {0}) t WHERE true",
    "t.id",
)


async def find(db: Db, what: MessageFilter, limit: int, before: str | None) -> list[MessageRecord]:
    values: list[Any] = [limit]

    def slot(value: str | bytes) -> str:
        values.append(storable(value) if isinstance(value, str) else value)
        return f"${len(values)}"

    last = str(2**63 - 1)
    if before is not None:
        last = f"(SELECT id - 1 FROM message WHERE eid = {slot(before)})"  # noqa: S608
    sets = [known.given(slot(value)) for name, known in _SETS.items() if (value := getattr(what, name)) is not None]
    if what.trace_id is None:
        lead, *others = await _smallest_first(db, sets or [_ALL], values, last)
    else:
        lead, others = _OF_TRACE.given(slot(what.trace_id)), sets
    conditions = "".join(f" AND {other.has(lead.number)}" for other in others)
    numbers = _Set(lead.source + conditions, lead.number).down_from(last)
    found = await db.fetch(
        f"SELECT {_RECORD} FROM ({numbers}) k CROSS JOIN LATERAL"  # noqa: S608
        " (SELECT * FROM message WHERE id = k.id OFFSET 0) m ORDER BY k.id DESC LIMIT $1",
        *values,
    )
    return [_record(row) for row in found]


async def _smallest_first(db: Db, sets: list[_Set], values: list[Any], last: str) -> list[_Set]:
    """A walk through the smallest of them, asking the others for each number, is the shortest there is."""
    if len(sets) < 2:
        return sets
    sizes = ", ".join(
        f"(SELECT count(*) FROM (SELECT 1 FROM {known.source} AND {known.number} <= {last} LIMIT {_COUNTED}) x)"  # noqa: S608
        for known in sets
    )
    counted = await db.fetchrow(f"SELECT {sizes} WHERE $1::bigint IS NOT NULL", *values)
    return [known for _, known in sorted(zip(counted, sets, strict=True), key=itemgetter(0))]


def _record(row: Sequence[Any]) -> MessageRecord:
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
        erased=row[20],
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
# The writers of a loop key, one step of the index for each, with their newest numbers; and what each has written since
# the number ($5, $6) up to which it is known. A writer's numbers become visible in their order, unlike message numbers.
_PAST = (
    "WITH RECURSIVE head (writer, n, first_ms) AS ("  # noqa: S608
    " (SELECT writer, n, first_ms FROM chain WHERE loop_key = $3 ORDER BY writer DESC, n DESC LIMIT 1) UNION ALL"
    " SELECT c.* FROM head h CROSS JOIN LATERAL (SELECT writer, n, first_ms FROM chain"
    "  WHERE loop_key = $3 AND writer < h.writer ORDER BY writer DESC, n DESC LIMIT 1) c)"
    f" SELECT h.*, p.*, {_ANCESTOR}"
    " FROM (SELECT array_agg(writer), array_agg(n), min(first_ms) FROM head) h"
    " CROSS JOIN (SELECT array_agg(message), array_agg(sender), array_agg(recipients), array_agg(payload),"
    "  array_agg(template), array_agg(depth), array_agg(t_ms) FROM (SELECT c.* FROM head h"
    "  LEFT JOIN unnest($5::integer[], $6::bigint[]) k (writer, n) ON k.writer = h.writer"
    "  CROSS JOIN LATERAL (SELECT * FROM chain WHERE loop_key = $3 AND writer = h.writer AND n > coalesce(k.n, 0)"
    "   ORDER BY n DESC LIMIT $4) c) c) p"
    " LEFT JOIN message m ON m.id ="
    " (SELECT max(message) FROM party WHERE address = $1 AND trace = $2 AND role = 3)"
)
MAX_REFERENCES = 100
"""The newest so many of a References field are looked up. RFC 5322 §3.6.4 sets no limit; a sender could."""


async def lineage(
    db: Db,
    pasts: "Pasts",
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
    traced, known = await pasts.read(db, key or "", window, sender, trace_id)
    if traced is not None and traced.loop_key and not workflow and answered is None and traced.loop_key != key:
        key = traced.loop_key
        _, known = await pasts.read(db, key, window, sender, None)
    past = tuple(past for _, past in known.past[:window])
    return Lineage(replied, referenced, traced, key, past, sum(known.heads.values()), known.first_ms)


class _Known(NamedTuple):
    heads: dict[int, int]
    """Newest number of each writer."""
    past: tuple[tuple[int, Past], ...]
    """By number of the message, newest first."""
    first_ms: int | None
    until_s: float
    """On the monotonic clock: when it is read anew."""


class Pasts:
    """The pasts of the workflows that are busy now. What was read stays true, so only newer messages are read.

    But for erasure, which another process may have done: so nothing is kept for long.
    """

    MOST = 512
    """Workflows kept; at the usual window of 128 that is at most some 30 MB."""
    WINDOW = 128
    KEPT_S = 60.0

    def __init__(self) -> None:
        self._kept: dict[str, _Known] = {}

    async def read(
        self, db: Db, loop_key: str, window: int, sender: str, trace_id: bytes | None
    ) -> tuple[Ancestor | None, _Known]:
        """With the newest of the trace that `sender` was given, by one statement."""
        now_s = time.monotonic()
        before = self._kept.get(loop_key) if window <= self.WINDOW else None
        if before is None or before.until_s < now_s:
            before = _Known({}, (), None, now_s + self.KEPT_S)
        most = max(window, self.WINDOW)
        heads = before.heads
        row = await db.fetchrow(_PAST, sender, trace_id, loop_key, most, list(heads), list(heads.values()))
        writers, numbers, first_ms, *columns = row[:10]
        past = sorted(_newer(columns) + before.past, key=itemgetter(0), reverse=True)[:most]
        known = _Known(dict(zip(writers or (), numbers or (), strict=True)), tuple(past), first_ms, before.until_s)
        if window <= self.WINDOW and known.heads:
            self._keep(loop_key, known)
        return _ancestor(row[10:]), known

    def _keep(self, loop_key: str, known: _Known) -> None:
        """Unless somebody who asked at the same time has seen more."""
        there = self._kept.pop(loop_key, known)
        self._kept[loop_key] = known if sum(there.heads.values()) <= sum(known.heads.values()) else there
        if len(self._kept) > self.MOST:
            del self._kept[next(iter(self._kept))]  # the one unused longest


def _newer(columns: Sequence[Sequence[Any] | None]) -> tuple[tuple[int, Past], ...]:
    messages, senders, recipients, *others = (column or () for column in columns)
    return tuple(zip(messages, map(Past, senders, (tuple(json.loads(r)) for r in recipients), *others), strict=True))


def _ancestor(row: Sequence[Any] | None) -> Ancestor | None:
    if row is None or row[0] is None:
        return None
    eid, message_id, trace, span, trace_flags, tracestate, baggage, depth, workflow, loop_key = row
    return Ancestor(eid, message_id, SpanRef(trace, span), trace_flags, tracestate, baggage, depth, workflow, loop_key)
