import pytest

from aimx.store.contract import AlreadyExists, NotFound, Store
from tests.store.conftest import BOB, key_of
from tests.store.factory import T0, filed, new_agent, new_event, new_message, nothing

DAVE = "dave@fabric.local"


async def test_an_agent_comes_back_as_it_was_given(store: Store) -> None:
    agent = new_agent(DAVE, disabled=True, max_unacked=3, quota=10_000, may_prioritise=True)
    await store.add_agent(agent, [new_event("config.changed")])
    assert await store.agent(DAVE) == agent


async def test_agents_are_listed_by_address(store: Store) -> None:
    assert [agent.address for agent in await store.agents()] == [
        "alice@fabric.local",
        "bob@fabric.local",
        "carol@fabric.local",
    ]


async def test_an_address_is_taken_once_and_the_refused_call_leaves_no_event(store: Store) -> None:
    with pytest.raises(AlreadyExists):
        await store.add_agent(new_agent(BOB), [new_event()])
    assert await store.events_after(0, 10) == []


async def test_a_new_agent_has_its_folders_with_their_uses(store: Store) -> None:
    uses = {mailbox.name: mailbox.special_use for mailbox in await store.mailboxes(BOB)}
    assert uses == {
        "INBOX": None,
        "Sent": "\\Sent",
        "Drafts": "\\Drafts",
        "Trash": "\\Trash",
        "Archive": "\\Archive",
    }


async def test_changes_of_an_agent_are_seen_at_once(store: Store) -> None:
    await store.update_agent(new_agent(BOB, disabled=True, max_unacked=7), [])
    assert await store.agent(BOB) == new_agent(BOB, disabled=True, max_unacked=7)
    with pytest.raises(NotFound):
        await store.update_agent(new_agent(DAVE), [])


async def test_a_removed_agent_takes_mailboxes_and_tokens_along_but_not_its_messages(store: Store) -> None:
    inbox = await key_of(store, BOB)
    message = new_message()
    await store.accept(message, [filed(BOB, flags=frozenset({"odd"}))], nothing)
    await store.add_token(b"digest", BOB, T0, [])
    await store.remove_agent(BOB, [new_event("config.changed")])
    assert await store.agent(BOB) is None
    assert await store.mailboxes(BOB) == []
    assert await store.token_owner(b"digest") is None
    assert (await store.changes(inbox, 0)).gone
    assert await store.message(message.eid) is not None
    with pytest.raises(NotFound):
        await store.remove_agent(BOB, [])


async def test_an_agent_that_comes_back_gets_other_mailboxes(store: Store) -> None:
    before = await store.mailbox(BOB, "INBOX")
    await store.remove_agent(BOB, [])
    await store.add_agent(new_agent(BOB), [])
    after = await store.mailbox(BOB, "INBOX")
    assert before is not None
    assert after is not None
    assert after.key != before.key
    assert after.uidvalidity > before.uidvalidity


async def test_a_token_opens_only_while_its_agent_is_enabled(store: Store) -> None:
    await store.add_token(b"digest", BOB, T0, [])
    assert await store.token_owner(b"digest") == BOB
    assert await store.token_owner(b"other") is None
    await store.update_agent(new_agent(BOB, disabled=True), [])
    assert await store.token_owner(b"digest") is None
    with pytest.raises(NotFound):
        await store.add_token(b"second", DAVE, T0, [])


async def test_subscribers_hear_of_agents(store: Store) -> None:
    heard: list[str] = []
    end = store.subscribe("agents", lambda: heard.append("agents"))
    await store.add_agent(new_agent(DAVE), [])
    assert heard == ["agents"]
    end()
    await store.remove_agent(DAVE, [])
    assert heard == ["agents"]
