"""The world outside the node, on loopback: a name server and mail servers that say what a test wants them to.

Real sockets and real protocols; only what they answer is written by hand. Real programs are in `tests/interop`.
"""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset

Zone = dict[str, dict[str, list[str]]]
"""Name → type → values: `{"a.example": {"MX": ["10 mx.a.example."]}}`. Other names do not exist; `SERVFAIL` fails."""


class NameServer(asyncio.DatagramProtocol):
    """Authoritative for everything. `asked` has each question."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.asked: list[tuple[str, str]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        (question,) = query.question
        name, kind = question.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.AA | dns.flags.RA
        known = self.zone.get(name)
        if known is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif "SERVFAIL" in known:
            reply.set_rcode(dns.rcode.SERVFAIL)
        else:
            for found in ("CNAME", kind):
                if values := known.get(found):
                    reply.answer.append(dns.rrset.from_text(question.name, 60, "IN", found, *values))
            for alias in known.get("CNAME", ()):
                if values := self.zone.get(alias.rstrip("."), {}).get(kind):
                    reply.answer.append(dns.rrset.from_text(alias, 60, "IN", kind, *values))
        self._transport.sendto(reply.to_wire(), peer)  # type: ignore[attr-defined]


@asynccontextmanager
async def name_server(zone: Zone) -> AsyncIterator[tuple[NameServer, str]]:
    """The server and its `ADDRESS:PORT`."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(lambda: NameServer(zone), local_addr=("127.0.0.1", 0))
    host, port = transport.get_extra_info("sockname")
    try:
        yield server, f"{host}:{port}"
    finally:
        transport.close()


@dataclass
class Mail:
    """One message as it came: command lines and content, dots taken off."""

    mail: str
    rcpt: list[str]
    data: bytes
    tls: str | None
    login: str | None
    connection: int

    @property
    def header(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[0] + b"\r\n"

    @property
    def body(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]


Answer = str | Callable[[str], str | None]
"""What is said to a command, or a function of its argument; None: the usual. `""`: the connection is cut."""


@dataclass
class MailServer:
    """An SMTP or LMTP server. `answers` by verb (`GREETING`, `EHLO`, …, `END` for the end of the data)."""

    extensions: Sequence[str] = ("PIPELINING", "SIZE 10000000", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")
    answers: dict[str, Answer] = field(default_factory=dict)
    delays: dict[str, float] = field(default_factory=dict)
    """Seconds before an answer, by verb."""
    context: ssl.SSLContext | None = None
    """Offers STARTTLS with it."""
    users: Mapping[str, str] = field(default_factory=dict)
    """Whom AUTH PLAIN lets in."""
    lmtp: bool = False
    mails: list[Mail] = field(default_factory=list)
    connections: int = 0
    commands: list[str] = field(default_factory=list)
    port: int = 0
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, count: int) -> list[Mail]:
        """Wait for so many mails."""
        async with asyncio.timeout(20):
            while len(self.mails) < count:
                self._arrived.clear()
                await self._arrived.wait()
        return self.mails

    @asynccontextmanager
    async def listening(
        self, host: str = "127.0.0.1", port: int = 0, path: Path | None = None
    ) -> AsyncIterator["MailServer"]:
        """`path`: of a Unix socket, instead of host and port."""
        if path is not None:
            server = await asyncio.start_unix_server(self._client, path)
        else:
            server = await asyncio.start_server(self._client, host, port)
            self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    @contextmanager
    def in_thread(self) -> Iterator["MailServer"]:
        """`listening`, for a test that has no event loop."""
        serving: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

        async def serve() -> None:
            ended = asyncio.Event()
            async with self.listening():
                serving.set_result((asyncio.get_running_loop(), ended))
                await ended.wait()

        thread = Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        loop, ended = serving.result(10)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(ended.set)
            thread.join(10)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError, _Cut):
            await _Conversation(self, reader, writer, self.connections).run()
        writer.close()


class _Cut(Exception):
    """The server ends the connection."""


