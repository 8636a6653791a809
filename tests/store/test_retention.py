"""Retention: what has had its time goes, what is held or younger stays, on every store."""

from dataclasses import replace

import pytest

from aimx.audit.retention import PAGE, Retention, Tally, first_of_all
from aimx.config import Keep
from aimx.store.contract import Hold, MailboxKey, NodeRecord, Store
from tests.store.conftest import BOB, CAROL, key_of
from tests.store.factory import T0, new_message, new_target, nothing

DAY = 86_400.0


class Clock:
    def __init__(self) -> None:
        self.now = T0 / 1000

    def __call__(self) -> float:
        return self.now


async def yes() -> bool:
    return True


def retention(store: Store, clock: Clock, **rules: Keep) -> Retention:
    return Retention(store, rules, node="n1", every=1.0, leads=yes, clock=clock)


async def put(store: Store, at_s: float = 0.0, to: str = BOB, workflow: str | None = None) -> str:
    message = new_message(t_ms=T0 + int(at_s * 1000), workflow=workflow, recipients=(to,))
    await store.accept(message, [new_target(to)], nothing)
    return message.eid


async def erased(store: Store, eids: list[str]) -> list[bool]:
    found = [await store.message(eid) for eid in eids]
    return [record.erased for record in found if record is not None]


async def test_only_what_is_old_enough_and_meant_is_erased(store: Store, inbox: MailboxKey) -> None:
    clock = Clock()
    eids = [
        await put(store, workflow="report-1"),
        await put(store, workflow="other"),
        await put(store, to=CAROL, workflow="Report-2"),
        await put(store, 2 * DAY, workflow="report-3"),
    ]
    since = (await store.select(inbox, False)).modseq
    keeper = retention(store, clock, reports=Keep(keep=DAY, workflow="report-*", agent=BOB))
    assert await keeper.once() == Tally()
    clock.now += DAY + 1
    assert await keeper.once() == Tally(erased=1)
    assert await erased(store, eids) == [True, False, False, False]
    assert (await store.changes(inbox, since)).vanished == [1]
    clock.now += 3 * DAY
    assert await keeper.once() == Tally(erased=1)
    assert await erased(store, eids) == [True, False, False, True]
    event = (await store.events_of(eids[0]))[-1].row
    assert (event.ev, event.detail["open"]["by"]) == ("message.erased", "aimx")
    assert b'"why":"retention reports"' in event.leaf


async def test_a_hold_wins_and_once_it_is_released_the_next_day_s_walk_erases(store: Store) -> None:
    clock = Clock()
    eids = [await put(store), await put(store, to=CAROL)]
    await store.hold(Hold("agent", CAROL, "case 7", "admin", T0), [])
    keeper = retention(store, clock, all=Keep(keep=DAY))
    clock.now += 2 * DAY
    assert await keeper.once() == Tally(erased=1, held=1)
    assert await erased(store, eids) == [True, False]
    await store.release("agent", CAROL, [])
    assert await keeper.once() == Tally()
    clock.now += DAY
    assert await keeper.once() == Tally(erased=1)


async def test_a_rule_with_a_mailbox_only_empties_that(store: Store, inbox: MailboxKey) -> None:
    clock = Clock()
    trash = await key_of(store, BOB, "Trash")
    eids = [await put(store), await put(store)]
    await store.copy(inbox, ((1, 2),), trash, nothing)
    keeper = retention(store, clock, bin=Keep(keep=DAY, mailbox="trash", agent="bob@*"))
    await store.hold(Hold("message", eids[1], "case 8", "admin", T0), [])
    clock.now += 2 * DAY
    assert await keeper.once() == Tally(removed=1, held=1)
    status = await store.status([inbox, trash])
    assert (status[inbox].messages, status[trash].messages) == (2, 1)
    assert await erased(store, eids) == [False, False]
    assert [event.row.ev for event in await store.events_of(eids[0])][-1:] == ["message.expunged"]


async def test_a_hold_that_comes_in_the_middle_of_a_walk_counts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimx.audit.retention.PAGE", 1)
    clock = Clock()
    eids = [await put(store), await put(store)]
    older, hold = store.older, Hold("message", eids[1], "case 9", "admin", T0)

    async def held_meanwhile(before_ms: int, after: str | None, limit: int) -> object:
        if after == eids[0]:
            await store.hold(hold, [])
        return await older(before_ms, after, limit)

    monkeypatch.setattr(store, "older", held_meanwhile)
    clock.now += 2 * DAY
    assert await retention(store, clock, old=Keep(keep=DAY, mailbox="inbox")).once() == Tally(removed=1, held=1)


async def test_a_walk_goes_on_where_it_was(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    for _ in range(3):
        await put(store)
    keeper = retention(store, clock, none=Keep(keep=DAY, workflow="there-is-none"))
    clock.now += DAY + 1
    await keeper.once()
    looked: list[str | None] = []
    older = store.older

    async def counted(before_ms: int, after: str | None, limit: int) -> object:
        assert limit == PAGE
        found = await older(before_ms, after, limit)
        looked.extend(record.eid for record in found)
        return found

    monkeypatch.setattr(store, "older", counted)
    await keeper.once()
    assert looked == []
    clock.now += DAY
    await keeper.once()
    assert len(looked) == 3


async def test_one_worker_leads(store: Store) -> None:
    assert await first_of_all(store, "n1", 0)
    first = NodeRecord("n1", 0, "host", 1, T0, T0, "1")
    for record in (replace(first, worker=1, started_ms=T0 + 1), first, replace(first, node="n2", started_ms=T0 + 2)):
        await store.beat(record)
    assert [await first_of_all(store, *who) for who in (("n1", 0), ("n1", 1), ("n2", 0))] == [True, False, False]
