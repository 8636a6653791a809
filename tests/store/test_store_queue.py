import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aimx.store.contract import Buffered, Due, MailboxKey, NotFound, Placed, SpanRef, Store
from tests.store.conftest import BOB, limit
from tests.store.factory import new_agent, new_event, new_message, new_target, nothing, span, telling

GONE = "gone@fabric.local"
ALL = ((1, 4294967295),)


async def queued(store: Store, address: str = GONE, **fields: Any) -> int:
    (outcome,) = await store.accept(new_message(), [new_target(address, **fields)], nothing)
    assert isinstance(outcome, Buffered)
    return outcome.delivery


async def take(store: Store, now_ms: int, limit: int = 10, delay_ms: int = 500) -> list[Due]:
    return await store.claim(now_ms, limit, "n1/0", 1_000, lambda attempt: delay_ms * attempt)


async def test_nothing_is_due_before_its_time(store: Store) -> None:
    assert await store.next_due() is None
    await queued(store, next_ms=5_000)
    await queued(store, next_ms=4_000)
    assert await store.next_due() == 4_000
    assert await take(store, 3_999) == []
    assert len(await take(store, 4_000)) == 1


async def test_a_claimed_delivery_says_all_an_attempt_needs(store: Store) -> None:
    message = new_message(workflow="w")
    target = new_target(
        GONE,
        original="team@fabric.local",
        queue="team",
        priority=3,
        next_ms=1_000,
        deadline_ms=9_000,
        flags=frozenset({"\\Flagged"}),
        internal_ms=7,
    )
    accepted = new_event("message.accepted", ref=message.eid, key=b"k" * 32)
    (outcome,) = await store.accept(message, [target], lambda _: [accepted])
    assert isinstance(outcome, Buffered)
    (due,) = await take(store, 1_200)
    assert (due.id, due.eid, due.sender, due.origin) == (outcome.delivery, message.eid, message.sender, message.origin)
    assert (due.attempt, due.created_ms, due.due_ms, due.next_ms) == (2, message.t_ms, 1_000, 1_200 + 2 * 500)
    assert (due.key, due.previous, due.last_ms, due.workflow) == (b"k" * 32, target.attempt, message.t_ms, "w")
    got = due.target
    assert (got.address, got.original, got.queue, got.priority) == (GONE, "team@fabric.local", "team", 3)
    assert (got.span, got.deadline_ms, got.folder) == (target.span, 9_000, "INBOX")
    assert (got.flags, got.internal_ms, got.transport) == (target.flags, 7, "mailbox")
    (pending,) = await store.pending(message.eid)
    assert (pending.attempt, pending.next_ms, pending.reason) == (2, 2_200, "no-mailbox")


async def test_priority_first_then_longest_due(store: Store) -> None:
    ids = [
        await queued(store, priority=priority, next_ms=next_ms)
        for priority, next_ms in ((0, 3), (0, 1), (5, 4), (-3, 0), (5, 2), (9, 99))
    ]
    assert [due.id for due in await take(store, 10, limit=4)] == [ids[n] for n in (4, 2, 1, 0)]
    assert [due.id for due in await take(store, 10, limit=4)] == [ids[3]]


async def test_concurrent_claims_share_out_the_work(store: Store) -> None:
    ids = {await queued(store) for _ in range(20)}
    claims = await asyncio.gather(*(take(store, 10, limit=4) for _ in range(6)))
    taken = [due.id for claim in claims for due in claim]
    assert sorted(taken) == sorted(ids)


async def test_a_lease_that_runs_out_gives_the_delivery_to_another(store: Store) -> None:
    await queued(store)
    (first,) = await take(store, 0, delay_ms=1)
    assert await take(store, 999, delay_ms=1) == []
    (second,) = await take(store, 1_000, delay_ms=1)
    assert second.attempt == first.attempt + 1
    for call in (
        store.settle(first, [new_event()]),
        store.defer(first, span(), 5, "late", [new_event()]),
        store.place(first, span(), 5, telling("x")),
    ):
        with pytest.raises(NotFound):  # whoever lost the lease changes nothing any more
            await call
    assert await store.events_after(0, 10) == []
    await store.settle(second, [])


