import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from aimx.store.contract import (
    AlreadyExists,
    Buffered,
    EventRow,
    MailboxKey,
    NotFound,
    Outcome,
    OverQuota,
    Placed,
    Store,
    TooManyKeywords,
)
from tests.store.conftest import ALICE, BOB, CAROL, key_of, limit
from tests.store.factory import filed, new_event, new_message, new_target, nothing, telling

ALL = ((1, 4294967295),)


async def test_a_message_lands_whole_in_the_mailbox(store: Store, inbox: MailboxKey) -> None:
    message = new_message(header=b"A: \xff\x00\r\n\r\n", body=bytes(range(256)))
    (outcome,) = await store.accept(message, [new_target(BOB)], nothing)
    assert isinstance(outcome, Placed)
    assert (outcome.mailbox, outcome.uid) == (inbox, 1)
    (row,) = await store.fetch(inbox, ALL, header=True, body=1000)
    assert (row.eid, row.header, row.body) == (message.eid, message.header, message.body)
    assert (row.internal_ms, row.t_ms, row.origin) == (message.t_ms, message.t_ms, message.origin)
    assert (row.header_size, row.body_size) == (len(message.header), 256)


async def test_one_message_many_recipients_each_in_its_own_mailbox(store: Store) -> None:
    message = new_message()
    outcomes = await store.accept(message, [new_target(a) for a in (ALICE, BOB, CAROL)], nothing)
    assert [outcome.target.address for outcome in outcomes] == [ALICE, BOB, CAROL]
    assert [where.owner for where in await store.located(message.eid)] == [ALICE, BOB, CAROL]


async def test_the_witness_sees_the_uid_and_its_events_are_committed(store: Store) -> None:
    message = new_message()

    def witness(outcomes: Sequence[Outcome]) -> list[EventRow]:
        (outcome,) = outcomes
        assert isinstance(outcome, Placed)
        return [new_event("delivery.mailbox", ref=message.eid, detail={"uid": outcome.uid})]

    await store.accept(new_message(), [new_target(BOB)], nothing)
    await store.accept(message, [new_target(BOB)], witness)
    (event,) = await store.events_of(message.eid)
    assert event.row.detail == {"uid": 2}


async def test_a_failing_witness_fails_its_call_alone_and_leaves_nothing(store: Store, inbox: MailboxKey) -> None:
    def broken(_outcomes: object) -> list[EventRow]:
        raise RuntimeError("no")

    poisoned = new_message()
    calls = [store.accept(new_message(), [new_target(BOB)], telling("a")) for _ in range(20)]
    calls.insert(10, store.accept(poisoned, [new_target(BOB)], broken))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results].count(RuntimeError) == 1
    assert isinstance(results[10], RuntimeError)
    assert await store.message(poisoned.eid) is None
    assert list((await store.select(inbox, False)).uids) == list(range(1, 21))
    assert len(await store.events_after(0, 100)) == 20


