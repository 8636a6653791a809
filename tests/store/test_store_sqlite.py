"""What is SQLite's own: the file, its plans, its migrations, and what happens when it cannot be written."""

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from aimx.store.contract import (
    AlreadyExists,
    Buffered,
    Busy,
    Hold,
    MailboxKey,
    MessageFilter,
    NodeRecord,
    Once,
    Placed,
    Repeated,
    SpanRef,
    Store,
    StoreError,
    Unavailable,
)
from aimx.store.search import HasFlag
from aimx.store.sqlite import SqliteStore, connection, lookup, writer
from tests.lying_disk import lying
from tests.store.conftest import ALICE, BOB, key_of
from tests.store.factory import T0, filed, new_agent, new_event, new_message, new_target, nothing, span, telling

ALL = ((1, 4294967295),)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mail.db"


@pytest.fixture
async def sqlite(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, "n1")
    await store.open()
    await store.add_agent(new_agent(BOB), [])
    yield store
    await store.close()


# ── the file ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_file_is_for_its_owner_only_and_every_commit_is_synced(sqlite: SqliteStore, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def settings(tx: writer.Tx) -> list[Any]:
        names = ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
        return [tx.db.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    assert await sqlite._writer.submit(settings) == ["wal", 2, 1, 1]


async def test_a_fresh_file_has_the_newest_schema(sqlite: SqliteStore, path: Path) -> None:
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (connection.migrations()[-1][0],)
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_migrations_are_numbered_without_a_gap_and_each_is_one_commit(tmp_path: Path) -> None:
    steps = connection.migrations()
    assert [number for number, _ in steps] == list(range(1, len(steps) + 1))
    db = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    broken = [(1, "CREATE TABLE a (b); -- ; a comment\n"), (2, "CREATE TABLE c (d);\nCREATE TABLE a (b);\n")]
    with pytest.raises(sqlite3.OperationalError):
        connection.migrate(db, broken)
    assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("a",)]
    connection.migrate(db, [broken[0], (2, "CREATE TABLE c (d);\n")])
    assert db.execute("PRAGMA user_version").fetchone() == (2,)
    db.close()


async def test_a_file_of_the_first_version_keeps_what_it_has(path: Path) -> None:
    """The queue's table is made anew: every row, the leases' end and the numbering have to come over."""
    with sqlite3.connect(path, isolation_level=None) as db:
        connection.migrate(db, connection.migrations()[:1])
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(
            "INSERT INTO message VALUES (7, 'E7', 1, 'a@x', 'a@x', '[]', '[]', '<7>', NULL, 's', 'text/plain', 'w', 0,"
            " x'01', x'02', 1, '', '', 'new', x'01', x'02', 0, 'w', 1, 1)"
        )
        delivery = (
            "INSERT INTO delivery VALUES (?, 7, 'gone@x', 'list@x', x'0a', x'0b', 'q', 'mailbox', 3, 'INBOX',"
            " '[\"W\"]', 5, 2, 10, 20, 30, 40, 'quota', x'0c', x'0d', ?, ?)"
        )
        db.executemany(delivery, [(1, None, 30), (2, "n1", 5_000), (9, None, 30)])
        db.execute("DELETE FROM delivery WHERE id = 9")
    db.close()
    store = SqliteStore(path, "n1")
    await store.open()
    assert [pending.id for pending in await store.pending("E7")] == [1, 2]
    first, second = await store.claim(30, 9, "n1/0", 1_000, lambda _: 1)
    assert (first.id, first.attempt, first.created_ms, first.last_ms, first.due_ms) == (1, 3, 10, 20, 30)
    assert (second.id, second.previous) == (2, SpanRef(b"\x0c", b"\x0d"))
    got = first.target
    assert (got.original, got.queue, got.priority, got.flags, got.internal_ms) == ("list@x", "q", 3, {"W"}, 5)
    assert (got.destination, got.options, got.deadline_ms) == ("", {}, 40)
    assert await store.message("E7") is not None
    (outcome,) = await store.accept(new_message(), [new_target("gone@x")], nothing)
    assert isinstance(outcome, Buffered)
    assert outcome.delivery == 10
    await store.close()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    db.close()


async def test_a_file_of_a_newer_aimx_is_refused_in_one_line(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="upgrade AIMX"):
        await SqliteStore(path, "n1").open()


# ── no call's cost grows with what else is stored ────────────────────────────────────────────────────────────────────


