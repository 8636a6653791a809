"""Two nodes over one PostgreSQL change the same mailboxes, and work on the same workflow, at once."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field

import asyncpg
import pytest

from aimx.store.contract import AlreadyExists, Copied, MailboxKey, MessageFilter, NotFound, Placed
from aimx.store.names import superiors
from aimx.store.postgres import PostgresStore
from tests.store.conftest import BOB, key_of
from tests.store.factory import filed, new_agent, new_message, new_target, nothing

ALL = ((1, 4294967295),)
FOLDERS = ("INBOX", "Archive", "Trash")


@pytest.fixture
async def nodes(database: str) -> AsyncIterator[list[PostgresStore]]:
    async with AsyncExitStack() as stack:
        stores = [PostgresStore(database, name) for name in ("n1", "n2")]
        for store in stores:
            await store.open()
            stack.push_async_callback(store.close)
        await stores[0].add_agent(new_agent(BOB), [])
        yield stores


@dataclass
class Session:
    """What a client knows that asks only for what changed since it last asked."""

    store: PostgresStore
    key: MailboxKey
    modseq: int = 1
    seen: dict[int, frozenset[str]] = field(default_factory=dict)

    async def look(self) -> None:
        changes = await self.store.changes(self.key, self.modseq)
        assert changes.modseq >= self.modseq
        assert all(self.modseq < marked.modseq <= changes.modseq for marked in changes.marked)
        self.modseq = changes.modseq
        self.seen |= {marked.uid: marked.flags for marked in changes.marked}
        for uid in changes.vanished:
            self.seen.pop(uid, None)


@dataclass
class Worker:
    """A client of one node that does as it likes in Bob's mailboxes, and notes each UID that was given."""

    store: PostgresStore
    keys: list[MailboxKey]
    dice: random.Random
    given: list[tuple[MailboxKey, int]]

    async def work(self, times: int) -> None:
        for _ in range(times):
            await self.dice.choice([self.file, self.mark, self.mark, self.expunge, self.copy, self.move])()

    def ranges(self) -> tuple[tuple[int, int], ...]:
        low = self.dice.randrange(1, 40)
        return ((low, low + self.dice.randrange(6)), (low + 20, 4294967295))[: self.dice.randrange(1, 3)]

    async def file(self) -> None:
        targets = [filed(BOB, folder) for folder in self.dice.sample(FOLDERS, 2)]
        for outcome in await self.store.accept(new_message(), targets, nothing):
            assert isinstance(outcome, Placed)
            self.given.append((outcome.mailbox, outcome.uid))

    async def mark(self) -> None:
        names = frozenset(self.dice.sample(["\\Seen", "\\Deleted", "\\Flagged", *map("k{}".format, range(6))], 2))
        mode = self.dice.choice(("add", "remove", "replace"))
        await self.store.mark(self.dice.choice(self.keys), self.ranges(), mode, names, nothing)  # type: ignore[arg-type]

    async def expunge(self) -> None:
        await self.store.expunge(self.dice.choice(self.keys), self.dice.choice((None, self.ranges())), nothing)

    async def copy(self) -> None:
        source, to = self.dice.choices(self.keys, k=2)
        self._note(to, await self.store.copy(source, self.ranges(), to, nothing))

    async def move(self) -> None:
        source, to = self.dice.choices(self.keys, k=2)
        self._note(to, await self.store.move(source, self.ranges(), to, nothing))

    def _note(self, to: MailboxKey, copied: Copied) -> None:
        self.given.extend((to, new) for _, new in copied.pairs)


