"""Reads: each a snapshot of its own, on connections that cannot write. WAL readers wait for no writer."""

import asyncio
import queue
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from aimx.store.sqlite.connection import connect
from aimx.store.sqlite.writer import refusal

T = TypeVar("T")

THREADS = 4


class Reader:
    """A small pool of threads for what may be long, and one connection of the event loop's own for point look-ups.

    A trip to a thread and back costs more than a handful of indexed look-ups; those are made where they are asked.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="store-reader")
        self._idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        self._near = connect(path, write=False, busy_s=0.05)

    def near(self, read: "Callable[[sqlite3.Connection], T]") -> T:
        """On the event loop's thread. For bounded point look-ups only, each statement with a snapshot of its own.

        Every statement lets go of the interpreter, and beside a busy writer waits to get it back: so no BEGIN here.
        """
        try:
            return read(self._near)
        except sqlite3.Error as error:
            raise refusal(error) from error

    async def far(self, read: "Callable[[sqlite3.Connection], T]") -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._borrow, read)

    def _borrow(self, read: "Callable[[sqlite3.Connection], T]") -> T:
        try:
            db = self._idle.get_nowait()
        except queue.Empty:
            db = connect(self._path, write=False)
        try:
            return _snapshot(db, read)
        finally:
            self._idle.put(db)

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)
        self._near.close()
        while not self._idle.empty():
            self._idle.get_nowait().close()


def _snapshot(db: sqlite3.Connection, read: "Callable[[sqlite3.Connection], T]") -> T:
    try:
        db.execute("BEGIN")
        try:
            return read(db)
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise refusal(error) from error
