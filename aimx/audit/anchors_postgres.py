"""The anchors of all nodes on one PostgreSQL database, in the schema `audit`."""

import threading
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import psycopg

from aimx.audit.anchors import Rows, Run, SqlAnchors
from aimx.audit.log import LogError
from aimx.audit.postgres import said


def install(url: str) -> None:
    """Make the tables, as their owner; once more is no error. Raises LogError."""
    schema = resources.files("aimx.audit").joinpath("schema/anchors.sql").read_text()
    try:
        with psycopg.connect(url, autocommit=True) as db:
            db.execute(schema.encode())
    except psycopg.Error as error:
        raise LogError(f"the tables of anchors cannot be made: {said(error)}") from error


class PostgresAnchors(SqlAnchors):
    """One connection, made when it is needed and made again when it is lost."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._db: psycopg.Connection[tuple[Any, ...]] | None = None

    def transact(self, work: Callable[[Run], Any]) -> Any:
        with self._lock:
            try:
                db = self._connected()
                with db.transaction():
                    # Per transaction, whatever the server's default: what was cosigned must outlive a power cut.
                    db.execute("SET LOCAL synchronous_commit = on")
                    return work(lambda statement, values: _run(db, statement, values))
            except psycopg.Error as error:
                raise LogError(f"the database of anchors cannot be used: {said(error)}") from error

    def _connected(self) -> psycopg.Connection[tuple[Any, ...]]:
        if self._db is None or self._db.closed or self._db.broken:
            self._db = psycopg.connect(self._url, autocommit=True, options="-c search_path=audit")
        return self._db

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()


def _run(db: psycopg.Connection[tuple[Any, ...]], statement: str, values: Sequence[object]) -> tuple[Rows, int]:
    cursor = db.execute(statement.replace("?", "%s").encode(), values)
    return (cursor.fetchall() if cursor.description else []), cursor.rowcount
