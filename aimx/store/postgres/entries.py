"""What lies in mailboxes: FETCH, STORE, EXPUNGE, COPY, MOVE, and what changed since a MODSEQ. All set-based.

Who changes entries holds their mailbox's row. Statements are shaped so that no planner, whatever its statistics, can
walk a whole mailbox for a few UIDs: ranges lead through a LATERAL that nothing is moved out of (OFFSET 0), rows are
changed by an upsert on the key, deleted range by range.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any

from aimx.store.contract import (
    Changes,
    Copied,
    EventRow,
    Expunged,
    Flagged,
    FlagMode,
    MailboxKey,
    Marked,
    NotFound,
    OverQuota,
    Row,
    SpanRef,
)
from aimx.store.flags import ACKED, DELETED, SEEN, decode, has_keywords
from aimx.store.postgres import content, flags
from aimx.store.postgres.connection import Db
from aimx.store.postgres.events import record
from aimx.store.postgres.mailboxes import Box, lock
from aimx.store.postgres.writer import Tx
from aimx.store.recent import Claims
from aimx.store.search import Ranges

_WITHIN = (
    "unnest($3::bigint[], $4::bigint[]) r (low, high) CROSS JOIN LATERAL (SELECT * FROM entry"
    " WHERE owner = {owner} AND mailbox = {mailbox} AND uid BETWEEN r.low AND r.high ORDER BY uid OFFSET 0) e"
    " JOIN message m ON m.id = e.message"
)
_IN_RANGES = _WITHIN.format(owner="$1", mailbox="$2")


def _bounds(uids: Ranges) -> tuple[list[int], list[int]]:
    return [low for low, _ in uids], [high for _, high in uids]


async def _decoder(db: Db, owner: str, sets: Sequence[int]) -> Callable[[int], frozenset[str]]:
    """For these bit sets. Keywords are asked for only where there are any."""
    if not any(map(has_keywords, sets)):
        return decode
    number = await db.fetchval("SELECT id FROM agent WHERE address = $1", owner)
    names = await flags.keywords(db, number)
    return lambda bits: decode(bits, names) if has_keywords(bits) else decode(bits)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_ROW = (
    "SELECT e.uid, m.eid, e.flags, e.modseq, e.internal_ms, e.saved_ms, m.header_size, m.body_size, m.t_ms,"
    " m.origin_trace, m.origin_span"
)
_HERE = " FROM agent a JOIN mailbox b ON b.owner = a.id CROSS JOIN " + _WITHIN.format(owner="b.owner", mailbox="b.id")
_OCTETS = " LEFT JOIN content c ON c.message = m.id"
_ASKED = " WHERE a.address = $1 AND b.id = $2"
_SMALL_ENOUGH = ", CASE WHEN m.body_size <= $5 THEN c.data END, CASE WHEN m.body_size <= $5 THEN c.body END"
_FETCH = {
    (False, False): f"{_ROW}, NULL, NULL, NULL{_HERE}{_ASKED}",
    (True, False): f"{_ROW}, c.header, NULL, NULL{_HERE}{_OCTETS}{_ASKED}",
    (False, True): f"{_ROW}, NULL{_SMALL_ENOUGH}{_HERE}{_OCTETS}{_ASKED}",
    (True, True): f"{_ROW}, c.header{_SMALL_ENOUGH}{_HERE}{_OCTETS}{_ASKED}",
}


async def fetch(db: Db, key: MailboxKey, uids: Ranges, header: bool, body: int) -> list[Row]:
    limit = (body,) if body else ()
    found = await db.fetch(_FETCH[header, bool(body)], key.owner, key.id, *_bounds(uids), *limit)
    if not found:
        await _check(db, key)
        return []
    found.sort(key=itemgetter(0))
    large = await content.whole(db, [row[13] for row in found if row[13] is not None]) if body else {}
    named = await _decoder(db, key.owner, [row[2] for row in found])
    return [
        Row(
            uid,
            eid,
            named(bits),
            modseq,
            internal_ms,
            saved_ms,
            header_size,
            body_size,
            t_ms,
            SpanRef(trace, span),
            block,
            large.get(parts) if data is None else data,
        )
        for (
            uid,
            eid,
            bits,
            modseq,
            internal_ms,
            saved_ms,
            header_size,
            body_size,
            t_ms,
            trace,
            span,
            block,
            data,
            parts,
        ) in found
    ]


async def _check(db: Db, key: MailboxKey) -> None:
    """Raises NotFound."""
    sql = "SELECT 1 FROM mailbox b JOIN agent a ON a.id = b.owner WHERE b.id = $1 AND a.address = $2"
    if await db.fetchval(sql, key.id, key.owner) is None:
        raise NotFound("there is no such mailbox (any more)")


_CHANGES = (
    "SELECT b.uidnext, b.modseq, b.recent_from, e.uids, e.flags, e.modseqs, v.uids"
    " FROM agent a JOIN mailbox b ON b.owner = a.id"
    " CROSS JOIN LATERAL (SELECT array_agg(uid) AS uids, array_agg(flags) AS flags, array_agg(modseq) AS modseqs"
    "  FROM (SELECT uid, flags, modseq FROM entry"
    "   WHERE owner = b.owner AND mailbox = b.id AND modseq > $3 ORDER BY modseq OFFSET 0) x) e"
    " CROSS JOIN LATERAL (SELECT array_agg(uid) AS uids FROM vanished"
    "  WHERE owner = b.owner AND mailbox = b.id AND modseq > $3) v"
    " WHERE a.address = $1 AND b.id = $2"
)


async def changes(db: Db, claims: Claims, key: MailboxKey, since_modseq: int, claim_recent: bool) -> Changes:
    row = await db.fetchrow(_CHANGES, key.owner, key.id, since_modseq)
    if row is None:
        return Changes(since_modseq, 0, [], [], 0, gone=True)
    uidnext, modseq, recent_from, uids, sets, modseqs, vanished = row
    marked: list[Marked] = []
    if uids:
        named = await _decoder(db, key.owner, sets)
        marked = [Marked(uid, named(bits), at) for uid, bits, at in sorted(zip(uids, sets, modseqs, strict=True))]
    first = claims.first_recent(key.id, recent_from, uidnext, claim_recent)
    return Changes(modseq, uidnext, marked, sorted(vanished or ()), first)


# ── changing ─────────────────────────────────────────────────────────────────────────────────────────────────────────

# An upsert, for it finds each row by its key: an UPDATE joined to `found` may be planned the other way round.
_MARK = (
    f"WITH found AS MATERIALIZED (SELECT e.*, %s AS new, m.eid, m.origin_trace, m.origin_span FROM {_IN_RANGES}),"  # noqa: S608
    " changed AS (INSERT INTO entry AS x (owner, mailbox, uid, message, flags, modseq, internal_ms, saved_ms, size)"
    "  SELECT owner, mailbox, uid, message, new, $6, internal_ms, saved_ms, size FROM found WHERE new <> flags"
    "  ON CONFLICT (owner, mailbox, uid) DO UPDATE SET flags = excluded.flags, modseq = excluded.modseq),"
    " counted AS (UPDATE mailbox b SET modseq = $6, unseen = b.unseen + s.unseen, deleted = b.deleted + s.deleted,"
    "  unacked = b.unacked + s.unacked FROM (SELECT count(*) AS n,"
    f"  sum((new & {SEEN} = 0)::int - (flags & {SEEN} = 0)::int) AS unseen,"
    f"  sum((new & {DELETED} <> 0)::int - (flags & {DELETED} <> 0)::int) AS deleted,"
    f"  sum((new & {ACKED} = 0)::int - (flags & {ACKED} = 0)::int) AS unacked FROM found WHERE new <> flags) s"
    "  WHERE b.owner = $1 AND b.id = $2 AND s.n > 0)"
    " SELECT uid, flags, new, modseq, eid, origin_trace, origin_span FROM found ORDER BY uid"
)
_MARKS: dict[FlagMode, str] = {
    "add": _MARK % "e.flags | $5::bigint",
    "remove": _MARK % "e.flags & ~$5::bigint",
    "replace": _MARK % "$5::bigint",
}


async def mark(
    tx: Tx,
    key: MailboxKey,
    uids: Ranges,
    mode: FlagMode,
    names: frozenset[str],
    witness: Callable[[Flagged], Sequence[EventRow]],
) -> Flagged:
    (own,) = await lock(tx.db, key)
    ask = flags.known if mode == "remove" else flags.allot
    asked, modseq = await ask(tx.db, own.owner, names), own.modseq + 1
    found = await tx.db.fetch(_MARKS[mode], own.owner, own.id, *_bounds(uids), asked, modseq)
    named = await _decoder(tx.db, key.owner, [row[2] for row in found])
    result = Flagged([], [], [], [])
    for uid, old, new, stamp, eid, trace, span in found:
        if new == old:
            result.marked.append(Marked(uid, named(old), stamp))
            continue
        result.marked.append(Marked(uid, named(new), modseq))
        result.changed.append(uid)
        result.eids.append(eid)
        result.origins.append(SpanRef(trace, span))
    if result.changed:
        tx.topics.add(key)
    await record(tx, witness(result))
    return result


_COUNTS = (
    " messages = b.messages {0} s.n, recent = b.recent {0} s.recent, unseen = b.unseen {0} s.unseen,"  # noqa: S608
    " deleted = b.deleted {0} s.deleted, unacked = b.unacked {0} s.unacked, octets = b.octets {0} s.octets"
    " FROM (SELECT count(*) AS n, count(*) FILTER (WHERE {1}) AS recent,"
    f" count(*) FILTER (WHERE flags & {SEEN} = 0) AS unseen, count(*) FILTER (WHERE flags & {DELETED} <> 0) AS deleted,"
    f" count(*) FILTER (WHERE flags & {ACKED} = 0) AS unacked, sum(size) AS octets FROM {{2}}) s"
)
_GONE = "RETURNING uid, message, flags, size"
_EXPUNGE = f"DELETE FROM entry WHERE owner = $1 AND mailbox = $2 AND flags & {DELETED} <> 0"  # noqa: S608
_EXPUNGE_ALL = f"{_EXPUNGE} {_GONE}"
_EXPUNGE_RANGE = f"{_EXPUNGE} AND uid BETWEEN $3 AND $4 {_GONE}"
_REMOVE_RANGE = f"DELETE FROM entry WHERE owner = $1 AND mailbox = $2 AND uid BETWEEN $3 AND $4 {_GONE}"  # noqa: S608
_BURY = (
    "WITH gone AS MATERIALIZED (SELECT * FROM"  # noqa: S608
    "  unnest($3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[]) g (uid, message, flags, size)),"
    " tombs AS (INSERT INTO vanished (owner, mailbox, modseq, uid) SELECT $1, $2, $7, uid FROM gone),"
    f" counted AS (UPDATE mailbox b SET modseq = $7,{_COUNTS.format('-', 'uid >= $8', 'gone')}"
    "  WHERE b.owner = $1 AND b.id = $2)"
    " SELECT g.uid, m.eid FROM gone g JOIN message m ON m.id = g.message ORDER BY g.uid"
)


async def expunge(
    tx: Tx, key: MailboxKey, uids: Ranges | None, witness: Callable[[Expunged], Sequence[EventRow]]
) -> Expunged:
    (own,) = await lock(tx.db, key)
    gone: Sequence[Any] = ()
    if own.deleted:
        if uids is None:
            gone = await tx.db.fetch(_EXPUNGE_ALL, own.owner, own.id)
        else:
            gone = await _each(tx.db, _EXPUNGE_RANGE, own, uids)
    result = Expunged([], [], own.modseq)
    if gone:
        buried = await _bury(tx, key, own, gone, own.modseq + 1)
        result = Expunged([uid for uid, _ in buried], [eid for _, eid in buried], own.modseq + 1)
    await record(tx, witness(result))
    return result


async def remove(tx: Tx, key: MailboxKey, uids: Sequence[int]) -> None:
    """Whatever their flags (erasure)."""
    (own,) = await lock(tx.db, key)
    gone = await _each(tx.db, _REMOVE_RANGE, own, [(uid, uid) for uid in uids])
    await _bury(tx, key, own, gone, own.modseq + 1)


async def _each(db: Db, sql: str, own: Box, uids: Iterable[tuple[int, int]]) -> Sequence[Any]:
    found: Sequence[Any] = await db.fetchmany(sql, [(own.owner, own.id, low, high) for low, high in uids])
    return found


async def _bury(tx: Tx, key: MailboxKey, own: Box, gone: Sequence[Any], modseq: int) -> Sequence[Any]:
    """Deleted entries become tombstones, the counts follow. Returns (UID, eid) by UID."""
    tx.topics.add(key)
    columns = [[row[n] for row in gone] for n in range(4)]
    buried: Sequence[Any] = await tx.db.fetch(_BURY, own.owner, own.id, *columns, modseq, own.recent_from)
    return buried


async def copy(
    tx: Tx, key: MailboxKey, uids: Ranges, to: MailboxKey, witness: Callable[[Copied], Sequence[EventRow]]
) -> Copied:
    return await _copy(tx, key, uids, to, witness, keep=True)


async def move(
    tx: Tx, key: MailboxKey, uids: Ranges, to: MailboxKey, witness: Callable[[Copied], Sequence[EventRow]]
) -> Copied:
    return await _copy(tx, key, uids, to, witness, keep=False)


_COPY = (
    "WITH found AS MATERIALIZED (SELECT e.*, m.eid, $6::bigint - 1 + row_number() OVER (ORDER BY e.uid) AS new"  # noqa: S608
    f"  FROM {_IN_RANGES}),"
    " placed AS (INSERT INTO entry (owner, mailbox, uid, message, flags, modseq, internal_ms, saved_ms, size)"
    "  SELECT owner, $5::bigint, new, message, flags, $7, internal_ms, $8, size FROM found),"
    " counted AS (UPDATE mailbox b SET modseq = $7, uidnext = b.uidnext + s.n,"
    f"{_COUNTS.format('+', 'true', 'found')} WHERE b.owner = $1 AND b.id = $5 AND s.n > 0)"
    " SELECT uid, new, eid FROM found ORDER BY uid"
)


async def _copy(
    tx: Tx,
    key: MailboxKey,
    uids: Ranges,
    to: MailboxKey,
    witness: Callable[[Copied], Sequence[EventRow]],
    keep: bool,
) -> Copied:
    own, goal = await lock(tx.db, key, to)
    if own.owner != goal.owner:
        raise NotFound("there is no such mailbox")  # keyword bits are the owner's: no copy across owners
    modseq, now_ms = goal.modseq + 1, time.time_ns() // 1_000_000
    found = await tx.db.fetch(_COPY, own.owner, own.id, *_bounds(uids), goal.id, goal.uidnext, modseq, now_ms)
    pairs = [(uid, new) for uid, new, _ in found]
    result = Copied(goal.uidvalidity, pairs, [eid for _, _, eid in found])
    if found:
        tx.topics.add(to)
        if keep:
            await _check_quota(tx.db, own)
        else:
            # Up to the last one found: where both are one mailbox, an open range would take the new ones too.
            left = [(low, min(high, pairs[-1][0])) for low, high in uids if low <= pairs[-1][0]]
            gone = await _each(tx.db, _REMOVE_RANGE, own, left)
            await _bury(tx, key, own, gone, modseq + 1 if own.id == goal.id else own.modseq + 1)
    await record(tx, witness(result))
    return result


async def _check_quota(db: Db, own: Box) -> None:
    """After the copy: what is too much goes back with the transaction."""
    if own.quota is None:
        return
    used = await db.fetchval("SELECT sum(octets)::bigint FROM mailbox WHERE owner = $1", own.owner)
    if used > own.quota:
        raise OverQuota("the mailboxes are full")
