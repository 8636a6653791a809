"""Sets in and out of SQLite in few steps.

Python's sqlite3 gives the interpreter lock away at every step of a statement. While the event loop is busy each step
may wait for it, so a hundred rows by a hundred steps can cost a hundred turns of the loop. One INSERT with many rows,
or one row of JSON that holds a thousand, costs one.
"""

import json
import sqlite3
from array import array
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any

MOST = 64
"""Rows in one INSERT: so many forms of each stay prepared."""


def insert(db: sqlite3.Connection, table: str, columns: str, rows: Sequence[Sequence[Any]]) -> None:
    """Many rows in few statements, in the order given."""
    for start in range(0, len(rows), MOST):
        some = rows[start : start + MOST]
        db.execute(_insert(table, columns, len(some)), list(chain.from_iterable(some)))


@cache
def _insert(table: str, columns: str, size: int) -> str:
    row = f"({', '.join('?' * (columns.count(',') + 1))})"
    return f"INSERT INTO {table} ({columns}) VALUES {', '.join([row] * size)}"  # noqa: S608


as_json = json.JSONEncoder(separators=(",", ":")).encode
"""Made once: `json.dumps` with arguments makes an encoder at each call."""


def rows(db: sqlite3.Connection, sql: str, parameters: Sequence[Any] | dict[str, Any]) -> list[list[Any]]:
    """Result of a query that ends in one `json_group_array(json_array(…))`. In no certain order."""
    (text,) = db.execute(sql, parameters).fetchone()
    found: list[list[Any]] = json.loads(text)
    return found


def numbers(db: sqlite3.Connection, sql: str, parameters: Sequence[Any] | dict[str, Any]) -> "array[int]":
    """Result of a query whose one column `n` is a whole number, ascending, as one step."""
    (text,) = db.execute(f"SELECT group_concat(n) FROM ({sql})", parameters).fetchone()  # noqa: S608
    return array("I", sorted(map(int, text.split(","))) if text else ())
