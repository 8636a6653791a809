"""Idempotency keys: the same message is accepted once, whoever asks again and whenever."""

import asyncio
from typing import Any

import pytest

from aimx.store.contract import KeyReused, MailboxKey, NewMessage, NotFound, Once, Outcome, Repeated, Store
from tests.store.conftest import ALICE, BOB
from tests.store.factory import T0, filed, new_event, new_message, new_target, nothing, telling

FAR = T0 + 10**9


def once(key: str = "k", digest: bytes = b"d" * 32, agent: str = ALICE, until_ms: int = FAR) -> Once:
    return Once(agent, key, digest, until_ms)


async def send(store: Store, promise: Once | None, message: NewMessage | None = None) -> list[Outcome]:
    message = message or new_message()
    return await store.accept(message, [new_target(BOB)], telling("message.accepted", ref=message.eid), once=promise)


async def count(store: Store, inbox: MailboxKey) -> tuple[int, int]:
    """Messages in the mailbox; events."""
    return (await store.status([inbox]))[inbox].messages, len(await store.events_after(0, 1000))


async def test_the_same_again_names_the_first_and_writes_nothing(store: Store, inbox: MailboxKey) -> None:
    first, again = new_message(), new_message()
    await send(store, once(), first)
    with pytest.raises(Repeated) as told:
        await send(store, once(), again)
    assert told.value.eid == first.eid
    assert await count(store, inbox) == (1, 1)
    assert await store.message(again.eid) is None


async def test_another_message_under_the_same_key_is_refused_and_writes_nothing(
    store: Store, inbox: MailboxKey
) -> None:
    await send(store, once())
    with pytest.raises(KeyReused):
        await send(store, once(digest=b"e" * 32))
    assert await count(store, inbox) == (1, 1)


async def test_keys_of_different_agents_and_other_keys_never_meet(store: Store, inbox: MailboxKey) -> None:
    for promise in (once(), once(agent=BOB), once(key="K"), once(key="k "), None, None):
        await send(store, promise)
    assert await count(store, inbox) == (6, 6)


async def test_in_one_group_commit_one_wins_and_nobody_else_is_harmed(store: Store, inbox: MailboxKey) -> None:
    same = [new_message() for _ in range(6)]
    calls = [send(store, once(), message) for message in same]
    calls += [send(store, once(digest=b"e" * 32)) for _ in range(3)]
    calls += [send(store, None) for _ in range(10)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    kept = [message.eid for message, result in zip(same, results, strict=False) if isinstance(result, list)]
    repeated = [result.eid for result in results if isinstance(result, Repeated)]
    assert len(kept) == 1
    assert repeated == kept * 5
    assert [type(result) for result in results[6:9]] == [KeyReused] * 3
    assert await count(store, inbox) == (11, 11)


async def test_a_refused_message_does_not_use_its_key(store: Store, inbox: MailboxKey) -> None:
    def broken(_outcomes: object) -> Any:
        raise RuntimeError("no")

    with pytest.raises(NotFound):
        await store.accept(new_message(), [filed(BOB, "No such folder")], nothing, once=once())
    with pytest.raises(RuntimeError):
        await store.accept(new_message(), [new_target(BOB)], broken, once=once())
    await send(store, once())
    assert await count(store, inbox) == (1, 1)


async def test_beside_a_poisoned_call_of_the_same_group_the_key_holds(store: Store, inbox: MailboxKey) -> None:
    first = new_message()
    await send(store, None, first)
    results = await asyncio.gather(
        send(store, once()),
        send(store, once(key="other"), new_message(eid=first.eid)),  # its id is taken: the group is taken apart
        send(store, once()),
        send(store, once(key="other")),
        return_exceptions=True,
    )
    assert [isinstance(result, Exception) for result in results] == [False, True, True, False]
    assert isinstance(results[2], Repeated)
    assert await count(store, inbox) == (3, 3)


async def test_a_key_that_ran_out_counts_as_never_used(store: Store, inbox: MailboxKey) -> None:
    await send(store, once(until_ms=T0 + 5_000_000))
    with pytest.raises(Repeated):
        await send(store, once(), new_message(t_ms=T0 + 4_999_999))
    late = new_message(t_ms=T0 + 5_000_000)
    await send(store, once(digest=b"e" * 32), late)
    with pytest.raises(Repeated) as told:
        await send(store, once(digest=b"e" * 32), new_message(t_ms=T0 + 5_000_001))
    assert told.value.eid == late.eid
    assert await count(store, inbox) == (2, 2)


async def test_a_sweep_drops_only_what_has_run_out(store: Store, inbox: MailboxKey) -> None:
    for n in range(5):
        await send(store, once(key=f"short {n}", until_ms=FAR))
    await send(store, once(key="long", until_ms=FAR + 1))
    await store.sweep(FAR)
    await send(store, once(key="short 0", digest=b"e" * 32))
    with pytest.raises(Repeated):
        await send(store, once(key="long"))
    assert (await count(store, inbox))[0] == 7


async def test_a_repeat_with_a_staged_body_leaves_the_body_to_its_owner(store: Store) -> None:
    await send(store, once())
    staged = await store.stage(None, b"x" * 300_000)
    with pytest.raises(Repeated):
        await send(store, once(), new_message(body=staged))
    await store.unstage(staged)
    with pytest.raises(NotFound):
        await send(store, None, new_message(body=staged))


async def test_keys_outlive_a_restart(opening: Any) -> None:
    first = await opening()
    message = new_message()
    await first.accept(message, [new_target("gone@fabric.local")], lambda _: [new_event()], once=once())
    await first.close()
    second = await opening()
    with pytest.raises(Repeated) as told:
        await second.accept(new_message(), [new_target("gone@fabric.local")], nothing, once=once())
    assert told.value.eid == message.eid
    await second.close()


async def test_it_can_be_asked_what_a_promise_was_kept_with(store: Store) -> None:
    first = new_message()
    assert await store.repeated(once(), T0) is None
    await send(store, once(), first)
    assert await store.repeated(once(), T0) == first.eid
    assert await store.repeated(once(digest=b"e" * 32), T0) is None
    assert await store.repeated(once(agent=BOB), T0) is None
    assert await store.repeated(once(), FAR) is None
