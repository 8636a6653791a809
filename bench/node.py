"""AIMX, audit on, on SQLite or PostgreSQL, with one process or several; with or without a collector."""

import asyncio
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg

from aimx.identity import scram
from aimx.store.contract import Agent
from aimx.store.postgres import PostgresStore
from aimx.store.sqlite import SqliteStore
from bench import processes
from bench.generator import Generator, Result
from bench.load import CONNECTIONS, SIZE, Load
from tests.node_process import Account, NodeProcess
from tests.postgres_server import PostgresServer

PASSWORD = "correct-horse-battery-staple"
CONFIG = """\
[listen]
plain = "127.0.0.1:0"

[trusted]
networks = ["127.0.0.0/8"]
"""


class AimxNode:
    """A node with an agent for each of `names`, in a database of its own on `server` if that is given."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        environ: Mapping[str, str],
        wrapper: tuple[str, ...] = (),
        *,
        server: PostgresServer | None = None,
        workers: int = 1,
        prelude: str = "",
    ) -> None:
        self._folder = folder
        self._server = server
        self._url = server.database() if server else None
        flags = ("--database", self._url, "--workers", str(workers)) if self._url else ()
        environ = {"AIMX_LOG_LEVEL": "error", **environ}
        self.process = NodeProcess(folder, CONFIG, environ=environ, flags=flags, wrapper=wrapper, prelude=prelude)
        self.accounts = [Account(f"{name}@fabric.local", PASSWORD) for name in names]

    @contextmanager
    def running(self) -> Iterator[None]:
        if self._url:
            self.process.aimx("db", "init", self._url)
        with self.process as node:
            asyncio.run(self._add_agents(node.data))
            yield

    async def _add_agents(self, data: Path) -> None:
        """Straight into the store: a hundred starts of a command are not what is measured."""
        store = PostgresStore(self._url, "bench") if self._url else SqliteStore(data / "mail.db", "bench")
        await store.open()
        try:
            credential = scram.derive(PASSWORD)
            for account in self.accounts:
                await store.add_agent(Agent(account.address, credential, time.time_ns() // 1_000_000), [])
        finally:
            await store.close()

    @property
    def smtp(self) -> str:
        return self.process.ready["smtps"]

    @property
    def plain(self) -> str:
        return self.process.ready["plain"]

    @property
    def imap(self) -> str:
        return self.process.ready["imaps"]

    @property
    def ca(self) -> str:
        return self.process.ready["ca"]

    def over_tls(self, generator: Generator) -> Load:
        """TLS 1.3 and AUTH; every message with a trace context and a workflow."""
        options = {"connections": CONNECTIONS, "size": SIZE, "ca": self.ca, "traceparent": True, "workflow": True}

        def load(count: int) -> Result:
            return generator.run(self.smtp, self.accounts, self.accounts, count=count, **options)

        return load

    def delivered(self) -> int:
        """Messages in all mailboxes."""
        return self._ask("SELECT sum(messages) FROM mailbox")

    def settled(self) -> bool:
        """The log has taken in every event."""
        if self._url:
            return self._ask("SELECT count(*) FROM outbox") == 0
        return self._ask("SELECT (SELECT max(seq) FROM event) - (SELECT max(last) FROM sequenced)") == 0

    def cpu_s(self) -> float:
        """Of the node and of its database's server."""
        return self.own_cpu_s() + (processes.cpu_s(self._server.process.pid) if self._server else 0.0)

    def own_cpu_s(self) -> float:
        return processes.cpu_s(self.process.process.pid)

    def memory_kib(self) -> int:
        assert self.process.process is not None
        return processes.memory_kib(self.process.process.pid)

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _ask(self, query: str) -> int:
        if self._url:
            with psycopg.connect(self._url, options="-c search_path=aimx", autocommit=True) as db:
                return int(db.execute(query.encode()).fetchone()[0])  # type: ignore[index]
        db = sqlite3.connect(f"file:{self.process.data / 'mail.db'}?mode=ro", uri=True)
        try:
            return int(db.execute(query).fetchone()[0])
        finally:
            db.close()
