"""Where a node's log is kept: files in its data folder, or the schema `audit` of a PostgreSQL database."""

from pathlib import Path

from aimx.audit.log import FILE, Log, Reader
from aimx.audit.sqlite import SqliteLog, SqliteReader


def open_log(folder: Path, database: str | None = None) -> Log:
    """The one writer. `database` is a postgresql:// URL; without it the log is in `folder`. Raises LogError."""
    if database is None:
        return SqliteLog(folder / FILE)
    from aimx.audit.postgres import PostgresLog

    return PostgresLog(database)


def open_reader(folder: Path, database: str | None = None) -> Reader:
    """Opens nothing yet: the first call does, and says what is wrong."""
    if database is None:
        return SqliteReader(folder / FILE)
    from aimx.audit.postgres import PostgresReader

    return PostgresReader(database)
