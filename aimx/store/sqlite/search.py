"""SEARCH in SQLite. What the keys mean in SQL: aimx/store/condition.py."""

import sqlite3

from aimx.store.condition import condition
from aimx.store.contract import MailboxKey
from aimx.store.search import SearchKey
from aimx.store.sqlite import flags
from aimx.store.sqlite.mailboxes import box
from aimx.store.sqlite.sets import numbers


def search(db: sqlite3.Connection, key: MailboxKey, criteria: SearchKey) -> tuple[list[int], bool]:
    own = box(db, key)
    where, exact = condition(criteria, flags.keywords(db, own.owner))
    sql = f"SELECT uid AS n FROM entry WHERE owner = ? AND mailbox = ? AND {where}"  # noqa: S608
    return numbers(db, sql, (own.owner, own.id)).tolist(), exact
