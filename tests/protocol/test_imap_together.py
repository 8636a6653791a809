"""Several sessions on one mailbox: they agree, they are told at the right moments, and IDLE wakes at once."""

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.protocol.imap_world import Client, World, world


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def test_idle_is_woken_by_a_delivery_and_by_anothers_changes(here: World) -> None:
    client, other = await here.client(), await here.client()
    client.send(b"i IDLE\r\n")
    assert await client.line() == b"+ idling"
    started = time.monotonic()
    await here.deliver()
    assert await client.line() == b"* 1 EXISTS"
    assert time.monotonic() - started < 1.0
    assert re.fullmatch(rb"\* \d RECENT", await client.line())
    await other.ok(b"NOOP")
    await other.ok(rb"STORE 1 +FLAGS (\Flagged)")
    flagged = await client.line()
    assert flagged.startswith(b"* 1 FETCH (FLAGS (\\Flagged")
    await other.ok(rb"STORE 1 +FLAGS (\Deleted)")
    assert b"\\Deleted" in await client.line()
    await other.ok(b"EXPUNGE")
    assert await client.line() == b"* 1 EXPUNGE"
    client.send(b"DONE\r\n")
    assert (await client.until(b"i"))[1] == b"OK IDLE done"


async def test_idle_without_a_mailbox_and_with_done_pipelined(here: World) -> None:
    client = await here.client(mailbox=None)
    client.send(b"i IDLE\r\nDONE\r\nj NOOP\r\n")
    assert await client.line() == b"+ idling"
    assert (await client.until(b"i"))[1] == b"OK IDLE done"
    assert (await client.until(b"j"))[1] == b"OK NOOP done"
    client.send(b"k IDLE\r\n")
    assert await client.line() == b"+ idling"
    client.send(b"NOOP\r\n")
    assert (await client.until(b"k"))[1] == b"BAD expected DONE"


async def test_expunge_waits_for_a_command_that_may_bring_it(here: World) -> None:
    for _ in range(3):
        await here.deliver()
    client, other = await here.client(), await here.client()
    await other.ok(rb"STORE 1 +FLAGS.SILENT (\Deleted)")
    await other.ok(b"EXPUNGE")
    # The numbers still mean what they meant: 3 is the last message.
    untagged, tagged = await client.ask(b"FETCH 1:3 UID")
    assert untagged == [b"* 2 FETCH (UID 2)", b"* 3 FETCH (UID 3)"]
    assert tagged == b"OK [EXPUNGEISSUED] FETCH done"
    assert await client.ok(b"SEARCH ALL") == [b"* SEARCH 2 3"]
    assert await client.ok(rb"STORE 3 +FLAGS (\Seen)") == [rb"* 3 FETCH (FLAGS (\Recent \Seen))"]
    assert await client.ok(b"NOOP") == [b"* 1 EXPUNGE"]
    assert await client.ok(b"FETCH 2 UID") == [b"* 2 FETCH (UID 3)"]


async def test_a_mailbox_deleted_under_a_session_ends_it_and_only_it(here: World) -> None:
    client, other = await here.client(mailbox=None), await here.client()
    await other.ok(b"CREATE Work")
    await client.select(b"Work")
    await other.ok(b"DELETE Work")
    client.send(b"a NOOP\r\n")
    assert (await client.at_end()).endswith(b"* BYE the mailbox was deleted\r\n")
    await other.ok(b"NOOP")


async def test_new_mail_has_a_number_only_once_it_was_told(here: World) -> None:
    client = await here.client()
    await here.deliver()
    untagged, tagged = await client.ask(b"FETCH 1 FLAGS")
    assert tagged == b"BAD no message has that number"
    assert untagged[0] == b"* 1 EXISTS"
    assert await client.ok(b"FETCH 1 UID") == [b"* 1 FETCH (UID 1)"]


class _Mirror:
    """A client that believes only what it is told: its sequence of UIDs must never contradict the server."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.count = 0
        self.uids: list[int | None] = []

    async def ask(self, command: bytes) -> None:
        untagged, tagged = await self.client.ask(command)
        assert not tagged.startswith(b"BAD"), (command, tagged)
        for line in untagged:
            await self.hear(line, command)

    async def hear(self, line: bytes, command: bytes) -> None:
        number, _, rest = line.removeprefix(b"* ").partition(b" ")
        if rest == b"EXPUNGE":
            assert command.split()[0] not in (b"FETCH", b"STORE", b"SEARCH"), line
            del self.uids[int(number) - 1]
        elif rest == b"EXISTS":
            assert int(number) >= len(self.uids), "EXISTS may not shrink a mailbox"
            self.uids += [None] * (int(number) - len(self.uids))
        elif (found := re.search(rb"UID (\d+)", rest)) and rest.startswith(b"FETCH"):
            known = self.uids[int(number) - 1]
            assert known in (None, int(found[1])), f"{number!r} was {known} and is now {found[1]!r}"
            self.uids[int(number) - 1] = int(found[1])


async def test_many_sessions_expunging_at_once_never_disagree(here: World) -> None:
    """What pymap lost in eight seconds: every sequence number means one message until its client is told otherwise."""
    for _ in range(40):
        await here.deliver()
    mirrors = [_Mirror(await here.client(mailbox=None)) for _ in range(4)]
    for mirror in mirrors:
        await mirror.ask(b"SELECT INBOX")
    dice = random.Random(7)

    async def act(mirror: _Mirror) -> None:
        for _ in range(60):
            count = len(mirror.uids)
            number = dice.randint(1, count) if count else 1
            choice = dice.random()
            if not count or choice < 0.1:
                await here.deliver()
                await mirror.ask(b"NOOP")
            elif choice < 0.5:
                await mirror.ask(b"FETCH %d (UID FLAGS)" % number)
            elif choice < 0.75:
                await mirror.ask(rb"STORE %d +FLAGS (\Deleted)" % number)
            elif choice < 0.85:
                await mirror.ask(b"EXPUNGE")
            elif choice < 0.95:
                await mirror.ask(b"UID SEARCH ALL")
            else:
                await mirror.ask(b"UID FETCH 1:* FLAGS")

    await asyncio.wait_for(asyncio.gather(*map(act, mirrors)), 60)
    seen = []
    for mirror in mirrors:
        await mirror.ask(b"NOOP")
        await mirror.ask(b"FETCH 1:* UID") if mirror.uids else None
        seen.append(mirror.uids)
    assert all(uids == seen[0] for uids in seen)
