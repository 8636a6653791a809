"""One contract suite, every store. A store joins it by a `Maker` in MAKERS."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from aimx.store.contract import MailboxKey, Store
from aimx.store.sqlite import SqliteStore
from tests.store.factory import new_agent

Maker = Callable[[Path], Store]
"""A store over the same data each time it is made for the same folder."""

MAKERS: dict[str, Maker] = {"sqlite": lambda folder: SqliteStore(folder / "mail.db", "n1")}

ALICE, BOB, CAROL = "alice@fabric.local", "bob@fabric.local", "carol@fabric.local"


@pytest.fixture(params=sorted(MAKERS))
def opening(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Awaitable[Store]]:
    """Opens a store, each time over the same data."""

    async def start() -> Store:
        store = MAKERS[request.param](tmp_path)
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
