import asyncio

import pytest

from aimx.store.contract import (
    DONE,
    Copied,
    EventRow,
    Flagged,
    MailboxKey,
    NotFound,
    OverQuota,
    Store,
    TooManyKeywords,
)
from tests.store.conftest import ALICE, BOB, key_of, limit
from tests.store.factory import filed, new_event, new_message, nothing, telling

ALL = ((1, 4294967295),)
SEEN, DELETED = frozenset({"\\Seen"}), frozenset({"\\Deleted"})


@pytest.fixture
async def ten(store: Store, inbox: MailboxKey) -> list[str]:
    """Ten messages in Bob's INBOX; their eids in order of UID."""
    messages = [new_message(header=b"N: %d\r\n\r\n" % n, body=b"%d" % n * n) for n in range(1, 11)]
    for message in messages:
        await store.accept(message, [filed(BOB)], nothing)
    return [message.eid for message in messages]


# ── FETCH ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_fetch_gives_what_is_in_the_ranges_by_uid(store: Store, inbox: MailboxKey, ten: list[str]) -> None:
    rows = await store.fetch(inbox, ((2, 3), (7, 7), (9, 4294967295)))
    assert [(row.uid, row.eid) for row in rows] == [(uid, ten[uid - 1]) for uid in (2, 3, 7, 9, 10)]
    assert all(row.header is None and row.body is None for row in rows)
    assert await store.fetch(inbox, ()) == []


async def test_fetch_gives_each_message_its_own_octets(store: Store, inbox: MailboxKey, ten: list[str]) -> None:
    await store.accept(new_message(header=b"\r\n", body=b""), [filed(BOB)], nothing)
    rows = await store.fetch(inbox, ALL, header=True, body=7)
    assert [row.header for row in rows] == [*(b"N: %d\r\n\r\n" % n for n in range(1, 11)), b"\r\n"]
    assert [row.body for row in rows] == [*(b"%d" % n * n for n in range(1, 8)), None, None, None, b""]


async def test_ten_thousand_flags_are_one_question(store: Store, inbox: MailboxKey) -> None:
    calls = [store.accept(new_message(), [filed(BOB)] * 250, nothing) for _ in range(8)]
    await asyncio.gather(*calls)
    assert [row.uid for row in await store.fetch(inbox, ALL)] == list(range(1, 2001))
    flagged = await store.mark(inbox, ALL, "add", SEEN, nothing)
    assert len(flagged.changed) == 2000
    assert (await store.status([inbox]))[inbox].unseen == 0


# ── STORE ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_mark_tells_what_changed_and_what_was_so_already(store: Store, inbox: MailboxKey, ten: list[str]) -> None:
    await store.mark(inbox, ((2, 2), (4, 4)), "add", SEEN, nothing)
    before = (await store.status([inbox]))[inbox].modseq
    told: list[Flagged] = []

    def witness(flagged: Flagged) -> list[EventRow]:
        told.append(flagged)
        return [new_event("mailbox.accessed", messages=tuple(flagged.eids))]

    flagged = await store.mark(inbox, ((1, 5),), "add", SEEN, witness)
    assert told == [flagged]
    assert [marked.uid for marked in flagged.marked] == [1, 2, 3, 4, 5]
    assert {marked.flags for marked in flagged.marked} == {SEEN}
    assert flagged.changed == [1, 3, 5]
    assert flagged.eids == [ten[0], ten[2], ten[4]]
    assert len(flagged.origins) == 3
    assert [marked.modseq > before for marked in flagged.marked] == [True, False, True, False, True]
    rows = await store.fetch(inbox, ((1, 5),))
    assert [(row.uid, row.flags, row.modseq) for row in rows] == flagged.marked
    assert [event.row.ev for event in await store.events_of(ten[2])] == ["mailbox.accessed"]
    assert await store.events_of(ten[1]) == []


async def test_flags_are_added_removed_and_replaced(store: Store, inbox: MailboxKey, ten: list[str]) -> None:
    async def flags() -> frozenset[str]:
        return (await store.fetch(inbox, ((1, 1),)))[0].flags

    await store.mark(inbox, ((1, 1),), "add", frozenset({"\\Seen", "Work", DONE}), nothing)
    await store.mark(inbox, ((1, 1),), "add", frozenset({"\\Flagged"}), nothing)
    assert await flags() == {"\\Seen", "Work", DONE, "\\Flagged"}
    await store.mark(inbox, ((1, 1),), "remove", frozenset({"\\Seen", "Work", "never"}), nothing)
    assert await flags() == {DONE, "\\Flagged"}
    await store.mark(inbox, ((1, 1),), "replace", frozenset({"\\Draft"}), nothing)
    assert await flags() == {"\\Draft"}
    assert [row.flags for row in await store.fetch(inbox, ((2, 10),))] == [frozenset()] * 9


async def test_flags_have_no_case_and_removing_makes_no_keyword(
    store: Store, inbox: MailboxKey, ten: list[str]
) -> None:
    await store.mark(inbox, ((1, 1),), "add", frozenset({"\\SEEN", "work", "$aimxdone"}), nothing)
    again = await store.mark(inbox, ((1, 1),), "add", frozenset({"\\seen", "WORK"}), nothing)
    assert again.changed == []
    assert again.marked[0].flags == {"\\Seen", "work", DONE}
    await store.mark(inbox, ((1, 1),), "remove", frozenset({"other"}), nothing)
    assert (await store.select(inbox, False)).keywords == (DONE, "work")


