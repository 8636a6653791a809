"""What only the PostgreSQL store has to show: several processes, a server that goes away, migrations, roles."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
import psycopg
import pytest

from aimx.store.contract import (
    KeyReused,
    MailboxKey,
    NewMessage,
    NotFound,
    Once,
    Outcome,
    Placed,
    ReadOnly,
    Repeated,
    Staged,
    StoreError,
    Topic,
    Unavailable,
    worker_name,
)
from aimx.store.postgres import PostgresStore, roles
from aimx.store.postgres.migration import migrate, migrations
from aimx.store.search import Everything
from tests.postgres_proxy import Cut, Proxy
from tests.postgres_server import PostgresServer
from tests.store.conftest import ALICE, BOB, CAROL, key_of, limit
from tests.store.factory import T0, new_agent, new_event, new_message, new_target, nothing, telling

PATIENCE_S = 20.0
Opening = Callable[..., Awaitable[PostgresStore]]


@pytest.fixture
async def node(database: str) -> AsyncIterator[Opening]:
    """Opens further stores over one database: `await node("n2", 1)`."""
    opened: list[PostgresStore] = []

    async def start(name: str = "n1", worker: int = 0, **options: bool | int) -> PostgresStore:
        store = PostgresStore(database, name, worker, **options)  # type: ignore[arg-type]
        await store.open()
        opened.append(store)
        return store

    first = await start("first")
    for address in (ALICE, BOB, CAROL):
        await first.add_agent(new_agent(address), [])
    yield start
    for store in opened:
        await store.close()


@pytest.fixture
def sql(database: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Somebody else at the same database."""
    with psycopg.connect(database, autocommit=True, options="-c search_path=aimx") as db:
        yield db


@pytest.fixture(scope="module")
def fragile() -> Iterator[PostgresServer]:
    """A server that a test may stop, and that syncs."""
    with PostgresServer() as server:
        yield server


async def accept(
    store: PostgresStore, to: str = BOB, message: NewMessage | None = None, once: Once | None = None
) -> str:
    message = message or new_message()
    await store.accept(message, [new_target(to)], telling("message.accepted", ref=message.eid), once=once)
    return message.eid


async def uids(store: PostgresStore, key: MailboxKey) -> list[int]:
    return (await store.search(key, Everything()))[0]


# ── several processes ────────────────────────────────────────────────────────────────────────────────────────────────


async def heard(happened: asyncio.Event) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await happened.wait()


async def quiet(store: PostgresStore, topic: Topic) -> asyncio.Event:
    """Set when `topic` changes from now on. Whoever subscribes is called once anyhow, at the next look."""
    happened = asyncio.Event()
    store.subscribe(topic, happened.set)
    await heard(happened)
    happened.clear()
    return happened


async def test_mail_taken_by_one_node_wakes_who_waits_on_another(node: Opening) -> None:
    one, two = await node("n1"), await node("n2")
    inbox = await key_of(two, BOB)
    mail, events, agents = [await quiet(two, topic) for topic in (inbox, "events", "agents")]
    await accept(one)
    await heard(mail)
    await heard(events)
    await one.add_agent(new_agent("dave@fabric.local"), [])
    await heard(agents)


async def test_what_nobody_told_is_seen_all_the_same(
    node: Opening, sql: psycopg.Connection[tuple[object, ...]]
) -> None:
    """As when a process dies between its commit and its word to the others."""
    two = await node("n2")
    inbox = await key_of(two, BOB)
    mail, queue = await quiet(two, inbox), await quiet(two, "queue")
    sql.execute("UPDATE mailbox SET modseq = modseq + 1 WHERE id = %s", (inbox.id,))
    sql.execute("SELECT nextval('delivery_id')")
    await heard(mail)
    await heard(queue)


async def test_a_broken_line_between_nodes_is_mended(
    node: Opening, sql: psycopg.Connection[tuple[object, ...]]
) -> None:
    one, two = await node("n1"), await node("n2")
    inbox = await key_of(two, BOB)
    mail = await quiet(two, inbox)
    sql.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'aimx n2/0'"
    )
    await heard(mail)  # by nobody: it was away, so everything counts as changed
    mail.clear()
    await accept(one)
    await heard(mail)


