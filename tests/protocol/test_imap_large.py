"""Large messages and large mailboxes: read in parts, in bounded memory, while others are served. How a server ends."""

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.protocol.imap_world import ALICE, BOB, MESSAGE, PATIENCE, Client, World, world

MIB = 1024 * 1024
ATTACHMENT = b"".join(b"%076d\r\n" % number for number in range(24 * MIB // 78))
LARGE = (
    b"From: carol@fabric.local\r\nSubject: large\r\nContent-Type: multipart/mixed; boundary=bb\r\n\r\n"
    b"--bb\r\nContent-Type: text/plain\r\n\r\nsee below\r\n"
    b"--bb\r\nContent-Type: application/octet-stream\r\n\r\n" + ATTACHMENT + b"\r\n--bb--\r\n"
)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


def own_memory() -> int:
    """Octets, without the pages of mapped files."""
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared


async def digest_of_literal(client: Client, tag: bytes) -> tuple[int, bytes]:
    """Size and SHA-256 of the one literal in the answer, without keeping it."""
    head = await client.reader.readuntil(b"}\r\n")
    size = left = int(re.search(rb"\{(\d+)\}", head)[1])  # type: ignore[index]
    digest = hashlib.sha256()
    while left:
        piece = await asyncio.wait_for(client.reader.read(min(left, 65536)), PATIENCE)
        digest.update(piece)
        left -= len(piece)
    while not (await client.line()).startswith(tag):
        pass
    return size, digest.digest()


async def test_a_large_message_comes_and_goes_in_parts(here: World) -> None:
    client, bystander = await here.client(), await here.client()
    await here.deliver(MESSAGE, to=ALICE, folder="Drafts")
    assert (await client.append(LARGE)).startswith(b"OK [APPENDUID ")
    client.send(b"w FETCH 1 BODY.PEEK[2]\r\n")  # once before: SQLite fills its page cache
    await digest_of_literal(client, b"w ")
    before, peak = own_memory(), 0
    slowest = 0.0
    client.send(b"a FETCH 1 BODY.PEEK[2]\r\n")
    answer = asyncio.ensure_future(digest_of_literal(client, b"a "))
    while not answer.done():
        started = time.monotonic()
        await bystander.ok(b"NOOP")
        slowest = max(slowest, time.monotonic() - started)
        peak = max(peak, own_memory())
        await asyncio.sleep(0.005)
    assert await answer == (len(ATTACHMENT), hashlib.sha256(ATTACHMENT).digest())
    assert peak - before < 12 * MIB, "the body was held whole"
    assert slowest < 0.5
    (line,) = await client.ok(b"FETCH 1 (RFC822.SIZE BODY)")
    assert b'("APPLICATION" "OCTET-STREAM" NIL NIL NIL "7BIT" %d) "MIXED")' % len(ATTACHMENT) in line
    # Windows into it, as clients read attachments.
    start = 20 * MIB
    (line,) = await client.ok(b"FETCH 1 BODY.PEEK[2]<%d.1000>" % start)
    assert line == b"* 1 FETCH (BODY[2]<%d> {1000}\r\n%b)" % (start, ATTACHMENT[start : start + 1000])
    assert await client.ok(b'SEARCH BODY "%076d"' % 300_000) == [b"* SEARCH 1"]
    assert here.budget.held == 0


async def test_a_command_on_ten_thousand_messages_asks_the_store_a_few_times(here: World) -> None:
    await asyncio.gather(*(here.deliver(b"Subject: %d\r\n\r\nx" % number) for number in range(3000)))
    client = await here.client()
    asked = 0
    fetch = here.store.fetch

    async def counted(*arguments: object, **rest: object) -> object:
        nonlocal asked
        asked += 1
        return await fetch(*arguments, **rest)  # type: ignore[arg-type]

    here.store.fetch = counted  # type: ignore[method-assign, assignment]
    untagged = await client.ok(b"UID FETCH 1:* (FLAGS)")
    assert len(untagged) == 3000
    assert untagged[2999] == rb"* 3000 FETCH (UID 3000 FLAGS (\Recent))"
    assert asked == 1
    assert len(await client.ok(rb"STORE 1:* +FLAGS (\Seen)")) == 3000
    assert asked == 1


async def test_idle_clients_are_told_when_the_server_stops(here: World) -> None:
    idle, waiting = await here.client(), await here.client()
    idle.send(b"i IDLE\r\n")
    assert await idle.line() == b"+ idling"
    started = time.monotonic()
    await here.server.stop(5.0)
    assert time.monotonic() - started < 3.0
    for client in (idle, waiting):
        assert (await client.at_end()).endswith(b"* BYE the server is stopping\r\n")


async def test_a_disabled_agent_is_let_go(here: World) -> None:
    idle, waiting = await here.client(), await here.client()
    bob = await here.client(BOB)
    idle.send(b"i IDLE\r\n")
    assert await idle.line() == b"+ idling"
    agent = await here.store.agent(ALICE)
    assert agent is not None
    await here.store.update_agent(replace(agent, disabled=True), [])
    for client in (idle, waiting):
        assert (await client.at_end()).endswith(b"* BYE this account was closed\r\n")
    await bob.ok(b"NOOP")
    again = await here.tls()
    assert (await again.ask(b"LOGIN alice correct-horse-battery"))[1].startswith(b"NO [AUTHENTICATIONFAILED]")


async def test_a_store_that_fails_costs_a_command_and_no_session(here: World) -> None:
    await here.deliver()
    client = await here.client()
    fetch = here.store.fetch

    async def broken(*arguments: object, **rest: object) -> object:
        raise RuntimeError("/secret/path: disk I/O error")

    here.store.fetch = broken  # type: ignore[method-assign, assignment]
    assert (await client.ask(b"FETCH 1 FLAGS"))[1] == b"NO [SERVERBUG] we failed, it was logged; try again"
    here.store.fetch = fetch  # type: ignore[method-assign]
    assert await client.ok(b"FETCH 1 UID") == [b"* 1 FETCH (UID 1)"]
