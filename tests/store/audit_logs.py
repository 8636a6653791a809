"""Where a log can be kept, for tests that hold for each: opening it, and reaching past it as an administrator does."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from aimx.audit.log import Log, Reader
from aimx.audit.place import open_log, open_reader
from aimx.audit.postgres import install
from aimx.audit.sqlite import shard_file
from tests.postgres_server import PostgresServer

KINDS = ("sqlite", "postgres")

ROLES = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'aimx_seq') THEN CREATE ROLE aimx_seq LOGIN; END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'aimx_app') THEN CREATE ROLE aimx_app LOGIN; END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'aimx_api') THEN CREATE ROLE aimx_api LOGIN; END IF;
END $$
"""


@dataclass(frozen=True)
class Place:
    """One log. `database` as `[audit] database` has it."""

    folder: Path
    database: str | None

    def log(self) -> Log:
        return open_log(self.folder, self.database)

    def reader(self) -> Reader:
        return open_reader(self.folder, self.database)

    def run(self, *statements: str, shard: int = 1, replica: bool = False) -> None:
        """Statements of somebody with every right, in one transaction. `replica`: as a replication session."""
        if self.database is None:
            db = sqlite3.connect(shard_file(self.folder / "audit.db", shard))
            try:
                with db:
                    for statement in statements:
                        db.execute(statement)
            finally:
                db.close()
            return
        with psycopg.connect(self.database) as session:
            session.execute("SET search_path = audit")
            if replica:
                session.execute("SET session_replication_role = replica")
            for statement in statements:
                session.execute(statement.encode())


def place(kind: str, folder: Path, server: PostgresServer | None) -> Place:
    if kind == "sqlite":
        return Place(folder, None)
    assert server is not None
    server.run(ROLES)
    url = server.database()
    install(url)
    return Place(folder, url)


def leaves(start: int, end: int) -> list[tuple[str, bytes]]:
    return [(f"{n:026d}", b'{"eid":"%026d","t":%d}' % (n, n)) for n in range(start, end)]


def opening(origin: str, start: int) -> tuple[str, bytes]:
    """The first leaf of a shard, as far as the log itself looks at it."""
    eid = f"OPEN{start:022d}"
    return eid, b'{"eid":"%s","ev":"log.opened","origin":"%s","start":%d}' % (eid.encode(), origin.encode(), start)


def eids(found: Sequence[tuple[str, bytes]]) -> list[str]:
    return [eid for eid, _ in found]
