"""Whether the rows of schema `aimx` agree with each other, and putting right what can be."""

from collections.abc import Callable, Sequence

from aimx.store.contract import EventRow, Fault
from aimx.store.postgres.connection import Db, connect
from aimx.store.postgres.events import record
from aimx.store.postgres.writer import Tx
from aimx.store.soundness import RULES, Rule, fault

_NOBODYS = "used AND NOT EXISTS (SELECT 1 FROM content c WHERE c.body = body.id)"
_FORGOTTEN = (
    "coalesce((SELECT s.last FROM sequenced s WHERE s.first <= event.seq ORDER BY s.first DESC LIMIT 1), -1)"
    " < event.seq AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.seq = event.seq)"
)
_RULES = (
    *RULES,
    Rule(
        "body-of-nobody",
        "a large body belongs to no message",
        f"SELECT 'body ' || id FROM body WHERE {_NOBODYS}",  # noqa: S608
        (f"DELETE FROM body WHERE {_NOBODYS}",),  # noqa: S608
    ),
    Rule(
        "event-forgotten",
        "an event neither is in the log nor waits for it",
        f"SELECT eid FROM event WHERE {_FORGOTTEN}",  # noqa: S608
        (f"INSERT INTO outbox (seq, t_ms) SELECT seq, t_ms FROM event WHERE {_FORGOTTEN}",),  # noqa: S608
    ),
    Rule(
        "outbox-without-event",
        "the log waits for an event that is not there",
        "SELECT 'event ' || seq FROM outbox o WHERE NOT EXISTS (SELECT 1 FROM event e WHERE e.seq = o.seq)",
        ("DELETE FROM outbox WHERE NOT EXISTS (SELECT 1 FROM event e WHERE e.seq = outbox.seq)",),
    ),
)

_WIDE = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "plan_cache_mode": "auto",
    "enable_seqscan": "on",
    "enable_hashjoin": "on",
    "enable_mergejoin": "on",
}
"""These statements read everything, where the store's own read a few rows."""
LONG_S = 24 * 3600.0


async def over_everything(url: str) -> Db:
    """A connection for statements that take long. Raises what asyncpg raises."""
    return await connect(url, "aimx verify-data", **_WIDE)


async def faults(db: Db) -> list[Fault]:
    """In one snapshot, while nodes go on writing."""
    async with db.transaction(isolation="repeatable_read", readonly=True):
        found = [fault(rule, await _places(db, rule)) for rule in _RULES]
    return [one for one in found if one is not None]


async def mend(tx: Tx, witness: Callable[[Fault], Sequence[EventRow]]) -> list[Fault]:
    """In the transaction of `tx`: everything that can be mended, each with its event. Returns what was."""
    # Whoever changes entries holds a mailbox row; so nobody does until the commit.
    await tx.db.execute("LOCK TABLE mailbox IN EXCLUSIVE MODE", timeout=LONG_S)
    mended = []
    for rule in _RULES:
        one = fault(rule, await _places(tx.db, rule)) if rule.mend else None
        if one is None:
            continue
        for statement in rule.mend:
            await tx.db.execute(statement, timeout=LONG_S)
        await record(tx, witness(one))
        mended.append(one)
    return mended


async def _places(db: Db, rule: Rule) -> list[str]:
    return [str(row[0]) for row in await db.fetch(rule.find, timeout=LONG_S)]
