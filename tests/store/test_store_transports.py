"""The queue beyond mailboxes: destinations, closed ones, long leases, and hands that steer it."""

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

import pytest

from aimx.store.contract import Due, EventRow, MessageFilter, NotFound, Pending, Placed, Queued, Store
from tests.store.conftest import BOB
from tests.store.factory import T0, new_event, new_message, new_target, nothing, span

OUT = "eve@example.org"
NOW = T0 + 10**8
"""After every message these tests make."""


async def send_out(store: Store, destination: str = "example.org", t_ms: int = T0, **fields: Any) -> int:
    target = new_target(OUT, transport="relay", destination=destination, **fields)
    (outcome,) = await store.accept(new_message(t_ms=t_ms), [target], nothing)
    assert isinstance(outcome, Queued)
    return outcome.delivery


async def take(store: Store, now_ms: int = NOW, limit: int = 10, closed: Collection[str] = ()) -> list[Due]:
    return await store.claim(now_ms, limit, "n1/0", 1_000, lambda _: 500, closed)


async def ids(store: Store, **what: Any) -> list[int]:
    return [pending.id for pending in await store.pending(**what)]


async def test_what_leaves_the_node_is_queued_with_no_attempt_made_and_due_at_once(store: Store) -> None:
    message = new_message()
    away = new_target(
        OUT, transport="relay", destination="example.org", options={"notify": ["failure"]}, next_ms=NOW + 1, priority=2
    )
    here = new_target(BOB)
    placed, queued = await store.accept(message, [here, away], nothing)
    assert isinstance(placed, Placed)
    assert queued == Queued(away, queued.delivery if isinstance(queued, Queued) else 0)
    assert await store.next_due() == message.t_ms
    (pending,) = await store.pending()
    assert (pending.attempt, pending.destination, pending.held, pending.leased_by) == (0, "example.org", False, None)
    (due,) = await take(store, message.t_ms)
    assert (due.attempt, due.previous, due.due_ms, due.last_ms) == (1, None, message.t_ms, message.t_ms)
    assert (due.target.transport, due.target.destination) == ("relay", "example.org")
    assert due.target.options == {"notify": ["failure"]}
    (pending,) = await store.pending()
    assert pending.leased_by == "n1/0"
    tried = span()
    await store.defer(due, tried, message.t_ms + 1, "refused", [])
    (due,) = await take(store)
    assert (due.attempt, due.previous) == (2, tried)


async def test_who_is_written_to_beyond_the_node_can_be_found_by_address(store: Store) -> None:
    await send_out(store)
    assert len(await store.find(MessageFilter(agent=OUT), 5)) == 1


async def test_closed_destinations_are_left_and_the_rest_comes_in_order(store: Store) -> None:
    a, b, c, d = [
        await send_out(store, name, t_ms, priority=priority)
        for name, t_ms, priority in (("a", T0, 0), ("b", T0 + 1, 0), ("c", T0 + 2, 5), ("b", T0 - 1, 5))
    ]
    assert await store.next_due(closed={"b"}) == T0
    assert await store.next_due(closed={"a", "b"}) == T0 + 2
    assert await store.next_due(closed=["a", "b", "c"]) is None
    assert [due.id for due in await take(store, closed={"b"})] == [c, a]
    assert await take(store, closed={"b"}) == []
    assert [due.id for due in await take(store)] == [d, b]


async def test_few_open_ones_are_found_behind_many_closed_ones(store: Store) -> None:
    """More than any first look takes in, on both sides of the open ones, at two priorities."""
    closed = {f"closed {n}" for n in range(5)}
    for priority in (0, 1):
        targets = [
            new_target(OUT, transport="relay", destination=f"closed {n % 5}", priority=priority) for n in range(1500)
        ]
        await store.accept(new_message(t_ms=T0), targets, nothing)
        await store.accept(new_message(t_ms=T0 + 300), targets[:5], nothing)
    few = [
        await send_out(store, name, t_ms, priority=priority)
        for name, t_ms, priority in (("z", T0 + 290, 0), ("0", T0 + 9_000, 1), ("z", T0 + 280, 0), ("k", T0 + 285, 0))
    ]
    assert await store.next_due(closed) == T0 + 280
    assert [due.id for due in await take(store, limit=3, closed=closed)] == [few[1], few[2], few[3]]
    assert [due.id for due in await take(store, limit=3, closed=closed)] == [few[0]]
    assert await take(store, limit=3, closed=closed) == []
    assert len(await take(store, limit=5000)) == 3010


async def test_mailboxes_are_a_destination_like_others(store: Store) -> None:
    await store.accept(new_message(), [new_target("gone@fabric.local")], nothing)
    out = await send_out(store)
    assert [due.id for due in await take(store, closed={""})] == [out]


