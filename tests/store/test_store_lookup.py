import random
from dataclasses import fields
from itertools import product
from typing import Any

from aimx.store.contract import MessageFilter, NewMessage, Past, Store
from tests.store.conftest import ALICE, BOB, CAROL, key_of
from tests.store.factory import eid, filed, new_event, new_message, new_target, nothing, span


async def send(store: Store, sender: str, *to: str, **fields: Any) -> NewMessage:
    message = new_message(sender=sender, agent=sender, recipients=to, **fields)
    await store.accept(message, [new_target(address) for address in to], nothing)
    return message


async def found(store: Store, limit: int = 10, before: str | None = None, **what: Any) -> list[str]:
    return [record.eid for record in await store.find(MessageFilter(**what), limit, before)]


async def test_a_message_s_envelope_is_kept(store: Store) -> None:
    message = await send(
        store,
        ALICE,
        BOB,
        CAROL,
        workflow="w",
        in_reply_to="<x@y>",
        subject="s\u00e9",
        priority=4,
        depth=7,
        received=span(),
    )
    record = await store.message(message.eid)
    assert record is not None
    for kept in fields(record):
        if kept.name not in ("delivered_to", "header_size", "body_size", "erased"):
            assert getattr(record, kept.name) == getattr(message, kept.name), kept.name
    assert record.delivered_to == (BOB, CAROL)
    assert (record.header_size, record.body_size) == (len(message.header), 6)
    assert await store.header(message.eid) == message.header
    assert await store.message(eid()) is None
    assert await store.header(eid()) is None


async def test_messages_are_found_by_each_of_their_marks(store: Store) -> None:
    one = await send(store, ALICE, BOB, workflow="w")
    two = await send(store, BOB, ALICE, workflow="w", origin=one.origin)
    other = await send(store, ALICE, CAROL)
    assert await found(store) == [other.eid, two.eid, one.eid]
    assert await found(store, workflow="w") == [two.eid, one.eid]
    assert await found(store, trace_id=one.origin.trace_id) == [two.eid, one.eid]
    assert await found(store, message_id=other.message_id) == [other.eid]
    assert await found(store, agent=ALICE) == [other.eid, two.eid, one.eid]
    assert await found(store, agent=BOB) == [two.eid, one.eid]
    assert await found(store, agent=BOB, workflow="w", message_id=one.message_id) == [one.eid]
    assert await found(store, agent=CAROL, workflow="w") == []


async def test_a_viewer_finds_only_what_it_sent_or_received(store: Store) -> None:
    one = await send(store, ALICE, BOB, workflow="w")
    two = await send(store, CAROL, ALICE, workflow="w")
    assert await found(store, viewer=BOB) == [one.eid]
    assert await found(store, workflow="w", viewer=CAROL) == [two.eid]
    assert await found(store, agent=ALICE, viewer=CAROL) == [two.eid]
    assert await found(store, agent=BOB, viewer=CAROL) == []


async def test_pages_follow_each_other(store: Store) -> None:
    eids = [(await send(store, ALICE, BOB, workflow="w")).eid for _ in range(5)][::-1]
    for what in ({}, {"workflow": "w"}, {"agent": BOB}):
        first = await found(store, 2, **what)
        second = await found(store, 2, first[-1], **what)
        third = await found(store, 2, second[-1], **what)
        assert first + second + third == eids


async def test_what_several_marks_have_in_common_page_by_page(store: Store) -> None:
    dice, origins = random.Random(1), [span(), span()]
    sent: list[NewMessage] = []
    for _ in range(40):
        sender, *to = dice.sample([ALICE, BOB, CAROL], dice.randrange(2, 4))
        sent.insert(0, await send(store, sender, *to, workflow=dice.choice("vw"), origin=dice.choice(origins)))

    def holds(message: NewMessage, of: MessageFilter) -> bool:
        parties = {message.sender, *message.recipients}
        return (
            of.workflow in (None, message.workflow)
            and of.trace_id in (None, message.origin.trace_id)
            and (of.agent is None or of.agent in parties)
            and (of.viewer is None or of.viewer in parties)
        )

    marks: list[tuple[Any, ...]] = [(None, "w", "none"), (None, ALICE), (None, CAROL), (None, origins[0].trace_id)]
    for workflow, agent, viewer, trace_id in product(*marks):
        what = {"workflow": workflow, "agent": agent, "viewer": viewer, "trace_id": trace_id}
        expected = [message.eid for message in sent if holds(message, MessageFilter(**what))]
        got = await found(store, 4, **what)
        while page := await found(store, 4, got[-1] if got else eid(), **what):
            got += page
        assert got == expected, what


async def test_a_message_is_found_by_a_later_trace_of_its_own(store: Store) -> None:
    message = await send(store, ALICE, BOB)
    await store.record([new_event("message.deferred", ref=message.eid, trace_id=b"L" * 16)])
    assert await found(store, trace_id=b"L" * 16) == [message.eid]


async def test_located_says_where_copies_lie(store: Store) -> None:
    message = await send(store, ALICE, BOB)
    await store.mark(await key_of(store, BOB), ((1, 1),), "add", frozenset({"Work"}), nothing)
    await store.copy(await key_of(store, BOB), ((1, 1),), await key_of(store, BOB, "Archive"), nothing)
    places = [(where.owner, where.folder, where.uid, where.flags) for where in await store.located(message.eid)]
    assert places == [(BOB, "Archive", 1, {"Work"}), (BOB, "INBOX", 1, {"Work"})]


