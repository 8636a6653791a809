"""Worker processes as the database knows them."""

from dataclasses import replace

import pytest

from aimx.store.contract import SILENT_MS, NodeRecord, NotFound, Store
from tests.store.factory import T0, new_message, new_target, nothing


def worker(node: str = "n1", number: int = 0, seen_ms: int = T0, started_ms: int = T0) -> NodeRecord:
    return NodeRecord(node, number, "host", 42, started_ms, seen_ms, "0.2.0")


async def test_workers_are_known_by_their_last_sign_of_life(store: Store) -> None:
    assert await store.nodes() == []
    for record in (worker("n2"), worker(number=1), worker(), worker(seen_ms=T0 + 5)):
        assert await store.beat(record) is False
    assert await store.nodes() == [worker(seen_ms=T0 + 5), worker(number=1), worker("n2")]


async def test_a_node_that_is_asked_to_drain_hears_it_in_each_worker(store: Store) -> None:
    await store.beat(worker())
    await store.beat(worker("n2"))
    await store.drain("n1", True)
    assert await store.beat(worker()) is True
    assert await store.beat(worker(number=1, started_ms=T0 + 1)) is True  # one that is started meanwhile
    assert await store.beat(worker("n2")) is False
    assert await store.nodes() == [
        replace(worker(), draining=True),
        replace(worker(number=1, started_ms=T0 + 1), draining=True),
        worker("n2"),
    ]
    await store.drain("n1", False)
    assert await store.beat(worker()) is False
    with pytest.raises(NotFound):
        await store.drain("n3", True)


async def test_a_node_started_again_does_not_drain(store: Store) -> None:
    await store.beat(worker())
    await store.drain("n1", True)
    assert await store.beat(worker(started_ms=T0 + 1)) is False


async def test_a_worker_that_parts_leaves_no_record_and_no_lease(store: Store) -> None:
    await store.beat(worker())
    await store.accept(new_message(), [new_target("gone@fabric.local")], nothing)
    (due,) = await store.claim(T0, 5, "n1/0", 10**9, lambda _: 5)
    await store.part("n1", 1)
    assert await store.next_due() == T0 + 10**9
    await store.part("n1", 0)
    assert await store.next_due() == due.next_ms
    assert await store.nodes() == []


async def test_a_sweep_forgets_silent_workers_only(store: Store) -> None:
    await store.beat(worker())
    await store.beat(worker("n2", seen_ms=T0 + 1))
    await store.sweep(T0 + SILENT_MS)
    assert await store.nodes() == [worker("n2", seen_ms=T0 + 1)]