async def test_a_worker_frees_what_its_own_earlier_life_held_and_nothing_else(node: Opening) -> None:
    store = await node("n1", 0)
    await limit(store, BOB, max_unacked=1)
    for _ in range(3):
        await accept(store)
    claimed = [await store.claim(T0 + 10**6, 1, worker_name("n1", worker), 10**9, lambda _: 1) for worker in (0, 1)]
    await node("n1", 0)
    held = {delivery.id: delivery.leased_by for delivery in await store.pending()}
    assert held == {claimed[0][0].id: None, claimed[1][0].id: "n1/1"}


async def test_two_nodes_never_take_the_same_delivery(node: Opening) -> None:
    stores = [await node("n1"), await node("n2")]
    await limit(stores[0], BOB, max_unacked=1)
    await asyncio.gather(*(accept(stores[n % 2]) for n in range(81)))
    waves = await asyncio.gather(
        *(
            store.claim(T0 + 10**6, 7, name, 10**9, lambda _: 1)
            for _ in range(8)
            for name, store in zip("ab", stores, strict=True)
        )
    )
    taken = [due.id for wave in waves for due in wave]
    assert len(taken) == len(set(taken)) == 80


async def test_an_event_that_became_visible_late_reaches_the_log(
    node: Opening, database: str, sql: psycopg.Connection[tuple[object, ...]]
) -> None:
    store = await node()
    late = new_event()
    with psycopg.connect(database, options="-c search_path=aimx") as slow:
        slow.execute(
            "WITH e AS (INSERT INTO event (seq, eid, ev, t_ms, trace_id, span_id, leaf, detail) VALUES"
            " (nextval('event_seq'), %s, 'x', 1, '', '', 'leaf', '{}') RETURNING seq, t_ms)"
            " INSERT INTO outbox SELECT * FROM e",
            (late.eid,),
        )
        await store.record([new_event(), new_event()])
        seen = await store.unsequenced(10)
        assert len(seen) == 2
        await store.mark_sequenced([(seq, index) for index, (seq, _, _) in enumerate(seen)])
        assert await store.unsequenced(10) == []
    ((seq, eid, _),) = await store.unsequenced(10)
    assert (eid, seq < seen[0][0]) == (late.eid, True)
    await store.mark_sequenced([(seq, 2)])
    assert [event.index for event in await store.events_after(0, 10)] == [2, 0, 1]


async def test_a_key_is_used_once_on_all_nodes_together(node: Opening) -> None:
    stores = [await node("n1"), await node("n2")]
    until = T0 + 10**9
    for n in range(10):
        same = [Once(ALICE, f"key{n}", b"same", until) for _ in range(6)]
        found = await asyncio.gather(
            *(accept(stores[i % 2], once=once) for i, once in enumerate(same)),
            accept(stores[0], once=Once(ALICE, f"key{n}", b"other", until)),
            return_exceptions=True,
        )
        eids = [one for one in found if isinstance(one, str)]
        assert len(eids) == 1
        assert {one.eid for one in found if isinstance(one, Repeated)} <= set(eids)
        assert sum(isinstance(one, Repeated | KeyReused) for one in found) == 6
    assert len(await uids(stores[0], await key_of(stores[0], BOB))) == 10


async def test_all_nodes_together_keep_to_a_limit(node: Opening) -> None:
    stores = [await node("n1"), await node("n2")]
    await limit(stores[0], BOB, max_unacked=5)
    await limit(stores[0], CAROL, quota=24 * 3)
    for address, most in ((BOB, 5), (CAROL, 3)):
        found = await asyncio.gather(
            *(stores[n % 2].accept(new_message(), [new_target(address)], nothing) for n in range(40))
        )
        assert sum(isinstance(outcome, Placed) for (outcome,) in found) == most


