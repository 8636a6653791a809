"""A whole node inside the test's event loop: real sockets, TLS and SQLite, and a list that every finished span goes to.

Tests talk to it as clients do (SMTP by aiosmtplib over TLS) and look at what it kept through its own store.
"""

import asyncio
import imaplib
import os
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiosmtplib

from aimx.audit import events
from aimx.audit.report import Report
from aimx.audit.verify import verify
from aimx.config import Settings
from aimx.data_folder import MAIL_FILE, Ready
from aimx.identity import scram
from aimx.message.header import HeaderBlock
from aimx.node import Node
from aimx.store.contract import Agent, Row, SpanRef, StoredEvent
from aimx.store.sqlite import SqliteStore
from aimx.telemetry.catalogue import COMMON, span_spec
from aimx.telemetry.span import Span, Tracer

PASSWORD = "correct horse battery staple"
PORTS = dict.fromkeys(("smtp", "smtps", "imap", "imaps", "http"), "127.0.0.1:0")


class Spans(list[Span]):
    """A sink."""

    def take(self, span: Span) -> None:
        self.append(span)

    def not_in_the_catalogue(self) -> set[str]:
        """What is said that the catalogue does not say, each thing once."""
        return {problem for span in self for problem in uncatalogued(span)}

    def named(self, name: str) -> list[Span]:
        return [span for span in self if span.name == name]

    def one(self, name: str) -> Span:
        (span,) = self.named(name)
        return span

    def parent(self, span: Span) -> Span | None:
        parents = [s for s in self if span.parent is not None and s.span_id == span.parent.span_id]
        return parents[0] if parents else None


def uncatalogued(span: Span) -> Iterator[str]:
    spec = span_spec(span.name)
    if spec is None:
        yield f"span {span.name!r}"
        return
    if span.kind is not spec.kind:
        yield f"{span.name}: kind {span.kind.name}"
    yield from (f"{span.name}: {name}" for name in span.attributes.keys() - {*spec.attributes, *COMMON})
    yield from (f"{span.name}: event {name}" for name, _, _ in span.events or () if name not in spec.events)
    keys = [key for said in (*span.facts, span.own) for key in said]
    yield from (f"{span.name}: {key} twice" for key in {key for key in keys if keys.count(key) > 1})


class MailNode:
    """The node under test, and short ways to what a test asks of it."""

    def __init__(self, node: Node, ready: Ready, store: SqliteStore, spans: Spans, folder: Path) -> None:
        self.node, self.ready, self.store, self.spans, self.folder = node, ready, store, spans, folder

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ready.ca)

    async def send(self, sender: str, to: str | Sequence[str], body: bytes = b"hello\r\n", **headers: str) -> str:
        """The text of the 250; raises aiosmtplib's errors. Header names with `_` for `-`."""
        recipients = [to] if isinstance(to, str) else list(to)
        lines = {"From": address(sender), "To": ", ".join(map(address, recipients))} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
        return await self.send_raw(sender, recipients, head.encode() + b"\r\n" + body)

    async def send_raw(self, sender: str, to: Sequence[str], message: bytes) -> str:
        host, port = self.ready.smtps.rsplit(":", 1)
        async with aiosmtplib.SMTP(hostname=host, port=int(port), use_tls=True, tls_context=self.tls()) as client:
            await client.login(address(sender), PASSWORD)
            _, text = await client.sendmail(address(sender), [address(name) for name in to], message)
            return text

    async def inbox(self, agent: str) -> list[Row]:
        mailbox = await self.store.mailbox(address(agent), "INBOX")
        assert mailbox is not None
        return await self.store.fetch(mailbox.key, ((1, 2**32 - 1),), header=True, body=2**26)

    async def header(self, agent: str, index: int = -1) -> HeaderBlock:
        row = (await self.inbox(agent))[index]
        assert row.header is not None
        return HeaderBlock.parse(row.header)[0]

    async def append(self, agent: str, folder: str, message: bytes) -> None:
        """As a mail client files a copy over IMAP."""

        def talk() -> None:
            host, port = self.ready.imaps.rsplit(":", 1)
            with imaplib.IMAP4_SSL(host, int(port), ssl_context=self.tls()) as client:
                client.login(address(agent), PASSWORD)
                answer, _ = client.append(folder, "", "", message)
                assert answer == "OK"

        await asyncio.to_thread(talk)

    async def ack(self, agent: str) -> None:
        """Acknowledge everything in the INBOX."""
        mailbox = await self.store.mailbox(address(agent), "INBOX")
        assert mailbox is not None
        await self.store.mark(mailbox.key, ((1, 2**32 - 1),), "add", frozenset({"$AimxDone"}), lambda flagged: [])

    async def events(self, eid: str) -> list[StoredEvent]:
        return await self.store.events_of(eid)

    async def verify(self) -> Report:
        return await verify(self.store, self.folder)


def address(name: str) -> str:
    return name if "@" in name else f"{name}@fabric.local"


async def add_agent(store: SqliteStore, name: str, **limits: Any) -> None:
    now_ms = time.time_ns() // 1_000_000
    stamp = events.Stamp("n1", now_ms, SpanRef(os.urandom(16), os.urandom(8)), "admin")
    agent = Agent(address(name), scram.derive(PASSWORD, iterations=4096), now_ms, **limits)
    await store.add_agent(agent, [events.config_changed(stamp, what="agent.added", by="admin", subject=agent.address)])


@asynccontextmanager
async def running(folder: Path, agents: Sequence[str] = (), **settings: Any) -> AsyncIterator[MailNode]:
    """A node with these agents. `settings` are as in aimx.toml."""
    spans = Spans()
    node = Node(Settings.model_validate({"data": folder / "data", "listen": PORTS} | settings))
    node.tracer = Tracer(spans)
    ready = await node.start()
    try:
        store = SqliteStore(folder / "data" / MAIL_FILE, "test", guest=True)
        await store.open()
        try:
            for name in agents:
                await add_agent(store, name)
            yield MailNode(node, ready, store, spans, folder / "data")
        finally:
            await store.close()
    finally:
        await node.stop()
    assert spans.not_in_the_catalogue() == set()
