"""`aimx verify-data`: rows that contradict each other are found, told, and mended where no mail is lost by it."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable

import psycopg
import pytest

from aimx.store.contract import DONE, EventRow, Fault, MailboxKey, Store
from aimx.store.postgres import PostgresStore
from tests.store.conftest import ALICE, BOB, CAROL, key_of
from tests.store.factory import filed, new_event, new_message, new_target, nothing

Break = Callable[[str], Awaitable[None]]
ALL = ((1, 4294967295),)


@pytest.fixture
def spoil(store: Store, request: pytest.FixtureRequest) -> Break:
    """One statement past the store, as a failing disk or a hand at the database might do."""

    def work(sql: str) -> None:
        if isinstance(store, PostgresStore):
            with psycopg.connect(request.getfixturevalue("database"), options="-c search_path=aimx") as db:
                db.execute(sql.encode())
        else:
            db = sqlite3.connect(request.getfixturevalue("tmp_path") / "mail.db", isolation_level=None)
            db.execute(sql)
            db.close()

    return lambda sql: asyncio.to_thread(work, sql)


@pytest.fixture
async def eids(store: Store, inbox: MailboxKey) -> list[str]:
    """A store in use: read, marked, copied, expunged, a large body, an entry that waits, an erased message."""
    found = []
    for body in (b"one\r\n", b"two\r\n", b"x" * 700_000, b"four\r\n", b"five\r\n"):
        message = new_message(body=body)
        await store.accept(message, [new_target(BOB), new_target(CAROL), new_target("gone@fabric.local")], nothing)
        found.append(message.eid)
    await store.accept(new_message(), [filed(ALICE, "Sent", flags=frozenset({"\\Seen"}))], nothing)
    await store.mark(inbox, ((1, 2),), "add", frozenset({"\\Seen", DONE, "work"}), nothing)
    await store.mark(inbox, ((2, 2),), "add", frozenset({"\\Deleted"}), nothing)
    await store.copy(inbox, ((1, 3),), await key_of(store, BOB, "Archive"), nothing)
    await store.expunge(inbox, None, nothing)
    await store.select(inbox, True)
    await store.erase(found[3], [new_event("message.erased", ref=found[3])])
    await store.record([new_event()])
    return found


def names(faults: list[Fault]) -> list[str]:
    return [fault.rule for fault in faults]


async def mended(store: Store) -> tuple[list[str], list[str]]:
    """Which rules were mended, and of which the events tell."""
    told: list[str] = []

    def witness(fault: Fault) -> list[EventRow]:
        told.append(fault.rule)
        return [new_event("data.mended")]

    return names(await store.mend(witness)), told


async def test_a_store_in_use_has_no_faults(
    store: Store, eids: list[str], opening: Callable[[], Awaitable[Store]]
) -> None:
    assert await store.faults() == []
    assert await mended(store) == ([], [])
    await store.close()
    again = await opening()
    assert await again.faults() == []
    await again.close()


async def test_wrong_counts_are_counted_anew(store: Store, inbox: MailboxKey, eids: list[str], spoil: Break) -> None:
    (before,) = (await store.status([inbox])).values()
    await spoil("UPDATE mailbox SET messages = messages + 3, unacked = 0, octets = 9 WHERE messages > 1")
    (fault, *others) = await store.faults()
    assert (fault.rule, fault.mendable, others) == ("mailbox-counts", True, [])
    assert f"{BOB} INBOX" in fault.where
    assert await mended(store) == (["mailbox-counts"], ["mailbox-counts"])
    (after,) = (await store.status([inbox])).values()
    assert (after.messages, after.unseen) == (before.messages, before.unseen)
    assert await store.faults() == []
    assert [event.row.ev for event in await store.events_after(0, 100)][-1] == "data.mended"


async def test_a_uid_is_never_given_twice(store: Store, inbox: MailboxKey, eids: list[str], spoil: Break) -> None:
    before = [row.uid for row in await store.fetch(inbox, ALL)]
    await spoil("UPDATE mailbox SET uidnext = 1, modseq = 1")
    assert names(await store.faults()) == ["mailbox-numbers"]
    assert (await mended(store))[0] == ["mailbox-numbers"]
    await store.accept(new_message(), [new_target(BOB)], nothing)
    after = [row.uid for row in await store.fetch(inbox, ALL)]
    assert after[:-1] == before
    assert after[-1] > max(before)


async def test_an_entry_of_no_message_vanishes_for_every_client(
    store: Store, inbox: MailboxKey, eids: list[str], spoil: Break
) -> None:
    snapshot = await store.select(inbox, False)
    last = max(row.uid for row in await store.fetch(inbox, ALL))
    await spoil(
        f"UPDATE entry SET message = 999999 WHERE owner = (SELECT id FROM agent WHERE address = '{BOB}')"
        f" AND mailbox = {inbox.id} AND uid = {last}"
    )
    assert "entry-without-message" in names(await store.faults())
    assert "entry-without-message" in (await mended(store))[0]
    assert await store.faults() == []
    assert list((await store.changes(inbox, snapshot.modseq)).vanished) == [last]
    assert last not in [row.uid for row in await store.fetch(inbox, ALL)]


@pytest.mark.parametrize(
    ("sql", "rule"),
    [
        (
            "UPDATE content SET data = substr(data, 2) WHERE message = (SELECT id FROM message WHERE eid = '{0}')",
            "content-size",
        ),
        ("DELETE FROM content WHERE message = (SELECT id FROM message WHERE eid = '{0}')", "message-without-content"),
        ("DELETE FROM part WHERE start > 0", "body-parts"),
    ],
)
async def test_lost_octets_are_told_and_never_mended(
    store: Store, eids: list[str], spoil: Break, sql: str, rule: str
) -> None:
    await spoil(sql.format(eids[0]))
    (fault, *others) = await store.faults()
    assert (fault.rule, fault.mendable, others) == (rule, False, [])
    assert fault.where == ((eids[2],) if rule == "body-parts" else (eids[0],))
    assert await mended(store) == ([], [])
    assert names(await store.faults()) == [rule]


@pytest.mark.parametrize(
    ("sql", "rule"),
    [
        ("UPDATE entry SET size = size + 1", "entry-size"),
        ("INSERT INTO vanished VALUES (77, 77, 5, 5)", "vanished-without-mailbox"),
        ("UPDATE delivery SET message = 999999", "delivery-without-message"),
        ("UPDATE party SET message = message + 999999", "party-without-message"),
        ("UPDATE chain SET message = message + 999999", "chain-without-message"),
        ("INSERT INTO event_message VALUES ('01', 999999, 0)", "link-without-event"),
    ],
)
async def test_rows_that_lead_nowhere_go(store: Store, eids: list[str], spoil: Break, sql: str, rule: str) -> None:
    await spoil(sql)
    assert rule in names(await store.faults())
    assert rule in (await mended(store))[0]
    assert await store.faults() == []


async def test_an_event_that_the_log_forgot_waits_for_it_again(store: Store, eids: list[str], spoil: Break) -> None:
    if not isinstance(store, PostgresStore):
        pytest.skip("on SQLite what is not in the log waits, by its number alone")
    waiting = [seq for seq, _, _ in await store.unsequenced(10)]
    await spoil("DELETE FROM outbox")
    assert names(await store.faults()) == ["event-forgotten"]
    await mended(store)
    assert [seq for seq, _, _ in await store.unsequenced(10)][: len(waiting)] == waiting
