"""Connections to other servers, kept for the next message for a little while.

A connection is lent to one transaction at a time. To one server there are at most so many; who comes then waits.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aimx.delivery.dialogue import Dialogue, Refused, Server

MAX_TRANSACTIONS = 100
"""Over one connection; some servers end it after as many anyway."""
MAX_SERVERS = 1000


@dataclass(slots=True)
class _Shelf:
    slots: asyncio.Semaphore
    users: int = 0
    idle: list[tuple[Dialogue, asyncio.TimerHandle]] = field(default_factory=list)


class Pool:
    """One for a carrier; on the event loop only."""

    def __init__(self, name: str, limit: int, idle_for: float) -> None:
        """`name`: what we call ourselves. `limit`: connections to one server. `idle_for`: seconds."""
        self._name = name
        self._limit = limit
        self._idle_for = idle_for
        self._shelves: OrderedDict[Server, _Shelf] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    @asynccontextmanager
    async def lend(self, server: Server, *, fresh: bool = False) -> AsyncIterator[Dialogue]:
        """A connection for one transaction; after any exception but `Refused` it is dropped. Raises as `connect`.

        `fresh`: a new one, not one that was kept.
        """
        shelf = self._shelf(server)
        shelf.users += 1
        try:
            async with shelf.slots:
                dialogue = None if fresh else self._kept(shelf)
                if dialogue is None:
                    dialogue = await Dialogue.connect(server, self._name)
                try:
                    yield dialogue
                except Refused:
                    self._keep(shelf, dialogue)  # a no is an answer: the connection is as good as before
                    raise
                except BaseException:
                    dialogue.drop()
                    raise
                self._keep(shelf, dialogue)
        finally:
            shelf.users -= 1

    async def close(self) -> None:
        """End all that is idle; what is lent ends when it comes back."""
        self._closed = True
        for server in list(self._shelves):
            shelf = self._shelves[server]
            while shelf.idle:
                self._end(shelf, shelf.idle[-1][0])
        if self._closing:
            await asyncio.wait(self._closing)

    def _shelf(self, server: Server) -> _Shelf:
        shelf = self._shelves.get(server)
        if shelf is None:
            shelf = self._shelves[server] = _Shelf(asyncio.Semaphore(self._limit))
            if len(self._shelves) > MAX_SERVERS:
                unused = next((key for key, old in self._shelves.items() if not old.users and not old.idle), None)
                if unused is not None and unused != server:
                    del self._shelves[unused]
        self._shelves.move_to_end(server)
        return shelf

    def _kept(self, shelf: _Shelf) -> Dialogue | None:
        while shelf.idle:
            dialogue, timer = shelf.idle.pop()
            timer.cancel()
            if dialogue.usable:
                return dialogue
            dialogue.drop()
        return None

    def _keep(self, shelf: _Shelf, dialogue: Dialogue) -> None:
        if self._closed or dialogue.sent >= MAX_TRANSACTIONS or not dialogue.usable:
            self._quit(dialogue)
            return
        timer = asyncio.get_running_loop().call_later(self._idle_for, self._end, shelf, dialogue)
        shelf.idle.append((dialogue, timer))

    def _end(self, shelf: _Shelf, dialogue: Dialogue) -> None:
        for kept, timer in shelf.idle:
            if kept is dialogue:
                timer.cancel()
                shelf.idle.remove((kept, timer))
                break
        self._quit(dialogue)

    def _quit(self, dialogue: Dialogue) -> None:
        task = asyncio.get_running_loop().create_task(dialogue.quit())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
