"""How mail.db is opened, made and migrated."""

import os
import sqlite3
from importlib.resources import files
from pathlib import Path

from aimx.store.contract import StoreError

MINIMUM = (3, 40, 0)
BUSY_S = 5.0
"""How long to wait for another process (the command line) to finish its commit."""


def connect(path: Path, *, write: bool, busy_s: float = BUSY_S) -> sqlite3.Connection:
    """A connection in autocommit mode: transactions are begun and ended by hand. Reading ones refuse to write."""
    db = sqlite3.connect(path, timeout=busy_s, isolation_level=None, cached_statements=512, check_same_thread=False)
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA temp_store = MEMORY")
    if write:
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA secure_delete = ON")
        db.execute("PRAGMA cache_size = -32768")
        db.execute("PRAGMA wal_autocheckpoint = 0")  # checkpoint.py does it, outside the commits
        db.execute("PRAGMA journal_size_limit = 67108864")
    else:
        db.execute("PRAGMA cache_size = -8192")
        db.execute("PRAGMA query_only = ON")
    return db


def create(path: Path) -> None:
    """Make or migrate the file. Raises StoreError for a file of a newer AIMX and for a too old SQLite."""
    if sqlite3.sqlite_version_info < MINIMUM:
        need = ".".join(map(str, MINIMUM))
        raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old; AIMX needs {need} or newer")
    if not path.exists():  # never open it by hand once it is in use: closing would drop this process's locks on it
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    db = connect(path, write=True)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        migrate(db, migrations())
    finally:
        db.close()


def migrations() -> list[tuple[int, str]]:
    """(number, SQL) of every migration there is, ascending."""
    found = [file for file in files(__package__).joinpath("schema").iterdir() if file.name.endswith(".sql")]
    return sorted((int(file.name[:4]), file.read_text(encoding="utf-8")) for file in found)


def migrate(db: sqlite3.Connection, steps: list[tuple[int, str]]) -> None:
    """Forward only, each step one commit; `user_version` is the number of the last one done."""
    known = steps[-1][0]
    while True:
        db.execute("BEGIN IMMEDIATE")  # a second process that opens at this moment waits here, then finds it done
        try:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > known:
                raise StoreError(f"mail.db has schema {version}, this AIMX knows {known}; upgrade AIMX")
            step = next((step for step in steps if step[0] > version), None)
            if step is not None:
                number, script = step
                for statement in _statements(script):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {number}")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        if step is None:
            return


def _statements(script: str) -> list[str]:
    """Its statements one by one: `executescript` would commit on its own."""
    found, begun = [], ""
    for line in script.splitlines(keepends=True):
        begun += line
        if sqlite3.complete_statement(begun):
            found.append(begun)
            begun = ""
    return found
