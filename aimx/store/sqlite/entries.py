"""What lies in mailboxes: FETCH, STORE, EXPUNGE, COPY, MOVE, and what changed since a MODSEQ. All set-based."""

import sqlite3
import time
from array import array
from collections.abc import Callable, Mapping, Sequence

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
from aimx.store.recent import Claims
from aimx.store.search import Ranges
from aimx.store.sqlite import bodies, flags
from aimx.store.sqlite.events import record
from aimx.store.sqlite.mailboxes import Box, box
from aimx.store.sqlite.sets import as_json, numbers, rows
from aimx.store.sqlite.writer import Tx

_IN_RANGES = (
    "json_each(:ranges) r CROSS JOIN entry e ON e.owner = :owner AND e.mailbox = :mailbox"
    " AND e.uid BETWEEN r.value ->> 0 AND r.value ->> 1 CROSS JOIN message m ON m.id = e.message"
)
"""The ranges lead, so that each is one walk of the key."""

_LAST_UID = 4294967295


def _here(own: Box, uids: Ranges = ()) -> dict[str, object]:
    return {"owner": own.owner, "mailbox": own.id, "ranges": as_json(uids)}


def _decoder(db: sqlite3.Connection, own: Box) -> Callable[[int], frozenset[str]]:
    names: tuple[str, ...] | None = None

    def decode(bits: int) -> frozenset[str]:
        nonlocal names
        if not flags.has_keywords(bits):
            return flags.decode(bits)
        if names is None:
            names = flags.keywords(db, own.owner)
        return flags.decode(bits, names)

    return decode


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def fetch(db: sqlite3.Connection, key: MailboxKey, uids: Ranges, header: bool, body: int) -> list[Row]:
    own = box(db, key)
    found = rows(
        db,
        "SELECT json_group_array(json_array(e.uid, m.eid, e.flags, e.modseq, e.internal_ms, e.saved_ms,"  # noqa: S608
        " m.header_size, m.body_size, m.t_ms, hex(m.origin_trace), hex(m.origin_span), m.id))"
        f" FROM {_IN_RANGES}",
        _here(own, uids),
    )
    found.sort()
    headers = bodies.headers(db, {row[11]: row[6] for row in found}) if header else {}
    wanted = {row[11]: row[7] for row in found if row[7] <= body} if body else {}
    contents = bodies.whole(db, wanted) if wanted else {}
    decode, unhex = _decoder(db, own), bytes.fromhex
    return [
        Row(
            uid,
            eid,
            decode(bits),
            modseq,
            internal_ms,
            saved_ms,
            header_size,
            body_size,
            t_ms,
            SpanRef(unhex(trace), unhex(span)),
            headers.get(message),
            contents.get(message),
        )
        for uid, eid, bits, modseq, internal_ms, saved_ms, header_size, body_size, t_ms, trace, span, message in found
    ]


def changes(db: sqlite3.Connection, claims: Claims, key: MailboxKey, since_modseq: int, claim_recent: bool) -> Changes:
    try:
        own = box(db, key)
    except NotFound:
        return Changes(since_modseq, 0, [], [], 0, gone=True)
    marked: list[Marked] = []
    vanished = array("I")
    if own.modseq > since_modseq:
        here = {**_here(own), "since": since_modseq}
        changed = rows(
            db,
            "SELECT json_group_array(json_array(uid, flags, modseq)) FROM entry"
            " WHERE owner = :owner AND mailbox = :mailbox AND modseq > :since",
            here,
        )
        changed.sort()
        decode = _decoder(db, own)
        marked = [Marked(uid, decode(bits), modseq) for uid, bits, modseq in changed]
        vanished = numbers(
            db,
            "SELECT uid AS n FROM vanished WHERE owner = :owner AND mailbox = :mailbox AND modseq > :since",
            here,
        )
    first = claims.first_recent(own.id, own.recent_from, own.uidnext, claim_recent)
    return Changes(own.modseq, own.uidnext, marked, vanished.tolist(), first)