async def test_a_taken_id_fails_its_call_alone(store: Store, inbox: MailboxKey) -> None:
    first = new_message()
    again = new_message(eid=first.eid)
    results = await asyncio.gather(
        store.accept(first, [new_target(BOB)], nothing),
        *(store.accept(new_message(), [new_target(BOB)], nothing) for _ in range(5)),
        store.accept(again, [new_target(BOB)], nothing),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [list] * 6 + [AlreadyExists]
    assert (await store.status([inbox]))[inbox].messages == 6


async def test_a_value_that_no_database_takes_fails_its_call_alone(store: Store, inbox: MailboxKey) -> None:
    results = await asyncio.gather(
        store.accept(new_message(t_ms=1 << 63), [new_target(BOB)], nothing),
        store.accept(new_message(), [new_target(BOB)], nothing),
        return_exceptions=True,
    )
    assert isinstance(results[0], Exception)
    assert isinstance(results[1], list)
    assert (await store.status([inbox]))[inbox].messages == 1


async def test_uids_and_modseqs_rise_without_a_gap_over_concurrent_callers(store: Store, inbox: MailboxKey) -> None:
    async def one() -> int:
        (outcome,) = await store.accept(new_message(), [new_target(BOB)], nothing)
        assert isinstance(outcome, Placed)
        seen = await store.select(inbox, False)  # visible once it was answered, and all before it too
        assert list(seen.uids) == list(range(1, len(seen.uids) + 1))
        assert outcome.uid <= len(seen.uids)
        return outcome.uid

    uids = await asyncio.gather(*(one() for _ in range(60)))
    assert sorted(uids) == list(range(1, 61))
    rows = await store.fetch(inbox, ALL)
    assert [row.modseq for row in rows] == sorted({row.modseq for row in rows})


async def test_an_unknown_recipient_is_buffered(store: Store) -> None:
    (outcome,) = await store.accept(new_message(), [new_target("nobody@fabric.local")], nothing)
    assert isinstance(outcome, Buffered)
    assert outcome.reason == "no-mailbox"


async def test_an_agent_over_its_limit_of_unacknowledged_is_busy_until_it_acknowledges(
    store: Store, inbox: MailboxKey
) -> None:
    await limit(store, BOB, max_unacked=2)

    async def send() -> Outcome:
        return (await store.accept(new_message(), [new_target(BOB)], nothing))[0]

    assert [type(await send()) for _ in range(3)] == [Placed, Placed, Buffered]
    await store.mark(inbox, ((1, 1),), "add", frozenset({"\\Seen"}), nothing)
    assert isinstance(await send(), Buffered)
    await store.mark(inbox, ((1, 1),), "add", frozenset({"$AimxDone"}), nothing)
    assert isinstance(await send(), Placed)
    await store.mark(inbox, ((2, 2),), "add", frozenset({"\\Deleted"}), nothing)
    assert isinstance(await send(), Placed)
    await store.move(inbox, ((3, 3),), await key_of(store, BOB, "Archive"), nothing)
    assert isinstance(await send(), Placed)
    outcome = await send()
    assert isinstance(outcome, Buffered)
    assert outcome.reason == "unacknowledged"


async def test_the_limit_holds_within_one_group_of_commits(store: Store) -> None:
    await limit(store, BOB, max_unacked=5)
    results = await asyncio.gather(*(store.accept(new_message(), [new_target(BOB)], nothing) for _ in range(30)))
    assert [type(outcome) for (outcome,) in results].count(Placed) == 5


async def test_over_quota_is_busy_and_counts_all_mailboxes(store: Store) -> None:
    message = new_message()
    size = len(message.header) + len(bytes(message.body))  # type: ignore[arg-type]
    await limit(store, BOB, quota=2 * size)
    await store.accept(message, [filed(BOB, "Archive")], nothing)
    results = await asyncio.gather(*(store.accept(new_message(), [new_target(BOB)], nothing) for _ in range(2)))
    outcomes = [outcome for (outcome,) in results]
    assert [type(outcome) for outcome in outcomes] == [Placed, Buffered]
    assert [outcome.reason for outcome in outcomes if isinstance(outcome, Buffered)] == ["quota"]
    assert await store.usage(BOB) == 2 * size


async def test_append_is_refused_where_mail_would_be_buffered(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.accept(new_message(), [filed(BOB, "Nowhere")], telling("x"))
    await limit(store, BOB, max_unacked=0, quota=30)
    await store.accept(new_message(), [filed(BOB)], nothing)  # the limit on unacknowledged is not for APPEND
    with pytest.raises(OverQuota):
        await store.accept(new_message(), [filed(BOB)], telling("x"))
    assert await store.events_after(0, 10) == []
    assert (await store.backlog()).queue_depth == 0


async def test_a_refused_call_gives_back_the_uids_it_had_taken(store: Store, inbox: MailboxKey) -> None:
    results = await asyncio.gather(
        store.accept(new_message(), [new_target(BOB), filed(BOB, "Nowhere")], nothing),
        store.accept(new_message(), [new_target(BOB)], nothing),
        return_exceptions=True,
    )
    assert isinstance(results[0], NotFound)
    status = (await store.status([inbox]))[inbox]
    assert (status.messages, status.uidnext, status.unseen) == (1, 2, 1)


async def test_append_keeps_flags_date_and_folder(store: Store) -> None:
    drafts = await key_of(store, BOB, "Drafts")
    flags = frozenset({"\\Draft", "\\Seen", "Work"})
    await store.accept(new_message(), [filed(BOB, "Drafts", flags=flags, internal_ms=5)], nothing)
    (row,) = await store.fetch(drafts, ALL)
    assert (row.flags, row.internal_ms) == (flags, 5)
    with pytest.raises(TooManyKeywords):
        await store.accept(new_message(), [filed(BOB, flags=frozenset(f"k{n}" for n in range(57)))], nothing)


async def test_a_message_without_targets_is_kept_for_look_up(store: Store) -> None:
    message = new_message()
    assert await store.accept(message, [], telling("message.rejected", ref=message.eid)) == []
    assert await store.message(message.eid) is not None
    assert [event.row.ev for event in await store.events_of(message.eid)] == ["message.rejected"]


async def test_a_bounce_ends_its_delivery_in_the_same_commit(store: Store) -> None:
    (outcome,) = await store.accept(new_message(), [new_target("gone@fabric.local")], nothing)
    assert isinstance(outcome, Buffered)
    bounce = new_message(sender="", agent=None)
    await store.accept(bounce, [new_target(ALICE)], nothing, settles=outcome.delivery)
    assert await store.pending() == []
    with pytest.raises(NotFound):
        await store.accept(new_message(), [new_target(ALICE)], telling("x"), settles=outcome.delivery)
    assert await store.events_after(0, 10) == []


async def test_two_bounces_of_one_delivery_in_one_group_become_one(store: Store) -> None:
    (outcome,) = await store.accept(new_message(), [new_target("gone@fabric.local")], nothing)
    assert isinstance(outcome, Buffered)
    results: list[Any] = await asyncio.gather(
        *(store.accept(new_message(), [new_target(ALICE)], nothing, settles=outcome.delivery) for _ in range(3)),
        return_exceptions=True,
    )
    assert sorted(type(result).__name__ for result in results) == ["NotFound", "NotFound", "list"]


async def test_subscribers_hear_after_the_commit_that_concerns_them(store: Store, inbox: MailboxKey) -> None:
    heard: list[str] = []
    store.subscribe(inbox, lambda: heard.append("inbox"))
    store.subscribe("queue", lambda: heard.append("queue"))
    store.subscribe("events", lambda: heard.append("events"))
    await store.accept(new_message(), [new_target(ALICE)], nothing)
    assert heard == []
    await store.accept(new_message(), [new_target(BOB)], nothing)
    assert heard == ["inbox"]
    await store.accept(new_message(), [new_target("gone@fabric.local")], telling("x"))
    assert sorted(heard[1:]) == ["events", "queue"]


async def test_a_caller_that_goes_away_harms_nobody(store: Store, inbox: MailboxKey) -> None:
    task = asyncio.create_task(store.accept(new_message(), [new_target(BOB)], nothing))
    await asyncio.sleep(0)
    task.cancel()
    await store.accept(new_message(), [new_target(BOB)], nothing)
    assert (await store.status([inbox]))[inbox].messages in (1, 2)


# ── large bodies ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_staged_body_comes_back_in_one_piece_and_in_any_piece(store: Store, inbox: MailboxKey) -> None:
    body = bytes(range(251)) * 4000
    staged = await store.stage(None, body[:300_000])
    staged = await store.stage(staged, body[300_000:300_001])
    staged = await store.stage(staged, body[300_001:])
    assert staged.size == len(body)
    message = new_message(body=staged)
    await store.accept(message, [new_target(BOB)], nothing)
    (row,) = await store.fetch(inbox, ALL, body=len(body))
    assert row.body == body
    (row,) = await store.fetch(inbox, ALL, header=True, body=len(body) - 1)
    assert (row.body, row.body_size) == (None, len(body))
    for start, length in ((0, 10), (262_140, 10), (299_999, 3), (524_280, 300_000), (len(body) - 5, 50), (10**7, 5)):
        assert await store.read_body(message.eid, start, length) == body[start : start + length]


async def test_a_large_body_in_one_piece_is_read_in_pieces_too(store: Store) -> None:
    body = bytes(range(253)) * 3000
    message = new_message(body=body)
    await store.accept(message, [new_target(BOB)], nothing)
    assert await store.read_body(message.eid, 262_000, 1000) == body[262_000:263_000]
    small = new_message(body=b"0123456789")
    await store.accept(small, [], nothing)
    assert await store.read_body(small.eid, 3, 4) == b"3456"
    with pytest.raises(NotFound):
        await store.read_body("01UNKNOWN", 0, 1)


async def test_a_staged_body_is_used_once_and_not_after_it_was_dropped(store: Store) -> None:
    used, dropped = await store.stage(None, b"x"), await store.stage(None, b"y" * 10_000_000)
    await store.unstage(dropped)
    results = await asyncio.gather(
        store.accept(new_message(body=used), [new_target(BOB)], nothing),
        store.accept(new_message(body=used), [new_target(BOB)], nothing),
        store.accept(new_message(body=dropped), [new_target(BOB)], nothing),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [list, NotFound, NotFound]
    with pytest.raises(NotFound):
        await store.stage(used, b"more")