async def test_keywords_end_at_what_a_mailbox_can_hold_and_are_each_owner_s_own(
    store: Store, inbox: MailboxKey, ten: list[str]
) -> None:
    many = frozenset(f"k{n}" for n in range(57))
    flagged = await store.mark(inbox, ((1, 1),), "add", many, nothing)
    assert flagged.marked[0].flags == many
    before = await store.fetch(inbox, ((1, 1),))
    with pytest.raises(TooManyKeywords):
        await store.mark(inbox, ((1, 1),), "add", frozenset({"one-more"}), telling("x"))
    assert await store.fetch(inbox, ((1, 1),)) == before
    await store.accept(new_message(), [filed(ALICE, flags=frozenset({"hers"}))], nothing)
    assert (await store.select(await key_of(store, ALICE), False)).keywords == (DONE, "hers")


# ── EXPUNGE ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_expunge_takes_the_deleted_ones_only(store: Store, inbox: MailboxKey, ten: list[str]) -> None:
    await store.mark(inbox, ((2, 5),), "add", DELETED, nothing)
    some = await store.expunge(inbox, ((1, 3), (9, 9)), nothing)
    assert (some.uids, some.eids) == ([2, 3], ten[1:3])
    rest = await store.expunge(inbox, None, telling("mailbox.expunged"))
    assert rest.uids == [4, 5]
    assert list((await store.select(inbox, False)).uids) == [1, 6, 7, 8, 9, 10]
    changes = await store.changes(inbox, some.modseq - 1)
    assert (changes.vanished, changes.modseq) == ([2, 3, 4, 5], rest.modseq)
    assert (await store.changes(inbox, some.modseq)).vanished == [4, 5]
    none = await store.expunge(inbox, None, nothing)
    assert (none.uids, none.modseq) == ([], rest.modseq)


async def test_an_expunged_message_can_still_be_looked_up_and_its_uid_does_not_come_back(
    store: Store, inbox: MailboxKey, ten: list[str]
) -> None:
    await store.mark(inbox, ((10, 10),), "add", DELETED, nothing)
    await store.expunge(inbox, None, nothing)
    record = await store.message(ten[9])
    assert record is not None
    assert await store.read_body(ten[9], 0, 100) == b"10" * 10
    await store.accept(new_message(), [filed(BOB)], nothing)
    assert list((await store.select(inbox, False)).uids)[-1] == 11


# ── COPY, MOVE ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_copy_keeps_flags_and_dates_and_makes_new_uids(store: Store, inbox: MailboxKey, ten: list[str]) -> None:
    archive = await key_of(store, BOB, "Archive")
    await store.accept(new_message(), [filed(BOB, "Archive")], nothing)
    await store.mark(inbox, ((3, 3),), "add", frozenset({"\\Seen", "Work"}), nothing)
    told: list[Copied] = []
    copied = await store.copy(inbox, ((3, 4), (99, 99)), archive, lambda c: told.append(c) or ())  # type: ignore[func-returns-value]
    assert told == [copied]
    assert copied.pairs == [(3, 2), (4, 3)]
    assert copied.eids == ten[2:4]
    rows = await store.fetch(archive, ALL)
    sources = await store.fetch(inbox, ((3, 4),))
    assert [(row.uid, row.eid, row.flags, row.internal_ms) for row in rows[1:]] == [
        (new, row.eid, row.flags, row.internal_ms) for row, (_, new) in zip(sources, copied.pairs, strict=True)
    ]
    assert (await store.select(archive, False)).mailbox.uidvalidity == copied.uidvalidity
    assert [marked.uid for marked in (await store.changes(archive, 2)).marked] == [2, 3]


async def test_move_is_there_and_no_longer_here(store: Store, inbox: MailboxKey, ten: list[str]) -> None:
    archive = await key_of(store, BOB, "Archive")
    modseq = (await store.status([inbox]))[inbox].modseq
    heard: list[MailboxKey] = []
    for key in (inbox, archive):
        store.subscribe(key, lambda key=key: heard.append(key))  # type: ignore[misc]
    moved = await store.move(inbox, ((9, 10),), archive, telling("mailbox.moved"))
    assert moved.pairs == [(9, 1), (10, 2)]
    assert (await store.changes(inbox, modseq)).vanished == [9, 10]
    assert [where.folder for where in await store.located(ten[9])] == ["Archive"]
    assert sorted(heard) == sorted([inbox, archive])


async def test_move_within_one_mailbox_makes_new_uids(store: Store, inbox: MailboxKey, ten: list[str]) -> None:
    moved = await store.move(inbox, ((1, 2),), inbox, nothing)
    assert moved.pairs == [(1, 11), (2, 12)]
    assert list((await store.select(inbox, False)).uids) == list(range(3, 13))
    assert (await store.status([inbox]))[inbox].messages == 10


async def test_copy_is_all_or_nothing(store: Store, inbox: MailboxKey, ten: list[str]) -> None:
    archive = await key_of(store, BOB, "Archive")
    await limit(store, BOB, quota=await store.usage(BOB) + 30)
    with pytest.raises(OverQuota):
        await store.copy(inbox, ALL, archive, telling("x"))
    assert await store.fetch(archive, ALL) == []
    assert (await store.move(inbox, ALL, archive, nothing)).eids == ten  # a move needs no room
    with pytest.raises(NotFound):
        await store.copy(archive, ALL, MailboxKey(BOB, 999_999), telling("x"))
    with pytest.raises(NotFound):
        await store.copy(archive, ALL, await key_of(store, ALICE), telling("x"))
    assert await store.events_after(0, 10) == []
