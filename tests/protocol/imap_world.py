"""A whole IMAP server in the test's own loop, with real sockets, TLS, SQLite and intake, and a client that only speaks
lines: what a test sends and expects stands in the test.
"""

import asyncio
import re
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from aimx.config import Endpoint, Settings
from aimx.identity import scram
from aimx.identity.agents import Directory
from aimx.identity.certificate import Certificates
from aimx.imap.server import Door, Server
from aimx.intake.intake import Intake
from aimx.listener import bind
from aimx.smtp.budget import ByteBudget
from aimx.store.contract import Agent, StoredEvent
from aimx.store.sqlite import SqliteStore
from aimx.telemetry.span import Span, Tracer
from tests.store.factory import filed, new_message, nothing

PASSWORD = "correct-horse-battery"
ALICE, BOB = "alice@fabric.local", "bob@fabric.local"
PATIENCE = 15.0
"""Seconds a test waits for what must come."""
MESSAGE = b"From: carol@fabric.local\r\nTo: alice@fabric.local\r\nSubject: hello\r\n\r\nHow are you?\r\n"


class Spans(list[Span]):
    def take(self, span: Span) -> None:
        self.append(span)


class Budget(ByteBudget):
    """A byte budget that tells a test what is out."""

    @property
    def held(self) -> int:
        return self.limit - self.left

    def shrink(self, limit: int, share: int) -> None:
        """While nothing is out."""
        self.limit = self.left = limit
        self.share = share


class Client:
    """One connection. `ask` sends a command and returns its untagged lines and its tagged one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._tags = 0

    async def line(self) -> bytes:
        """One response without its CRLF, literals included as they stand."""
        whole = b""
        while True:
            piece = await asyncio.wait_for(self.reader.readline(), PATIENCE)
            whole += piece
            literal = re.search(rb"\{(\d+)\}\r\n\Z", piece)
            if literal is None:
                return whole.removesuffix(b"\r\n")
            whole += await asyncio.wait_for(self.reader.readexactly(int(literal[1])), PATIENCE)

    def send(self, octets: bytes) -> None:
        self.writer.write(octets)

    async def ask(self, command: bytes) -> tuple[list[bytes], bytes]:
        self._tags += 1
        tag = b"t%d" % self._tags
        self.send(tag + b" " + command + b"\r\n")
        return await self.until(tag)

    async def until(self, tag: bytes) -> tuple[list[bytes], bytes]:
        untagged: list[bytes] = []
        while True:
            line = await self.line()
            if line.startswith(tag + b" "):
                return untagged, line.removeprefix(tag + b" ")
            if not line:
                raise ConnectionError(f"closed after {untagged!r}")
            untagged.append(line)

    async def ok(self, command: bytes) -> list[bytes]:
        """The untagged lines of a command that must succeed."""
        untagged, tagged = await self.ask(command)
        assert tagged.startswith(b"OK"), (command, untagged, tagged)
        return untagged

    async def login(self, who: str = ALICE) -> None:
        await self.ok(b"LOGIN %b %b" % (who.encode(), PASSWORD.encode()))

    async def select(self, mailbox: bytes = b"INBOX") -> list[bytes]:
        return await self.ok(b"SELECT " + mailbox)

    async def append(self, octets: bytes, mailbox: bytes = b"INBOX", flags: bytes = b"") -> bytes:
        """The tagged line."""
        _, tagged = await self.ask(b"APPEND %b %b{%d+}\r\n%b" % (mailbox, flags, len(octets), octets))
        return tagged

    async def at_end(self) -> bytes:
        """Everything until the server closes."""
        return await asyncio.wait_for(self.reader.read(), PATIENCE)

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError, TimeoutError):
            await asyncio.wait_for(self.writer.wait_closed(), 1)


class World:
    def __init__(self, server: Server, store: SqliteStore, imap: Endpoint, imaps: Endpoint, spans: Spans) -> None:
        self.server, self.store, self.imap, self.imaps, self.spans = server, store, imap, imaps, spans
        self.budget: Budget
        self.ca: Path
        self._clients: list[Client] = []

    async def clear(self) -> Client:
        """A connection in the clear, greeted."""
        return await self._greeted(*await asyncio.open_connection(*self.imap, limit=2**20))

    async def tls(self) -> Client:
        """A connection under TLS, greeted."""
        return await self._greeted(*await asyncio.open_connection(*self.imaps, ssl=trusting(self.ca), limit=2**20))

    async def client(self, who: str = ALICE, mailbox: bytes | None = b"INBOX") -> Client:
        """Signed in, with a mailbox selected."""
        client = await self.tls()
        await client.login(who)
        if mailbox is not None:
            await client.select(mailbox)
        return client

    async def deliver(self, octets: bytes = MESSAGE, to: str = ALICE, folder: str = "INBOX", **fields: Any) -> None:
        """Put a message into a mailbox, as delivery does."""
        head, separator, body = octets.partition(b"\r\n\r\n")
        message = new_message(header=head + separator, body=body, **fields)
        await self.store.accept(message, [filed(to, folder)], nothing)

    async def events(self, ev: str) -> list[StoredEvent]:
        return [event for event in await self.store.events_after(0, 1000) if event.row.ev == ev]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    async def _greeted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Client:
        client = Client(reader, writer)
        self._clients.append(client)
        greeting = await client.line()
        assert greeting.startswith(b"* OK [CAPABILITY IMAP4rev1 "), greeting
        return client

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


def trusting(ca: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca)


@cache
def certificates() -> Certificates:
    made = Certificates(Path(mkdtemp(prefix="aimx-test-tls-")), ("fabric.local",))
    made.ensure()
    return made


@cache
def _credential() -> Any:
    return scram.derive(PASSWORD, iterations=4096)


@asynccontextmanager
async def world(folder: Path, **imap: Any) -> AsyncIterator[World]:
    """A server with alice and bob. `imap` are settings of that section."""
    settings = Settings.model_validate({"imap": imap, "sign_in": {"delay": 0.05}})
    store = SqliteStore(folder / "mail.db", "n1")
    await store.open()
    for address in (ALICE, BOB):
        await store.add_agent(Agent(address, _credential(), time.time_ns() // 1_000_000), [])
    directory = Directory(store, settings.domains, settings.sign_in)
    spans = Spans()
    tracer = Tracer(spans)
    intake = Intake(settings, store, directory, tracer, message_id_key=b"k" * 32)
    budget = Budget(settings.smtp.byte_budget)
    made = certificates()
    server = Server(Door(settings, store, directory, intake, tracer, budget), made.server_context())
    local = Endpoint("127.0.0.1", 0)
    imap_at = server.listen(bind(local), implicit_tls=False)
    imaps_at = server.listen(bind(local), implicit_tls=True)
    here = World(server, store, imap_at, imaps_at, spans)
    here.budget, here.ca = budget, made.ca
    try:
        yield here
    finally:
        await here.close()
        await server.stop(2.0)
        directory.close()
        await store.close()
    assert server.open_connections == 0
    assert budget.held == 0, "the byte budget was not given back"
