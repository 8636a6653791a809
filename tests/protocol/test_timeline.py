"""The timeline read from a real store: by trace, by message, by a trace that only its events carry."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aimx.audit import events
from aimx.sidecar.conversation import workflow_conversation
from aimx.sidecar.timeline import assemble, timeline
from aimx.store.contract import NotFound, SpanRef
from tests.protocol.sidecar_world import CRITIC, PLANNER, RESEARCHER, TRACE, World, world

FETCH = bytes.fromhex("77" * 16)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def fetched(here: World, agent: str, *eids: str) -> None:
    """One FETCH of several messages, whose span is a root of its own."""
    stamp = events.Stamp("n1", 1_900_000_000_000, SpanRef(FETCH, b"\x01" * 8), agent)
    command = events.Command(agent, (agent, "INBOX"), eids)
    row = events.message_read(stamp, command, facts={"mailbox": "INBOX", "uids": [1, 2], "pickup_ms": 40})
    row.messages = eids
    await here.store.record([row])


async def test_the_same_conversation_by_trace_id_message_id_and_message_id_header(here: World) -> None:
    one = await here.send(PLANNER, RESEARCHER)
    two = await here.send(RESEARCHER, PLANNER, answers=one, depth=2)
    await here.sequencer.flush()
    by_trace = await timeline(here.store, TRACE)
    assert [(entry.id, entry.level) for entry in by_trace.entries] == [(one, 0), (two, 1)]
    for what in (TRACE.hex(), one, two, f"<{two}@fabric.local>", f"{one}@fabric.local"):
        assert await timeline(here.store, what) == by_trace
    json.dumps(by_trace.as_json())


@pytest.mark.parametrize("what", ["f" * 32, "z" * 32, "01KAQ5XV2M8Z7Q4T9H3W6E1R0C", "<nobody@nowhere>", "", "x"])
async def test_what_is_not_known_is_not_found(here: World, what: str) -> None:
    with pytest.raises(NotFound):
        await timeline(here.store, what)


async def test_a_fetch_of_several_messages_is_a_step_of_each_and_its_trace_leads_to_them(here: World) -> None:
    one, two = await here.send(PLANNER, RESEARCHER), await here.send(CRITIC, RESEARCHER)
    await fetched(here, RESEARCHER, one, two)
    found = await timeline(here.store, one)
    assert [(step.kind, step.wait_ms) for step in found.entries[0].steps][-1] == ("read", 40)
    assert found.trace_ids == [TRACE.hex(), FETCH.hex()]
    assert found.counts.read == 2
    by_fetch = await timeline(here.store, FETCH)
    assert [entry.id for entry in by_fetch.entries] == [one, two]


async def test_a_buffered_message_waits_with_its_next_attempt(here: World) -> None:
    await here.send(PLANNER, CRITIC)
    eid = await here.send(PLANNER, CRITIC)
    found = await timeline(here.store, eid)
    assert found.outcome == "waiting"
    copy = found.entries[1].copies[0]
    assert (copy.address, copy.outcome, copy.attempts) == (CRITIC, "waiting", 1)
    assert copy.next_ms is not None


async def test_an_agents_view_holds_what_it_sent_or_received(here: World) -> None:
    one = await here.send(PLANNER, RESEARCHER)
    two = await here.send(RESEARCHER, CRITIC, answers=one, depth=2)
    refused = await here.refuse(CRITIC, RESEARCHER, answers=two)
    assert [entry.id for entry in (await timeline(here.store, TRACE, PLANNER)).entries] == [one]
    assert [entry.id for entry in (await timeline(here.store, TRACE, CRITIC)).entries] == [two, refused]
    with pytest.raises(NotFound):
        await timeline(here.store, two, PLANNER)


async def test_a_workflow_is_one_conversation_over_all_its_traces(here: World) -> None:
    one = await here.send(PLANNER, RESEARCHER)
    two = await here.send(RESEARCHER, PLANNER, answers=one, depth=2, trace=b"\x44" * 16)
    await here.send(PLANNER, RESEARCHER, workflow="other")
    found = assemble(await workflow_conversation(here.store, "report-17"))
    assert [(entry.id, entry.parent) for entry in found.entries] == [(one, None), (two, one)]
    assert found.trace_ids == [TRACE.hex(), "44" * 16]


async def test_a_long_conversation_shows_its_newest_thousand_and_says_so(here: World) -> None:
    for number in range(1003):
        last = await here.send(PLANNER, RESEARCHER, subject=str(number))
    found = await timeline(here.store, TRACE)
    assert found.truncated
    assert len(found.entries) == 1000
    assert found.entries[-1].id == last
