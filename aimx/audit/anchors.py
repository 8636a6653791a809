"""What outsiders have said of this log, and what this node has said of others' logs: kept for good.

An *anchor* is a checkpoint of ours that has left the house: a witness cosigned it, a mailbox elsewhere holds it, a time
stamp authority stamped it. What is *witnessed* is the last checkpoint of somebody else's log that this node cosigned;
there is one for each log, and it is replaced in one step that compares.

All calls block until the disk has it: not for the event loop. Nodes that share a database share this.
"""

import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from aimx.audit.log import LogError

FILE = "anchors.db"

KEEP_EVERY_MS = 3_600_000
"""Of each outsider the newest anchor is kept, and of the older ones one an hour: the log itself holds all cosignatures
(`anchor.recorded`)."""

Kind = Literal["witness", "mail", "timestamp"]


class Anchor(NamedTuple):
    """One checkpoint of the log `origin` that is held outside."""

    kind: Kind
    name: str
    """The witness's or authority's name in the settings; a mailbox's address."""
    origin: str
    size: int
    t_ms: int
    """When we had it confirmed (or sent it), by our clock."""
    note: str
    """The signed checkpoint; a witness's with its cosignature."""
    token: bytes = b""
    """Of a time stamp: the authority's answer (RFC 3161, DER) about the note's octets."""


class Witnessed(NamedTuple):
    """The last checkpoint of another log that this node cosigned; `note` carries both signatures."""

    size: int
    root: bytes
    note: str


class Anchors(Protocol):
    """Raises LogError when the database cannot serve."""

    def add(self, anchor: Anchor) -> None: ...

    def newest(self, kind: Kind, name: str, origin: str) -> Anchor | None: ...

    def all(self, origin: str) -> list[Anchor]:
        """Everything kept about one log, oldest first."""

    def witnessed(self, origin: str) -> Witnessed | None: ...

    def witness(self, origin: str, before: int, found: Witnessed) -> bool:
        """Replace what is witnessed of a log, if its size still is `before` (0: nothing yet). False: it is not."""

    def origins(self) -> list[str]:
        """The logs of which something is witnessed."""

    def close(self) -> None: ...


Rows = list[tuple[Any, ...]]
Run = Callable[[str, Sequence[object]], tuple[Rows, int]]
"""One statement inside a transaction: its rows, and how many it changed."""


class SqlAnchors:
    """Both databases speak these statements; what differs is how a transaction is had."""

    def transact(self, work: Callable[[Run], Any]) -> Any:
        raise NotImplementedError

    def add(self, anchor: Anchor) -> None:
        who = (anchor.kind, anchor.name, anchor.origin)

        def work(run: Run) -> None:
            older, _ = run(
                "SELECT id, t_ms FROM anchor WHERE kind = ? AND name = ? AND origin = ? ORDER BY id DESC LIMIT 2", who
            )
            if len(older) == 2 and older[0][1] - older[1][1] < KEEP_EVERY_MS:
                run("DELETE FROM anchor WHERE id = ?", (older[0][0],))
            run(
                "INSERT INTO anchor (kind, name, origin, size, t_ms, note, token) VALUES (?, ?, ?, ?, ?, ?, ?)",
                tuple(anchor),
            )

        self.transact(work)

    def newest(self, kind: Kind, name: str, origin: str) -> Anchor | None:
        where = "kind = ? AND name = ? AND origin = ? ORDER BY id DESC LIMIT 1"
        rows = self._rows(f"{_ANCHOR} WHERE {where}", kind, name, origin)
        return _anchor(rows[0]) if rows else None

    def all(self, origin: str) -> list[Anchor]:
        return [_anchor(row) for row in self._rows(f"{_ANCHOR} WHERE origin = ? ORDER BY id", origin)]

    def witnessed(self, origin: str) -> Witnessed | None:
        rows = self._rows("SELECT size, root, note FROM witnessed WHERE origin = ?", origin)
        return Witnessed(rows[0][0], bytes(rows[0][1]), rows[0][2]) if rows else None

    def witness(self, origin: str, before: int, found: Witnessed) -> bool:
        def work(run: Run) -> bool:
            if before == 0:
                _, made = run(
                    "INSERT INTO witnessed (size, root, note, origin) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    (*found, origin),
                )
                if made:
                    return True
            _, changed = run(
                "UPDATE witnessed SET size = ?, root = ?, note = ? WHERE origin = ? AND size = ?",
                (*found, origin, before),
            )
            return changed == 1

        return bool(self.transact(work))

    def origins(self) -> list[str]:
        return [row[0] for row in self._rows("SELECT origin FROM witnessed ORDER BY origin")]

    def _rows(self, statement: str, *values: object) -> Rows:
        rows: Rows = self.transact(lambda run: run(statement, values)[0])
        return rows


_ANCHOR = "SELECT kind, name, origin, size, t_ms, note, token FROM anchor"


def _anchor(row: tuple[Any, ...]) -> Anchor:
    return Anchor._make((*row[:6], bytes(row[6])))


class SqliteAnchors(SqlAnchors):
    """`anchors.db`, beside audit.db."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        new = not path.exists()
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
            if new:
                path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode = WAL")
            # What was cosigned must be remembered after a power cut, or a witness would sign a fork.
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise LogError(f"{path} cannot be opened: {error}") from error

    def transact(self, work: Callable[[Run], Any]) -> Any:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    found = work(self._run)
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise LogError(f"{self.path} cannot be used: {error}") from error
        return found

    def _run(self, statement: str, values: Sequence[object]) -> tuple[Rows, int]:
        cursor = self._db.execute(statement, values)
        return cursor.fetchall(), cursor.rowcount

    def close(self) -> None:
        with self._lock:
            self._db.close()


SCHEMA = """
CREATE TABLE IF NOT EXISTS anchor (
    id     INTEGER PRIMARY KEY,
    kind   TEXT NOT NULL,
    name   TEXT NOT NULL,
    origin TEXT NOT NULL,
    size   INTEGER NOT NULL,
    t_ms   INTEGER NOT NULL,
    note   TEXT NOT NULL,
    token  BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS anchor_of ON anchor (kind, name, origin, id);

CREATE TABLE IF NOT EXISTS witnessed (
    origin TEXT PRIMARY KEY,
    size   INTEGER NOT NULL,
    root   BLOB NOT NULL,
    note   TEXT NOT NULL
) STRICT;

-- A witness goes forward or not at all.
CREATE TRIGGER IF NOT EXISTS witnessed_forward BEFORE UPDATE ON witnessed
WHEN new.size < old.size OR (new.size = old.size AND new.root <> old.root)
BEGIN SELECT raise(ABORT, 'a witness never goes back'); END;
CREATE TRIGGER IF NOT EXISTS witnessed_kept BEFORE DELETE ON witnessed
BEGIN SELECT raise(ABORT, 'a witness never forgets'); END;
"""


def read_anchors(path: Path, origin: str) -> list[Anchor]:
    """All anchors of a log, without making or changing anything. Raises LogError for a damaged file."""
    if not path.exists():
        return []
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)
        try:
            return [_anchor(row) for row in db.execute(f"{_ANCHOR} WHERE origin = ? ORDER BY id", (origin,))]
        finally:
            db.close()
    except sqlite3.Error as error:
        raise LogError(f"{path} cannot be read: {error}") from error
