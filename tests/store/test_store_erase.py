"""Erasure and legal holds."""

import pytest

from aimx.store.contract import (
    AlreadyExists,
    Held,
    Hold,
    KeyReused,
    MailboxKey,
    MessageFilter,
    NewMessage,
    NotFound,
    Once,
    Store,
)
from tests.store.conftest import ALICE, BOB, CAROL, key_of
from tests.store.factory import T0, new_event, new_message, new_target, nothing, telling

ALL = ((1, 4294967295),)
GONE = "gone@fabric.local"


def secret(body: bytes = b"tulip\r\n") -> NewMessage:
    return new_message(
        subject="secret-subject",
        header=b"Subject: secret-subject\r\n\r\n",
        body=body,
        message_id="<secret-id@fabric.local>",
        workflow="secret-workflow",
        tracestate="a=tulip",
        baggage="b=tulip",
    )


async def put(store: Store, message: NewMessage, once: Once | None = None) -> None:
    event = new_event("message.accepted", ref=message.eid, key=b"k" * 32, detail={"open": {"from": "tulip"}})
    targets = [new_target(BOB), new_target(CAROL), new_target(GONE)]
    await store.accept(message, targets, lambda _: [event], once=once)


async def test_erased_nothing_is_left_but_that_it_was(store: Store, inbox: MailboxKey) -> None:
    message = secret()
    await put(store, message)
    await store.accept(new_message(), [new_target(BOB)], nothing)
    before = await store.message(message.eid)
    assert before is not None
    since = (await store.select(inbox, False)).modseq
    erased = new_event("message.erased", ref=message.eid, key=b"e" * 32, detail={"open": {"by": "admin"}})
    await store.erase(message.eid, [erased])

    after = await store.message(message.eid)
    assert after is not None
    assert (after.eid, after.t_ms, after.origin, after.received) == (
        before.eid,
        before.t_ms,
        before.origin,
        before.received,
    )
    assert (after.header_size, after.body_size) == (before.header_size, before.body_size)
    assert (after.sender, after.agent, after.recipients, after.delivered_to) == ("", None, (), ())
    assert (after.message_id, after.in_reply_to, after.subject, after.workflow) == ("", None, "", None)
    assert await store.header(message.eid) == b""
    assert await store.read_body(message.eid, 0, 100) == b""
    assert await store.located(message.eid) == []
    assert await store.pending(message.eid) == []
    assert await store.find(MessageFilter(agent=BOB, workflow="secret-workflow"), 5) == []
    assert await store.find(MessageFilter(message_id="<secret-id@fabric.local>"), 5) == []
    assert [found.eid for found in await store.find(MessageFilter(trace_id=message.origin.trace_id), 5)] == [
        message.eid
    ]

    changes = await store.changes(inbox, since)
    assert changes.vanished == [1]  # sessions that have it selected are told
    assert (await store.status([inbox]))[inbox].messages == 1
    accepted, end = await store.events_of(message.eid)
    assert (accepted.row.key, accepted.row.detail) == (None, {})
    assert accepted.row.leaf.startswith(b'{"ev":"message.accepted"')
    assert (end.row.key, end.row.detail) == (b"e" * 32, {"open": {"by": "admin"}})


async def test_a_large_body_goes_too(store: Store) -> None:
    message = secret(b"tulip" * 200_000)
    await put(store, message)
    await store.erase(message.eid, [])
    assert await store.read_body(message.eid, 0, 100) == b""


async def test_once_more_is_no_error_and_keeps_the_first_erasure_s_openings(store: Store) -> None:
    message = secret()
    await put(store, message)
    for n in range(2):
        await store.erase(message.eid, [new_event("message.erased", ref=message.eid, key=b"%d" % n * 32)])
    keys = [event.row.key for event in await store.events_of(message.eid)]
    assert keys == [None, b"0" * 32, b"1" * 32]


async def test_events_about_several_messages_keep_their_openings(store: Store, inbox: MailboxKey) -> None:
    one, other = secret(), new_message()
    await put(store, one)
    await put(store, other)
    both = new_event("message.read", messages=(one.eid, other.eid), key=b"r" * 32)
    await store.record([both])
    await store.erase(one.eid, [])
    assert (await store.events_of(other.eid))[-1].row.key == b"r" * 32


