"""AIMX on SQLite, one process, audit on; with or without a collector."""

import asyncio
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from aimx.identity import scram
from aimx.store.contract import Agent
from aimx.store.sqlite import SqliteStore
from tests.node_process import Account, NodeProcess

PASSWORD = "correct-horse-battery-staple"
TRUSTING = """\
[listen]
plain = "127.0.0.1:0"
[trusted]
networks = ["127.0.0.0/8"]
"""


class AimxNode:
    """A node with an agent for each of `names`."""

    def __init__(self, folder: Path, names: Sequence[str], environ: Mapping[str, str], wrapper: tuple[str, ...] = ()):
        self._folder = folder
        environ = {"AIMX_LOG_LEVEL": "warning", **environ}
        self.process = NodeProcess(folder, TRUSTING, environ=environ, wrapper=wrapper)
        self.accounts = [Account(f"{name}@fabric.local", PASSWORD) for name in names]

    @contextmanager
    def running(self) -> Iterator[None]:
        with self.process as node:
            asyncio.run(self._add_agents(node.data))
            yield

    async def _add_agents(self, data: Path) -> None:
        """Straight into the store: a hundred starts of a command are not what is measured."""
        store = SqliteStore(data / "mail.db", "bench")
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

    def delivered(self) -> int:
        """Entries in all mailboxes."""
        return self._ask("SELECT count(*) FROM entry")

    def settled(self) -> bool:
        """The log has taken in every event."""
        return self._ask("SELECT (SELECT max(seq) FROM event) - (SELECT max(last) FROM sequenced)") == 0

    def cpu_s(self) -> float:
        return self.process.cpu_s()

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _ask(self, query: str) -> int:
        db = sqlite3.connect(f"file:{self.process.data / 'mail.db'}?mode=ro", uri=True)
        try:
            return int(db.execute(query).fetchone()[0])
        finally:
            db.close()