async def test_deferred_it_comes_back_at_the_time_stored_before_the_attempt(store: Store) -> None:
    await queued(store)
    (due,) = await take(store, 100)
    tried = span()
    await store.defer(due, tried, 150, "webhook said 503", [new_event("message.deferred")])
    assert await store.next_due() == due.next_ms
    (pending,) = await store.pending()
    assert pending.reason == "webhook said 503"
    (again,) = await take(store, due.next_ms)
    assert (again.attempt, again.previous, again.last_ms, again.due_ms) == (3, tried, 150, due.next_ms)


async def test_placed_it_is_in_the_mailbox_and_out_of_the_queue(store: Store) -> None:
    message = new_message()
    await store.accept(message, [new_target(GONE, flags=frozenset({"Work"}))], nothing)
    await store.add_agent(new_agent(GONE), [])
    (due,) = await take(store, 0)
    seen: list[object] = []
    outcome = await store.place(due, span(), 77, lambda o: [seen.append(o) or new_event("delivery.mailbox")])  # type: ignore[func-returns-value]
    assert isinstance(outcome, Placed)
    assert seen == [outcome]
    (row,) = await store.fetch(outcome.mailbox, ALL)
    assert (row.eid, row.flags, row.internal_ms, row.saved_ms) == (message.eid, {"Work"}, message.t_ms, 77)
    assert await store.pending() == []
    with pytest.raises(NotFound):
        await store.place(due, span(), 78, nothing)
    assert len(await store.fetch(outcome.mailbox, ALL)) == 1


async def test_still_busy_it_waits_on(store: Store, inbox: MailboxKey) -> None:
    await limit(store, BOB, max_unacked=1)
    await store.accept(new_message(), [new_target(BOB)], nothing)
    number = await queued(store, BOB)
    (due,) = await take(store, 0)
    tried = span()
    outcome = await store.place(due, tried, 5, telling("message.deferred"))
    assert outcome == Buffered(due.target, number, "unacknowledged")
    await store.mark(inbox, ALL, "add", frozenset({"$AimxDone"}), nothing)
    (due,) = await take(store, due.next_ms)
    assert due.previous == tried
    assert isinstance(await store.place(due, span(), 6, nothing), Placed)


async def test_settled_it_is_over(store: Store) -> None:
    await queued(store)
    (due,) = await take(store, 0)
    await store.settle(due, [new_event("message.bounced")])
    assert await store.pending() == []
    assert await store.next_due() is None
    with pytest.raises(NotFound):
        await store.settle(due, [])


async def test_numbers_of_deliveries_do_not_come_back(store: Store) -> None:
    first = await queued(store)
    (due,) = await take(store, 0)
    await store.settle(due, [])
    assert await queued(store) > first


async def test_a_restart_frees_this_node_s_leases_and_loses_nothing(
    opening: Callable[[], Awaitable[Store]],
) -> None:
    first = await opening()
    await queued(first, next_ms=10)
    (due,) = await take(first, 10, delay_ms=100)
    await first.close()
    second = await opening()
    assert await second.next_due() == due.next_ms < 10 + 1_000
    (again,) = await take(second, due.next_ms)
    assert (again.id, again.attempt) == (due.id, 3)
    await second.close()


async def test_backlog_says_how_much_waits_and_since_when(store: Store) -> None:
    empty = await store.backlog()
    assert (empty.queue_depth, empty.queue_oldest_ms, empty.outbox_depth, empty.outbox_oldest_ms) == (0, None, 0, None)
    first = new_message()
    event = new_event()
    await store.accept(first, [new_target(GONE), new_target("too@fabric.local")], lambda _: [event])
    await queued(store)
    backlog = await store.backlog()
    assert (backlog.queue_depth, backlog.queue_oldest_ms) == (3, first.t_ms)
    assert (backlog.outbox_depth, backlog.outbox_oldest_ms) == (1, event.t_ms)


async def test_who_waits_in_the_queue_was_not_delivered_to(store: Store) -> None:
    message = new_message()
    await store.accept(message, [new_target(GONE)], nothing)
    trace = message.origin.trace_id
    assert (await store.lineage(GONE, None, [], trace, None)).traced is None
    await store.add_agent(new_agent(GONE), [])
    (due,) = await take(store, 0)
    await store.place(due, SpanRef(bytes(16), bytes(8)), 1, nothing)
    traced = (await store.lineage(GONE, None, [], trace, None)).traced
    assert traced is not None
    assert traced.eid == message.eid
