import asyncio

import pytest

from aimx.store.contract import DONE, AlreadyExists, MailboxKey, NotFound, Store
from tests.store.conftest import ALICE, BOB, key_of
from tests.store.factory import filed, new_message, new_target, nothing, telling

ALL = ((1, 4294967295),)


async def fill(store: Store, count: int, folder: str = "INBOX") -> None:
    await asyncio.gather(*(store.accept(new_message(), [filed(BOB, folder)], nothing) for _ in range(count)))


async def names(store: Store) -> list[str]:
    return [box.name for box in await store.mailboxes(BOB) if box.special_use is None]


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_new_mailbox_brings_its_superiors(store: Store) -> None:
    await store.create_mailbox(BOB, "a/b/c", "\\Junk")
    boxes = {box.name: box for box in await store.mailboxes(BOB)}
    assert boxes["a"].has_children
    assert boxes["a/b"].has_children
    assert not boxes["a/b/c"].has_children
    assert boxes["a/b/c"].special_use == "\\Junk"
    assert boxes["INBOX"].subscribed
    assert not boxes["a"].subscribed
    with pytest.raises(AlreadyExists):
        await store.create_mailbox(BOB, "a/b")


async def test_a_sibling_that_begins_alike_is_no_child(store: Store) -> None:
    await store.create_mailbox(BOB, "a")
    await store.create_mailbox(BOB, "ab")
    await store.create_mailbox(BOB, "a.b")
    box = await store.mailbox(BOB, "a")
    assert box is not None
    assert not box.has_children


async def test_inbox_is_one_in_any_case(store: Store) -> None:
    with pytest.raises(AlreadyExists):
        await store.create_mailbox(BOB, "inBox")
    await store.create_mailbox(BOB, "Inbox/sub")
    assert await store.mailbox(BOB, "INBOX/sub") is not None
    assert await key_of(store, BOB, "inbox") == await key_of(store, BOB)


