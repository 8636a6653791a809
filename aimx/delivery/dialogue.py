"""One connection to another server, by SMTP or LMTP: octets, TLS, timers. What is said stands in `smtp_client`.

`connect` → greeted, under TLS where asked, signed in where asked → `send` as often as one likes → `quit`.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, NamedTuple, TypeVar, cast

from aimx.config import RelayTls
from aimx.delivery import sasl_client
from aimx.delivery.smtp_client import Broken, Envelope, Extensions, Replies, Reply, Stuffing, hello, mail, rcpt
from aimx.delivery.verdict import Stage

log = logging.getLogger("aimx.delivery")

CONNECT_WITHIN = 30.0
TLS_WITHIN = 30.0
WITHIN: dict[Stage, float] = {
    "greeting": 300.0,
    "ehlo": 300.0,
    "starttls": 120.0,
    "auth": 120.0,
    "mail": 300.0,
    "rcpt": 300.0,
    "data": 120.0,
    "end": 600.0,
}
"""Seconds until the other side has answered (RFC 5321 §4.5.3.2)."""
BLOCK_WITHIN = 180.0
"""Seconds until it has taken a piece of the data (§4.5.3.2.5)."""
QUIT_WITHIN = 1.0
"""A stopping node waits for it."""
WRITE_AHEAD = 256 * 1024
"""Octets written that the other side has not taken, before we wait."""

Encryption = Literal["none", "may", "must"]
ENCRYPTION: dict[RelayTls, Encryption] = {"none": "none", "may": "may", "encrypt": "must", "verify": "must"}
"""Of each level in the settings; `verify` also asks for a context that verifies."""
T = TypeVar("T")


class Unreachable(Exception):
    """No conversation, or its sudden end. `reason` is of low cardinality."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text


class Refused(Exception):
    """The other side said no."""

    def __init__(self, reply: Reply, stage: Stage) -> None:
        super().__init__(reply.text)
        self.reply = reply
        self.stage = stage


class Login(NamedTuple):
    user: str
    password: str


@dataclass(frozen=True, slots=True)
class Server:
    """Whom to talk to and how. What is equal may share a connection."""

    host: str
    """Its name, for TLS and for people."""
    address: str
    """An IP address, or the path of a Unix socket where `port` is 0."""
    port: int
    encryption: Encryption
    context: ssl.SSLContext | None = None
    """What TLS is checked by. None: whoever it is (only with encryption that need not be verified)."""
    implicit: bool = False
    lmtp: bool = False
    login: Login | None = field(default=None, repr=False)