# ── changing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def mark(
    tx: Tx,
    key: MailboxKey,
    uids: Ranges,
    mode: FlagMode,
    names: frozenset[str],
    witness: Callable[[Flagged], Sequence[EventRow]],
) -> Flagged:
    db, own = tx.db, box(tx.db, key)
    asked = flags.known(db, own.owner, names) if mode == "remove" else flags.allot(db, own.owner, names)
    found = rows(
        db,
        "SELECT json_group_array(json_array(e.uid, e.flags, e.modseq, m.eid, hex(m.origin_trace),"  # noqa: S608
        f" hex(m.origin_span))) FROM {_IN_RANGES}",
        _here(own, uids),
    )
    found.sort()
    decode, modseq = _decoder(db, own), own.modseq + 1
    result = Flagged([], [], [], [])
    unseen = deleted = unacked = 0
    for uid, old, stamp, eid, trace, span in found:
        new = old | asked if mode == "add" else old & ~asked if mode == "remove" else asked
        if new == old:
            result.marked.append(Marked(uid, decode(old), stamp))
            continue
        result.marked.append(Marked(uid, decode(new), modseq))
        result.changed.append(uid)
        result.eids.append(eid)
        result.origins.append(SpanRef(bytes.fromhex(trace), bytes.fromhex(span)))
        unseen += (not new & flags.SEEN) - (not old & flags.SEEN)
        deleted += bool(new & flags.DELETED) - bool(old & flags.DELETED)
        unacked += (not new & flags.ACKED) - (not old & flags.ACKED)
    if result.changed:
        # Exactly the entries found above: those in the ranges that are not yet as asked.
        value, differs = {
            "add": ("flags | :asked", "flags & :asked != :asked"),
            "remove": ("flags & ~:asked", "flags & :asked != 0"),
            "replace": (":asked", "flags != :asked"),
        }[mode]
        here = {"owner": own.owner, "mailbox": own.id, "asked": asked, "modseq": modseq}
        db.executemany(
            f"UPDATE entry SET flags = {value}, modseq = :modseq"  # noqa: S608
            f" WHERE owner = :owner AND mailbox = :mailbox AND uid BETWEEN :low AND :high AND {differs}",
            [{**here, "low": low, "high": high} for low, high in uids],
        )
        db.execute(
            "UPDATE mailbox SET modseq = ?, unseen = unseen + ?, deleted = deleted + ?, unacked = unacked + ?"
            " WHERE id = ?",
            (modseq, unseen, deleted, unacked, own.id),
        )
        tx.topics.add(key)
    record(tx, witness(result))
    return result


def expunge(
    tx: Tx, key: MailboxKey, uids: Ranges | None, witness: Callable[[Expunged], Sequence[EventRow]]
) -> Expunged:
    own = box(tx.db, key)
    gone: list[tuple[int, str]] = []
    if own.deleted:
        if uids is None:
            sql = (
                "SELECT json_group_array(json_array(e.uid, m.eid)) FROM entry e CROSS JOIN message m"
                " ON m.id = e.message WHERE e.owner = :owner AND e.mailbox = :mailbox AND e.flags & 2"
            )
        else:
            sql = f"SELECT json_group_array(json_array(e.uid, m.eid)) FROM {_IN_RANGES} WHERE e.flags & 2"  # noqa: S608
        gone = [(uid, eid) for uid, eid in sorted(rows(tx.db, sql, _here(own, uids or ())))]
    modseq = _remove(tx, own, [uid for uid, _ in gone], key) if gone else own.modseq
    result = Expunged([uid for uid, _ in gone], [eid for _, eid in gone], modseq)
    record(tx, witness(result))
    return result


def remove(tx: Tx, key: MailboxKey, uids: list[int]) -> None:
    """Whatever their flags (erasure)."""
    _remove(tx, box(tx.db, key), uids, key)


def _remove(tx: Tx, own: Box, uids: list[int], key: MailboxKey) -> int:
    """Entries become tombstones, the counts follow. Returns the mailbox's new MODSEQ."""
    modseq = own.modseq + 1
    here = {**_here(own), "uids": as_json(uids), "modseq": modseq}
    these = "owner = :owner AND mailbox = :mailbox AND uid IN (SELECT value FROM json_each(:uids))"
    _count(tx.db, own, these, here, -1)
    tx.db.execute(
        "INSERT INTO vanished (owner, mailbox, modseq, uid)"
        " SELECT :owner, :mailbox, :modseq, value FROM json_each(:uids)",
        here,
    )
    tx.db.execute(f"DELETE FROM entry WHERE {these}", here)  # noqa: S608
    tx.topics.add(key)
    return modseq


