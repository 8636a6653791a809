"""Mailboxes as such: creating, renaming, listing, subscribing, asking for their status."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aimx.store.sqlite import mailboxes
from tests.protocol.imap_world import World, world


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def test_a_new_agent_finds_its_mailboxes_with_their_uses(here: World) -> None:
    client = await here.client(mailbox=None)
    assert await client.ok(b'LIST "" "*"') == [
        rb'* LIST (\HasNoChildren) "/" INBOX',
        rb'* LIST (\HasNoChildren \Archive) "/" Archive',
        rb'* LIST (\HasNoChildren \Drafts) "/" Drafts',
        rb'* LIST (\HasNoChildren \Sent) "/" Sent',
        rb'* LIST (\HasNoChildren \Trash) "/" Trash',
    ]
    assert await client.ok(b'LIST (SPECIAL-USE) "" "S*" RETURN (SPECIAL-USE)') == [
        rb'* LIST (\HasNoChildren \Sent) "/" Sent'
    ]
    assert await client.ok(b'LIST "" ""') == [rb'* LIST (\Noselect) "/" ""']
    assert await client.ok(b"NAMESPACE") == [b'* NAMESPACE (("" "/")) NIL NIL']


async def test_levels_wildcards_and_names_beyond_ascii(here: World) -> None:
    client = await here.client(mailbox=None)
    await client.ok(b"CREATE Projects/Mars/Rover")
    await client.ok(b"CREATE Projects/&ZeVnLIqe-")
    await client.ok(b'CREATE "A&-B with space"')
    assert await client.ok(b"LIST Projects/ %") == [
        rb'* LIST (\HasChildren) "/" Projects/Mars',
        rb'* LIST (\HasNoChildren) "/" Projects/&ZeVnLIqe-',
    ]
    assert rb'* LIST (\HasChildren) "/" Projects' in await client.ok(b'LIST "" %')
    assert await client.ok(b'LIST "" Projects/*r') == [rb'* LIST (\HasNoChildren) "/" Projects/Mars/Rover']
    assert await client.ok(b'LIST "" A*e') == [
        rb'* LIST (\HasNoChildren) "/" "A&-B with space"',
        rb'* LIST (\HasNoChildren \Archive) "/" Archive',
    ]
    assert await client.ok(b'LIST "" inbox') == [rb'* LIST (\HasNoChildren) "/" INBOX']


async def test_rename_takes_inferiors_along_and_delete_leaves_them(here: World) -> None:
    client = await here.client(mailbox=None)
    await client.ok(b"CREATE a/b/c")
    await client.ok(b"RENAME a/b x/y")
    assert await client.ok(b'LIST "" x*') == [
        rb'* LIST (\HasChildren) "/" x',
        rb'* LIST (\HasChildren) "/" x/y',
        rb'* LIST (\HasNoChildren) "/" x/y/c',
    ]
    assert (await client.ask(b"RENAME a INBOX"))[1].startswith(b"NO [ALREADYEXISTS]")
    assert (await client.ask(b"RENAME nope other"))[1].startswith(b"NO [NONEXISTENT]")
    await client.ok(b"DELETE x/y")
    assert await client.ok(b'LIST "" x/*') == [
        rb'* LIST (\Noselect \HasChildren) "/" x/y',
        rb'* LIST (\HasNoChildren) "/" x/y/c',
    ]
    assert (await client.ask(b"DELETE inbox"))[1].startswith(b"NO [CANNOT]")
    assert (await client.ask(b"CREATE Inbox"))[1].startswith(b"NO [ALREADYEXISTS]")


async def test_renaming_inbox_moves_its_messages_and_keeps_it(here: World) -> None:
    await here.deliver()
    client = await here.client(mailbox=None)
    await client.ok(b"RENAME INBOX Old")
    assert await client.ok(b"STATUS Old (MESSAGES)") == [b"* STATUS Old (MESSAGES 1)"]
    assert await client.ok(b"STATUS INBOX (MESSAGES)") == [b"* STATUS INBOX (MESSAGES 0)"]


async def test_subscriptions_outlive_their_mailboxes(here: World) -> None:
    client = await here.client(mailbox=None)
    await client.ok(b"CREATE news/today")
    await client.ok(b"SUBSCRIBE news/today")
    assert (await client.ask(b"SUBSCRIBE nowhere"))[1].startswith(b"NO [NONEXISTENT]")
    await client.ok(b"DELETE news/today")
    assert rb'* LSUB () "/" news/today' in await client.ok(b'LSUB "" *')
    assert rb'* LSUB (\Noselect) "/" news' in await client.ok(b'LSUB "" %')
    await client.ok(b"UNSUBSCRIBE news/today")
    assert not [line for line in await client.ok(b'LSUB "" *') if b"news" in line]


async def test_status_counts(here: World) -> None:
    await here.deliver(b"Subject: a\r\n\r\nxyz")
    await here.deliver(b"Subject: a\r\n\r\nxyz")
    client = await here.client()
    await client.ok(rb"STORE 1 +FLAGS (\Seen)")
    (line,) = await client.ok(b"STATUS INBOX (MESSAGES UNSEEN UIDNEXT SIZE RECENT UIDVALIDITY)")
    assert line.startswith(b"* STATUS INBOX (MESSAGES 2 UNSEEN 1 UIDNEXT 3 SIZE 34 RECENT 0 UIDVALIDITY ")
    assert await client.ok(b"STATUS INBOX (APPENDLIMIT)") == [b"* STATUS INBOX (APPENDLIMIT 52428800)"]
    assert (await client.ask(b"STATUS Nope (MESSAGES)"))[1].startswith(b"NO [NONEXISTENT]")
    assert (await client.ask(b"STATUS INBOX (NOPE)"))[1] == b"BAD unknown status item"


async def test_mailboxes_and_subscriptions_have_an_end(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await here.client(mailbox=None)
    monkeypatch.setattr(mailboxes, "MOST", 7)
    await client.ok(b"CREATE one")
    await client.ok(b"CREATE two")
    assert (await client.ask(b"CREATE three"))[1].startswith(b"NO [OVERQUOTA]")
    assert (await client.ask(b"RENAME INBOX three"))[1].startswith(b"NO [OVERQUOTA]")
    await client.ok(b"RENAME two three")
    await client.ok(b"SUBSCRIBE one")
    await client.ok(b"SUBSCRIBE three")
    await client.ok(b"DELETE one")
    await client.ok(b"CREATE four")
    assert (await client.ask(b"SUBSCRIBE four"))[1].startswith(b"NO [OVERQUOTA]")
    await client.ok(b"UNSUBSCRIBE one")
    await client.ok(b"SUBSCRIBE four")
