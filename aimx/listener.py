"""Accept connections for a protocol: listening sockets, TLS, limits by address, and an orderly end.

What SMTP and IMAP do before the first octet and after the last is the same and stands here once. A protocol's server
derives from `Listener`, makes its connections in `connect`, and is told nothing else.

A *stranger* is a connection that has not signed in. An address may have only a share of its connections as strangers,
so that who only connects cannot keep out who signs in.
"""

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Coroutine
from typing import Any, Generic, Protocol, TypeVar, cast

from aimx.config import Endpoint
from aimx.rate import Rate, network

log = logging.getLogger("aimx.listener")

HANDSHAKE_WITHIN = 15.0
CLOSE_WITHIN = 5.0
"""Seconds for TLS to begin and to end."""
STRANGERS = 4
"""An address may have one in so many of its connections not signed in."""
BACKLOG = 1024
SPARE = 100
"""File descriptors that connections leave to the store, the audit log and whoever signs in."""


class Connection(Protocol):
    """An asyncio protocol that a listener can end."""

    stranger: bool

    def leave(self) -> None:
        """The node is stopping: finish what is in hand, say so, close."""

    def abort(self) -> None:
        """Close at once."""

    def connection_lost(self, exc: Exception | None, /) -> None: ...


C = TypeVar("C", bound=Connection)