class Wire(asyncio.Protocol):
    """The socket. Replies come out of `answers` in order."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = Replies()
        self._answers: asyncio.Queue[Reply | None] = asyncio.Queue()
        self._writable = asyncio.Event()
        self._writable.set()
        self.ended = ""
        """Why it is over; empty while it lasts."""
        self._upgrading = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(WRITE_AHEAD)

    def data_received(self, data: bytes) -> None:
        try:
            for reply in self._parser.feed(data):
                self._answers.put_nowait(reply)
        except Broken as error:
            self._end(f"protocol: {error}")
            self.abort()
        if self._answers.qsize() > 1000:
            self.abort()  # nobody asked for so much

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("closed")

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _end(self, why: str) -> None:
        self.ended = self.ended or why
        self._answers.put_nowait(None)
        self._writable.set()

    def write(self, data: bytes) -> None:
        if self.ended:
            raise Unreachable(self.ended.partition(":")[0], f"the connection ended ({self.ended})")
        assert self._transport is not None
        self._transport.write(data)

    async def drain(self) -> None:
        try:
            async with asyncio.timeout(BLOCK_WITHIN):
                await self._writable.wait()
        except TimeoutError:
            raise Unreachable("timeout", "it does not take the data") from None
        if self.ended:
            raise Unreachable(self.ended.partition(":")[0], f"the connection ended ({self.ended})")

    async def answer(self, stage: Stage) -> Reply:
        try:
            async with asyncio.timeout(WITHIN[stage]):
                reply = await self._answers.get()
        except TimeoutError:
            raise Unreachable("timeout", f"no answer within {WITHIN[stage]:.0f} s ({stage})") from None
        if reply is None:
            self._answers.put_nowait(None)
            raise Unreachable(self.ended.partition(":")[0], f"the connection ended ({self.ended})")
        return reply

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """Whatever came in the clear beyond the reply to STARTTLS is somebody's attempt to be taken for the server."""
        if not self._answers.empty() or self._parser.pending:
            raise Unreachable("protocol", "it talked before TLS began")
        assert self._transport is not None
        transport = await _tls(
            asyncio.get_running_loop().start_tls(
                self._transport, self, context, server_hostname=host, ssl_handshake_timeout=TLS_WITHIN
            )
        )
        assert transport is not None
        self._transport = transport
        self._transport.set_write_buffer_limits(WRITE_AHEAD)

    @property
    def tls(self) -> str | None:
        """`TLSv1.3`, or None in the clear."""
        assert self._transport is not None
        secured = self._transport.get_extra_info("ssl_object")
        return None if secured is None else str(secured.version())

    @property
    def quiet(self) -> bool:
        """Nothing was said that nobody asked for (a 421 on an idle connection)."""
        return not self.ended and self._answers.empty() and not self._parser.pending

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Dialogue:
    """A connection that is ready for mail."""

    def __init__(self, server: Server, wire: Wire, known: Extensions) -> None:
        self.server = server
        self.known = known
        self.sent = 0
        """Transactions begun."""
        self.data_begun = False
        """Of the newest one, data was sent: what came of it, the last reply says."""
        self._wire = wire

    @property
    def tls(self) -> str | None:
        return self._wire.tls

    @property
    def usable(self) -> bool:
        return self._wire.quiet

    @classmethod
    async def connect(cls, server: Server, name: str) -> "Dialogue":
        """`name` is what we call ourselves. Raises Unreachable, Refused."""
        wire = await _open(server)
        try:
            await _expect(wire, "greeting")
            known = await _hello(wire, server, name)
            if not server.implicit and server.encryption != "none":
                known = await _secure(wire, server, name, known)
            if server.login is not None:
                await _sign_in(wire, server.login, known)
        except BaseException:
            wire.abort()
            raise
        return cls(server, wire, known)

    async def send(self, envelope: Envelope, message: AsyncIterator[bytes]) -> list[Reply]:
        """One transaction; a reply for each recipient, in order. `message` is asked for only when somebody takes it.

        Raises Refused (MAIL, or DATA itself), Unreachable; the connection is then to be dropped.
        """
        self.sent += 1
        self.data_begun = False
        wire, known = self._wire, self.known
        commands = [mail(envelope, known), *(rcpt(each, known) for each in envelope.recipients)]
        if "PIPELINING" in known:  # RFC 2920 §3.1: DATA is the last of a group
            wire.write(b"".join([*commands, b"DATA\r\n"]))
            answers = [await wire.answer("mail"), *[await wire.answer("rcpt") for _ in envelope.recipients]]
            data = await wire.answer("data")
        else:
            answers = []
            for command in commands:
                wire.write(command)
                answers.append(await wire.answer("rcpt" if answers else "mail"))
                if not answers[0].ok:
                    break
            data = None
            if any(answer.ok for answer in answers[1:]):
                wire.write(b"DATA\r\n")
                data = await wire.answer("data")
        return await self._data(answers, data, message)

    async def _data(self, answers: Sequence[Reply], data: Reply | None, message: AsyncIterator[bytes]) -> list[Reply]:
        wire = self._wire
        sender, *recipients = answers
        taken = [answer.ok for answer in recipients]
        if data is not None and data.code == 354 and (not sender.ok or not any(taken)):
            wire.write(b".\r\n")  # RFC 2920 §3.1: it goes on although nobody was taken
            await wire.answer("end")
        elif data is not None and data.code == 354:
            return await self._content(recipients, message)
        await self._reset()  # also after a no to DATA: some servers keep what came before it
        if not sender.ok:
            raise Refused(sender, "mail")
        if any(taken):
            assert data is not None, "DATA follows where somebody was taken"
            raise Refused(data, "data")
        return recipients

    async def _content(self, recipients: Sequence[Reply], message: AsyncIterator[bytes]) -> list[Reply]:
        wire, stuffing = self._wire, Stuffing()
        self.data_begun = True
        async for piece in message:
            wire.write(stuffing.feed(piece))
            await wire.drain()
        wire.write(stuffing.end())
        if not self.server.lmtp:
            end = await wire.answer("end")
            return [end if answer.ok else answer for answer in recipients]
        # RFC 2033 §4.2: one reply for each that was taken.
        return [await wire.answer("end") if answer.ok else answer for answer in recipients]

    async def _reset(self) -> None:
        """For the next message. That it does not work any more changes nothing of what was said."""
        with suppress(Unreachable):
            self._wire.write(b"RSET\r\n")
            await self._wire.answer("mail")

    async def quit(self) -> None:
        """Politely, and soon."""
        with suppress(Unreachable, TimeoutError):
            async with asyncio.timeout(QUIT_WITHIN):
                self._wire.write(b"QUIT\r\n")
                await self._wire.answer("mail")
        self._wire.close()

    def drop(self) -> None:
        self._wire.abort()


