"""A whole SMTP server in the test's own loop, with real sockets and TLS, before an intake that only records."""

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aimx.config import Endpoint, SignIn, Smtp
from aimx.identity import scram
from aimx.identity.agents import Directory
from aimx.identity.certificate import Certificates
from aimx.intake.envelope import Envelope, Reply, Upload
from aimx.listener import bind
from aimx.smtp.budget import ByteBudget
from aimx.smtp.server import Server
from aimx.smtp.session import Door
from aimx.store.contract import Agent, Staged

DOMAIN = "fabric.local"
PASSWORD = "correct-horse-battery"
ACCEPTED = Reply(250, "2.6.0", "accepted")
PATIENCE = 15.0
"""Seconds a test waits for what must come."""


class AgentsOnly:
    """The store's agents, in memory, and its staging area."""

    def __init__(self) -> None:
        self.known: dict[str, Agent] = {}
        self.callbacks: list[Callable[[], None]] = []
        self.staged: dict[int, bytes] = {}
        self.unavailable = False

    async def agent(self, address: str) -> Agent | None:
        return self.known.get(address)

    def subscribe(self, topic: str, callback: Callable[[], None]) -> Callable[[], None]:
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)

    def put(self, agent: Agent) -> None:
        self.known[agent.address] = agent
        for callback in self.callbacks:
            callback()

    async def stage(self, staged: Staged | None, chunk: bytes) -> Staged:
        if self.unavailable:
            raise OSError("disk full at /very/secret/path")
        await asyncio.sleep(0)
        key = staged.id if staged else len(self.staged) + 1
        self.staged[key] = self.staged.get(key, b"") + chunk
        return Staged(key, len(self.staged[key]))

    async def unstage(self, staged: Staged) -> None:
        del self.staged[staged.id]


@dataclass
class Received:
    envelope: Envelope
    content: bytes


@dataclass
class RecordingIntake:
    store: AgentsOnly
    mails: list[Received] = field(default_factory=list)
    turned_away: list[tuple[Envelope, Reply]] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)
    answer: Reply = ACCEPTED
    error: Exception | None = None
    hold: asyncio.Event | None = None
    holding: asyncio.Event = field(default_factory=asyncio.Event)

    def upload(self) -> Upload:
        return Upload(self.store)  # type: ignore[arg-type]

    def admit(self, agent: str) -> Reply | None:
        return None

    def admit_stranger(self, host: str) -> Reply | None:
        return None

    async def check_recipient(self, recipient: str, door: object = None) -> Reply | None:
        if recipient.rpartition("@")[2] != DOMAIN:
            return Reply(550, "5.7.1", "not relayed")
        return Reply(550, "5.1.1", "no such agent") if recipient in self.unknown else None

    def refused(self, envelope: Envelope, reply: Reply) -> None:
        self.turned_away.append((envelope, reply))

    async def accept(self, envelope: Envelope) -> Reply:
        if self.hold is not None:
            self.holding.set()
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        if not self.answer.accepted:
            return self.answer
        octets = await envelope.upload.finish()
        body = octets.body if isinstance(octets.body, bytes) else self.store.staged.pop(octets.body.id)
        self.mails.append(Received(envelope, octets.header.to_bytes() + body))
        return self.answer


@dataclass
class Node:
    server: Server
    smtp: Endpoint
    smtps: Endpoint
    store: AgentsOnly
    intake: RecordingIntake
    directory: Directory
    certificates: Certificates

    @property
    def mails(self) -> list[Received]:
        return self.intake.mails

    @property
    def budget(self) -> ByteBudget:
        return self.server.door.budget

    def add(self, name: str, password: str = PASSWORD) -> str:
        address = f"{name}@{DOMAIN}"
        self.store.put(Agent(address, scram.derive(password), 0))
        return address

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificates.ca))

    async def wire(self, *, tls: bool = True, greeted: bool = True) -> "Wire":
        endpoint = self.smtps if tls else self.smtp
        streams = await asyncio.open_connection(
            endpoint.host, endpoint.port, ssl=self.trust() if tls else None, limit=1 << 24
        )
        wire = Wire(*streams)
        if greeted:
            await wire.expect(220)
        return wire

    async def signed_in(self, name: str = "planner") -> "Wire":
        wire = await self.wire()
        await wire.say("EHLO client.example", 250)
        token = base64.b64encode(f"\0{name}@{DOMAIN}\0{PASSWORD}".encode()).decode()
        await wire.say(f"AUTH PLAIN {token}", 235)
        return wire


@asynccontextmanager
async def running(sign_in: SignIn | None = None, **smtp: Any) -> AsyncIterator[Node]:
    """A server with the agents planner and critic. Keywords are settings of `[smtp]`."""
    with TemporaryDirectory(prefix="aimx-test-tls-") as folder:
        certificates = Certificates(Path(folder), [DOMAIN])
        certificates.ensure()
        settings = Smtp.model_construct(**(Smtp().model_dump() | smtp))
        store = AgentsOnly()
        intake = RecordingIntake(store)
        directory = Directory(store, (DOMAIN,), sign_in or SignIn(delay=0.01))
        door = Door((DOMAIN,), settings, directory, intake, ByteBudget(settings.byte_budget))
        server = Server(door, certificates.server_context())
        node = Node(
            server,
            server.listen(bind(Endpoint("127.0.0.1", 0)), implicit_tls=False),
            server.listen(bind(Endpoint("127.0.0.1", 0)), implicit_tls=True),
            store,
            intake,
            directory,
            certificates,
        )
        node.add("planner")
        node.add("critic")
        try:
            yield node
        finally:
            await server.stop(0.5)
            directory.close()
            assert server.open_connections == 0, "a connection outlived the server"
            assert node.budget.left == node.budget.limit, "octets were charged and never given back"


class Wire:
    """A client that says exactly what it is told to say."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, octets: bytes) -> None:
        self.writer.write(octets)
        await self.writer.drain()

    async def reply(self) -> list[str]:
        """One reply, its lines without CRLF."""
        lines: list[str] = []
        while not lines or lines[-1][3:4] == "-":
            line = await asyncio.wait_for(self.reader.readline(), PATIENCE)
            if not line:
                raise EOFError(f"closed after {lines}")
            assert line.endswith(b"\r\n"), line
            assert len(line) <= 512, "RFC 5321 §4.5.3.1.5"
            lines.append(line[:-2].decode("ascii"))
        return lines

    async def expect(self, code: int, enhanced: str = "") -> list[str]:
        lines = await self.reply()
        assert lines[-1].startswith(f"{code} {enhanced}"), f"wanted {code} {enhanced}, got {lines}"
        return lines

    async def say(self, line: str | bytes, code: int, enhanced: str = "") -> list[str]:
        await self.send((line.encode() if isinstance(line, str) else line) + b"\r\n")
        return await self.expect(code, enhanced)

    async def closed(self) -> bytes:
        """What still came until the server closed."""
        try:
            return await asyncio.wait_for(self.reader.read(), PATIENCE)
        except ConnectionError:
            return b""

    async def mail(self, content: bytes = b"Subject: x\r\n\r\nhello\r\n", recipient: str = f"critic@{DOMAIN}") -> str:
        await self.say(f"MAIL FROM:<planner@{DOMAIN}>", 250)
        await self.say(f"RCPT TO:<{recipient}>", 250)
        await self.say("DATA", 354)
        await self.send(content + b".\r\n")
        return (await self.reply())[-1]

    def close(self) -> None:
        self.writer.close()
