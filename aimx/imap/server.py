"""Sockets, TLS, time limits, backpressure and stopping, around `session`.

A connection is a protocol that feeds a `Framer` and one task that runs its `Session`. Octets wait in the framer until
the session asks for the next command; when too many wait, reading pauses. What is written is collected and sent at once
when the session waits. One sweep every few seconds looks at all deadlines: an idle session has no timer of its own.
"""

import asyncio
import logging
import ssl
from collections import Counter
from dataclasses import dataclass
from typing import Protocol, cast

from aimx.config import Settings
from aimx.identity.agents import Directory
from aimx.imap.errors import Bye
from aimx.imap.fetch import Structures
from aimx.imap.grammar import BEFORE_LOGIN, Continue, Framer, Limits, Raw, Refused
from aimx.imap.session import Gone, Intake, Services, Session, State, unwelcome
from aimx.listener import CLOSE_WITHIN, Listener, cancelled
from aimx.rate import rate, rate_of_minute
from aimx.store.contract import Store, Unavailable
from aimx.telemetry import metrics
from aimx.telemetry.span import Tracer

log = logging.getLogger("aimx.imap")

COMMAND_WITHIN = 120.0
"""Seconds without an octet in the middle of a command: it may hold memory, so it may not dawdle like an idle client."""
TAKE_WITHIN = 300.0
"""Seconds a peer may leave what we send unread."""
SWEEP_EVERY = 2.0
MAX_WAITING = 64 * 1024
"""Octets received and not worked on beyond which reading pauses."""
SEND_AT = 64 * 1024
"""Octets collected beyond which they are handed to the transport."""
TOO_MANY = b"* BYE too many connections from your address\r\n"
STOPPING = "the server is stopping"
ACCOUNTS_AFTER = 0.2
"""Seconds from a change of the agents to looking whose session must end."""


