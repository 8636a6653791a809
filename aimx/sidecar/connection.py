"""One HTTP connection, with the limits that uvicorn leaves to a proxy in front: who says nothing, says a head without
end, or does not take the answer, is let go, and nobody has all connections.

By h11, whatever else is installed: it bounds a request's head (64 KiB), which httptools does not.
"""

import asyncio
from collections import Counter
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_WITHIN = 20.0
"""Seconds from connecting, or from the last answer, to the end of a request's head."""
TAKE_WITHIN = 300.0
"""Seconds a peer may leave an answer unread."""
MAX_PER_ADDRESS = 1000


class Connections:
    """Makes the protocols of one server: give it to uvicorn as `http`."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def __call__(self, *args: Any, **kwargs: Any) -> "Connection":
        return Connection(self, *args, **kwargs)

    def opened(self, host: str) -> bool:
        """False: this address has too many already."""
        if self._open[host] >= MAX_PER_ADDRESS:
            return False
        self._open[host] += 1
        return True

    def closed(self, host: str) -> None:
        self._open[host] -= 1
        if not self._open[host]:
            del self._open[host]  # addresses come and go for ever


class Connection(H11Protocol):
    """As uvicorn has it, and watched."""

    def __init__(self, all_: Connections, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._all = all_
        self._host: str | None = None
        """Set while it counts."""
        self._watch: asyncio.TimerHandle | None = None
        self._moved = 0.0
        """When it connected, was answered, or last took some of an answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        host = self.client[0] if self.client else ""
        if not self._all.opened(host):
            transport.abort()
            return
        self._host = host
        self._moved = self.loop.time()
        self._watch = self.loop.call_later(HEAD_WITHIN, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._host is not None:
            self._all.closed(self._host)
            self._host = None
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._moved = self.loop.time()
        super().on_response_complete()

    def resume_writing(self) -> None:
        self._moved = self.loop.time()
        super().resume_writing()

    def _look(self) -> None:
        now = self.loop.time()
        if self.cycle is None or self.cycle.response_complete:
            late = now - self._moved >= HEAD_WITHIN
        else:
            late = self.flow.write_paused and now - self._moved >= TAKE_WITHIN
        if late:
            self.transport.abort()
        else:
            self._watch = self.loop.call_later(HEAD_WITHIN / 4, self._look)
