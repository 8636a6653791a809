import asyncio
import random

from aimx.store.contract import EventRow, Store
from tests.store.factory import T0, eid, new_event, nothing


async def record(store: Store, count: int) -> list[EventRow]:
    events = [new_event() for _ in range(count)]
    await store.record(events)
    return events


async def test_an_event_comes_back_as_it_was_given(store: Store) -> None:
    ref = eid()
    event = new_event(
        "message.accepted",
        ref=ref,
        agent="bob@fabric.local",
        key=bytes(range(32)),
        leaf=b'{"a":"\xc3\xa9"}',
        detail={"open": {"sender": "a\u00e9"}, "n": [1, None, 2.5]},
    )
    await store.record([event])
    (stored,) = await store.events_after(0, 10)
    assert stored.row == event
    assert stored.index is None


async def test_an_event_of_several_messages_is_found_by_each(store: Store) -> None:
    one, two, three = eid(), eid(), eid()
    shared = new_event(messages=(three, one, two), trace_id=b"a" * 16)
    own = new_event(ref=two, trace_id=b"b" * 16)
    late = new_event(ref=two, messages=(two,), trace_id=b"a" * 16)
    await store.record([shared, own, late])
    assert [event.row for event in await store.events_of(one)] == [shared]
    assert [event.row for event in await store.events_of(two)] == [shared, own, late]
    assert await store.traces_of(two) == [b"a" * 16, b"b" * 16]
    assert [event.row for event in await store.events_of_trace(b"a" * 16)] == [shared, late]
    assert [event.row for event in await store.events_of_trace(b"a" * 16, 1)] == [shared]


async def test_numbers_are_given_once_and_rise_within_a_call(store: Store) -> None:
    calls = await asyncio.gather(*(record(store, 3) for _ in range(20)))
    stored = await store.events_after(0, 100)
    seqs = [event.seq for event in stored]
    assert len(seqs) == 60
    assert seqs == sorted(set(seqs))
    assert [event.seq for event in await store.events_after(seqs[10], 5)] == seqs[11:16]
    eids = [event.row.eid for event in stored]
    for events in calls:
        places = [eids.index(event.eid) for event in events]
        assert places == sorted(places)


async def test_the_outbox_empties_as_the_log_takes_over(store: Store) -> None:
    events = await record(store, 10)
    waiting = await store.unsequenced(4)
    assert [(name, leaf) for _, name, leaf in waiting] == [(event.eid, event.leaf) for event in events[:4]]
    await store.mark_sequenced([(seq, 100 + n) for n, (seq, _, _) in enumerate(waiting)])
    assert len(await store.unsequenced(100)) == 6
    assert [event.index for event in await store.events_after(0, 6)] == [100, 101, 102, 103, None, None]
    assert (await store.backlog()).outbox_depth == 6


async def test_an_event_already_in_the_log_keeps_its_place(store: Store) -> None:
    await record(store, 4)
    seqs = [seq for seq, _, _ in await store.unsequenced(4)]
    await store.mark_sequenced([(seqs[1], 7)])
    await store.mark_sequenced([(seqs[0], 50), (seqs[1], 51), (seqs[2], 52)])
    assert [event.index for event in await store.events_after(0, 4)] == [50, 7, 52, None]


async def test_marks_may_come_in_any_order(store: Store) -> None:
    await record(store, 60)
    seqs = [seq for seq, _, _ in await store.unsequenced(100)]
    chance = random.Random(3)
    expected: dict[int, int] = {}
    for step in range(30):
        some = chance.sample(seqs, chance.randrange(6)) + seqs[(at := chance.randrange(55)) : at + 4]
        placed = [(seq, 1000 * (step // 3) + seq) for seq in dict.fromkeys(some)]
        for seq, index in placed:
            expected.setdefault(seq, index)
        await store.mark_sequenced(placed)
        assert {e.seq: e.index for e in await store.events_after(0, 100) if e.index is not None} == expected
        assert [seq for seq, _, _ in await store.unsequenced(100)] == [seq for seq in seqs if seq not in expected]
        assert (await store.backlog()).outbox_depth == len(seqs) - len(expected)


async def test_subscribers_hear_that_the_outbox_grew(store: Store) -> None:
    heard: list[int] = []
    store.subscribe("events", lambda: heard.append(1))
    await store.record([])
    assert heard == []
    await record(store, 2)
    assert heard == [1]
    await store.mark_sequenced([(1, 0)])
    assert heard == [1]


async def test_a_failing_subscriber_stops_no_other(store: Store) -> None:
    heard: list[int] = []
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))

    def broken() -> None:
        raise RuntimeError("no")

    store.subscribe("events", broken)
    store.subscribe("events", lambda: heard.append(1))
    await record(store, 1)
    assert heard == [1]
    assert len(failures) == 1


async def test_payload_schemas_are_kept_by_name(store: Store) -> None:
    await store.add_schema("b", b"\x01", T0, [new_event("config.changed")])
    await store.add_schema("a", b"\x02", T0, [])
    await store.add_schema("b", b"\x03", T0, list(nothing(None)))
    assert await store.schemas() == [("a", b"\x02"), ("b", b"\x03")]
