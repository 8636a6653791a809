"""Transactions that write. They run beside each other; PostgreSQL syncs their commits together.

A commit whose answer was lost is looked for: the old connection's process is ended first, so that the answer found
does not change any more.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import asyncpg

from aimx.failpoint import reach
from aimx.store.contract import Topic, Unavailable
from aimx.store.postgres.connection import Complaint, Db, Pool, connect, is_blocked, is_lost, refusal

T = TypeVar("T")

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


class Undone(Exception):
    """Nothing of the transaction was written. The cause says why."""

    def __init__(self, cause: Exception) -> None:
        super().__init__()
        self.cause = cause


class Writer:
    """Runs what writes, on connections of a pool. All on the event loop's thread."""

    def __init__(self, pool: Pool, notify: Callable[[set[Topic]], None]) -> None:
        self._pool = pool
        self._notify = notify
        self._under_way: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._complain = Complaint()

    async def run(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        """One call in a transaction of its own, which goes on to its end when the caller is cancelled.

        Raises what the contract says.
        """
        if self._closed:
            raise Unavailable("the store is closed")
        task = asyncio.create_task(self._persist(work))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _persist(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        try:
            return await self.transaction(work)
        except Undone as undone:
            raise refusal(undone.cause) from undone.cause

    async def transaction(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        """Raises Undone; Unavailable where there is no connection, or no word from one whether it was done."""
        for left in reversed(range(TRIES)):
            try:
                return await self._attempt(work)
            except Undone as undone:
                if not left or not isinstance(undone.cause, asyncpg.DeadlockDetectedError | asyncpg.SerializationError):
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
                raise Undone(error) from error
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
        reach("store.commit")
        try:
            status = await tx.db.execute("COMMIT")
        except Exception as error:
            self._complain("commit failed", error)
            if is_lost(error) and tx.proofs and await self._has_landed(tx):
                return
            raise Undone(error) from error
        if status != "COMMIT":
            raise Undone(RuntimeError("a statement had failed and nobody looked"))
        reach("store.committed")

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

    async def close(self) -> None:
        """Finish what is under way, then take nothing more."""
        self._closed = True
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=CLOSE_S)