async def test_hot_statements_walk_no_whole_table(
    sqlite: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every statement of these calls, as SQLite plans it: no SCAN but of the parameter itself or of a small result."""
    statements: set[str] = set()
    real = connection.connect

    def traced(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        db = real(*args, **kwargs)
        db.set_trace_callback(statements.add)
        return db

    monkeypatch.setattr(writer, "connect", traced)
    monkeypatch.setattr("aimx.store.sqlite.reader.connect", traced)
    store = SqliteStore(path, "n1")
    await store.open()
    await use_everything(store)
    await store.close()
    with sqlite3.connect(path) as db:
        scans = {}
        for statement in statements:
            if statement.split(" ", 1)[0].upper() not in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH"):
                continue
            plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}")]
            if bad := [line for line in plan if is_whole_table(line)]:
                scans[statement] = bad
    assert scans == {}
    assert len(statements) > 60


async def test_looking_up_a_trace_does_not_walk_all_that_the_agent_ever_had(path: Path) -> None:
    connection.create(path)
    with sqlite3.connect(path) as db:
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {lookup._TRACED_AND_PAST}", ("a", b"", "k", 0, 1))]
    assert "SEARCH party USING INDEX party_trace (address=? AND trace=?)" in plan


def is_whole_table(line: str) -> bool:
    # A recursive CTE's own rows; a trace's messages; bodies nobody has used yet; one row for each table that counts its
    # ids, each worker.
    recursive = ("SCAN p", "SCAN w", "SCAN walk", "SCAN lane")
    small = (*recursive, "SCAN t", "SCAN body USING INDEX body_unused", "SCAN sqlite_sequence", "SCAN node")
    bounded = line.startswith("SCAN (subquery")  # each has a LIMIT
    return (
        line.startswith("SCAN")
        and not bounded
        and line not in small
        and "VIRTUAL TABLE" not in line
        and "CONSTANT ROW" not in line
    )


async def use_everything(store: Store) -> None:
    inbox, archive = await key_of(store, BOB), await key_of(store, BOB, "Archive")
    await store.update_agent(new_agent(BOB, max_unacked=1000, quota=10**9), [])
    message = new_message(workflow="w")
    many = [(m, telling("e", ref=m.eid, messages=(m.eid,))) for m in [message, *(new_message() for _ in range(20))]]
    await asyncio.gather(*(store.accept(m, [new_target(BOB), new_target("gone@x")], tell) for m, tell in many))
    await store.accept(new_message(body=await store.stage(None, b"x" * 300_000)), [filed(BOB)], nothing)
    await store.lineage(BOB, message.message_id, [message.message_id], message.origin.trace_id, None)
    await store.select(inbox, True)
    await store.changes(inbox, 3, True)
    await store.fetch(inbox, ALL, header=True, body=1 << 20)
    await store.read_body(message.eid, 0, 10)
    await store.search(inbox, HasFlag("\\Seen"))
    await store.status([inbox, archive])
    await store.mark(inbox, ALL, "add", frozenset({"\\Seen", "Work"}), nothing)
    await store.mark(inbox, ((1, 2),), "replace", frozenset({"\\Deleted"}), nothing)
    await store.copy(inbox, ((1, 2),), archive, nothing)
    await store.move(inbox, ((3, 4),), archive, nothing)
    await store.expunge(archive, ALL, nothing)
    await store.expunge(inbox, None, nothing)
    await store.usage(BOB)
    await store.next_due()
    due, other, *_ = await store.claim(1, 5, "n1/0", 1000, lambda _: 1)
    await store.place(due, span(), 1, nothing)
    await store.defer(due, span(), 1, "x", [])
    await store.settle(other, [])
    await store.pending(message.eid)
    await use_what_leaves(store)
    await store.mark_sequenced([(seq, seq) for seq, _, _ in await store.unsequenced(9)])
    await store.unsequenced(5)
    await store.events_after(3, 5)
    await store.events_of(message.eid)
    await store.events_of_trace(message.origin.trace_id)
    await store.traces_of(message.eid)
    trace = message.origin.trace_id
    for what in (
        MessageFilter(trace_id=trace),
        MessageFilter(workflow="w", viewer=BOB),
        MessageFilter(agent=BOB),
        MessageFilter(message_id=message.message_id),
        MessageFilter(viewer=BOB, agent=ALICE),
    ):
        await store.find(what, 5)
        await store.find(what, 5, message.eid)
    await store.message(message.eid)
    await store.header(message.eid)
    await store.located(message.eid)
    await store.mailbox(BOB, "INBOX")
    await store.mailboxes(BOB)
    await store.agent(BOB)
    await store.token_owner(b"x")


async def use_what_leaves(store: Store) -> None:
    """Idempotency keys, other transports, closed destinations, erasure and holds, nodes."""
    far = 2 * T0
    message = new_message(body=b"x" * 300_000)
    await store.accept(message, [new_target(BOB)], nothing, once=Once(ALICE, "k", b"d", far))
    away = [new_target("eve@x", transport="relay", destination=f"d{n}") for n in range(1100)]
    await store.accept(new_message(), away, nothing)
    closed = {target.destination for target in away[:-1]}
    await store.next_due(closed)
    (due,) = await store.claim(far, 1, "n1/0", 1000, lambda _: 1, closed)
    await store.claim(far, 30, "n1/0", 1000, lambda _: 1, closed)
    await store.renew(due, far)
    (first, second, *_) = await store.pending(destination=due.target.destination, after=1) * 2
    await store.hasten([first.id], far, nothing)
    await store.suspend([first.id], True, nothing)
    await store.drop([second.id], nothing)
    await store.hold(Hold("agent", "x@y", "", "admin", T0), [])
    await store.erase(message.eid, [])
    await store.release("agent", "x@y", [])
    await store.repeated(Once(ALICE, "k", b"d", far), T0)
    await store.sweep(far)
    await store.beat(NodeRecord("n1", 0, "host", 1, T0, T0, "0"))
    await store.drain("n1", True)
    await store.part("n1", 0)


# ── when it cannot be written ────────────────────────────────────────────────────────────────────────────────────────


async def pages(store: SqliteStore, limit: Callable[[int], int]) -> None:
    def set_limit(tx: writer.Tx) -> None:
        (used,) = tx.db.execute("PRAGMA page_count").fetchone()
        tx.db.execute(f"PRAGMA max_page_count = {limit(used)}")

    await store._writer.submit(set_limit)


async def test_a_full_disk_refuses_leaves_nothing_half_done_and_recovers(sqlite: SqliteStore) -> None:
    inbox = await key_of(sqlite, BOB)
    await pages(sqlite, lambda used: used + 100)

    async def send() -> bool:
        try:
            await sqlite.accept(new_message(body=b"x" * 20_000), [new_target(BOB)], telling("message.accepted"))
        except Unavailable:
            return False
        return True

    accepted = sum(await asyncio.gather(*(send() for _ in range(100))))
    assert 0 < accepted < 100
    assert (await sqlite.status([inbox]))[inbox].messages == accepted
    assert len(await sqlite.fetch(inbox, ALL)) == accepted
    assert len(await sqlite.events_after(0, 1000)) == accepted
    await pages(sqlite, lambda used: used + 100_000)
    assert await send()
    assert list((await sqlite.select(inbox, False)).uids) == list(range(1, accepted + 2))


async def test_a_commit_that_only_seemed_to_fail_is_known_again_by_its_key(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group is tried again one by one: who has a key hears that it is in already, others that an id is taken."""
    lies = lying(monkeypatch)
    store = SqliteStore(path, "n1")
    await store.open()
    await store.add_agent(new_agent(BOB), [])
    keyed, plain = new_message(), new_message()
    lies.left = 1
    results = await asyncio.gather(
        store.accept(keyed, [new_target(BOB)], nothing, once=Once(ALICE, "k", b"d", 2 * T0)),
        store.accept(plain, [new_target(BOB)], nothing),
        return_exceptions=True,
    )
    assert lies.left == 0
    assert [type(result) for result in results] == [Repeated, AlreadyExists]
    assert isinstance(results[0], Repeated)
    assert results[0].eid == keyed.eid
    assert len(await store.fetch(await key_of(store, BOB), ALL)) == 2
    await store.close()


async def test_another_process_that_holds_the_lock_makes_it_unavailable_for_a_while(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection.connect, "__kwdefaults__", {"busy_s": 0.05})
    store = SqliteStore(path, "n1")
    await store.open()
    await store.add_agent(new_agent(BOB), [])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    calls = [store.accept(new_message(), [new_target(BOB)], nothing) for _ in range(5)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [Busy] * 5
    assert await store.agent(BOB) is not None  # readers wait for no writer
    other.execute("ROLLBACK")
    other.close()
    (outcome,) = await store.accept(new_message(), [new_target(BOB)], nothing)
    assert isinstance(outcome, Placed)
    assert outcome.uid == 1
    await store.close()


async def test_a_closed_store_says_so(path: Path) -> None:
    store = SqliteStore(path, "n1")
    await store.open()
    await store.close()
    await store.close()
    with pytest.raises(Unavailable):
        await store.record([new_event()])


async def test_closing_finishes_the_commits_in_hand(path: Path) -> None:
    store = SqliteStore(path, "n1")
    await store.open()
    calls = [asyncio.ensure_future(store.record([new_event()])) for _ in range(300)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*calls)
    again = SqliteStore(path, "n1")
    await again.open()
    assert len(await again.events_after(0, 1000)) == 300
    await again.close()


# ── other processes, other lives ─────────────────────────────────────────────────────────────────────────────────────


async def test_what_another_process_commits_is_seen_and_subscribers_are_told(sqlite: SqliteStore, path: Path) -> None:
    told = asyncio.Event()
    sqlite.subscribe("agents", told.set)
    guest = SqliteStore(path, "n1", guest=True)
    await guest.open()
    await guest.add_agent(new_agent(ALICE), [new_event()])
    await guest.close()
    assert await sqlite.agent(ALICE) is not None
    await asyncio.wait_for(told.wait(), 5)
    (outcome,) = await sqlite.accept(new_message(), [new_target(ALICE)], telling("x"))
    assert isinstance(outcome, Placed)
    assert [event.seq for event in await sqlite.events_after(0, 9)] == [1, 2]


async def test_a_guest_leaves_the_node_s_work_alone_and_a_restart_clears_it(sqlite: SqliteStore, path: Path) -> None:
    await sqlite.accept(new_message(), [new_target("gone@x")], nothing)
    (due,) = await sqlite.claim(0, 1, "n1/0", 1_000, lambda _: 1)
    staged = await sqlite.stage(None, b"x" * 6_000_000)
    guest = SqliteStore(path, "n1", guest=True)
    await guest.open()
    await guest.close()
    assert await sqlite.next_due() == 1_000
    staged = await sqlite.stage(staged, b"y")
    await sqlite.close()
    await sqlite.open()
    assert await sqlite.next_due() == due.next_ms
    with pytest.raises(StoreError):
        await sqlite.accept(new_message(body=staged), [filed(BOB)], nothing)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM part").fetchone() == (0,)


async def test_recent_claims_are_written_with_the_next_commit(sqlite: SqliteStore, path: Path) -> None:
    inbox: MailboxKey = await key_of(sqlite, BOB)
    await sqlite.accept(new_message(), [new_target(BOB)], nothing)
    await sqlite.select(inbox, True)
    await sqlite.accept(new_message(), [new_target(BOB)], nothing)
    await sqlite.close()
    await sqlite.open()
    assert (await sqlite.select(inbox, False)).recent_from == 2
    assert (await sqlite.status([inbox]))[inbox].recent == 1


KILLED = """
import asyncio, sys
from pathlib import Path
from aimx.store.sqlite import SqliteStore
from tests.store.factory import new_agent, new_message, new_target, telling

async def main():
    store = SqliteStore(Path(sys.argv[1]), "n1")
    await store.open()
    await store.add_agent(new_agent(), [])
    async def client():
        while True:
            message = new_message()
            await store.accept(message, [new_target()], telling("message.accepted", ref=message.eid))
            sys.stdout.write(message.eid + "\\n")
            sys.stdout.flush()
    await asyncio.gather(*(client() for _ in range(16)))

asyncio.run(main())
"""


async def test_what_was_answered_outlives_a_kill(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    answered = [process.stdout.readline().strip() for _ in range(300)]
    os.kill(process.pid, signal.SIGKILL)
    answered += [line.strip() for line in process.stdout if len(line) == 27]
    process.wait(10)
    process.stdout.close()
    store = SqliteStore(path, "n1")
    await store.open()
    inbox = await key_of(store, BOB)
    rows = await store.fetch(inbox, ALL)
    eids = [row.eid for row in rows]
    assert set(answered) <= set(eids)
    assert len(eids) == len(set(eids)) == (await store.status([inbox]))[inbox].messages
    assert [row.uid for row in rows] == list(range(1, len(rows) + 1))
    assert [event.row.ref for event in await store.events_after(0, 100_000)] == eids
    await store.close()
