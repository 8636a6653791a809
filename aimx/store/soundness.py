r"""What has to hold between the rows of a store, whichever database keeps them; how to find what does not, and mend it.

A rule's `find` gives one line for each thing that breaks it. `mend` is what makes it hold again where the rows
themselves say how: counts are counted anew, rows that lead nowhere go. Nothing is ever mended by leaving out mail:
what is really lost is only told. The statements mean the same to SQLite and PostgreSQL; each store adds its own.
"""

from collections.abc import Sequence
from typing import NamedTuple

from aimx.store.contract import Fault
from aimx.store.flags import ACKED, DELETED, SEEN

SHOWN = 5
"""Examples of one fault that are told; all are counted."""


class Rule(NamedTuple):
    name: str
    wrong: str
    """What is wrong where it is broken."""
    find: str
    mend: tuple[str, ...] = ()
    """In order; rules are mended in the order in which they stand."""


def fault(rule: Rule, places: Sequence[str]) -> Fault | None:
    if not places:
        return None
    return Fault(rule.name, rule.wrong, len(places), tuple(places[:SHOWN]), bool(rule.mend))


def _lost(table: str, column: str, target: str, label: str, *, name: str, wrong: str) -> Rule:
    """Rows of `table` whose `column` leads to no `target`, and that nobody can reach or use."""
    gone = f"NOT EXISTS (SELECT 1 FROM {target} WHERE {target}.{label} = {table}.{column})"  # noqa: S608
    return Rule(
        name,
        wrong,
        f"SELECT '{table} ' || {column} FROM {table} WHERE {gone}",  # noqa: S608
        (f"DELETE FROM {table} WHERE {gone}",),  # noqa: S608
    )


_OWN = "e.owner = mailbox.owner AND e.mailbox = mailbox.id"
_NO_MESSAGE = "NOT EXISTS (SELECT 1 FROM message m WHERE m.id = entry.message)"
_NO_MAILBOX = "NOT EXISTS (SELECT 1 FROM mailbox b WHERE b.owner = {0}.owner AND b.id = {0}.mailbox)"
_COUNTS = "messages, recent, unseen, deleted, unacked, octets"
_COUNTED = (
    "SELECT count(*), coalesce(sum(CASE WHEN e.uid >= mailbox.recent_from THEN 1 ELSE 0 END), 0),"  # noqa: S608
    f" coalesce(sum(CASE WHEN e.flags & {SEEN} = 0 THEN 1 ELSE 0 END), 0),"
    f" coalesce(sum(CASE WHEN e.flags & {DELETED} <> 0 THEN 1 ELSE 0 END), 0),"
    f" coalesce(sum(CASE WHEN e.flags & {ACKED} = 0 THEN 1 ELSE 0 END), 0), coalesce(sum(e.size), 0)"
    f" FROM entry e WHERE {_OWN}"
)
_MISCOUNTED = f"({_COUNTS}) <> ({_COUNTED})"
_BEHIND = (
    f"uidnext <= (SELECT coalesce(max(e.uid), 0) FROM entry e WHERE {_OWN})"  # noqa: S608
    f" OR modseq < (SELECT coalesce(max(e.modseq), 0) FROM entry e WHERE {_OWN})"
)
_NAMED = "SELECT (SELECT a.address FROM agent a WHERE a.id = mailbox.owner) || ' ' || mailbox.name FROM mailbox"

