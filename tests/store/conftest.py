"""One contract suite, every store. A store joins it by a `Maker` in MAKERS."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from aimx.store.contract import MailboxKey, Store
from aimx.store.postgres import PostgresStore
from aimx.store.postgres.migration import migrate
from aimx.store.sqlite import SqliteStore
from tests.postgres_server import PostgresServer
from tests.store.factory import new_agent

Maker = Callable[[pytest.FixtureRequest], Callable[[], Store]]
"""For a test: what makes a store over the same data each time."""


def sqlite(request: pytest.FixtureRequest) -> Callable[[], Store]:
    path = request.getfixturevalue("tmp_path") / "mail.db"
    return lambda: SqliteStore(path, "n1")


def postgres(request: pytest.FixtureRequest) -> Callable[[], Store]:
    url = request.getfixturevalue("database")
    return lambda: PostgresStore(url, "n1")


MAKERS: dict[str, Maker] = {"sqlite": sqlite, "postgres": postgres}

ALICE, BOB, CAROL = "alice@fabric.local", "bob@fabric.local", "carol@fabric.local"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with PostgresServer(settings={"fsync": "off"}) as server:  # what the disk keeps is tests/system's question
        yield server


@pytest.fixture(scope="session")
def postgres_schema(postgres_server: PostgresServer) -> str:
    """The address of a database that has AIMX's schema."""
    url = postgres_server.database()
    asyncio.run(migrate(url))
    return url


@pytest.fixture
def database(postgres_server: PostgresServer, postgres_schema: str) -> str:
    """The same, without rows: emptied, for a new one each time takes longer than most tests."""
    postgres_server.run(_EMPTY, database=postgres_schema.rpartition("/")[2])
    return postgres_schema


_EMPTY = """
DO $$
DECLARE t text;
BEGIN
    PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend';
    FOR t IN SELECT tablename FROM pg_tables
        WHERE schemaname = 'aimx' AND tablename NOT IN ('schema_version', 'counter')
    LOOP EXECUTE format('DELETE FROM aimx.%I', t); END LOOP;
END $$
"""


@pytest.fixture(params=sorted(MAKERS))
def opening(request: pytest.FixtureRequest) -> Callable[[], Awaitable[Store]]:
    """Opens a store, each time over the same data."""
    make = MAKERS[request.param](request)

    async def start() -> Store:
        store = make()
        await store.open()
        return store

    return start


@pytest.fixture
async def store(opening: Callable[[], Awaitable[Store]]) -> AsyncIterator[Store]:
    """With three agents."""
    store = await opening()
    for address in (ALICE, BOB, CAROL):
        await store.add_agent(new_agent(address), [])
    yield store
    await store.close()


@pytest.fixture
async def inbox(store: Store) -> MailboxKey:
    """Bob's."""
    return await key_of(store, BOB)


async def key_of(store: Store, owner: str, name: str = "INBOX") -> MailboxKey:
    mailbox = await store.mailbox(owner, name)
    assert mailbox is not None
    return mailbox.key


async def limit(store: Store, address: str, **fields: Any) -> None:
    await store.update_agent(new_agent(address, **fields), [])
