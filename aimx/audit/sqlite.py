"""The log on SQLite: one file a shard, `audit.db` and then `audit.2.db`, `audit.3.db`, … beside it."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from aimx import durable
from aimx.audit.log import KEEP_EVERY_MS, Appended, Fenced, Leaf, LogError, Reader, State, grown, signed
from aimx.tlog.note import SigningKey
from aimx.tlog.tree import EMPTY_ROOT, Frontier

_LOOKUP = 500
"""Parameters in one IN (…): below every SQLite's limit."""

_SIDES = ("", "-wal", "-shm")


def shard_file(path: Path, number: int) -> Path:
    """The file of a shard, where `path` is the first one's."""
    return path if number == 1 else path.with_name(f"{path.stem}.{number}{path.suffix}")


def shard_numbers(path: Path) -> list[int]:
    """The shards that have files, oldest first."""
    found = [1] if path.exists() else []
    for file in path.parent.glob(f"{path.stem}.*{path.suffix}"):
        number = file.name[len(path.stem) + 1 : -len(path.suffix)]
        if number.isdecimal() and int(number) > 1:
            found.append(int(number))
    return sorted(found)


class SqliteLog:
    """The writer. One thread at a time; other processes may write too and are fenced off."""

    def __init__(self, path: Path) -> None:
        """Open the newest shard; make the first one where there is none. Raises LogError."""
        self.path = path
        self.number = (shard_numbers(path) or [1])[-1]
        self._db = _open(self._file)
        self.state = self.reload()

    @property
    def _file(self) -> Path:
        return shard_file(self.path, self.number)

    def close(self) -> None:
        self._db.close()

    def reload(self) -> State:
        newest = (shard_numbers(self.path) or [1])[-1]
        if newest != self.number:
            self._db.close()
            self.number = newest
            self._db = _open(self._file)
        try:
            state = _state(self._db, self.number)
        except sqlite3.Error as error:
            raise LogError(f"{self._file} cannot be read: {error}") from error
        self.state = state
        return state

    def append(self, leaves: Sequence[tuple[str, bytes]]) -> Appended:
        known = self.state
        with self._write():
            self._compare(known)
            growth = grown(known, leaves, self._places([eid for eid, _ in leaves]))
            after = growth.after
            if growth.rows:
                self._db.executemany("INSERT INTO leaf VALUES (?, ?, ?, ?)", growth.rows)
                self._db.executemany("INSERT INTO node VALUES (?, ?, ?)", growth.nodes)
                swapped = self._db.execute(
                    "UPDATE state SET size = ?, root = ?, frontier = ? WHERE size = ? AND root = ?",
                    (after.size, after.root, after.frontier.to_bytes(), known.size, known.root),
                )
                if swapped.rowcount != 1:
                    raise Fenced(f"{self._file} was appended to by another sequencer")
        self.state = after
        return Appended(known.size, after.size, after.root, growth.indexes)

    def sign(self, signers: Sequence[SigningKey], t_ms: int) -> str:
        with self._write():
            text = signed(self._compare(self.state), signers)
            self._db.execute("UPDATE state SET signed = ?", (text,))
            last = self._db.execute("SELECT size, t_ms FROM checkpoint ORDER BY size DESC LIMIT 1").fetchone()
            if last is None or (last[0] < self.state.size and t_ms >= last[1] + KEEP_EVERY_MS):
                self._db.execute("INSERT INTO checkpoint VALUES (?, ?, ?)", (self.state.size, t_ms, text))
        self.state = self.state._replace(signed=text)
        return text

    def begin(self, first: tuple[str, bytes], signers: Sequence[SigningKey], t_ms: int) -> None:
        number = self.number + 1
        draft = self.path.with_name(f".{self.path.name}.next")
        for side in _SIDES:
            draft.with_name(draft.name + side).unlink(missing_ok=True)
        shard = SqliteLog(draft)
        try:
            shard.append([first])
            shard.sign(signers, t_ms)
            shard._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            shard.close()
        try:
            durable.adopt(draft, shard_file(self.path, number))
        except FileExistsError:
            raise Fenced(f"shard {number} was begun by another sequencer") from None
        except OSError as error:
            raise LogError(f"{shard_file(self.path, number)} cannot be made: {error.strerror}") from error
        self.reload()

    def drop(self, number: int) -> None:
        numbers = shard_numbers(self.path)
        if number != numbers[0] or number == self.number:
            raise LogError("only the oldest shard can be dropped, and never the newest")
        for side in _SIDES:
            file = shard_file(self.path, number)
            file.with_name(file.name + side).unlink(missing_ok=True)

    def lead(self, name: str, seconds: float) -> bool:
        """Always: the data folder's lock keeps other nodes out."""
        return True

    def _compare(self, known: State) -> State:
        stored = _state(self._db, self.number)
        if (stored.size, stored.root) != (known.size, known.root):
            raise Fenced(f"{self._file} was appended to by another sequencer")
        return stored

    def _places(self, eids: Sequence[str]) -> dict[str, int]:
        """Those of `eids` that are in the log, and where."""
        places: dict[str, int] = {}
        for start in range(0, len(eids), _LOOKUP):
            some = eids[start : start + _LOOKUP]
            marks = ",".join("?" * len(some))
            places.update(self._db.execute(f"SELECT eid, idx FROM leaf WHERE eid IN ({marks})", some))  # noqa: S608
        return places

    @contextmanager
    def _write(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise LogError(f"{self._file} cannot be written: {error}") from error


def _open(path: Path) -> sqlite3.Connection:
    """A shard's file, made where there is none."""
    new = not path.exists()
    try:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        if new:
            path.chmod(0o600)
        db.execute("PRAGMA journal_mode = WAL")
        # Nothing answered with a log index may be undone by a power cut: NORMAL loses WAL commits, FULL does not.
        db.execute("PRAGMA synchronous = FULL")
        db.executescript(resources.files("aimx.audit").joinpath("schema", "sqlite.sql").read_text())
        empty = (EMPTY_ROOT, Frontier().to_bytes())
        # The WHERE comes before the trigger that allows one state only, so that two that open at once both may.
        db.execute("INSERT INTO state SELECT 1, 0, ?, ?, NULL WHERE NOT EXISTS (SELECT 1 FROM state)", empty)
    except sqlite3.Error as error:
        raise LogError(f"{path} cannot be opened as an audit log: {error}") from error
    return db


def _state(db: sqlite3.Connection, number: int) -> State:
    row = db.execute("SELECT size, root, frontier, signed FROM state").fetchone()
    if row is None:
        raise LogError("the audit log has lost its state")
    return State(row[0], row[1], Frontier.from_bytes(row[2]), row[3], number)


class SqliteReader(Reader):
    """Reads the shards' files, each over one connection that threads take in turn."""

    def __init__(self, path: Path, number: int | None = None, files: "_Files | None" = None) -> None:
        """`path` is the first shard's file, there or not. Without a `number` it follows the newest."""
        self.path = path
        self._number = number
        self._files = files or _Files(path)

    def close(self) -> None:
        self._files.close()

    def state(self) -> State:
        with self._files.open(self._number) as (db, number):
            return _state(db, number)

    def index_of(self, eid: str) -> int | None:
        with self._files.open(self._number) as (db, _):
            row = db.execute("SELECT idx FROM leaf WHERE eid = ?", (eid,)).fetchone()
        return None if row is None else int(row[0])

    def leaves(self, start: int, end: int) -> list[Leaf]:
        with self._files.open(self._number) as (db, _):
            rows = db.execute(
                "SELECT idx, eid, hash, entry FROM leaf WHERE idx >= ? AND idx < ? ORDER BY idx", (start, end)
            ).fetchall()
        return [Leaf._make(row) for row in rows]

    def nodes(self, level: int, start: int, end: int) -> list[bytes]:
        where: tuple[int, ...] = (start, end)
        query = "SELECT hash FROM leaf WHERE idx >= ? AND idx < ? ORDER BY idx"
        if level:
            query = "SELECT hash FROM node WHERE level = ? AND idx >= ? AND idx < ? ORDER BY idx"
            where = (level, start, end)
        with self._files.open(self._number) as (db, _):
            return [row[0] for row in db.execute(query, where)]

    def checkpoints(self) -> list[tuple[int, int, str]]:
        with self._files.open(self._number) as (db, _):
            return list(db.execute("SELECT size, t_ms, note FROM checkpoint ORDER BY size"))

    def numbers(self) -> list[int]:
        found = shard_numbers(self.path)
        if not found:
            raise LogError(f"{self.path} is not there")
        return found

    def shard(self, number: int) -> Reader:
        return self if number == self._number else SqliteReader(self.path, number, self._files)


class _Files:
    """The open files of one reader and of those that stay with a shard."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._open: dict[int, sqlite3.Connection] = {}
        self._newest = 0

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    @contextmanager
    def open(self, number: int | None) -> Iterator[tuple[sqlite3.Connection, int]]:
        with self._lock:
            wanted = self._follow() if number is None else number
            path = shard_file(self._path, wanted)
            try:
                if wanted not in self._open:
                    self._open[wanted] = sqlite3.connect(
                        f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False, timeout=10
                    )
                yield self._open[wanted], wanted
            except (sqlite3.Error, ValueError) as error:
                raise LogError(f"{path} cannot be read as an audit log: {error}") from error

    def _follow(self) -> int:
        if not self._newest:
            self._newest = (shard_numbers(self._path) or [1])[-1]
        while shard_file(self._path, self._newest + 1).exists():
            self._newest += 1
        return self._newest