async def test_a_lease_can_be_kept_and_one_that_was_lost_cannot(store: Store) -> None:
    await send_out(store)
    (due,) = await take(store, NOW)
    await store.renew(due, NOW + 60_000)
    assert await store.next_due() == NOW + 60_000
    assert await take(store, NOW + 59_999) == []
    (other,) = await take(store, NOW + 60_000)
    with pytest.raises(NotFound):
        await store.renew(due, NOW + 90_000)
    await store.defer(other, span(), NOW + 60_001, "refused", [])
    with pytest.raises(NotFound):
        await store.renew(other, NOW + 90_000)
    (other,) = await take(store, NOW + 90_000)
    await store.settle(other, [])
    with pytest.raises(NotFound):
        await store.renew(other, NOW + 99_000)


async def test_the_queue_is_read_page_by_page_and_by_destination(store: Store) -> None:
    all_of_it = [await send_out(store, "ab"[n % 2]) for n in range(7)]
    assert await ids(store, limit=3) == all_of_it[:3]
    assert await ids(store, limit=3, after=all_of_it[2]) == all_of_it[3:6]
    assert await ids(store, destination="b") == all_of_it[1::2]
    assert await ids(store, destination="b", after=all_of_it[1], limit=1) == [all_of_it[3]]
    assert await ids(store, destination="c") == []
    assert await ids(store, eid="0" * 26) == []


def noting(seen: list[list[Pending]], event: EventRow) -> Any:
    def witness(found: list[Pending]) -> Sequence[EventRow]:
        seen.append(found)
        return [event]

    return witness


async def test_held_ones_stay_until_let_go_and_others_pass_them(store: Store) -> None:
    a, b = await send_out(store, t_ms=T0), await send_out(store, t_ms=T0 + 1)
    seen: list[list[Pending]] = []
    held = await store.suspend([a, a, 999_999], True, noting(seen, new_event("config.changed")))
    assert [pending.id for pending in held] == [a]
    assert seen[-1] == held
    assert [event.row.ev for event in await store.events_after(0, 9)] == ["config.changed"]
    assert await store.suspend([a], True, nothing) == []
    assert await store.next_due() == T0 + 1
    assert [due.id for due in await take(store)] == [b]
    assert [(p.id, p.held) for p in await store.pending()] == [(a, True), (b, False)]
    assert (await store.backlog()).queue_depth == 2
    assert [p.id for p in await store.suspend([a, b], False, nothing)] == [a]
    assert [due.id for due in await take(store)] == [a]


async def test_held_during_an_attempt_it_waits_after_it(store: Store) -> None:
    number = await send_out(store)
    (due,) = await take(store)
    await store.suspend([number], True, nothing)
    await store.defer(due, span(), NOW + 1, "refused", [])
    assert await store.next_due() is None
    assert await take(store, NOW + 10**6) == []
    await store.suspend([number], False, nothing)
    assert await store.next_due() == due.next_ms


async def test_let_go_it_does_not_come_before_the_lease_of_its_attempt_ends(store: Store) -> None:
    number = await send_out(store)
    await take(store, NOW)
    await store.suspend([number], True, nothing)
    await store.suspend([number], False, nothing)
    assert await store.next_due() == NOW + 1_000


async def test_hastened_they_are_due_now_held_or_not_but_for_leased_ones(store: Store) -> None:
    waiting, held, leased, dead = [await send_out(store, name, t_ms=T0 + n) for n, name in enumerate("abcd")]
    for due in await take(store, NOW, closed={"c", "d"}):
        await store.defer(due, span(), NOW, "refused", [])
    await store.suspend([held], True, nothing)
    await take(store, NOW - 5_000, closed={"a", "b", "c"})  # its lease has ended and nobody came back
    await take(store, NOW, closed={"a", "b", "d"})
    seen: list[list[Pending]] = []
    done = await store.hasten([waiting, held, leased, dead, 999_999], NOW + 1, noting(seen, new_event()))
    assert [pending.id for pending in done] == [waiting, held, dead]
    assert [pending.held for pending in done] == [False, True, False]
    assert seen == [done]
    assert sorted(due.id for due in await take(store, NOW + 1)) == [waiting, held, dead]


async def test_the_queue_hears_of_what_was_hastened(store: Store) -> None:
    number = await send_out(store)
    told = asyncio.Event()
    store.subscribe("queue", told.set)
    await store.hasten([number], NOW, nothing)
    await asyncio.wait_for(told.wait(), 5)


async def test_dropped_it_is_gone_and_its_attempt_finds_nothing(store: Store) -> None:
    leased, waiting, kept = [await send_out(store, name) for name in "abc"]
    (due,) = await take(store, closed={"b", "c"})
    seen: list[list[Pending]] = []
    dropped = await store.drop([waiting, leased, 999_999], noting(seen, new_event("config.changed")))
    assert [pending.id for pending in dropped] == [leased, waiting]
    assert seen == [dropped]
    assert await ids(store) == [kept]
    for call in (store.settle(due, []), store.defer(due, span(), NOW, "late", [])):
        with pytest.raises(NotFound):
            await call
    assert [event.row.ev for event in await store.events_after(0, 9)] == ["config.changed"]