RULES = (
    Rule(
        "entry-without-message",
        "a mailbox shows a message that is not there",
        f"SELECT 'mailbox ' || mailbox || ' UID ' || uid FROM entry WHERE {_NO_MESSAGE}",  # noqa: S608
        (
            # As expunged ones: sessions and clients that saw them are told.
            f"UPDATE mailbox SET modseq = modseq + 1 WHERE id IN (SELECT mailbox FROM entry WHERE {_NO_MESSAGE})",  # noqa: S608
            "INSERT INTO vanished (owner, mailbox, modseq, uid) SELECT owner, mailbox,"  # noqa: S608
            f" (SELECT b.modseq FROM mailbox b WHERE b.id = entry.mailbox), uid FROM entry WHERE {_NO_MESSAGE}"
            " AND EXISTS (SELECT 1 FROM mailbox b WHERE b.id = entry.mailbox)",
            f"DELETE FROM entry WHERE {_NO_MESSAGE}",  # noqa: S608
        ),
    ),
    *(
        Rule(
            f"{table}-without-mailbox",
            f"a row of `{table}` is of a mailbox that is not there",
            f"SELECT 'mailbox ' || mailbox || ' UID ' || uid FROM {table} WHERE {_NO_MAILBOX.format(table)}",  # noqa: S608
            (f"DELETE FROM {table} WHERE {_NO_MAILBOX.format(table)}",),  # noqa: S608
        )
        for table in ("entry", "vanished")
    ),
    Rule(
        "entry-size",
        "a mailbox shows another size than the message has",
        "SELECT 'mailbox ' || e.mailbox || ' UID ' || e.uid FROM entry e JOIN message m ON m.id = e.message"
        " WHERE e.size <> m.header_size + m.body_size",
        (
            "UPDATE entry SET size = (SELECT m.header_size + m.body_size FROM message m WHERE m.id = entry.message)"
            " WHERE size <> (SELECT m.header_size + m.body_size FROM message m WHERE m.id = entry.message)",
        ),
    ),
    Rule(
        "mailbox-counts",
        "a mailbox's counts are not those of its entries",
        f"{_NAMED} WHERE {_MISCOUNTED}",
        (f"UPDATE mailbox SET ({_COUNTS}) = ({_COUNTED}) WHERE {_MISCOUNTED}",),  # noqa: S608
    ),
    Rule(
        "mailbox-numbers",
        "a mailbox would give a UID or MODSEQ a second time",
        f"{_NAMED} WHERE {_BEHIND}",
        (
            f"UPDATE mailbox SET uidnext = 1 + (SELECT coalesce(max(e.uid), 0) FROM entry e WHERE {_OWN})"  # noqa: S608
            f" WHERE uidnext <= (SELECT coalesce(max(e.uid), 0) FROM entry e WHERE {_OWN})",
            f"UPDATE mailbox SET modseq = (SELECT coalesce(max(e.modseq), 0) FROM entry e WHERE {_OWN})"  # noqa: S608
            f" WHERE modseq < (SELECT coalesce(max(e.modseq), 0) FROM entry e WHERE {_OWN})",
        ),
    ),
    Rule(
        "message-without-content",
        "a message has lost its octets",
        "SELECT m.eid FROM message m WHERE NOT EXISTS (SELECT 1 FROM content c WHERE c.message = m.id)",
    ),
    Rule(
        "content-size",
        "a message has more or fewer octets than were accepted",
        "SELECT m.eid FROM message m JOIN content c ON c.message = m.id LEFT JOIN body b ON b.id = c.body"
        " WHERE NOT m.erased AND (length(c.header) <> m.header_size"
        " OR coalesce(b.size, length(c.data), -1) <> m.body_size)",
    ),
    Rule(
        "body-parts",
        "the parts of a large body do not add up to it",
        "SELECT coalesce((SELECT m.eid FROM content c JOIN message m ON m.id = c.message WHERE c.body = b.id),"
        " 'body ' || b.id) FROM body b WHERE b.size <> (SELECT coalesce(sum(length(p.data)), 0) FROM part p"
        " WHERE p.body = b.id) OR b.size <> (SELECT coalesce(max(p.start + length(p.data)), 0) FROM part p"
        " WHERE p.body = b.id)",
    ),
    _lost("delivery", "message", "message", "id", name="delivery-without-message", wrong="a delivery of nothing waits"),
    _lost("content", "message", "message", "id", name="content-without-message", wrong="octets of no message"),
    _lost("party", "message", "message", "id", name="party-without-message", wrong="an index of who sent what is off"),
    _lost("chain", "message", "message", "id", name="chain-without-message", wrong="the loop guard counts nothing"),
    _lost("event_message", "seq", "event", "seq", name="link-without-event", wrong="an index of events is off"),
)