def _count(db: sqlite3.Connection, own: Box, these: str, here: Mapping[str, object], sign: int) -> None:
    """Entries come into the counts of their mailbox (+1), or are about to leave (-1). One MODSEQ for all of them."""
    counts = db.execute(
        f"SELECT :sign * count(*), :sign * sum(uid >= :recent_from), :sign * sum(flags & {flags.SEEN} = 0),"  # noqa: S608
        f" :sign * sum(flags & {flags.DELETED} != 0), :sign * sum(flags & {flags.ACKED} = 0), :sign * sum(size)"
        f" FROM entry WHERE {these}",
        {**here, "sign": sign, "recent_from": own.recent_from},
    ).fetchone()
    db.execute(
        "UPDATE mailbox SET modseq = modseq + 1, messages = messages + ?, recent = recent + ?, unseen = unseen + ?,"
        " deleted = deleted + ?, unacked = unacked + ?, octets = octets + ? WHERE id = ?",
        (*counts, own.id),
    )


def copy(
    tx: Tx, key: MailboxKey, uids: Ranges, to: MailboxKey, witness: Callable[[Copied], Sequence[EventRow]]
) -> Copied:
    return _copy(tx, key, uids, to, witness, keep=True)


def move(
    tx: Tx, key: MailboxKey, uids: Ranges, to: MailboxKey, witness: Callable[[Copied], Sequence[EventRow]]
) -> Copied:
    return _copy(tx, key, uids, to, witness, keep=False)


def _copy(
    tx: Tx,
    key: MailboxKey,
    uids: Ranges,
    to: MailboxKey,
    witness: Callable[[Copied], Sequence[EventRow]],
    keep: bool,
) -> Copied:
    db, own, goal = tx.db, box(tx.db, key), box(tx.db, to)
    if own.owner != goal.owner:
        raise NotFound("there is no such mailbox")  # keyword bits are the owner's: no copy across owners
    sql = f"SELECT json_group_array(json_array(e.uid, m.eid, e.size)) FROM {_IN_RANGES}"  # noqa: S608
    found = sorted(rows(db, sql, _here(own, uids)))
    pairs = [(row[0], goal.uidnext + n) for n, row in enumerate(found)]
    result = Copied(goal.uidvalidity, pairs, [row[1] for row in found])
    if found:
        if keep:
            _check_quota(db, own.owner, sum(row[2] for row in found))
        here = {
            **_here(own),
            "to": goal.id,
            "pairs": as_json(pairs),
            "now": time.time_ns() // 1_000_000,
            "modseq": goal.modseq + 1,
        }
        db.execute(
            "INSERT INTO entry (owner, mailbox, uid, message, flags, modseq, internal_ms, saved_ms, size)"
            " SELECT e.owner, :to, p.value ->> 1, e.message, e.flags, :modseq, e.internal_ms, :now, e.size"
            " FROM json_each(:pairs) p CROSS JOIN entry e"
            " ON e.owner = :owner AND e.mailbox = :mailbox AND e.uid = p.value ->> 0",
            here,
        )
        db.execute("UPDATE mailbox SET uidnext = uidnext + ? WHERE id = ?", (len(found), goal.id))
        new = {"owner": goal.owner, "mailbox": goal.id, "first": goal.uidnext}
        _count(db, goal, "owner = :owner AND mailbox = :mailbox AND uid >= :first", new, +1)
        tx.topics.add(to)
        if not keep:
            # Read again: moving within one mailbox has just changed its MODSEQ.
            _remove(tx, box(db, key), [row[0] for row in found], key)
    record(tx, witness(result))
    return result


def _check_quota(db: sqlite3.Connection, owner: int, more: int) -> None:
    (quota, used) = db.execute(
        "SELECT quota, CASE WHEN quota IS NOT NULL THEN (SELECT sum(octets) FROM mailbox WHERE owner = agent.id) END"
        " FROM agent WHERE id = ?",
        (owner,),
    ).fetchone()
    if quota is not None and used + more > quota:
        raise OverQuota("the mailboxes are full")
