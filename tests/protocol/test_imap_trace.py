"""What a command on messages leaves in the trace and in the log: one span and one event a command."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aimx.store.contract import SpanRef
from aimx.telemetry.span import Kind
from tests.protocol.imap_world import ALICE, MESSAGE, World, world

ORIGIN = SpanRef(b"t" * 16, b"s" * 8)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def test_reading_one_message_continues_its_trace(here: World) -> None:
    await here.deliver(origin=ORIGIN)
    client = await here.client()
    await client.ok(b"FETCH 1 (FLAGS ENVELOPE BODY.PEEK[HEADER])")
    assert not here.named("imap fetch"), "looking at headers is not reading"
    await client.ok(b"FETCH 1 BODY[]")
    (span,) = here.named("imap fetch")
    assert span.kind is Kind.SERVER
    assert span.trace_id == ORIGIN.trace_id
    assert span.parent is not None
    assert span.parent.span_id == ORIGIN.span_id
    assert span.attributes["messaging.batch.message_count"] == 1
    assert span.attributes["imap.response.status"] == "OK"
    assert float(span.attributes["aimx.pickup.latency"]) >= 0  # type: ignore[arg-type]
    (event,) = await here.events("message.read")
    (row,) = await here.store.fetch((await here.store.mailbox(ALICE, "INBOX")).key, ((1, 9),))  # type: ignore[union-attr]
    assert event.row.ref == row.eid
    assert (event.row.trace_id, event.row.span_id) == (span.trace_id, span.span_id)
    assert event.row.agent == ALICE
    assert json.loads(event.row.leaf)["n"] == 1
    assert not await here.events("message.flagged"), "\\Seen by reading is the reading's own event"
    # Read again: witnessed again, but picked up only once.
    await client.ok(b"FETCH 1 BODY[]")
    assert len(await here.events("message.read")) == 2
    assert "aimx.pickup.latency" not in here.named("imap fetch")[1].attributes


async def test_a_command_on_many_messages_is_one_span_with_links_and_one_event(here: World) -> None:
    for number in range(150):
        await here.deliver(origin=SpanRef(number.to_bytes(16, "big"), b"s" * 8)) if number else await here.deliver()
    client = await here.client()
    await client.ok(b"FETCH 1:* BODY.PEEK[]")
    (span,) = here.named("imap fetch")
    assert span.parent is None
    assert len(span.links or ()) == 128
    assert span.dropped_links == 22
    assert span.attributes["messaging.batch.message_count"] == 150
    (event,) = await here.events("message.read")
    assert len(event.row.messages) == 150
    assert event.row.ref is None


async def test_acknowledging_is_told_apart_from_other_flags(here: World) -> None:
    await here.deliver(origin=ORIGIN)
    client = await here.client()
    await client.ok(rb"STORE 1 +FLAGS (\Flagged)")
    await client.ok(rb"STORE 1 +FLAGS.SILENT ($AimxDone \Seen)")
    await client.ok(rb"STORE 1 +FLAGS ($AimxDone)")  # changes nothing: leaves nothing
    plain, ack = here.named("imap store")
    assert "aimx.ack" not in plain.attributes
    assert ack.attributes["aimx.ack"] is True
    assert ack.trace_id == ORIGIN.trace_id
    events = await here.events("message.flagged")
    assert [json.loads(event.row.leaf)["ack"] for event in events] == [False, True]


async def test_append_copy_move_and_expunge_are_witnessed(here: World) -> None:
    client = await here.client()
    await client.append(MESSAGE)
    await client.ok(b"COPY 1 Archive")
    await client.ok(b"MOVE 1 Trash")
    await client.select(b"Trash")
    await client.ok(rb"STORE 1 +FLAGS (\Deleted)")
    await client.ok(b"EXPUNGE")
    for verb, ev in (
        ("append", "message.appended"),
        ("copy", "message.copied"),
        ("move", "message.moved"),
        ("expunge", "message.expunged"),
    ):
        (span,) = here.named(f"imap {verb}")
        (event,) = await here.events(ev)
        assert (event.row.trace_id, event.row.span_id) == (span.trace_id, span.span_id), verb
    (copied,) = await here.events("message.copied")
    assert copied.row.detail["open"]["to"] == f"{ALICE} Archive"
    assert copied.row.detail["open"]["box"] == f"{ALICE} INBOX"


async def test_an_appended_message_keeps_the_trace_it_carries(here: World) -> None:
    client = await here.client()
    trace = b"00-" + b"ab" * 16 + b"-" + b"cd" * 8 + b"-01"
    await client.append(b"traceparent: " + trace + b"\r\n" + MESSAGE)
    (span,) = here.named("imap append")
    assert (span.trace_id, span.parent and span.parent.span_id) == (b"\xab" * 16, b"\xcd" * 8)
    await client.ok(b"FETCH 1 BODY[TEXT]")
    (fetched,) = here.named("imap fetch")
    assert (fetched.trace_id, fetched.parent and fetched.parent.span_id) == (b"\xab" * 16, b"\xcd" * 8)


async def test_who_leaves_in_the_middle_of_a_message_has_read_it(here: World) -> None:
    await here.deliver(b"Subject: secret\r\n\r\n" + b"x" * 30_000_000)
    await here.deliver(MESSAGE)
    client = await here.client()
    client.send(b"a FETCH 1:2 BODY.PEEK[]\r\n")
    assert await asyncio.wait_for(client.reader.read(50_000), 10)
    written = asyncio.Event()
    end = here.store.subscribe("events", written.set)
    client.writer.transport.abort()
    await asyncio.wait_for(written.wait(), 10)
    end()
    (event,) = await here.events("message.read")
    assert event.row.ref is not None, "only the first of the two"


async def test_a_mailbox_deleted_with_messages_leaves_an_event(here: World) -> None:
    client = await here.client(mailbox=None)
    await client.ok(b"CREATE Old")
    await client.append(MESSAGE, b"Old")
    await client.append(MESSAGE, b"Old")
    await client.ok(b"DELETE Old")
    (event,) = await here.events("message.expunged")
    assert len(event.row.messages) == 2