async def test_the_loop_guard_counts_what_all_nodes_take(node: Opening) -> None:
    stores = [await node("n1"), await node("n2"), await node("n2", 1)]
    await asyncio.gather(*(accept(stores[n % 3], message=new_message(workflow="w")) for n in range(60)))
    lineage = await stores[0].lineage(ALICE, None, [], None, "w")
    assert (lineage.count, len(lineage.past)) == (60, 60)


async def test_bodies_left_by_an_earlier_life_are_dropped_and_those_of_others_stay(
    node: Opening, sql: psycopg.Connection[tuple[object, ...]]
) -> None:
    one, two = await node("n1"), await node("n2")
    lost, kept = await one.stage(None, b"a" * 600_000), await two.stage(None, b"b" * 600_000)
    await node("n1")
    with pytest.raises(NotFound):
        await accept(one, message=new_message(body=lost))
    await accept(two, message=new_message(body=kept))
    assert sql.execute("SELECT count(*) FROM part WHERE body = %s", (lost.id,)).fetchone() == (0,)


# ── groups ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_comes_together_is_committed_together(
    node: Opening, sql: psycopg.Connection[tuple[object, ...]]
) -> None:
    store = await node()
    await asyncio.gather(*(accept(store) for _ in range(200)))
    (commits,) = sql.execute("SELECT count(DISTINCT xmin::text) FROM message").fetchone() or (0,)
    assert commits <= 2


async def test_much_mail_at_once_is_committed_in_several_groups(
    node: Opening, sql: psycopg.Connection[tuple[object, ...]]
) -> None:
    store = await node()
    await asyncio.gather(*(accept(store, message=new_message(body=b"x" * 2**18)) for _ in range(100)))
    (commits,) = sql.execute("SELECT count(DISTINCT xmin::text) FROM message").fetchone() or (0,)
    assert commits == 4


async def test_of_a_group_each_poisoned_one_fails_alone(node: Opening) -> None:
    store, taken = await node(), new_message()
    await accept(store, message=taken)

    def broken(_outcomes: Sequence[Outcome]) -> list[object]:
        raise ZeroDivisionError

    found = await asyncio.gather(
        *(accept(store) for _ in range(20)),
        accept(store, message=new_message(eid=taken.eid)),
        accept(store, message=new_message(t_ms=1 << 63)),
        store.accept(new_message(), [new_target(BOB)], broken),  # type: ignore[arg-type]
        accept(store, message=new_message(body=Staged(999, 3))),
        *(accept(store) for _ in range(20)),
        return_exceptions=True,
    )
    assert [n for n, one in enumerate(found) if isinstance(one, BaseException)] == [20, 21, 22, 23]
    assert [type(one).__name__ for one in found[20:24]] == [
        "AlreadyExists",
        "DataError",
        "ZeroDivisionError",
        "NotFound",
    ]
    assert await uids(store, await key_of(store, BOB)) == list(range(1, 42))


async def test_text_from_the_wire_that_postgresql_cannot_hold_is_mail_all_the_same(node: Opening) -> None:
    store, bad = await node(), "a\0b\ud800c"
    eid = await accept(store, message=new_message(subject=bad, message_id=bad, workflow=bad, loop_key=bad, baggage=bad))
    record = await store.message(eid)
    assert record is not None
    assert (record.subject, record.message_id, record.workflow) == ("a\ufffdb\ufffdc",) * 3
    assert (await store.lineage(BOB, bad, [], None, bad)).replied is not None
    assert await store.pending(bad, destination=bad) == []


async def test_a_caller_that_leaves_leaves_nothing_half_done(node: Opening) -> None:
    store = await node()
    task = asyncio.create_task(store.record([new_event()]))
    await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.gather(*(accept(store) for _ in range(20)))
    assert len(await uids(store, await key_of(store, BOB))) == 20


# ── a server that goes away ──────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(url, "n1")
    await store.open()
    try:
        if await store.agent(BOB) is None:
            await store.add_agent(new_agent(BOB), [])
        yield store
    finally:
        await store.close()


