"""Copies of mail.db and the log's files as they were at one moment, beside a node that runs.

The log may hold no leaf whose event the mail has not, and the mail may call no event logged that the log has not. So
the moment is taken while nobody can commit to mail.db: a few milliseconds, in which every file gets a reader that goes
on seeing it as it is. The copying itself is read from those, as long as it takes.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from aimx.audit import anchors, integrity
from aimx.audit.keys import load_public
from aimx.audit.log import FILE as AUDIT_DB
from aimx.audit.report import Report
from aimx.audit.sequencer import HIGH_WATER
from aimx.audit.series import Series
from aimx.audit.sqlite import SqliteReader, shard_file, shard_numbers
from aimx.backup.manifest import BackupError, sync

MAIL_DB = "mail.db"
WAIT_S = 60.0
"""How long to wait for a moment between two commits."""
_PAGES = 4096


def files(data: Path) -> list[Path]:
    """The databases of a data folder."""
    log = data / AUDIT_DB
    found = [data / MAIL_DB, data / anchors.FILE, *(shard_file(log, number) for number in shard_numbers(log))]
    return [path for path in found if path.exists()]


def copy(data: Path, to: Path) -> None:
    """Copy them into `to`, then check the copies. Raises BackupError, LogError, sqlite3.Error."""
    with contextlib.ExitStack() as readers:
        with _nobody_commits(data / MAIL_DB):
            sources = {path.name: readers.enter_context(_as_it_is(path)) for path in files(data)}
        for name, source in sources.items():
            _copy(source, to / name)
    _check(to)


def _check(folder: Path) -> None:
    """The pages of the mail are whole; the log's leaves add up to every checkpoint that was signed."""
    with contextlib.closing(sqlite3.connect(folder / MAIL_DB)) as db:
        said = [row[0] for row in db.execute("PRAGMA integrity_check(1)")]
    if said != ["ok"]:
        raise BackupError(f"{MAIL_DB} is damaged ({said[0]}); `aimx verify-data` says more")
    keys = load_public(folder)
    report = Report(keys.log.name)
    high_water = folder / HIGH_WATER
    reader = SqliteReader(folder / AUDIT_DB)
    try:
        signed = high_water.read_text() if high_water.exists() else None
        integrity.check(Series(reader).readers(), keys.logs, signed, [], report)
    finally:
        reader.close()
    if report.wrong:
        raise BackupError(f"the audit log does not hold together ({report.findings[0].text}); see `aimx audit verify`")


@contextlib.contextmanager
def _nobody_commits(path: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            db.execute("ROLLBACK")


@contextlib.contextmanager
def _as_it_is(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to the file as it is now, whatever is committed later."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    with contextlib.closing(db):
        db.execute("BEGIN")
        db.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # the snapshot is taken by the first read
        yield db


def _copy(source: sqlite3.Connection, to: Path) -> None:
    to.touch(mode=0o600)
    with contextlib.closing(sqlite3.connect(to, isolation_level=None)) as target:
        source.backup(target, pages=_PAGES, sleep=0)
        target.execute("PRAGMA journal_mode = DELETE")  # one file, that can be read where nothing can be written
    sync(to)
