"""HTTP connections, with the limits that uvicorn leaves to a proxy in front: who says nothing, says a head without end,
or does not take the answer, is let go, and nobody has all connections.

By h11, whatever else is installed: it bounds a request's head (64 KiB), which httptools does not.
"""

import asyncio
import ssl

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from aimx.listener import Listener

HEAD_WITHIN = 20.0
"""Seconds from connecting, or from the last answer, to the end of a request's head."""
TAKE_WITHIN = 300.0
"""Seconds a peer may leave an answer unread."""
MAX_PER_ADDRESS = 1000


class Connection(H11Protocol):
    """As uvicorn has it, and watched."""

    def __init__(self, door: "Door", http: uvicorn.Server) -> None:
        super().__init__(http.config, http.server_state, {})
        self._door = door
        self.stranger = True
        """Until TLS stands: after that the watch below is enough."""
        self._watch: asyncio.TimerHandle | None = None
        self._moved = 0.0
        """When it connected, was answered, or last took some of an answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._door.signed_in(self)
        self.stranger = False
        self._moved = self.loop.time()
        self._watch = self.loop.call_later(HEAD_WITHIN, self._look)
        if self._door.stopping:
            self.leave()

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.closed(self)
        if self._watch is not None:
            self._watch.cancel()
            super().connection_lost(exc)  # not for who never got through TLS

    def on_response_complete(self) -> None:
        self._moved = self.loop.time()
        super().on_response_complete()

    def resume_writing(self) -> None:
        self._moved = self.loop.time()
        super().resume_writing()

    def leave(self) -> None:
        if self._watch is not None:
            self.shutdown()

    def abort(self) -> None:
        if self._watch is not None:
            self.transport.abort()

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


class Door(Listener[Connection]):
    """Accepts for a uvicorn server that has no sockets of its own."""

    def __init__(self, context: ssl.SSLContext, http: uvicorn.Server) -> None:
        super().__init__(context, MAX_PER_ADDRESS, b"")
        self._http = http

    def connect(self, host: str, port: int) -> Connection:
        return Connection(self, self._http)
