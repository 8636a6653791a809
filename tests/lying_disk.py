"""A database that reports a COMMIT as failed although it took place, as a disk may."""

import sqlite3
from typing import Any

import pytest


class Lies:
    def __init__(self) -> None:
        self.left = 0
        """How many of the next commits that accept a message are lied about."""


def lying(monkeypatch: pytest.MonkeyPatch) -> Lies:
    """Connections opened from now on lie when told to."""
    lies, real = Lies(), sqlite3.connect

    class Lying(sqlite3.Connection):
        accepts = False

        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            done = super().execute(sql, *parameters)
            accepted, self.accepts = self.accepts, sql != "COMMIT" and (self.accepts or "INTO message " in sql)
            if sql == "COMMIT" and accepted and lies.left:
                lies.left -= 1
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR
                raise error
            return done

    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: real(*args, factory=Lying, **options))
    return lies