async def test_what_is_not_there_cannot_be_erased(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.erase("0" * 26, [new_event()])
    assert await store.events_after(0, 9) == []


async def test_a_resend_does_not_bring_it_back(store: Store) -> None:
    message = secret()
    promise = Once(ALICE, "k", b"d" * 32, T0 + 10**9)
    await put(store, message, promise)
    await store.erase(message.eid, [])
    with pytest.raises(KeyReused):
        await put(store, secret(), promise)


async def test_the_loop_guard_still_counts_it(store: Store) -> None:
    message = secret()
    await put(store, message)
    await put(store, secret())
    await store.erase(message.eid, [])
    lineage = await store.lineage(BOB, None, [], None, "secret-workflow")
    assert lineage.count == 2
    assert (lineage.past[1].sender, lineage.past[1].recipients) == ("", ())


@pytest.mark.parametrize(
    ("kind", "subject"), [("message", None), ("workflow", "secret-workflow"), ("agent", ALICE), ("agent", GONE)]
)
async def test_a_hold_forbids_it_until_it_is_released(store: Store, kind: str, subject: str | None) -> None:
    message = secret()
    await put(store, message)
    hold = Hold(kind, subject or message.eid, "case 7", "admin", T0)  # type: ignore[arg-type]
    await store.hold(hold, [new_event("config.changed")])
    assert await store.holds() == [hold]
    with pytest.raises(AlreadyExists):
        await store.hold(hold, [])
    with pytest.raises(Held, match=hold.subject):
        await store.erase(message.eid, [new_event("message.erased")])
    assert await store.read_body(message.eid, 0, 5) == b"tulip"
    await store.release(hold.kind, hold.subject, [new_event("config.changed")])
    assert await store.holds() == []
    with pytest.raises(NotFound):
        await store.release(hold.kind, hold.subject, [])
    await store.erase(message.eid, [])
    assert [e.row.ev for e in await store.events_after(0, 9)] == ["message.accepted"] + ["config.changed"] * 2


async def test_a_hold_on_somebody_else_does_not_matter(store: Store) -> None:
    message = secret()
    await put(store, message)
    for kind, subject in (("message", "0" * 26), ("workflow", "other"), ("workflow", ""), ("agent", "x@y")):
        await store.hold(Hold(kind, subject, "case 8", "admin", T0), [])  # type: ignore[arg-type]
    await store.erase(message.eid, [])


async def test_copies_in_every_folder_go(store: Store, inbox: MailboxKey) -> None:
    message = secret()
    await put(store, message)
    archive = await key_of(store, BOB, "Archive")
    await store.copy(inbox, ALL, archive, nothing)
    await store.copy(inbox, ALL, archive, nothing)
    await store.erase(message.eid, [])
    assert (await store.status([archive]))[archive].messages == 0
    assert await store.usage(BOB) == 0


async def test_its_waiting_attempt_finds_nothing(store: Store) -> None:
    message = secret()
    await put(store, message)
    (due,) = await store.claim(T0, 5, "n1/0", 1_000, lambda _: 1)
    await store.erase(message.eid, [])
    with pytest.raises(NotFound):
        await store.place(due, due.origin, T0, telling("x"))


async def test_its_record_says_that_it_was_erased(store: Store) -> None:
    message, other = secret(), new_message()
    for one in (message, other):
        await put(store, one)
    await store.erase(message.eid, [])
    found = await store.find(MessageFilter(), 5)
    assert [(record.eid, record.erased) for record in found] == [(other.eid, False), (message.eid, True)]


async def test_the_old_ones_are_given_in_order_of_acceptance_up_to_a_time(store: Store) -> None:
    eids = []
    for at in (0, 1_000, 2_000, 3_000):
        message = new_message(t_ms=T0 + at)
        eids.append(message.eid)
        await put(store, message)
    await store.erase(eids[1], [])
    first = await store.older(T0 + 3_000, None, 2)
    assert [record.eid for record in first] == eids[:2]
    assert [record.eid for record in await store.older(T0 + 3_000, eids[1], 9)] == eids[2:3]
    assert await store.older(T0, None, 9) == []


async def test_a_scrub_says_where_something_may_be_left(store: Store) -> None:
    message = secret()
    await put(store, message)
    await store.erase(message.eid, [])
    left = await store.scrub()
    assert left is None or "PostgreSQL" in left
