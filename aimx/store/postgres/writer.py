"""Transactions that write: one for each call, and one for all acceptances that wait while the last one commits.

Calls run beside each other on connections of the pool; PostgreSQL writes their commits together. Acceptances become
groups: few statements for many messages. A group that fails is halved until the one that is at fault stands alone.

A commit whose answer was lost is looked for: the old connection's process is ended first, so that the answer found
does not change any more.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import asyncpg

from aimx.store.contract import StoreError, Topic, Unavailable
from aimx.store.postgres.connection import Complaint, Db, Pool, connect, is_blocked, is_lost, refusal

log = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")

MAX_GROUP = 256
"""Acceptances in one commit: bounds how long the first of them waits for the last."""
TRIES = 4
"""Of a transaction that PostgreSQL undid because of others (deadlock)."""
FIND_OUT_S = 10.0
"""How long a commit is looked for whose answer was lost. PostgreSQL may be starting again meanwhile."""
CLOSE_S = 10.0


class Tx:
    """One transaction: the connection, what it touches, and how it could be found again."""

    __slots__ = ("db", "proofs", "topics")

    def __init__(self, db: Db) -> None:
        self.db = db
        self.topics: set[Topic] = set()
        self.proofs: list[str] = []
        """An eid of an event or a message that this transaction writes: there if, and only if, it was committed."""


class _Undone(Exception):
    """Nothing of the transaction was written. The cause says why."""


class Job(NamedTuple):
    future: "asyncio.Future[Any]"
    item: Any


class Writer(Generic[Item]):
    """Runs what writes. All on the event loop's thread."""

    def __init__(
        self,
        pool: Pool,
        batch: Callable[[Tx, list[Item]], Awaitable[Sequence[Any]]],
        notify: Callable[[set[Topic]], None],
    ) -> None:
        """`batch` carries out many items; an item's result is an exception if it alone was refused."""
        self._pool = pool
        self._batch = batch
        self._notify = notify
        self._waiting: deque[Job] = deque()
        self._grouping: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._complain = Complaint()

    # ── one call ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        """In a transaction of its own. It goes on to its end when the caller is cancelled."""
        if self._closed:
            raise Unavailable("the store is closed")
        task = asyncio.create_task(self._persist(work))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _persist(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        try:
            return await self._transaction(work)
        except _Undone as undone:
            assert undone.__cause__ is not None
            raise refusal(undone.__cause__) from undone.__cause__

    async def _transaction(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        """Raises _Undone, and StoreError where there is no connection."""
        for left in reversed(range(TRIES)):
            try:
                return await self._attempt(work)
            except _Undone as undone:
                cause = undone.__cause__
                if not left or not isinstance(cause, asyncpg.DeadlockDetectedError | asyncpg.SerializationError):
                    raise
        raise AssertionError

    async def _attempt(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        async with self._pool.lent() as db:
            tx = Tx(db)
            try:
                await db.execute("BEGIN")
                result = await work(tx)
            except Exception as error:
                await self._roll_back(db, error)
                raise _Undone from error
            await self._commit(tx)
        if tx.topics:
            self._notify(tx.topics)
        return result

    async def _roll_back(self, db: Db, error: Exception) -> None:
        if is_blocked(error):
            self._complain("transaction failed", error)
        if is_lost(error):
            db.terminate()
            return
        try:
            await db.execute("ROLLBACK")
        except Exception:
            db.terminate()

    async def _commit(self, tx: Tx) -> None:
        try:
            status = await tx.db.execute("COMMIT")
        except Exception as error:
            self._complain("commit failed", error)
            if is_lost(error) and tx.proofs and await self._has_landed(tx):
                return
            raise _Undone from error
        if status != "COMMIT":
            raise _Undone from RuntimeError("a statement had failed and nobody looked")

    async def _has_landed(self, tx: Tx) -> bool:
        """Whether a commit was done whose answer did not come. Raises Unavailable when that cannot be known."""
        process = tx.db.get_server_pid()
        tx.db.terminate()
        try:
            async with asyncio.timeout(FIND_OUT_S):
                return await self._look_for(process, tx.proofs[0])
        except TimeoutError:
            raise Unavailable("the database went away while it was written to") from None

    async def _look_for(self, process: int, proof: str) -> bool:
        while True:
            try:
                db = await connect(self._pool.url, self._pool.name)
                try:
                    # It may still be on its way to commit: no answer counts before it is gone.
                    await db.execute(
                        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid = $1"
                        " AND usename = current_user AND application_name = current_setting('application_name')",
                        process,
                    )
                    found = await db.fetchval(
                        "SELECT EXISTS (SELECT 1 FROM event WHERE eid = $1)"
                        " OR EXISTS (SELECT 1 FROM message WHERE eid = $1)",
                        proof,
                    )
                finally:
                    db.terminate()
            except Exception as error:
                if not is_blocked(error):
                    raise
                await asyncio.sleep(0.1)
            else:
                return bool(found)

    # ── groups ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, item: Item) -> "asyncio.Future[Any]":
        """The item's result, after the commit of its group."""
        if self._closed:
            raise Unavailable("the store is closed")
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(Job(future, item))
        if self._grouping is None:
            self._grouping = asyncio.create_task(self._group())
        return future

    async def _group(self) -> None:
        """Groups, one after the other, for as long as somebody waits."""
        try:
            await asyncio.sleep(0)  # the others that this turn of the loop brings
            while self._waiting:
                jobs = [self._waiting.popleft() for _ in range(min(MAX_GROUP, len(self._waiting)))]
                await self._settle(jobs)
        finally:
            self._grouping = None

    async def _settle(self, jobs: list[Job]) -> None:
        """Carry out these and answer each. Raises nothing."""
        try:
            results = await self._transaction(lambda tx: self._batch(tx, [job.item for job in jobs]))
        except _Undone as undone:
            cause = undone.__cause__
            assert isinstance(cause, Exception)
            if len(jobs) > 1 and not is_lost(cause):
                half = len(jobs) // 2
                await self._settle(jobs[:half])
                await self._settle(jobs[half:])
            else:
                answer(jobs, [refusal(cause)] * len(jobs))
        except StoreError as error:
            answer(jobs, [error] * len(jobs))
        except Exception as error:
            log.exception("store: a group could not be written")
            answer(jobs, [error] * len(jobs))
        else:
            answer(jobs, results)

    async def close(self) -> None:
        """Finish what is under way, then take nothing more."""
        self._closed = True
        hand = [*self._under_way, *([self._grouping] if self._grouping is not None else [])]
        if hand:
            await asyncio.wait(hand, timeout=CLOSE_S)


def answer(jobs: Sequence[Job], results: Sequence[Any]) -> None:
    for job, result in zip(jobs, results, strict=True):
        if job.future.done():  # its caller has gone
            continue
        if isinstance(result, BaseException):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
