"""Sockets, TLS, timers, limits and stopping, around `session`.

`SMTP` is an aiosmtpd `SMTP` whose reader loop is replaced: octets go from `data_received` straight through the sans-IO
core into the session. What aiosmtpd would spend on a StreamReader, a task and a drain per line is not spent.

A connection's life: accepted (counted by address) → TLS at once or by STARTTLS → greeted → events, one at a time, each
followed to its end before the next → closed by QUIT, by a limit, by a timer, by the peer or by the node's stopping.
"""

import asyncio
import logging
import ssl
from collections.abc import Awaitable
from typing import cast

import aiosmtpd.smtp

from aimx.listener import CLOSE_WITHIN, Listener
from aimx.smtp.core import NONE, Receiver
from aimx.smtp.session import Door, Peer, Session, fault_text

log = logging.getLogger("aimx.smtp")

GREET_AFTER = 0.01
"""Seconds a client in the clear has to talk before it is greeted, and be refused for it: SMTP clients wait (RFC 5321
§4.3.1); who does not is a program made to speak to us by a stranger, or a spammer. After TLS there is no such delay."""
SIGN_IN_WITHIN = 60.0
"""Seconds from connecting to signing in, however busy the client is in between."""
DRAIN_FOR = 10.0
"""Seconds without data after a fault in the data: a client that ends a message with LF "." LF is waiting for an answer
and shall have it; it gets the refusal, and the connection ends, for where its message ended is not known."""
MAX_WAITING = 128 * 1024
"""Octets fed but not worked on beyond which reading pauses."""
MAX_UNREAD = 64 * 1024
"""Octets of replies not read by the peer beyond which no more commands are worked on; uvloop would take 512 KiB."""
MAX_REPLIES = 256
"""Replies gathered before they are written at the latest: a peer that does not read them must be noticed in time."""

STOPPING = (421, "4.3.2", "the node is stopping")
NOT_FROM_THERE = (554, "5.7.1", "your address is in none of the networks that this door is for")
TOO_MANY = b"421 4.7.0 too many connections from your address; come again later\r\n"


