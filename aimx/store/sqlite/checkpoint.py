"""Moving the write-ahead log into the file, away from the writer's commits.

A thread of its own copies while commits go on; but the log starts over only at a moment when all of it is copied and
nothing was added since. So the writer copies the small rest itself, between two commits.
"""

import logging
import queue
import sqlite3
import threading
import time
from pathlib import Path

from aimx.store.sqlite.connection import connect

log = logging.getLogger(__name__)

ROWS = 16_000
"""Rows written since the last time at which the next is due; when idle, any."""
SCRUB_BUSY_S = 0.2
"""How long a scrub keeps commits waiting at a time, while it waits for readers."""
SCRUB_TRIES = 40
PASSIVE = "PRAGMA wal_checkpoint(PASSIVE)"
"""Waits for nobody; copies what no reader's snapshot still needs the older state of."""


def scrub(path: Path) -> bool:
    """Copy all of the log and cut it to nothing, also beside a running node. False: a reader stood in the way."""
    db = connect(path, write=True, busy_s=SCRUB_BUSY_S)
    try:
        for _ in range(SCRUB_TRIES):
            try:
                (busy, _, _) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.OperationalError:  # locked: another process does the same
                busy = 1
            if not busy:
                return True
            time.sleep(0.05)
        return False
    finally:
        db.close()


class Checkpointer:
    """`step` belongs to the writer's thread and is called between its commits."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begun_at = -1  # a log left by an earlier life counts as written
        self._under_way = False
        self._copied = threading.Event()
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store-checkpoint", daemon=True)
        self._thread.start()

    def step(self, db: sqlite3.Connection, *, idle: bool) -> None:
        if self._under_way:
            if self._copied.is_set():
                self._copied.clear()
                self._under_way = False
                db.execute(PASSIVE).fetchone()
            return
        rows = db.total_changes - self._begun_at
        if rows >= ROWS or (idle and rows):
            self._begun_at = db.total_changes
            self._under_way = True
            self._orders.put(True)

    def restarted(self) -> None:
        """The writer has a new connection, which counts its changes from zero."""
        self._begun_at = -1

    def close(self) -> None:
        self._orders.put(False)
        self._thread.join()

    def _run(self) -> None:
        db: sqlite3.Connection | None = None
        while self._orders.get():
            try:
                db = db or connect(self._path, write=True)
                db.execute(PASSIVE).fetchone()
            except sqlite3.Error as error:
                log.warning("store: checkpoint: %s", error)
                db = None
            self._copied.set()
        if db is not None:
            db.close()