class Budget(Protocol):
    """How many octets of unfinished messages the whole node may hold in memory, and how many one agent."""

    def take(self, octets: int, owner: str) -> bool: ...
    def give(self, octets: int, owner: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Door:
    """What the server stands before."""

    settings: Settings
    store: Store
    directory: Directory
    intake: Intake
    tracer: Tracer
    budget: Budget


class Connection(asyncio.Protocol):
    """One client. It is the session's `Wire`. All of it runs on the event loop."""

    __slots__ = (
        "_began", "_charged", "_farewell", "_framer", "_lost", "_moved", "_out", "_out_size", "_poked",
        "_reading_paused", "_received", "_room", "_server", "_since", "_socket", "_task", "_upgrading", "_waiter",
        "_wakes_on_poke",
        "peer", "secure", "session", "stranger",
    )  # fmt: skip

    def __init__(self, server: "Server", peer: str) -> None:
        self._server = server
        self.peer = peer
        self.secure = False
        self.stranger = True
        """Has not signed in."""
        self.session: Session | None = None
        self._framer = Framer(BEFORE_LOGIN, self._reserve)
        self._charged = 0  # octets of the command in hand, to be given back to the budget
        self._socket: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None  # the session waits for octets
        self._room: asyncio.Future[None] | None = None  # the peer does not take what we send
        self._out: list[bytes] = []
        self._out_size = 0
        self._poked = self._wakes_on_poke = False
        self._reading_paused = self._upgrading = self._lost = False
        self._farewell: str | None = None  # what to say once the command in hand is done
        self._since = self._moved = server.loop.time()
        self._began: float | None = None  # when the command that is coming in was first looked at
        self._received = 0  # octets since then

    # --- what the event loop calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)
        self.secure = transport.get_extra_info("ssl_object") is not None
        self._since = self._moved = self._server.loop.time()
        self.session = Session(self._server.services, self)
        self._task = self._server.hold(self._run(self.session))

    def data_received(self, data: bytes) -> None:
        self._moved = self._server.loop.time()
        self._received += len(data)
        self._framer.feed(data)
        if self._waiter is not None:
            self._wake()
        elif self._framer.buffered > MAX_WAITING and not self._reading_paused and self._socket is not None:
            self._reading_paused = True
            self._socket.pause_reading()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        if self._room is None:
            self._room = self._server.loop.create_future()
            self._moved = self._server.loop.time()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        self.resume_writing()
        self._wake()
        if self._task is None:
            self._finish()

    # --- the session's life ---

    async def _run(self, session: Session) -> None:
        try:
            await session.run()
        except Exception:
            log.exception("IMAP session failed", extra={"peer": self.peer})
        finally:
            self._flush()
            self._give_back()
            self._framer.discard()
            if self._socket is not None:
                self._socket.close()
                # A peer that does not read would keep close() waiting for ever.
                self._server.loop.call_later(CLOSE_WITHIN, self._socket.abort)
            self._finish()

    def _finish(self) -> None:
        self._server.closed(self)

    def _reserve(self, octets: int) -> bool:
        return self._server.door.budget.take(octets, self._owner)

    def _give_back(self) -> None:
        held = self._charged + self._framer.reserved
        self._charged = self._framer.reserved = 0
        if held:
            self._server.door.budget.give(held, self._owner)

    @property
    def _owner(self) -> str:
        """Whose share of the budget it is; all strangers have one together."""
        agent = self.session.agent if self.session is not None else None
        return agent.address if agent is not None else ""

    # --- the session's wire: reading ---

    def limit(self, limits: Limits) -> None:
        self._framer.limits = limits
        if self.stranger:
            self.stranger = False
            self._server.signed_in(self)

    async def command(self) -> Raw | Refused:
        if self._charged:
            self._server.door.budget.give(self._charged, self._owner)
            self._charged = 0
        while True:
            if self._farewell and self._framer.idle:
                raise Bye(self._farewell)
            event = self._framer.next()
            if isinstance(event, Raw):
                self._charged = event.reserved
                self._began = None
                return event
            if isinstance(event, Refused):
                self._began = None
                self._give_back()
                return event
            if isinstance(event, Continue):
                self.write(b"+ go ahead\r\n")
                self._flush()
            else:
                await self._more()

    async def line(self, limit: int) -> bytes:
        while (line := self._framer.line(limit)) is None:
            if self._farewell:
                raise Bye(self._farewell)
            await self._more()
        return line

    async def line_or_poke(self, limit: int) -> bytes | None:
        self._wakes_on_poke = True
        try:
            while (line := self._framer.line(limit)) is None:
                if self._poked:
                    self._poked = False
                    return None
                if self._farewell:
                    raise Bye(self._farewell)
                await self._more()
        finally:
            self._wakes_on_poke = False
        return line

    def poke(self) -> None:
        self._poked = True
        if self._wakes_on_poke:
            self._wake()

    async def _more(self) -> None:
        """Wait for octets, or whatever else wakes the session. What came before the peer left is still worked on."""
        self._check_alive()
        if self._reading_paused and self._socket is not None:
            self._reading_paused = False
            self._socket.resume_reading()
        self._waiter = self._server.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if not self._framer.buffered:
            self._check_alive()

    def _check_alive(self) -> None:
        if self._lost:
            raise Gone

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- the session's wire: writing ---

    def write(self, data: bytes) -> None:
        if not data:
            return
        self._out.append(data)
        self._out_size += len(data)
        if self._out_size >= SEND_AT:
            self._flush()

    async def drain(self) -> None:
        self._flush()
        if self._room is not None:
            await asyncio.shield(self._room)
        self._check_alive()

    def _flush(self) -> None:
        if self._out and self._socket is not None and not self._lost:
            self._socket.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
        self._out.clear()
        self._out_size = 0

    # --- STARTTLS ---

    async def start_tls(self) -> None:
        """Reading stops before anything is forgotten: whatever is read later is read by TLS."""
        transport = self._socket
        assert transport is not None
        transport.pause_reading()
        self._framer.discard()
        self._upgrading = True
        secured = await self._server.secured(transport, self)
        if secured is None or self._lost:
            transport.abort()
            self._lost = True
            raise Gone
        self._socket = secured
        self._upgrading = self._reading_paused = False
        self.secure = True
        self._moved = self._server.loop.time()

    # --- limits of time, and stopping ---

    def sweep(self, now: float) -> None:
        """End the session if it has been too slow."""
        if self._lost or self._socket is None or self._upgrading:
            return
        settings = self._server.door.settings.imap
        if self._room is not None:
            if now - self._moved > TAKE_WITHIN:
                self._socket.abort()
            return
        if self._waiter is None:
            self._moved = now  # it is us who are slow
            return
        if self._framer.idle:
            self._began = None
            late = now - self._moved > settings.idle_timeout
        else:
            allowed = min(COMMAND_WITHIN, settings.idle_timeout)
            late = now - self._moved > allowed or self._dawdles(now, allowed)
        if late or (self.stranger and now - self._since > settings.login_timeout):
            self._end("too slow, closing")

    def _dawdles(self, now: float, allowed: float) -> bool:
        """Whether a command comes in more slowly than a message over SMTP may: it must not hold memory for ever."""
        if self._began is None:
            self._began, self._received = now, 0
        return now - self._began > allowed + self._received / self._server.door.settings.smtp.min_rate

    def leave(self, why: str = STOPPING) -> None:
        """Finish the command in hand, then say why and close; an idle client is told at once."""
        self._farewell = why
        self._wake()

    def abort(self) -> None:
        if self._socket is not None:
            self._socket.abort()
        if self._task is not None:
            self._task.cancel()

    def _end(self, text: str) -> None:
        self.write(f"* BYE {text}\r\n".encode("ascii"))
        self._flush()
        self._lost = True
        self._wake()


class Server(Listener[Connection]):
    """All IMAP listeners of a process and their connections."""

    def __init__(self, door: Door, context: ssl.SSLContext) -> None:
        """`context`: TLS 1.3, from identity.certificate. To be made inside a running loop."""
        settings = door.settings.imap
        asked = door.settings.limits
        pace = rate_of_minute(asked.connections_per_minute)
        super().__init__(context, settings.max_connections_per_address, TOO_MANY, pace)
        self.door = door
        self.services = Services(
            door.store,
            door.directory,
            door.intake,
            door.tracer,
            Structures(),
            Limits(line=settings.max_line, literal=settings.max_line, message=settings.max_literal),
            door.settings.node,
            settings.max_errors,
            rate(asked.changes_per_second, asked.change_burst),
        )
        self._sweeper = self.loop.create_task(self._sweep(), name="aimx-imap-sweep")
        self._accounts: asyncio.Task[None] | None = None
        self._unsubscribe = door.store.subscribe("agents", self._agents_changed)
        metrics.observe("aimx.imap.sessions", lambda: [((state,), count) for state, count in self.states().items()])

    def connect(self, host: str, port: int) -> Connection:
        return Connection(self, host)

    def states(self) -> Counter[str]:
        """How many sessions are in each state."""
        sessions = [connection.session for connection in self._connections]
        found = Counter({state.name.lower(): 0 for state in State})
        found.update((session.state if session else State.CLEAR).name.lower() for session in sessions)
        return found

    async def stop(self, grace: float) -> None:
        """Commands in hand have `grace` seconds to be finished, other clients get BYE."""
        self._unsubscribe()
        metrics.observe("aimx.imap.sessions", list)
        await cancelled(self._sweeper)
        await super().stop(grace)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY)
            now = self.loop.time()
            for connection in list(self._connections):
                connection.sweep(now)

    # --- closed accounts ---

    def _agents_changed(self) -> None:
        """The store says so; called on the event loop. Many changes in a row are looked at together."""
        if self._accounts is None:
            self._accounts = self.hold(self._close_accounts())

    async def _close_accounts(self) -> None:
        """End the sessions of agents that were disabled, removed or got another password, also those that only wait."""
        await asyncio.sleep(ACCOUNTS_AFTER)
        self._accounts = None
        try:
            agents = {agent.address: agent for agent in await self.door.store.agents()}
        except Unavailable:
            return  # every command asks again
        for connection in self._connections:
            agent = connection.session.agent if connection.session else None
            why = unwelcome(agent, agents.get(agent.address)) if agent is not None else None
            if why is not None:
                connection.leave(why)
