"""Imported by a node before all else, it has SQLite sync nothing: what the power cuts must find out."""

import sqlite3
from typing import Any


class Careless(sqlite3.Connection):
    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        return super().execute("PRAGMA synchronous = OFF" if sql == "PRAGMA synchronous = FULL" else sql, *parameters)


_real = sqlite3.connect


def _connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
    return _real(*arguments, **{"factory": Careless, **options})


sqlite3.connect = _connect
