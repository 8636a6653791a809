"""audit.db: the append-only log on SQLite. `Log` is its one writer, `Reader` what everybody else uses.

Both are synchronous: the writer is called from the sequencer's thread, a reader from any thread. What they keep in
memory does not grow with the log.

An append is one transaction that compares the stored (size, root) with the one it started from, so two sequencers at
once cannot fork the log: the later one fails (`Fenced`), reads again, and finds the first one's leaves by their eids.
"""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from aimx.tlog import checkpoint, proof, tile, tree
from aimx.tlog.checkpoint import Checkpoint
from aimx.tlog.note import Signer
from aimx.tlog.proof import Proof
from aimx.tlog.tile import Tile
from aimx.tlog.tree import EMPTY_ROOT, Frontier, NodeReader, leaf_hash

FILE = "audit.db"

KEEP_EVERY_MS = 60_000
"""Checkpoints are signed each second while the log grows; one a minute is kept for good, the newest always."""

_LOOKUP = 500
"""Parameters in one IN (…): below every SQLite's limit."""


class LogError(Exception):
    """The log cannot be used as it is. The text says what is wrong with which file."""


class Fenced(LogError):
    """Another sequencer has appended since this one read the state. Read it again and go on."""


class NotCovered(LogError):
    """No signed checkpoint covers this leaf yet; within a second or two one will."""


class State(NamedTuple):
    """How long the log is and what it adds up to. `signed` is the newest signed checkpoint's text."""

    size: int
    root: bytes
    frontier: Frontier
    signed: str | None


class Leaf(NamedTuple):
    idx: int
    eid: str
    hash: bytes
    entry: bytes


class Appended(NamedTuple):
    """One append: the sizes before and after, the new root, and each given leaf's index, in the order given."""

    before: int
    size: int
    root: bytes
    indexes: list[int]


