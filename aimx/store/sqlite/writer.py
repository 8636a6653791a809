"""The one thread that writes mail.db, and its group commit.

What waits in the queue becomes one transaction: acceptances first, all together, by few statements; then every other
call in a savepoint of its own. A call that fails is rolled back alone. If the group cannot be committed (disk full),
each call is tried alone, so that a small one may still succeed. Callers are answered after the COMMIT, with one call
into the event loop for the whole group.
"""

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aimx.failpoint import reach
from aimx.store.contract import AlreadyExists, Busy, Full, Topic, Unavailable
from aimx.store.sqlite.checkpoint import Checkpointer
from aimx.store.sqlite.connection import connect
from aimx.telemetry import metrics

log = logging.getLogger(__name__)

DURATION = metrics.histogram("aimx.store.commit.duration").labels()
BATCH = metrics.histogram("aimx.store.commit.batch").labels()

MAX_GROUP = 256
"""Calls in one commit: bounds how long the first of them waits for the last."""
POLL_S = 0.5
"""How soon commits of other processes are seen, when this one writes nothing itself."""
QUIET_S = 5.0
"""Between two log lines about a database that cannot be written."""

_BLOCKED = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PROTOCOL,
}
"""Not the call's fault: the same call may succeed later."""


def is_blocked(error: BaseException) -> bool:
    if isinstance(error, sqlite3.ProgrammingError):
        return False
    return isinstance(error, sqlite3.Error) and (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _BLOCKED


def blocked(error: BaseException) -> Unavailable:
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_FULL:
            return Full("no room is left for mail.db")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Busy("another process writes mail.db")
        case _:
            return Unavailable("mail.db cannot be written or read now")


def refusal(error: Exception) -> Exception:
    """The contract's error for one of SQLite's, without its text: that may hold data."""
    if isinstance(error, sqlite3.IntegrityError):
        return AlreadyExists("an id or name is taken")
    if is_blocked(error):
        return blocked(error)
    return error


class Tx:
    """One transaction: the connection, and what it touches."""

    __slots__ = ("db", "next_seq", "topics")

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.topics: set[Topic] = set()
        self.next_seq: int | None = None
        """Of the next event; None: to be asked of the table (at first, and after a rollback)."""


Work = Callable[[Tx], Any]
Batch = Callable[[Tx, list[Any]], Sequence[Any]]
"""Carries out many items; an item's result is an exception if it alone was refused. It raises if it cannot tell whose
fault it is: then each item is tried alone."""


class Job(NamedTuple):
    future: "asyncio.Future[Any]"
    work: Work | None
    item: Any
    """For the batch, where `work` is None."""


class Verdict(NamedTuple):
    job: Job
    result: Any
    error: Exception | None


class _Lost(Exception):
    """The transaction is gone; nothing of it was written."""

    def __init__(self, why: Exception, *, begun: bool) -> None:
        self.why = why
        self.begun = begun
        """Else there was not even a beginning, so that trying one by one is in vain."""


class Writer:
    """Owns the writing connection. `submit*` belong to the event loop's thread."""

    def __init__(self, path: Path, batch: Batch, lazy: Work, notify: Callable[[set[Topic] | None], None]) -> None:
        self._path = path
        self._batch = batch
        self._lazy = lazy
        self._notify = notify
        self._waiting: list[Job] = []
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._db: sqlite3.Connection | None = None
        self._version = 0
        self._checkpointer = Checkpointer(path)
        self._quiet_until = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, work: Work) -> "asyncio.Future[Any]":
        return self._put(work, None)

    def submit_item(self, item: Any) -> "asyncio.Future[Any]":
        return self._put(None, item)

    def _put(self, work: Work | None, item: Any) -> "asyncio.Future[Any]":
        if self._closed:
            raise Unavailable("the store is closed")
        future = self._loop.create_future()
        if not self._waiting:
            self._loop.call_soon(self._hand_over)
        self._waiting.append(Job(future, work, item))
        return future

    def _hand_over(self) -> None:
        """What one turn of the loop brought: groups are larger so, and the thread begins when the loop is done."""
        for job in self._waiting:
            self._jobs.put(job)
        self._waiting.clear()

    async def close(self) -> None:
        """Commit what was submitted, then end the thread."""
        if self._closed:
            return
        self._closed = True
        self._hand_over()
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    # ── the thread ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        running = True
        while running:
            jobs, running = self._take()
            try:
                if jobs:
                    self._commit(jobs)
                self._look_around(idle=not jobs)
            except Exception:
                log.exception("store writer: unexpected failure")
        self._shut()

    def _take(self) -> tuple[list[Job], bool]:
        """What waits now, at least one unless nothing comes for a while; False after the last."""
        jobs: list[Job] = []
        try:
            job = self._jobs.get(timeout=POLL_S)
            while job is not None:
                jobs.append(job)
                if len(jobs) >= MAX_GROUP:
                    break
                job = self._jobs.get_nowait()
            else:
                return jobs, False
        except queue.Empty:
            pass
        return jobs, True

    def _commit(self, jobs: list[Job]) -> None:
        began = time.perf_counter()
        try:
            verdicts, topics = self._transaction(jobs)
        except _Lost as lost:
            if len(jobs) == 1 or not lost.begun:
                self._answer([Verdict(job, None, blocked(lost.why)) for job in jobs], set())
            else:
                for job in jobs:
                    self._commit([job])
            return
        self._answer(verdicts, topics)
        DURATION.record(time.perf_counter() - began)
        BATCH.record(len(jobs))

    def _transaction(self, jobs: list[Job]) -> tuple[list[Verdict], set[Topic]]:
        """Raises _Lost."""
        try:
            db = self._connection()
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            self._complain("cannot begin a commit", error)
            self._drop_connection()
            raise _Lost(error, begun=False) from error
        try:
            tx = Tx(db)
            items = [job for job in jobs if job.work is None]
            verdicts = self._items(tx, items) if items else []
            verdicts += [self._single(tx, job) for job in jobs if job.work is not None]
            self._lazy(tx)
            reach("store.commit")
            db.execute("COMMIT")
            reach("store.committed")
        except Exception as error:
            self._roll_back(db)
            if is_blocked(error):
                self._complain("commit failed", error)
            else:
                log.exception("store: commit failed")
            raise _Lost(error, begun=True) from error
        return verdicts, tx.topics

    def _items(self, tx: Tx, jobs: list[Job]) -> list[Verdict]:
        try:
            results = self._savepoint(tx, lambda tx: self._batch(tx, [job.item for job in jobs]))
        except Exception as error:
            if not tx.db.in_transaction or is_blocked(error):
                raise
            if len(jobs) == 1:
                return [Verdict(jobs[0], None, refusal(error))]
            return [verdict for job in jobs for verdict in self._items(tx, [job])]
        return [
            Verdict(job, None, result) if isinstance(result, Exception) else Verdict(job, result, None)
            for job, result in zip(jobs, results, strict=True)
        ]

    def _single(self, tx: Tx, job: Job) -> Verdict:
        assert job.work is not None
        try:
            return Verdict(job, self._savepoint(tx, job.work), None)
        except Exception as error:
            if not tx.db.in_transaction or is_blocked(error):
                raise
            return Verdict(job, None, refusal(error))

    @staticmethod
    def _savepoint(tx: Tx, work: Work) -> Any:
        db, topics = tx.db, tx.topics
        tx.topics = set()
        db.execute("SAVEPOINT one")
        try:
            result = work(tx)
        except BaseException:
            tx.topics, tx.next_seq = topics, None
            if db.in_transaction:
                db.execute("ROLLBACK TO one")
                db.execute("RELEASE one")
            raise
        db.execute("RELEASE one")
        tx.topics |= topics
        return result

    def _answer(self, verdicts: list[Verdict], topics: set[Topic]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle, verdicts, topics)
        except RuntimeError:
            log.debug("store: the event loop is gone; %d answers dropped", len(verdicts))

    def _settle(self, verdicts: list[Verdict], topics: set[Topic]) -> None:
        """On the loop's thread."""
        for job, result, error in verdicts:
            if job.future.done():  # its caller has gone
                continue
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(error)
        if topics:
            self._notify(topics)

    # ── between commits ─────────────────────────────────────────────────────────────────────────────────────────────

    def _look_around(self, *, idle: bool) -> None:
        """Notice what other processes committed; keep the write-ahead log short."""
        if (db := self._db) is None:
            return
        try:
            # Changes exactly when another connection has committed, and ours are the only writes of this process.
            (version,) = db.execute("PRAGMA data_version").fetchone()
            if version != self._version:
                self._version = version
                self._loop.call_soon_threadsafe(self._notify, None)
            self._checkpointer.step(db, idle=idle)
        except sqlite3.Error as error:
            self._complain("between commits", error)
        except RuntimeError:
            log.debug("store: the event loop is gone")

    def _complain(self, what: str, error: Exception) -> None:
        """Now and then: a full disk fails every call, and the log may lie on it too."""
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + QUIET_S
            log.warning("store: %s: %s", what, error)

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = connect(self._path, write=True)
            self._checkpointer.restarted()
            (self._version,) = self._db.execute("PRAGMA data_version").fetchone()
        return self._db

    def _roll_back(self, db: sqlite3.Connection) -> None:
        try:
            if db.in_transaction:
                db.execute("ROLLBACK")
        except sqlite3.Error:
            self._drop_connection()

    def _drop_connection(self) -> None:
        if self._db is not None:
            try:
                self._db.close()
            except sqlite3.Error as error:
                log.warning("store: closing: %s", error)
            self._db = None

    def _shut(self) -> None:
        self._checkpointer.close()
        self._drop_connection()
