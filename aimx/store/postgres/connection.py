"""How PostgreSQL is reached: the connections, their settings, and what its errors mean to a caller."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any, TypeAlias, TypeVar

import asyncpg

from aimx.store.contract import AlreadyExists, Busy, Full, NotFound, ReadOnly, StoreError, Unavailable

log = logging.getLogger(__name__)

Db: TypeAlias = Any
"""An `asyncpg.Connection`, which has no types of its own."""
T = TypeVar("T")

SCHEMA = "aimx"
MINIMUM = 150_000
"""PostgreSQL 15, as `server_version_num` has it."""
CONNECT_S = 3.0
WAIT_S = 3.0
"""How long a call waits for a free connection before it says that there is none."""
ANSWER_S = 10.0
"""After this long without an answer a connection is given up: the network may be cut."""
QUIET_S = 5.0
"""Between two log lines about a database that cannot be reached."""

_SETTINGS = {
    "search_path": SCHEMA,
    "synchronous_commit": "on",
    "default_transaction_isolation": "read committed",
    "lock_timeout": "4s",
    "statement_timeout": "9s",
    "idle_in_transaction_session_timeout": "30s",
    # Every statement here is made to walk an index from a few given keys, whatever their values: planned once for a
    # connection. Whoever plans by statistics of an hour ago, when the table was empty, finds otherwise.
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}

_BLOCKED_CLASSES = ("08", "40", "53", "57", "58")
"""Connection, rollback (deadlock), resources, operator intervention, system: not the call's fault."""
_BLOCKED_STATES = {"55P03", "25006", "25P03", "25P04"}
"""Lock not available; read-only, as on a standby; ended for idling or lasting."""


async def connect(url: str, name: str, **settings: str) -> Db:
    """Raises what asyncpg raises; see `refusal`."""
    given = {**_SETTINGS, "application_name": name[:63], **settings}
    return await asyncpg.connect(
        url, timeout=CONNECT_S, command_timeout=ANSWER_S, statement_cache_size=512, server_settings=given
    )


def is_lost(error: BaseException) -> bool:
    """Whether the connection is gone, so that what was under way may or may not have been done."""
    if isinstance(error, asyncpg.PostgresError):
        severity = getattr(error, "severity_en", None) or getattr(error, "severity", None)
        return severity in ("FATAL", "PANIC") or (error.sqlstate or "").startswith("08")
    if isinstance(error, asyncpg.InterfaceError):
        return not isinstance(error, ValueError)  # one that is a ValueError is about an argument
    return isinstance(error, OSError | TimeoutError)


def is_blocked(error: BaseException) -> bool:
    """Not the call's fault: the same call may succeed later."""
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        return state.startswith(_BLOCKED_CLASSES) or state in _BLOCKED_STATES
    return is_lost(error)


def refusal(error: BaseException) -> BaseException:
    """The contract's error for one of PostgreSQL's, without its text: that may hold data."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, asyncpg.UniqueViolationError):
        return AlreadyExists("an id or name is taken")
    if isinstance(error, asyncpg.ForeignKeyViolationError):
        return NotFound("there is no such agent (any more)")
    if isinstance(error, asyncpg.DiskFullError):
        return Full("the database has no room left")
    if isinstance(error, asyncpg.TooManyConnectionsError):
        return Busy("the database takes no more connections")
    if isinstance(error, asyncpg.InsufficientPrivilegeError | asyncpg.ReadOnlySQLTransactionError):
        return ReadOnly("the database lets this user not do that")
    if is_blocked(error):
        return Unavailable("the database cannot be written or read now")
    return error


class Complaint:
    """A log line now and then: a database that is gone fails every call."""

    def __init__(self) -> None:
        self._quiet_until = 0.0

    def __call__(self, what: str, error: BaseException) -> None:
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + QUIET_S
            log.warning("store: %s: %s", what, type(error).__name__)


class Pool:
    """Connections to lend, made when they are needed. Lost ones are made anew by the next call that wants one."""

    def __init__(self, url: str, name: str, size: int) -> None:
        self.url = url
        self.name = name
        self._free: list[Db] = []
        self._room = asyncio.Semaphore(size)
        self._closed = False
        self._complain = Complaint()

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[Db]:
        """Raises Unavailable when none is free in time or none can be made."""
        try:
            # Most often there is room, and a timer costs as much as all the rest here.
            async with asyncio.timeout(WAIT_S) if self._room.locked() else nullcontext():
                await self._room.acquire()
        except TimeoutError:
            raise Busy("all connections to the database are busy") from None
        try:
            db = await self._take()
            try:
                yield db
            finally:
                self._put_back(db)
        finally:
            self._room.release()

    async def _take(self) -> Db:
        while self._free:
            db = self._free.pop()  # the one used last: those that idle longest are the ones to be closed
            if not db.is_closed():
                return db
        if self._closed:
            raise Unavailable("the store is closed")
        try:
            return await connect(self.url, self.name)
        except Exception as error:
            self._complain("no connection", error)
            raise refusal(error) from error

    def _put_back(self, db: Db) -> None:
        """One in the middle of something is no good to anybody: its caller was cancelled, or its network is cut."""
        if db.is_closed():
            return
        if db.is_in_transaction() or self._closed:
            db.terminate()
        else:
            self._free.append(db)

    async def read(self, work: Callable[[Db], Awaitable[T]]) -> T:
        """Reads may be asked twice: the first may have met a connection that a restart had cut."""
        for last in (False, True):
            try:
                async with self.lent() as db:
                    return await work(db)
            except Exception as error:
                if last or isinstance(error, TimeoutError) or not is_lost(error):
                    raise refusal(error) from error
        raise AssertionError

    async def snapshot(self, work: Callable[[Db], Awaitable[T]]) -> T:
        """Several statements that see one state."""

        async def inside(db: Db) -> T:
            await db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            try:
                return await work(db)
            finally:
                if not db.is_closed():
                    await db.execute("ROLLBACK")

        return await self.read(inside)

    async def close(self) -> None:
        self._closed = True
        while self._free:
            db = self._free.pop()
            try:
                await db.close(timeout=CONNECT_S)
            except Exception as error:
                self._complain("closing", error)