class _Conversation:
    def __init__(
        self, server: MailServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        self.server, self.reader, self.writer, self.number = server, reader, writer, number
        self.tls: str | None = None
        self.login: str | None = None
        self.mail = ""
        self.rcpt: list[str] = []

    async def say(self, verb: str, argument: str, usual: str) -> bool:
        """Whether it was a yes."""
        await asyncio.sleep(self.server.delays.get(verb, 0))
        answer = self.server.answers.get(verb, usual)
        said = answer(argument) if callable(answer) else answer
        text = usual if said is None else said
        if not text:
            raise _Cut
        self.writer.write(text.replace("\n", "\r\n").encode() + b"\r\n")
        await self.writer.drain()
        return text[0] in "23"

    async def run(self) -> None:
        if not await self.say("GREETING", "", "220 outside.example ESMTP"):
            return
        while line := await self.reader.readline():
            text = line.decode().rstrip("\r\n")
            self.server.commands.append(text)
            verb, _, argument = text.partition(" ")
            await getattr(self, f"on_{verb.lower()}", self.on_other)(argument)

    async def on_other(self, argument: str) -> None:
        await self.say("OTHER", argument, "502 5.5.1 what?")

    async def on_ehlo(self, argument: str) -> None:
        words = ["outside.example", *self.server.extensions]
        words += ["STARTTLS"] if self.server.context and not self.tls else []
        words += ["AUTH PLAIN"] if self.server.users else []
        lines = [f"250{' ' if i == len(words) - 1 else '-'}{word}" for i, word in enumerate(words)]
        await self.say("EHLO", argument, "\n".join(lines))

    on_lhlo = on_ehlo

    async def on_helo(self, argument: str) -> None:
        await self.say("HELO", argument, "250 outside.example")

    async def on_starttls(self, argument: str) -> None:
        if await self.say("STARTTLS", argument, "220 2.0.0 go"):
            assert self.server.context is not None
            await self.writer.start_tls(self.server.context)
            self.tls = self.writer.get_extra_info("ssl_object").version()

    async def on_auth(self, argument: str) -> None:
        import base64

        mechanism, _, initial = argument.partition(" ")
        _, user, password = base64.b64decode(initial).decode().split("\0")
        right = mechanism == "PLAIN" and self.server.users.get(user) == password
        if await self.say("AUTH", argument, "235 2.7.0 in" if right else "535 5.7.8 no"):
            self.login = user

    async def on_mail(self, argument: str) -> None:
        self.rcpt = []
        self.mail = argument if await self.say("MAIL", argument, "250 2.1.0 ok") else ""

    async def on_rcpt(self, argument: str) -> None:
        if not self.mail:
            await self.say("OUT-OF-ORDER", argument, "503 5.5.1 MAIL first")
        elif await self.say("RCPT", argument, "250 2.1.5 ok"):
            self.rcpt.append(argument)

    async def on_data(self, argument: str) -> None:
        if not self.rcpt:
            await self.say("OUT-OF-ORDER", argument, "503 5.5.1 RCPT first")
            return
        if not await self.say("DATA", argument, "354 go on"):
            return
        data = bytearray()
        while (line := await self.reader.readline()) != b".\r\n":
            assert line, "cut in the data"
            data += line.removeprefix(b".")
        for recipient in self.rcpt if self.server.lmtp else self.rcpt[:1]:
            taken = await self.say("END", recipient, "250 2.0.0 taken as 42")
        if taken:
            mail = Mail(self.mail, self.rcpt, bytes(data), self.tls, self.login, self.number)
            self.server.mails.append(mail)
            self.server._arrived.set()
        self.mail, self.rcpt = "", []

    async def on_rset(self, argument: str) -> None:
        self.mail, self.rcpt = "", []
        await self.say("RSET", argument, "250 2.0.0 ok")

    async def on_quit(self, argument: str) -> None:
        await self.say("QUIT", argument, "221 2.0.0 bye")
        raise _Cut


def argument(pattern: str, answer: str) -> Callable[[str], str | None]:
    """An answer for arguments that match only."""
    return lambda text: answer if re.search(pattern, text) else None
