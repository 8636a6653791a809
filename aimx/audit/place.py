"""Where a node's log is kept: files in its data folder, or the schema `audit` of a PostgreSQL database."""

from pathlib import Path

from aimx.audit import anchors
from aimx.audit.anchors import Anchor, Anchors
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


def open_anchors(folder: Path, database: str | None = None) -> Anchors:
    """What outsiders said and what is witnessed, kept where the log is. Raises LogError."""
    if database is None:
        return anchors.SqliteAnchors(folder / anchors.FILE)
    from aimx.audit.anchors_postgres import PostgresAnchors

    return PostgresAnchors(database)


def read_anchors(folder: Path, database: str | None, origin: str) -> list[Anchor]:
    """All anchors of a log; none, where none were ever kept. Makes and changes nothing. Raises LogError."""
    if database is None:
        return anchors.read_anchors(folder / anchors.FILE, origin)
    opened = open_anchors(folder, database)
    try:
        return opened.all(origin)
    finally:
        opened.close()