@pytest.mark.parametrize("seed", [1, 2])
async def test_all_sessions_come_to_see_the_same_mailbox(nodes: list[PostgresStore], database: str, seed: int) -> None:
    """A MODSEQ that became visible late, below one already seen, would leave a session with something else."""
    keys = [await key_of(nodes[0], BOB, folder) for folder in FOLDERS]
    given: list[tuple[MailboxKey, int]] = []
    workers = [Worker(node, keys, random.Random(f"{seed} {n}"), given) for n, node in enumerate([*nodes] * 3)]
    sessions = [Session(node, key) for node in nodes for key in keys]

    async def watch(session: Session) -> None:
        while True:
            await session.look()

    watching = [asyncio.create_task(watch(session)) for session in sessions]
    await asyncio.gather(*(worker.work(20) for worker in workers))
    for task in watching:
        task.cancel()
    ends = await asyncio.gather(*watching, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends
    for session in sessions:
        await session.look()
        rows = await nodes[0].fetch(session.key, ALL)
        assert session.seen == {row.uid: row.flags for row in rows}
        status = (await nodes[0].status([session.key]))[session.key]
        assert (status.messages, status.size) == (len(rows), sum(row.header_size + row.body_size for row in rows))
        assert status.unseen == sum("\\Seen" not in row.flags for row in rows)
        assert status.deleted == sum("\\Deleted" in row.flags for row in rows)
        assert status.uidnext == max(uid for key, uid in given if key == session.key) + 1
    assert len(given) == len(set(given)), "a UID was given twice"
    assert await deadlocks(database, nodes) == 0


async def deadlocks(database: str, nodes: list[PostgresStore]) -> int:
    """Servers count when a connection ends."""
    for node in nodes:
        await node.close()
    db = await asyncpg.connect(database)
    try:
        found = await db.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    finally:
        await db.close()
    return int(found)


async def test_names_changed_on_two_nodes_stay_one_tree(nodes: list[PostgresStore], database: str) -> None:
    """Each mailbox has its superiors, no name is there twice, and mail that comes in meanwhile stays in its mailbox."""
    one, two = nodes

    async def try_to(call: Awaitable[object]) -> None:
        with suppress(AlreadyExists, NotFound):
            await call

    for n in range(20):
        calls = [
            one.create_mailbox(BOB, f"a/x/{n}"),
            two.rename_mailbox(BOB, "a", f"old/{n}"),
            one.create_mailbox(BOB, f"a/y/{n}"),
            two.create_mailbox(BOB, f"a/x/{n}"),
            one.accept(new_message(), [filed(BOB, "a/x")], nothing),
            two.rename_mailbox(BOB, f"old/{n}/x", f"a/z/{n}"),
        ]
        await asyncio.gather(*map(try_to, calls))
    boxes = await one.mailboxes(BOB)
    names = {box.name for box in boxes}
    assert len(names) == len(boxes)
    assert {superior for name in names for superior in superiors(name)} <= names
    assert len({box.uidvalidity for box in boxes}) == len(boxes)
    status = await one.status([box.key for box in boxes])
    for box in boxes:
        assert status[box.key].messages == len(await one.fetch(box.key, ALL))
    assert await deadlocks(database, nodes) == 0


async def test_a_keyword_used_first_on_two_nodes_at_once_gets_one_bit(nodes: list[PostgresStore]) -> None:
    keys = [await key_of(nodes[0], BOB, folder) for folder in FOLDERS]
    for folder in FOLDERS:
        await nodes[0].accept(new_message(), [filed(BOB, folder)], nothing)
    asked = [frozenset({f"k{n}", f"K{n + 1}"}) for n in range(8)]
    await asyncio.gather(*(nodes[n % 2].mark(keys[n % 3], ALL, "add", names, nothing) for n, names in enumerate(asked)))
    seen: set[str] = set()
    for key in keys:
        (row,) = await nodes[1].fetch(key, ALL)
        seen |= {name.lower() for name in row.flags}
    assert seen == {f"k{n}" for n in range(9)}
    assert len((await nodes[0].select(keys[0], False)).keywords) == 1 + 9


async def test_each_node_counts_what_both_accept(nodes: list[PostgresStore]) -> None:
    """The loop guard's past of a workflow: asked all the while, complete and in one order at the end."""

    async def client(node: PostgresStore) -> list[int]:
        counts = []
        for _ in range(15):
            await node.accept(new_message(workflow="w"), [new_target(BOB)], nothing)
            counts.append((await node.lineage(BOB, None, [], None, "w")).count)
        return counts

    for counts in await asyncio.gather(*map(client, [*nodes] * 3)):
        assert counts == sorted(set(counts)), "a node forgot, or missed its own message"
    sent = await nodes[0].find(MessageFilter(workflow="w"), 100)
    for node in nodes:
        lineage = await node.lineage(BOB, None, [], None, "w")
        assert lineage.count == 90
        assert [past.t_ms for past in lineage.past] == [record.t_ms for record in sent]