class Listener(ABC, Generic[C]):
    """All listeners of one protocol in this process, and their connections."""

    def __init__(self, context: ssl.SSLContext, limit: int, too_many: bytes, pace: Rate | None = None) -> None:
        """`context`: TLS 1.3, from identity.certificate. `limit`: connections an address may have; `pace`: how fast it
        may make them. `too_many` is said in the clear to who goes beyond. To be made inside a running loop."""
        self.context = context
        self.loop = asyncio.get_running_loop()
        self.stopping = False
        self.connections_refused = 0
        self._limit = limit
        self._pace = pace
        self._descriptors = _descriptors()
        self._too_many = too_many
        self._listeners: list[tuple[socket.socket, bool]] = []
        """And whether TLS comes first there."""
        self._accepting: list[asyncio.Task[None]] = []
        self._connections: dict[C, str] = {}
        self._opening: set[socket.socket] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._by_address: Counter[str] = Counter()
        self._strangers: Counter[str] = Counter()
        self._all_gone = asyncio.Event()

    @abstractmethod
    def connect(self, host: str, port: int) -> C:
        """The protocol for a connection from this address."""

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    def listen(self, listener: socket.socket, *, implicit_tls: bool) -> Endpoint:
        """Serve a bound, listening socket (see `bind`). Returns its address."""
        listener.setblocking(False)
        self._listeners.append((listener, implicit_tls))
        self._accepting.append(self.loop.create_task(self._accept(listener, implicit_tls)))
        host, port = listener.getsockname()[:2]
        return Endpoint(host, port)

    async def drain(self, on: bool) -> None:
        """Refuse new connections, or take them again; those that are here go on."""
        await self._no_more()
        for listener, implicit_tls in self._listeners:
            if on:
                # Unlike closing, this also ends the listening of the copy that a parent process holds.
                listener.shutdown(socket.SHUT_RDWR)
            else:
                listener.listen(BACKLOG)
                self._accepting.append(self.loop.create_task(self._accept(listener, implicit_tls)))

    async def stop(self, grace: float) -> None:
        """Take no more connections; what is in hand has `grace` seconds to be finished."""
        self.stopping = True
        await self._no_more()
        for listener, _ in self._listeners:
            listener.close()
        self._listeners.clear()
        for connection in list(self._connections):
            connection.leave()
        for opening in self._opening:
            # Nothing is in hand before the handshake is done: who has not ended it by now is not waited for.
            with contextlib.suppress(OSError):
                opening.shutdown(socket.SHUT_RDWR)
        await self._wait_until_gone(grace)
        for connection in list(self._connections):
            connection.abort()
        await self._wait_until_gone(1.0)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)

    async def secured(self, transport: asyncio.Transport, connection: C) -> asyncio.Transport | None:
        """STARTTLS: the handshake on a connection that was in the clear. None when it failed.

        Reading must have been paused, and what came in the clear forgotten, before this is called (RFC 3207 §4.2).
        """
        try:
            return await self.loop.start_tls(
                transport,
                cast(asyncio.Protocol, connection),
                self.context,
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_WITHIN,
                ssl_shutdown_timeout=CLOSE_WITHIN,
            )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            _tls_failed(self._connections.get(connection, ""), error)
            return None

    # ── what connections tell ────────────────────────────────────────────────────────────────────────────────────────

    def hold(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` to its end; the loop itself keeps no task alive."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def signed_in(self, connection: C) -> None:
        """To be called once, when it stops being a stranger."""
        _less(self._strangers, self._connections[connection])

    def closed(self, connection: C) -> None:
        host = self._connections.pop(connection, None)
        if host is None:
            return
        _less(self._by_address, host)
        if connection.stranger:
            _less(self._strangers, host)
        if not self._connections:
            self._all_gone.set()

    # ── coming in ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _accept(self, listener: socket.socket, implicit_tls: bool) -> None:
        while True:
            try:
                accepted, address = await self.loop.sock_accept(listener)
            except OSError as error:
                # Out of descriptors, most likely: those who are here go on, others wait in the backlog.
                log.error("cannot accept", extra={"event": "accept.failed", "error": error.strerror})
                await asyncio.sleep(0.1)
                continue
            host, port = address[:2]
            # The system gives the lowest descriptor that is free: its number tells how many are in use.
            hasty = self._pace is not None and self._pace.take(network(host)) > 0
            if hasty or self._full(host) or accepted.fileno() >= self._descriptors:
                self.connections_refused += 1
                with accepted, contextlib.suppress(OSError):
                    if not implicit_tls:
                        accepted.send(self._too_many)
                continue
            connection = self.connect(host, port)
            self._connections[connection] = host
            self._by_address[host] += 1
            self._strangers[host] += 1
            self.hold(self._open(connection, accepted, implicit_tls))

    def _full(self, host: str) -> bool:
        strangers = max(1, min(self._limit, self._descriptors) // STRANGERS)
        return self._by_address[host] >= self._limit or self._strangers[host] >= strangers

    async def _open(self, connection: C, accepted: socket.socket, implicit_tls: bool) -> None:
        host = self._connections[connection]
        self._opening.add(accepted)
        try:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self.loop.connect_accepted_socket(
                lambda: cast(asyncio.Protocol, connection),
                accepted,
                ssl=self.context if implicit_tls else None,
                ssl_handshake_timeout=HANDSHAKE_WITHIN if implicit_tls else None,
                ssl_shutdown_timeout=CLOSE_WITHIN if implicit_tls else None,
            )
        except (OSError, TimeoutError) as error:
            accepted.close()
            connection.connection_lost(None)
            _tls_failed(host, error)
        finally:
            self._opening.discard(accepted)

    async def _no_more(self) -> None:
        for task in self._accepting:
            await cancelled(task)
        self._accepting.clear()

    async def _wait_until_gone(self, seconds: float) -> None:
        if self._connections:
            self._all_gone.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_gone.wait(), seconds)


async def cancelled(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def bind(endpoint: Endpoint, *, shared: bool = False) -> socket.socket:
    """A listening socket; port 0 asks the system for a free one. Raises OSError.

    `shared`: further sockets may be bound to the same address, and the system spreads connections over all of them.
    """
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    return socket.create_server(endpoint, family=family, backlog=BACKLOG, reuse_port=shared)


def _descriptors() -> int:
    """How many file descriptors connections may take the process to."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else max(limit - SPARE, limit // 2)


def _tls_failed(host: str, error: Exception) -> None:
    log.info("TLS failed", extra={"event": "tls.failed", "peer": host, "error": type(error).__name__})


def _less(counter: Counter[str], key: str) -> None:
    """Count down, and keep no zeros: addresses come and go for ever."""
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
