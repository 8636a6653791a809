"""A worker among all workers of all nodes over one database: that it lives, what it is asked, and its name."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path

from aimx.config import Settings
from aimx.data_folder import CannotStart
from aimx.store.contract import NodeRecord, Store, StoreError
from aimx.store.place import open_store

BEAT_EVERY = 2.0
"""Seconds between signs of life, and so until a request to drain is heard."""
SILENT_AFTER = 3 * BEAT_EVERY
"""Seconds without one after which a worker of that name is believed to be gone."""
RECENT_MS = 120_000
"""A record older than this is nobody's; clocks differ less."""


class Membership:
    """One worker's. `drain` is called with what was asked of the node, whenever that changes."""

    def __init__(self, store: Store, node: str, worker: int, drain: Callable[[bool], Awaitable[None]]) -> None:
        self.draining = False
        self._store = store
        self._node, self._worker = node, worker
        self._drain = drain
        self._started_ms = _now_ms()
        self._task: asyncio.Task[None] | None = None

    async def join(self) -> None:
        """Be known to the others from now on. Raises StoreError."""
        await self._beat()
        self._task = asyncio.create_task(self._beating(), name="aimx-beat")

    async def leave(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(StoreError):
            await self._store.part(self._node, self._worker)

    async def _beating(self) -> None:
        while True:
            await asyncio.sleep(BEAT_EVERY)
            with contextlib.suppress(StoreError):
                await self._beat()

    async def _beat(self) -> None:
        record = NodeRecord(
            node=self._node,
            worker=self._worker,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_ms=self._started_ms,
            seen_ms=_now_ms(),
            version=version("aimx-server"),
        )
        asked = await self._store.beat(record)
        if asked != self.draining:
            self.draining = asked
            await self._drain(asked)


async def claim_name(settings: Settings, folder: Path) -> None:
    """Before any worker of a node begins: nobody else works under its name. Raises CannotStart.

    Two nodes of one name would free each other's leases. One that was killed leaves its record behind: on this host the
    process tells, on another one (or in another container) its silence.
    """
    store = open_store(folder, settings.database.url, settings.node, guest=True)
    try:
        await store.open()
    except StoreError as error:
        raise CannotStart(f"database.url: {error}") from error
    try:
        before = await _namesakes(store, settings.node)
        if not before:
            return
        await asyncio.sleep(SILENT_AFTER)
        for one in await _namesakes(store, settings.node):
            if one not in before:  # a record with another time
                raise CannotStart(
                    f"node: another node calls itself {one.node} (on {one.host}, process {one.pid}); "
                    'give this one a name of its own in aimx.toml: node = "…"'
                )
    finally:
        await store.close()


async def _namesakes(store: Store, node: str) -> list[NodeRecord]:
    """Records of workers under this name that may live."""
    since_ms = _now_ms() - RECENT_MS
    return [
        one
        for one in await store.nodes()
        if one.node == node and one.seen_ms > since_ms and (one.host != socket.gethostname() or _lives(one.pid))
    ]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