class Log:
    """The writer. One thread at a time; other processes may write too and are fenced off."""

    def __init__(self, path: Path) -> None:
        """Open or create audit.db. Raises LogError."""
        self.path = path
        new = not path.exists()
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
            if new:
                path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode = WAL")
            # Nothing answered with a log index may be undone by a power cut: NORMAL loses WAL commits, FULL does not.
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(resources.files("aimx.audit").joinpath("schema.sql").read_text())
            with self._write():
                if _state(self._db) is None:
                    empty = Frontier()
                    self._db.execute("INSERT INTO state VALUES (1, 0, ?, ?, NULL)", (EMPTY_ROOT, empty.to_bytes()))
            self.state = self.reload()
        except sqlite3.Error as error:
            raise LogError(f"{path} cannot be opened as an audit log: {error}") from error

    def close(self) -> None:
        self._db.close()

    def reload(self) -> State:
        """Read the state again, after `Fenced`."""
        state = _state(self._db)
        if state is None:
            raise LogError(f"{self.path} has lost its state")
        self.state = state
        return state

    def append(self, leaves: Sequence[tuple[str, bytes]]) -> Appended:
        """Append (eid, entry) pairs, durable when it returns; one that is in the log already keeps its place.

        Raises Fenced (nothing written) and sqlite3.Error (disk full, …; nothing written).
        """
        known = self.state
        with self._write():
            stored = _state(self._db)
            if stored is None or (stored.size, stored.root) != (known.size, known.root):
                raise Fenced(f"{self.path} was appended to by another sequencer")
            places = self._places([eid for eid, _ in leaves])
            rows: list[Leaf] = []
            for eid, entry in leaves:
                if eid not in places:
                    places[eid] = known.size + len(rows)
                    rows.append(Leaf(places[eid], eid, leaf_hash(entry), entry))
            if rows:
                frontier = known.frontier.copy()
                nodes = frontier.extend((row.hash for row in rows), tile.HEIGHT)
                after = State(frontier.size, frontier.root(), frontier, known.signed)
                self._db.executemany("INSERT INTO leaf VALUES (?, ?, ?, ?)", rows)
                self._db.executemany(
                    "INSERT INTO node VALUES (?, ?, ?)", [(level // tile.HEIGHT, at, node) for level, at, node in nodes]
                )
                swapped = self._db.execute(
                    "UPDATE state SET size = ?, root = ?, frontier = ? WHERE size = ? AND root = ?",
                    (after.size, after.root, frontier.to_bytes(), known.size, known.root),
                )
                if swapped.rowcount != 1:
                    raise Fenced(f"{self.path} was appended to by another sequencer")
        if rows:
            self.state = after
        return Appended(known.size, self.state.size, self.state.root, [places[eid] for eid, _ in leaves])

    def sign(self, signer: Signer, t_ms: int) -> str:
        """Sign the stored state and keep the checkpoint. Returns the signed note's text. Raises Fenced.

        What is signed is what this transaction reads, so no two signed checkpoints can contradict each other.
        """
        with self._write():
            stored = _state(self._db)
            if stored is None or (stored.size, stored.root) != (self.state.size, self.state.root):
                raise Fenced(f"{self.path} was appended to by another sequencer")
            found = Checkpoint(signer.verifier.name, stored.size, stored.root)
            signed = str(checkpoint.sign(found, [signer]))
            self._db.execute("UPDATE state SET signed = ?", (signed,))
            last = self._db.execute("SELECT size, t_ms FROM checkpoint ORDER BY size DESC LIMIT 1").fetchone()
            if last is None or (last[0] < found.size and t_ms >= last[1] + KEEP_EVERY_MS):
                self._db.execute("INSERT INTO checkpoint VALUES (?, ?, ?)", (found.size, t_ms, signed))
        self.state = self.state._replace(signed=signed)
        return signed

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
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


def _state(db: sqlite3.Connection) -> State | None:
    row = db.execute("SELECT size, root, frontier, signed FROM state").fetchone()
    return None if row is None else State(row[0], row[1], Frontier.from_bytes(row[2]), row[3])


class Reader:
    """Reads a log, also while it is being written, also from several threads, and never changes it.

    Every call raises LogError when the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def state(self) -> State:
        with self._open() as db:
            state = _state(db)
        if state is None:
            raise LogError(f"{self.path} has lost its state")
        return state

    def index_of(self, eid: str) -> int | None:
        """Where an event stands in the log; None while it does not."""
        with self._open() as db:
            row = db.execute("SELECT idx FROM leaf WHERE eid = ?", (eid,)).fetchone()
        return None if row is None else int(row[0])

    def entry(self, index: int) -> bytes | None:
        with self._open() as db:
            row = db.execute("SELECT entry FROM leaf WHERE idx = ?", (index,)).fetchone()
        return None if row is None else bytes(row[0])

    def leaves(self, start: int, end: int) -> list[Leaf]:
        """Leaves start … end−1, as many as there are, in order."""
        with self._open() as db:
            rows = db.execute(
                "SELECT idx, eid, hash, entry FROM leaf WHERE idx >= ? AND idx < ? ORDER BY idx", (start, end)
            ).fetchall()
        return [Leaf._make(row) for row in rows]

    def nodes(self, level: int, start: int, end: int) -> list[bytes]:
        """Hashes start … end−1 at a tile level (0: the leaves'), as many as there are."""
        with self._open() as db:
            if level == 0:
                query, where = "SELECT hash FROM leaf WHERE idx >= ? AND idx < ? ORDER BY idx", (start, end)
            else:
                query = "SELECT hash FROM node WHERE level = ? AND idx >= ? AND idx < ? ORDER BY idx"
                where = (level, start, end)  # type: ignore[assignment]
            return [row[0] for row in db.execute(query, where)]

    def checkpoints(self) -> list[tuple[int, int, str]]:
        """The kept checkpoints: (size, Unix ms, signed note), ascending."""
        with self._open() as db:
            return list(db.execute("SELECT size, t_ms, note FROM checkpoint ORDER BY size"))

    def checkpoint(self) -> str | None:
        """The newest signed checkpoint: the body of `/checkpoint`. None before the first."""
        return self.state().signed

    def tile(self, wanted: Tile) -> bytes | None:
        """The octets of a tile or an entry bundle, partial ones included; None for one the log does not have."""
        if not tile.exists(wanted, self.state().size):
            return None
        start = wanted.index * tile.WIDTH
        if wanted.level is None:
            return tile.encode_bundle(leaf.entry for leaf in self.leaves(start, start + wanted.width))
        return b"".join(self.nodes(wanted.level, start, start + wanted.width))

    def node_reader(self) -> NodeReader:
        """A reader of single nodes for proofs; it keeps the tiles it has read, so use it for one burst of proofs."""
        return tile.node_reader(lambda level, index: self.nodes(level, index * tile.WIDTH, (index + 1) * tile.WIDTH))

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """The path of leaf `index` in the tree of `size` leaves."""
        return tree.inclusion_proof(index, size, self.node_reader())

    def consistency(self, old: int, new: int) -> list[bytes]:
        """That the tree of `new` leaves begins with the tree of `old`."""
        return tree.consistency_proof(old, new, self.node_reader())

    def prove(self, index: int, extra: bytes | None = None) -> Proof:
        """A proof file for one leaf against the newest signed checkpoint. Raises NotCovered."""
        signed = self.checkpoint()
        if signed is None or (size := checkpoint.parse(signed.partition("\n\n")[0] + "\n").size) <= index:
            raise NotCovered(f"leaf {index} is not under a signed checkpoint yet")
        return proof.Proof(index, tuple(self.inclusion(index, size)), signed, extra)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                if self._db is None:
                    self._db = sqlite3.connect(
                        f"{self.path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False, timeout=10
                    )
                yield self._db
            except (sqlite3.Error, ValueError) as error:
                raise LogError(f"{self.path} cannot be read as an audit log: {error}") from error