class SMTP(aiosmtpd.smtp.SMTP):
    """One connection. Writer of its state: the event loop, through these callbacks and the one `_work` task."""

    def __init__(self, server: "Server", peer: Peer) -> None:
        # Not super().__init__(): it inspects its own methods and builds a StreamReader, for each connection.
        self._server = server
        self.peer = peer
        self._loop = server.loop
        self._receiver = Receiver()
        self._dialog: Session | None = None
        self._socket: asyncio.Transport | None = None
        self._work: asyncio.Task[None] | None = None
        """What is being awaited for the event in hand; further octets wait."""
        self._greeted = self._upgrading = self._leaving = self._lost = False
        self._read_paused = self._write_paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._closer: asyncio.TimerHandle | None = None
        self._since = self._moved = self._loop.time()
        """When the connection came; when it last came forward."""
        self._progress = 0
        self._data_since: float | None = None
        self.stranger = True
        """Has not signed in."""

    # ── what the event loop calls ──

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)
        self._socket.set_write_buffer_limits(MAX_UNREAD)
        self._dialog = self._new_dialog(self._socket)
        self._server.door.counters.connections += 1
        if self._server.stopping:
            self.leave()
        elif not self._server.door.admits(self.peer.host):
            self._end(*NOT_FROM_THERE)
        elif self._dialog.secure or self._server.door.networks:
            # What came with the handshake is delivered a turn of the loop later, before this: early talk is still seen.
            self._loop.call_soon(self._loop.call_soon, self._greet)
        else:
            self._loop.call_later(GREET_AFTER, self._greet)
        self._arm()

    def data_received(self, data: bytes) -> None:
        dialog = self._dialog
        if dialog is None or dialog.closing:
            return
        if not self._greeted:
            self._end(554, "5.5.1", "you talked before you were greeted")
            return
        self._receiver.feed(data)
        if self._work is None and not self._upgrading and not self._write_paused:
            self._pump()
        elif self._receiver.waiting > MAX_WAITING:
            self._pause_reading()

    def eof_received(self) -> bool:
        return False  # close; TLS has no half-open connections, and without TLS there is no mail

    def connection_lost(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        for timer in (self._timer, self._closer):
            if timer is not None:
                timer.cancel()
        self._server.closed(self)
        if self._work is None and self._dialog is not None and self._dialog.has_message:
            self._server.hold(self._dialog.abandon())

    def pause_writing(self) -> None:
        # A peer that does not read its replies gets no more of them to read.
        self._write_paused = True
        self._pause_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._work is None and not self._upgrading:
            self._pump()

    def _new_dialog(self, transport: asyncio.Transport) -> Session:
        tls, door = transport.get_extra_info("ssl_object"), self._server.door
        if tls is None:
            return Session(door, self._receiver, self.peer, None)
        shown = tls.getpeercert(binary_form=True) if door.peers is not None else None
        return Session(door, self._receiver, self.peer, str(tls.version()), door.recognise(shown))

    # ── from octets to replies ──

    def _greet(self) -> None:
        if self._greeted or self._lost or self._dialog is None or self._dialog.closing:
            return
        self._greeted = True
        self._dialog.greet()
        self._flush(self._dialog)

    def _pump(self) -> None:
        """Work through what is there; in a task as soon as something must be awaited."""
        waiting = self._step()
        if waiting is not None:
            self._work = self._loop.create_task(self._follow(waiting))

    async def _follow(self, waiting: Awaitable[None] | None) -> None:
        dialog = self._dialog
        assert dialog is not None
        while waiting is not None:
            await dialog.finish(waiting)
            self._moved = self._loop.time()  # the wait was ours
            waiting = self._step()
        self._work = None
        if self._lost:
            await dialog.abandon()

    def _step(self) -> Awaitable[None] | None:
        """Take events until one must be awaited, or until there is nothing to do; then write all replies at once."""
        dialog = self._dialog
        assert dialog is not None
        while not (dialog.closing or dialog.wants_tls or self._lost or self._write_paused):
            if self._leaving and not dialog.has_message:
                dialog.farewell(*STOPPING)
                break
            if len(dialog.out) >= MAX_REPLIES:
                self._flush(dialog)
                continue
            event = self._receiver.next_event()
            if event is None:
                break
            waiting = dialog.receive(event)
            if waiting is not None:
                return waiting
        self._flush(dialog)
        if dialog.wants_tls:
            self._begin_tls()
        elif not dialog.closing and not self._lost:
            self._note_progress(dialog)
            self._resume_reading()
        return None

    def _note_progress(self, dialog: Session) -> None:
        if dialog.progress == self._progress:
            return
        self._progress = dialog.progress
        self._moved = self._loop.time()
        if self.stranger and dialog.signed_in:
            self.stranger = False
            self._server.signed_in(self)
        if not dialog.has_message:
            self._data_since = None
        elif self._data_since is None:
            self._data_since = self._moved
            if self._timer is None or self._timer.when() > self._moved + self._server.door.settings.data_timeout:
                self._arm()
        elif self._receiver.fault is not NONE:
            self._arm()

    def _flush(self, dialog: Session) -> None:
        transport = self._socket
        assert transport is not None
        if dialog.out:
            if not self._lost:
                transport.write(dialog.out[0] if len(dialog.out) == 1 else b"".join(dialog.out))
            dialog.out.clear()
        if dialog.closing and self._closer is None and not self._lost:
            transport.close()
            # A peer that does not read would keep close() waiting for ever.
            self._closer = self._loop.call_later(CLOSE_WITHIN, transport.abort)

    def _pause_reading(self) -> None:
        if not self._read_paused and not self._upgrading and self._socket is not None:
            self._read_paused = True
            self._socket.pause_reading()

    def _resume_reading(self) -> None:
        if self._read_paused and not self._write_paused and self._socket is not None:
            self._read_paused = False
            self._socket.resume_reading()

    # ── STARTTLS ──

    def _begin_tls(self) -> None:
        """RFC 3207 §4.2: what was pipelined after STARTTLS is thrown away, and what was said before is forgotten.

        Reading stops here, at once: whatever is read later is read by TLS.
        """
        assert self._socket is not None
        self._upgrading = True
        self._receiver.clear()
        self._socket.pause_reading()
        self._server.hold(self._upgrade(self._socket))

    async def _upgrade(self, transport: asyncio.Transport) -> None:
        secured = await self._server.secured(transport, self)
        if secured is None or self._lost:
            transport.abort()
            self.connection_lost(None)
            return
        self._socket = secured
        self._socket.set_write_buffer_limits(MAX_UNREAD)
        self._dialog = self._new_dialog(secured)
        self._progress = 0
        self._upgrading = self._read_paused = False
        self._moved = self._loop.time()
        # Octets that came with the handshake's last flight wait in the receiver; they were encrypted.
        self._pump()

    # ── timers ──

    def _deadline(self) -> float:
        """When, as things stand, the connection has been too slow."""
        settings = self._server.door.settings
        due = self._moved + settings.idle_timeout
        if self.stranger and self._server.door.asks_for_proof:
            due = min(due, self._since + SIGN_IN_WITHIN)
        if self._data_since is not None and self._dialog is not None:
            allowed = settings.data_timeout + self._dialog.received / settings.min_rate
            due = min(due, self._data_since + allowed)
            if self._receiver.fault is not NONE:
                due = min(due, self._moved + DRAIN_FOR)
        return due

    def _arm(self) -> None:
        """Let the timer run to the deadline, unless it goes off before anyway: it then looks again."""
        due = self._deadline()
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        dialog = self._dialog
        if self._lost or dialog is None or dialog.closing:
            return
        now = self._loop.time()
        if self._work is not None or self._upgrading:
            self._moved = now  # it is us who are slow; TLS has a timer of its own
        if now < self._deadline():
            self._arm()
            return
        self._server.door.counters.timeouts += 1
        if dialog.has_message and self._receiver.fault is not NONE:
            self._end(554, "5.6.0", f"{fault_text(self._receiver.fault)}; where the message ends is unknown, closing")
        else:
            self._end(421, "4.4.2", "too slow, closing")

    # ── leaving ──

    def leave(self) -> None:
        """The node is stopping: finish the message in hand, if there is one, then say so and close."""
        self._leaving = True
        if self._dialog is None or self._upgrading or self._work is not None or self._dialog.has_message:
            return
        self._end(*STOPPING)

    def abort(self) -> None:
        """At once. A message in hand was not answered and will be sent again."""
        if self._socket is not None:
            self._socket.abort()

    def _end(self, code: int, enhanced: str, text: str) -> None:
        if self._dialog is not None and not self._dialog.closing:
            self._dialog.farewell(code, enhanced, text)
            self._flush(self._dialog)


class Server(Listener[SMTP]):
    """All SMTP listeners of a process and their connections."""

    def __init__(self, door: Door, context: ssl.SSLContext) -> None:
        super().__init__(context, door.settings.max_connections_per_address, TOO_MANY, door.pace)
        self.door = door

    def connect(self, host: str, port: int) -> SMTP:
        return SMTP(self, Peer(host, port))
