"""Whether mail.db's rows agree with each other, and putting right what can be."""

import sqlite3
from collections.abc import Callable, Sequence

from aimx.store.contract import EventRow, Fault
from aimx.store.soundness import RULES, Rule, fault
from aimx.store.sqlite.events import record
from aimx.store.sqlite.writer import Tx

_NOBODYS = "message IS NOT NULL AND NOT EXISTS (SELECT 1 FROM content c WHERE c.body = body.id)"
_RULES = (
    *RULES,
    Rule(
        "body-of-nobody",
        "a large body belongs to no message",
        f"SELECT 'body ' || id FROM body WHERE {_NOBODYS}",  # noqa: S608
        (f"UPDATE body SET message = NULL WHERE {_NOBODYS}",),  # noqa: S608 — the next start drops it, part by part
    ),
)


def faults(db: sqlite3.Connection) -> list[Fault]:
    """In one snapshot. First the file itself: what its pages say cannot be trusted where they are damaged."""
    damaged = [text for (text,) in db.execute("PRAGMA integrity_check(100)") if text != "ok"]
    broken = [f"{table} row {row}" for table, row, *_ in db.execute("PRAGMA foreign_key_check")]
    found = [
        fault(Rule("file-damaged", "the file's pages are damaged; bring it back from a backup", ""), damaged),
        *(fault(rule, _places(db, rule)) for rule in _RULES),
    ]
    # The rules above say the same of most of these rows, and more; what only the keys know is told here.
    if broken and not any(found):
        found.append(fault(Rule("key-broken", "a row leads to one that is not there", ""), broken))
    return [one for one in found if one is not None]


def mend(tx: Tx, witness: Callable[[Fault], Sequence[EventRow]]) -> list[Fault]:
    """One commit: everything that can be mended, each with its event. Returns what was."""
    mended = []
    for rule in _RULES:
        one = fault(rule, _places(tx.db, rule)) if rule.mend else None
        if one is None:
            continue
        for statement in rule.mend:
            tx.db.execute(statement)
        record(tx, witness(one))
        mended.append(one)
    return mended


def _places(db: sqlite3.Connection, rule: Rule) -> list[str]:
    return [str(place) for (place,) in db.execute(rule.find)]