async def persist(store: PostgresStore, message: NewMessage) -> None:
    """As a client does that is told to come again later; the message is the same."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await accept(store, message=message)
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                return


async def test_a_crash_of_the_server_loses_and_doubles_nothing_and_is_got_over(fragile: PostgresServer) -> None:
    async with opened(fragile.database()) as store:
        inbox, happened = await key_of(store, BOB), asyncio.Event()
        store.subscribe(inbox, happened.set)
        messages = [new_message() for _ in range(300)]

        async def client(mine: list[NewMessage]) -> None:
            for message in mine:
                await persist(store, message)

        clients = asyncio.gather(*(client(messages[n::10]) for n in range(10)))
        for _ in range(2):
            await asyncio.sleep(0.2)
            await asyncio.to_thread(fragile.restart, "immediate")
        await clients
        rows = await store.fetch(inbox, ((1, 10_000),))
        assert sorted(row.eid for row in rows) == sorted(message.eid for message in messages)
        assert [row.uid for row in rows] == list(range(1, 301))
        assert await store.agent(BOB) is not None
        happened.clear()
        await accept(store)
        await heard(happened)


async def test_without_the_server_callers_are_told_at_once(fragile: PostgresServer) -> None:
    async with opened(fragile.database()) as store:
        await asyncio.to_thread(fragile.stop, "immediate")
        began = time.monotonic()
        calls = (accept(store), store.agent(BOB), store.record([new_event()]), store.stage(None, b"x"))
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(one) for one in found] == [Unavailable] * 4
        assert time.monotonic() - began < PATIENCE_S
        await asyncio.to_thread(fragile.start)
        await accept(store)


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_commit_whose_answer_is_lost_is_looked_for(fragile: PostgresServer, cut: Cut) -> None:
    url = fragile.database()
    async with Proxy(fragile.port).running() as proxy, opened(url.replace(str(fragile.port), str(proxy.port))) as store:
        inbox, message = await key_of(store, BOB), new_message()
        proxy.cut = cut
        if cut == "after":
            await accept(store, message=message)
        else:
            with pytest.raises(Unavailable):
                await accept(store, message=message)
            await accept(store, message=message)
        proxy.cut = "after"
        await store.mark(inbox, ((1, 1),), "add", frozenset({"\\Seen"}), telling("mailbox.accessed"))
        assert proxy.cuts == 2
        assert await uids(store, inbox) == [1]


async def test_when_all_connections_are_busy_callers_are_told(
    node: Opening, sql: psycopg.Connection[tuple[object, ...]]
) -> None:
    store = await node("n1", pool=1)
    sql.execute("BEGIN")
    sql.execute("LOCK TABLE agent IN ACCESS EXCLUSIVE MODE")
    stuck = asyncio.create_task(store.update_agent(new_agent(BOB), []))
    await asyncio.sleep(0.05)
    with pytest.raises(Unavailable):
        await store.backlog()
    sql.execute("COMMIT")
    await stuck
    await store.backlog()


# ── schema ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", [number for number, _ in migrations()])
async def test_every_released_schema_becomes_todays_with_its_data(
    postgres_server: PostgresServer, version: int
) -> None:
    url = postgres_server.database()
    assert await migrate(url, [step for step in migrations() if step[0] <= version]) == version
    with psycopg.connect(url, options="-c search_path=aimx") as db:
        db.execute(
            "INSERT INTO agent (address, salt, iterations, stored_key, server_key, created_ms, disabled,"
            " may_prioritise) VALUES (%s, 'salt', 4096, 'stored', 'server', %s, false, false)",
            (BOB, T0),
        )
    async with opened(url) as store:
        assert await store.agent(BOB) == new_agent(BOB)


async def test_a_migration_is_done_whole_or_not_at_all(postgres_server: PostgresServer) -> None:
    url = postgres_server.database()
    async with opened(url) as store:
        await accept_into_new_inbox(store)
    known = migrations()
    last = known[-1][0]
    with pytest.raises(asyncpg.PostgresError):
        await migrate(url, [*known, (last + 1, "CREATE TABLE half (id int); SELECT 1 / 0")])
    assert await migrate(url, [*known, (last + 1, "ALTER TABLE message ADD half int")]) == last + 1
    with pytest.raises(StoreError, match="upgrade AIMX"):
        await migrate(url)
    with pytest.raises(StoreError, match="upgrade AIMX"):
        await PostgresStore(url, "n1").open()


async def accept_into_new_inbox(store: PostgresStore) -> None:
    await accept(store)
    assert await uids(store, await key_of(store, BOB)) == [1]


async def test_processes_that_start_together_make_the_schema_once(postgres_server: PostgresServer) -> None:
    url = postgres_server.database()
    assert await asyncio.gather(*(migrate(url) for _ in range(5))) == [migrations()[-1][0]] * 5


def aimx(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aimx.cli", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


async def test_db_init_makes_roles_that_can_do_their_work_and_no_more(fragile: PostgresServer) -> None:
    """As a user who is no superuser, over sign-ins with the passwords that are printed."""
    fragile.run("CREATE ROLE dba LOGIN CREATEROLE")
    url = fragile.database()
    name = url.rpartition("/")[2]
    fragile.run(f'ALTER DATABASE "{name}" OWNER TO dba')
    done = await asyncio.to_thread(aimx, "db", "init", fragile.url(name, "dba"), "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert set(made) == set(roles.LOGINS)
    again = await asyncio.to_thread(aimx, "db", "init", fragile.url(name, "dba"), "--json")
    assert json.loads(again.stdout) == {}
    assert (await asyncio.to_thread(aimx, "db", "migrate", fragile.url(name, "dba"))).returncode == 0

    async with opened(made["aimx_app"]) as app:
        await accept(app)
        seq = PostgresStore(made["aimx_seq"], "n1", guest=True)
        api = PostgresStore(made["aimx_api"], "n1", guest=True)
        await seq.open()
        await api.open()
        ((number, _, _),) = await app.unsequenced(10)
        with pytest.raises((asyncpg.InsufficientPrivilegeError, ReadOnly)):
            await app.mark_sequenced([(number, 0)])
        await seq.mark_sequenced([(number, 0)])
        eid = await accept(app)
        await api.erase(eid, [new_event()])
        with pytest.raises((asyncpg.InsufficientPrivilegeError, ReadOnly)):
            await api.agent(BOB)
        with pytest.raises((asyncpg.InsufficientPrivilegeError, ReadOnly)):
            await accept(api)
        await seq.close()
        await api.close()
    for role, statements in FORBIDDEN.items():
        with psycopg.connect(made[role], autocommit=True) as db:
            for statement in statements:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    db.execute(statement.encode())


FORBIDDEN = {
    "aimx_app": (
        "DELETE FROM aimx.outbox",
        "DELETE FROM aimx.event",
        "UPDATE aimx.event SET leaf = ''",
        "INSERT INTO aimx.sequenced VALUES (1, 1, 1)",
        "INSERT INTO audit.leaf VALUES (1, 0, 'e', '', '')",
        "UPDATE audit.state SET size = 0",
        "DELETE FROM audit.leaf",
        "CREATE TABLE aimx.mine (id int)",
    ),
    "aimx_seq": ("SELECT * FROM aimx.content", "SELECT * FROM aimx.agent", "UPDATE audit.leaf SET entry = ''"),
    "aimx_api": (
        "SELECT stored_key FROM aimx.agent",
        "INSERT INTO aimx.message DEFAULT VALUES",
        "DELETE FROM aimx.outbox",
    ),
}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://x/y", "postgresql://"),
        ("postgresql://postgres@127.0.0.1:1/y", "cannot be reached"),
        ("postgresql://postgres@127.0.0.1:{port}/nowhere", "no such database"),
    ],
)
def test_db_says_in_one_line_what_is_wrong(postgres_server: PostgresServer, url: str, said: str) -> None:
    done = aimx("db", "migrate", url.format(port=postgres_server.port))
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