async def test_nobody_gets_a_mailbox_of_nobody(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.create_mailbox("nobody@fabric.local", "a")
    assert await store.mailbox("nobody@fabric.local", "INBOX") is None


async def test_a_deleted_mailbox_takes_its_entries_and_tells_which(store: Store) -> None:
    await store.create_mailbox(BOB, "old")
    message = new_message()
    await store.accept(message, [filed(BOB, "old")], nothing)
    key = await key_of(store, BOB, "old")
    told: list[str] = []
    heard: list[int] = []
    store.subscribe(key, lambda: heard.append(1))
    await store.delete_mailbox(key, lambda eids: told.extend(eids) or [])  # type: ignore[func-returns-value]
    assert told == [message.eid]
    assert heard == [1]
    assert (await store.changes(key, 0)).gone
    assert await store.located(message.eid) == []
    assert await store.header(message.eid) == message.header
    for call in (store.select(key, True), store.delete_mailbox(key, nothing), store.fetch(key, ALL)):
        with pytest.raises(NotFound):
            await call


async def test_a_name_that_comes_back_has_another_uidvalidity(store: Store) -> None:
    seen = []
    for _ in range(3):
        await store.create_mailbox(BOB, "again")
        box = await store.mailbox(BOB, "again")
        assert box is not None
        seen.append(box.uidvalidity)
        await store.delete_mailbox(box.key, nothing)
    assert seen == sorted(set(seen))


async def test_rename_takes_inferiors_along(store: Store) -> None:
    await store.create_mailbox(BOB, "a/b/c")
    await store.create_mailbox(BOB, "ab")
    await fill(store, 1, "a/b/c")
    await store.rename_mailbox(BOB, "a", "x/y")
    assert await names(store) == ["INBOX", "ab", "x", "x/y", "x/y/b", "x/y/b/c"]
    assert (await store.status([await key_of(store, BOB, "x/y/b/c")])).popitem()[1].messages == 1
    await store.rename_mailbox(BOB, "x/y", "x/y/z")
    assert await names(store) == ["INBOX", "ab", "x", "x/y", "x/y/z", "x/y/z/b", "x/y/z/b/c"]


async def test_rename_refuses_what_is_not_there_and_what_is(store: Store) -> None:
    await store.create_mailbox(BOB, "a/b")
    await store.create_mailbox(BOB, "c")
    with pytest.raises(NotFound):
        await store.rename_mailbox(BOB, "nothing", "d")
    with pytest.raises(AlreadyExists):
        await store.rename_mailbox(BOB, "c", "a")


async def test_renaming_inbox_empties_it_into_a_new_one(store: Store, inbox: MailboxKey) -> None:
    await fill(store, 3)
    await store.mark(inbox, ((2, 2),), "add", frozenset({"\\Seen", "Work"}), nothing)
    before = (await store.select(inbox, False)).modseq
    await store.rename_mailbox(BOB, "INBOX", "kept/mail")
    changes = await store.changes(inbox, before)
    assert (changes.vanished, changes.marked, changes.gone) == ([1, 2, 3], [], False)
    status = await store.status([inbox, kept := await key_of(store, BOB, "kept/mail")])
    assert (status[inbox].messages, status[inbox].uidnext, status[inbox].size) == (0, 4, 0)
    assert (status[kept].messages, status[kept].unseen) == (3, 2)
    assert [sorted(row.flags) for row in await store.fetch(kept, ALL)] == [[], ["Work", "\\Seen"], []]


async def test_subscriptions_outlive_their_mailbox(store: Store) -> None:
    await store.create_mailbox(BOB, "a")
    await store.subscribe_mailbox(BOB, "a", True)
    await store.subscribe_mailbox(BOB, "a", True)
    await store.delete_mailbox(await key_of(store, BOB, "a"), nothing)
    assert "a" in await store.subscriptions(BOB)
    await store.subscribe_mailbox(BOB, "a", False)
    assert "a" not in await store.subscriptions(BOB)


# ── SELECT, STATUS, \Recent ──────────────────────────────────────────────────────────────────────────────────────────


async def test_select_shows_the_mailbox(store: Store, inbox: MailboxKey) -> None:
    await fill(store, 4)
    await store.mark(inbox, ((1, 2),), "add", frozenset({"\\Seen", "Work"}), nothing)
    seen = await store.select(inbox, False)
    assert list(seen.uids) == [1, 2, 3, 4]
    assert (seen.first_unseen, seen.uidnext, seen.keywords) == (3, 5, (DONE, "Work"))
    assert seen.modseq == (await store.status([inbox]))[inbox].modseq


async def test_recent_is_for_one_session(store: Store, inbox: MailboxKey) -> None:
    await fill(store, 2)
    assert (await store.select(inbox, False)).recent_from == 1
    assert (await store.status([inbox]))[inbox].recent == 2
    first, second = await asyncio.gather(store.select(inbox, True), store.select(inbox, True))
    assert sorted((first.recent_from, second.recent_from)) == [1, 3]
    assert (await store.status([inbox]))[inbox].recent == 0
    await fill(store, 1)
    assert (await store.status([inbox]))[inbox].recent == 1
    assert (await store.changes(inbox, second.modseq, claim_recent=True)).recent_from == 3
    assert (await store.changes(inbox, second.modseq, claim_recent=True)).recent_from == 4
    await fill(store, 1)
    assert (await store.status([inbox]))[inbox].recent == 1


async def test_status_follows_every_change(store: Store, inbox: MailboxKey) -> None:
    await fill(store, 6)
    archive = await key_of(store, BOB, "Archive")
    await store.mark(inbox, ((1, 3),), "add", frozenset({"\\Seen"}), nothing)
    await store.mark(inbox, ((3, 5),), "add", frozenset({"\\Deleted"}), nothing)
    size = sum(row.header_size + row.body_size for row in await store.fetch(inbox, ALL))
    status = (await store.status([inbox]))[inbox]
    assert (status.messages, status.unseen, status.deleted, status.size) == (6, 3, 3, size)
    await store.mark(inbox, ((5, 5),), "replace", frozenset(), nothing)
    await store.expunge(inbox, None, nothing)
    await store.copy(inbox, ((1, 2),), archive, nothing)
    await store.move(inbox, ((5, 5),), archive, nothing)
    both = await store.status([inbox, archive])
    assert [(s.messages, s.unseen, s.deleted, s.uidnext) for s in both.values()] == [(3, 1, 0, 7), (3, 1, 0, 4)]
    for key, status in both.items():
        rows = await store.fetch(key, ALL)
        assert status.size == sum(row.header_size + row.body_size for row in rows)
        assert status.modseq >= max(row.modseq for row in rows)


async def test_status_leaves_out_what_is_gone_or_another_s(store: Store, inbox: MailboxKey) -> None:
    assert await store.status([MailboxKey(BOB, 999_999), MailboxKey(ALICE, inbox.id)]) == {}
    with pytest.raises(NotFound):
        await store.select(MailboxKey(ALICE, inbox.id), True)


async def test_two_sessions_see_the_same(store: Store, inbox: MailboxKey) -> None:
    """What one does, another learns by `changes`, wherever it stood before."""
    await fill(store, 5)
    view = {row.uid: row.flags for row in await store.fetch(inbox, ALL)}
    modseq = (await store.select(inbox, False)).modseq
    await store.mark(inbox, ((2, 3),), "add", frozenset({"\\Deleted"}), nothing)
    await store.accept(new_message(), [new_target(BOB)], nothing)
    await store.expunge(inbox, ((2, 2),), telling("x"))
    changes = await store.changes(inbox, modseq)
    for uid in changes.vanished:
        view.pop(uid, None)
    view.update({marked.uid: marked.flags for marked in changes.marked})
    assert view == {row.uid: row.flags for row in await store.fetch(inbox, ALL)}
    assert changes.uidnext == 7
    assert await store.changes(inbox, changes.modseq) == type(changes)(changes.modseq, 7, [], [], changes.recent_from)