# ── lineage ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_reply_joins_what_its_sender_received_or_sent(store: Store) -> None:
    message = await send(store, ALICE, BOB, tracestate="a=b", baggage="c=d", depth=3, workflow="w")
    for who in (ALICE, BOB):
        replied = (await store.lineage(who, message.message_id, [], None, None)).replied
        assert replied is not None
        assert (replied.eid, replied.origin, replied.depth, replied.workflow, replied.tracestate, replied.baggage) == (
            message.eid,
            message.origin,
            3,
            "w",
            "a=b",
            "c=d",
        )


async def test_nobody_joins_a_message_it_has_no_part_in(store: Store) -> None:
    message = await send(store, ALICE, BOB)
    lineage = await store.lineage(CAROL, message.message_id, [message.message_id], message.origin.trace_id, None)
    assert (lineage.replied, lineage.referenced, lineage.traced) == (None, None, None)


async def test_a_second_message_of_the_same_id_does_not_hide_the_one_received(store: Store) -> None:
    message = await send(store, ALICE, BOB)
    await send(store, CAROL, CAROL, message_id=message.message_id)
    replied = (await store.lineage(BOB, message.message_id, [], None, None)).replied
    assert replied is not None
    assert replied.eid == message.eid


async def test_the_newest_reference_that_counts_is_taken(store: Store) -> None:
    one, two = await send(store, ALICE, BOB), await send(store, ALICE, BOB)
    foreign = await send(store, ALICE, CAROL)
    ids = [one.message_id, two.message_id, foreign.message_id, "<unknown@x>"]
    referenced = (await store.lineage(BOB, None, ids, None, None)).referenced
    assert referenced is not None
    assert referenced.eid == two.eid


async def test_the_newest_of_the_trace_delivered_to_the_sender(store: Store) -> None:
    one = await send(store, ALICE, BOB)
    two = await send(store, CAROL, BOB, origin=one.origin, depth=1)
    await send(store, BOB, ALICE, origin=one.origin, depth=2)
    own = new_message(sender=BOB, agent=BOB, origin=one.origin, depth=9)
    await store.accept(own, [filed(BOB, "Sent")], nothing)  # its own copy was not delivered to it
    traced = (await store.lineage(BOB, None, [], one.origin.trace_id, None)).traced
    assert traced is not None
    assert traced.eid == two.eid


async def test_the_loop_key_is_the_workflow_else_the_ancestor_s_else_the_trace(store: Store) -> None:
    message = await send(store, ALICE, BOB, workflow="w")
    trace = b"t" * 16
    assert (await store.lineage(BOB, message.message_id, [], trace, "mine")).loop_key == "mine"
    assert (await store.lineage(BOB, message.message_id, [], trace, None)).loop_key == "w"
    assert (await store.lineage(BOB, None, [message.message_id], trace, None)).loop_key == "w"
    assert (await store.lineage(BOB, None, [], message.origin.trace_id, None)).loop_key == "w"
    assert (await store.lineage(BOB, None, [], trace, None)).loop_key == trace.hex()
    assert (await store.lineage(BOB, None, [], None, None)).loop_key is None


async def test_the_past_of_a_workflow_newest_first_and_its_count(store: Store) -> None:
    messages = [await send(store, ALICE, BOB, workflow="w", payload=bytes([n]) * 32, depth=n) for n in range(5)]
    await send(store, ALICE, BOB, workflow="other")
    lineage = await store.lineage(BOB, None, [], None, "w", window=3)
    assert lineage.past == tuple(
        Past(ALICE, (BOB,), message.payload, message.template, message.depth, message.t_ms)
        for message in messages[:1:-1]
    )
    assert (lineage.count, lineage.first_ms) == (5, messages[0].t_ms)
    fresh = await store.lineage(BOB, None, [], None, "new")
    assert (fresh.past, fresh.count, fresh.first_ms) == ((), 0, None)


async def test_the_past_goes_on_as_messages_come(store: Store) -> None:
    """Asked again and again while the workflow grows past the window, with windows of different sizes."""
    payloads: list[bytes] = []
    for n in range(140):
        payloads.insert(0, bytes([n]) * 32)
        await send(store, ALICE, BOB, workflow="w", payload=payloads[0])
        if n % 20 == 19:
            for window in (128, 3, 500, 128):
                lineage = await store.lineage(BOB, None, [], None, "w", window)
                assert [past.payload for past in lineage.past] == payloads[:window]
                assert lineage.count == n + 1


async def test_a_flood_of_one_message_id_hides_nothing(store: Store) -> None:
    message = await send(store, ALICE, BOB)
    for _ in range(150):
        await store.accept(new_message(sender=CAROL, agent=CAROL, message_id=message.message_id), [], nothing)
    replied = (await store.lineage(BOB, message.message_id, [], None, None)).replied
    assert replied is not None
    assert replied.eid == message.eid


async def test_a_filed_copy_is_no_step_of_a_loop(store: Store) -> None:
    message = await send(store, ALICE, BOB, workflow="w")
    await store.accept(new_message(workflow="w"), [filed(ALICE, "Sent")], nothing)
    assert (await store.lineage(ALICE, None, [], None, "w")).count == 1
    assert await found(store, workflow="w") != [message.eid]