async def _open(server: Server) -> Wire:
    loop = asyncio.get_running_loop()
    context = server.context if server.implicit else None
    host = server.host if server.implicit else None
    limit = TLS_WITHIN if server.implicit else None
    try:
        async with asyncio.timeout(CONNECT_WITHIN):
            if not server.port:
                _, wire = await loop.create_unix_connection(Wire, server.address)
            else:
                connecting = loop.create_connection(
                    Wire, server.address, server.port, ssl=context, server_hostname=host, ssl_handshake_timeout=limit
                )
                _, wire = await (_tls(connecting) if server.implicit else connecting)
    except TimeoutError:
        raise Unreachable("timeout", f"no connection within {CONNECT_WITHIN:.0f} s") from None
    except OSError as error:
        raise Unreachable("connect", f"no connection ({error.strerror or type(error).__name__})") from None
    return wire


async def _tls(handshake: Awaitable[T]) -> T:
    """What goes wrong with TLS is told apart: a certificate that is not the host's is no matter of the network."""
    try:
        return await handshake
    except ssl.SSLCertVerificationError as error:
        raise Unreachable("certificate", f"its certificate is not good ({error.verify_message})") from None
    except (ssl.SSLError, ssl.CertificateError, ConnectionError, TimeoutError) as error:
        raise Unreachable("tls", f"TLS failed ({type(error).__name__})") from None


async def _expect(wire: Wire, stage: Stage) -> Reply:
    reply = await wire.answer(stage)
    if not reply.ok:
        raise Refused(reply, stage)
    return reply


async def _hello(wire: Wire, server: Server, name: str) -> Extensions:
    """EHLO, and HELO where it is not known (RFC 5321 §3.2)."""
    wire.write(hello(name, server.lmtp))
    reply = await wire.answer("ehlo")
    if reply.ok:
        return Extensions(reply)
    if server.lmtp or reply.code < 500:
        raise Refused(reply, "ehlo")
    wire.write(b"HELO " + name.encode() + b"\r\n")
    await _expect(wire, "ehlo")
    return Extensions()


async def _secure(wire: Wire, server: Server, name: str, known: Extensions) -> Extensions:
    """STARTTLS (RFC 3207); what was announced before it counts no more (§4.2)."""
    if "STARTTLS" not in known:
        if server.encryption == "may":
            return known
        raise Unreachable("tls", "it offers no TLS, and without it nothing is sent there")
    wire.write(b"STARTTLS\r\n")
    reply = await wire.answer("starttls")
    if reply.code != 220:
        raise Unreachable("tls", f"it refused TLS ({reply.code} {reply.text[:200]})")
    await wire.start_tls(server.context or unverified(), server.host)
    return await _hello(wire, server, name)


async def _sign_in(wire: Wire, login: Login, known: Extensions) -> None:
    """RFC 4954."""
    conversation = sasl_client.choose(known.mechanisms, login.user, login.password)
    if conversation is None:
        raise Unreachable("auth", "it offers no way to sign in that we know")
    wire.write(conversation.begin())
    while (reply := await wire.answer("auth")).code == 334:
        try:
            wire.write(conversation.respond(reply.text))
        except sasl_client.Distrusted as error:
            raise Unreachable("auth", str(error)) from None
    if not reply.ok:
        raise Refused(reply, "auth")
    if not conversation.satisfied:
        raise Unreachable("auth", "it took our word without proving that it knows us")


@cache
def unverified() -> ssl.SSLContext:
    """TLS with whomever: better than none (RFC 7435)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def verified(ca: str | None = None) -> ssl.SSLContext:
    """TLS with the named host only. `ca`: a PEM file to believe instead of the system's authorities."""
    return ssl.create_default_context(cafile=ca)
