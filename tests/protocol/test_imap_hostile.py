"""Malformed and hostile input: whatever one client sends, it gets an answer or a goodbye, every other session goes on
as if nothing had happened, and the server's memory is where it was.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from aimx.identity import scram
from aimx.imap.server import ACCOUNTS_AFTER
from tests.protocol.imap_world import ALICE, BOB, MESSAGE, PATIENCE, Client, World, world

MIB = 1024 * 1024


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, login_timeout=30) as made:
        yield made


STRANGERS = {
    "empty line": b"\r\n",
    "only a tag": b"a\r\n",
    "tag and space": b"a \r\n",
    "no tag": b" NOOP\r\n",
    "tag with wildcards": b"a*% NOOP\r\n",
    "tag +": b"+ NOOP\r\n",
    "unknown command": b"a FROBNICATE\r\n",
    "NUL": b"a NOOP\0\r\n",
    "NUL in a tag": b"a\0b NOOP\r\n",
    "8-bit": b"a \xff\xfe\xfd\r\n",
    "bare LF": b"a NOOP\n",
    "bare CR": b"a NO\rOP\r\n",
    "two spaces": b"a  NOOP\r\n",
    "trailing space": b"a NOOP \r\n",
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "SMTP": b"EHLO me\r\n",
    "TLS in TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)) + b"\r\n",
    "endless line": b"a LOGIN " + b"x" * 300_000,
    "endless tag": b"a" * 300_000,
    "literal of 100 MB": b"a LOGIN {104857600}\r\n",
    "non-synchronizing literal of 100 MB": b"a LOGIN {104857600+}\r\n" + b"x" * 100_000,
    "literal beyond 2^32": b"a LOGIN {4294967296}\r\n",
    "literal of many digits": b"a LOGIN {99999999999999999999}\r\n",
    "literal of too many digits": b"a LOGIN {" + b"9" * 500 + b"}\r\n",
    "negative literal": b"a LOGIN {-1}\r\n",
    "literal without number": b"a LOGIN {}\r\n",
    "literal with only a plus": b"a LOGIN {+}\r\n",
    "literal8": b"a LOGIN ~{3+}\r\nabc x\r\n",
    "literals without end": b"a LOGIN " + b"{4000+}\r\n" + b"x" * 4000 + b"{4000+}\r\n" + b"x" * 4000 + b"{4000+}\r\n",
    "NUL in a literal": b"a LOGIN {3+}\r\na\0b x\r\n",
    "unterminated string": b'a LOGIN "abc\r\n',
    "backslash at the end": b'a LOGIN "abc\\\r\n',
    "bad escape": b'a LOGIN "a\\bc" x\r\n',
    "bad base64": b"a AUTHENTICATE PLAIN !!!!\r\n",
    "bad PLAIN": b"a AUTHENTICATE PLAIN AAAA\r\n",
    "unknown mechanism": b"a AUTHENTICATE X-" + b"Y" * 1000 + b"\r\n",
    "not signed in": b"a SELECT INBOX\r\n",
    "ID with a list in a list": b"a ID ((((\r\n",
    "ID with too many fields": b'a ID ("a" NIL' + b' "a" NIL' * 40 + b")\r\n",
    "a command cut by the end": b"a LOGIN {5+}\r\nab",
    "append before signing in": b"a APPEND INBOX {104857600}\r\n",
}
"""What somebody may send who has not signed in."""

AGENTS = {
    "unterminated modified UTF-7": b'a CREATE "&AGE"\r\n',
    "bad modified UTF-7": b'a CREATE "&AGEAYg!-"\r\n',
    "lone surrogate": b'a CREATE "&2AA-"\r\n',
    "8-bit mailbox": b'a CREATE "\xc3\xa9"\r\n',
    "pattern that backs up": b'a LIST "" "' + b"%*" * 200 + b'x"\r\n',
    "long pattern": b'a LIST "" "' + b"*a" * 10_000 + b'"\r\n',
    "empty levels": b"a CREATE a//b\r\n",
    "path out of the mailbox": b"a CREATE ../../../../etc/passwd\r\n",
    "deep mailbox": b"a CREATE " + b"a/" * 300 + b"b\r\n",
    "mailbox of control characters": b'a CREATE "&AAAAAQ-"\r\n',
    "nested parentheses": b"a SEARCH " + b"(" * 2000 + b"ALL" + b")" * 2000 + b"\r\n",
    "nested parentheses without end": b"a SEARCH " + b"(" * 20_000 + b"\r\n",
    "nested ORs": b"a SEARCH " + b"OR ALL " * 5000 + b"ALL\r\n",
    "nested ORs to the left": b"a SEARCH " + b"OR " * 5000 + b"ALL " * 5000 + b"ALL\r\n",
    "nested NOTs": b"a SEARCH " + b"NOT " * 5000 + b"ALL\r\n",
    "alternating NOT and OR": b"a SEARCH " + b"NOT OR SEEN (NOT " * 1000 + b"ALL" + b")" * 1000 + b"\r\n",
    "OR with one key": b"a SEARCH OR ALL\r\n",
    "sequence set of 20,000": b"a UID FETCH " + b",".join(b"%d" % n for n in range(1, 11_000)) + b" FLAGS\r\n",
    "sequence set out of range": b"a FETCH 4294967296 FLAGS\r\n",
    "sequence set with zero": b"a FETCH 0:5 FLAGS\r\n",
    "sequence set of commas": b"a FETCH ,,,, FLAGS\r\n",
    "whole range": b"a UID FETCH 1:4294967295 FLAGS\r\n",
    "unknown fetch item": b"a FETCH 1 FROB\r\n",
    "section without end": b"a FETCH 1 BODY[1.2.3\r\n",
    "section zero": b"a FETCH 1 BODY[0]\r\n",
    "section of many levels": b"a FETCH 1 BODY[" + b"1." * 5000 + b"1]\r\n",
    "section out of range": b"a FETCH 1 BODY[99999999999]\r\n",
    "partial of zero": b"a FETCH 1 BODY[]<0.0>\r\n",
    "partial out of range": b"a FETCH 1 BODY[]<4294967295.4294967295>\r\n",
    "partial beyond": b"a FETCH 1 BODY[]<99999999999.1>\r\n",
    "many fields": b"a FETCH 1 BODY[HEADER.FIELDS (" + b"X-A " * 10_000 + b"Z)]\r\n",
    "fields without any": b"a FETCH 1 BODY[HEADER.FIELDS ()]\r\n",
    "field that is none": b'a FETCH 1 BODY[HEADER.FIELDS ("a:b c")]\r\n',
    "many items": b"a FETCH 1 (" + b" ".join(b"BODY[%d]" % n for n in range(1, 3000)) + b")\r\n",
    "system flag that is none": b"a STORE 1 +FLAGS (\\Nonsense)\r\n",
    "many keywords": b"a STORE 1 +FLAGS (" + b" ".join(b"k%d" % n for n in range(5000)) + b")\r\n",
    "long keyword": b"a STORE 1 +FLAGS (" + b"k" * 50_000 + b")\r\n",
    "flags without end": b"a STORE 1 +FLAGS (\\Seen\r\n",
    "date that is none": b"a SEARCH ON 31-Feb-2026\r\n",
    "date of the year zero": b"a SEARCH SINCE 1-Jan-0000\r\n",
    "last date": b"a SEARCH ON 31-Dec-9999\r\n",
    "bad charset": b"a SEARCH CHARSET X-NONE TEXT x\r\n",
    "bad UTF-8": b"a SEARCH CHARSET UTF-8 TEXT {2+}\r\n\xff\xfe\r\n",
    "append of too much": b"a APPEND INBOX {4294967295}\r\n",
    "append of nothing": b"a APPEND INBOX {0+}\r\n\r\n",
    "append with a date that is none": b'a APPEND INBOX "99-Xyz-2026 99:99:99 +9999" {1+}\r\nx\r\n',
    "append without a literal": b'a APPEND INBOX "abc"\r\n',
    "append without separator": b"a APPEND INBOX {2000+}\r\n" + b"x" * 2000 + b"\r\n",
    "append of a long header": b"a APPEND INBOX {600000+}\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
    "line beyond the limit": b"a SEARCH " + b"x" * 500_000 + b"\r\n",
    "literal beyond the limit": b"a SEARCH TEXT {900000+}\r\n" + b"x" * 900_000 + b"\r\n",
    "not DONE": b"a IDLE\r\nNONSENSE\r\n",
    "endless IDLE": b"a IDLE\r\n" + b"x" * 100_000,
    "status of nothing": b"a STATUS INBOX ()\r\n",
    "rename into itself": b"a RENAME Archive Archive/b\r\n",
    "delete INBOX": b"a DELETE inbox\r\n",
    "enable nothing": b"a ENABLE\r\n",
    "bare LF inside": b"a SEARCH TEXT\n x\r\n",
}
"""What an agent may send who has."""


CLOSED = b"* BYE (closed)"


async def _answered(client: Client) -> bytes:
    """The next thing said; nothing when the server waits for more. Who still sends may miss the goodbye."""
    try:
        return await asyncio.wait_for(client.line(), 2.0) or CLOSED
    except ConnectionError:
        return CLOSED
    except TimeoutError:
        return b""


async def _unharmed(bystander: Client, kind: str) -> None:
    started = time.monotonic()
    untagged = await bystander.ok(b"UID FETCH 1 (FLAGS BODY.PEEK[TEXT])")
    assert any(b"How are you?" in line for line in untagged), kind
    assert time.monotonic() - started < 2.0, f"{kind} held up everybody"


async def test_strangers_harm_nobody(here: World) -> None:
    await here.deliver()
    bystander = await here.client()
    await _unharmed(bystander, "nothing")
    before = psutil.Process().memory_info().rss
    for kind, octets in STRANGERS.items():
        client = await here.tls()
        client.send(octets)
        await _unharmed(bystander, kind)
        if kind not in ("a command cut by the end",):
            answer = await _answered(client)
            assert answer, f"{kind} was not answered"
            assert b"OK" not in answer.split(b" ")[:2], f"{kind}: {answer!r}"
            for secret in (b"Traceback", b"Error", b"Exception", b"/"):
                assert secret not in answer, f"{kind}: {answer!r}"
        await client.close()
    assert psutil.Process().memory_info().rss - before < 48 * MIB


async def test_agents_harm_nobody(here: World) -> None:
    await here.deliver()
    bystander = await here.client()
    await _unharmed(bystander, "nothing")
    before = psutil.Process().memory_info().rss
    for kind, octets in AGENTS.items():
        client = await here.client()
        client.send(octets)
        await _unharmed(bystander, kind)
        while (answer := await _answered(client)) and not answer.startswith((b"a ", b"* BYE")):
            pass
        assert answer, f"{kind} was not answered"
        assert b"SERVERBUG" not in answer, f"{kind}: {answer!r}"
        for secret in (b"Traceback", b"Exception", b"sqlite"):
            assert secret not in answer, f"{kind}: {answer!r}"
        if not answer.startswith(b"* BYE"):
            # The stream is in step: the next command is understood.
            client.send(b"z NOOP\r\n")
            assert (await client.until(b"z"))[1] == b"OK NOOP done", kind
        await client.close()
    assert psutil.Process().memory_info().rss - before < 64 * MIB
    assert here.budget.held == 0


async def test_too_many_bad_commands_end_the_session(here: World) -> None:
    client = await here.tls()
    client.send(b"a X\r\n" * 50)
    assert (await client.at_end()).endswith(b"* BYE too many bad commands\r\n")


async def test_too_many_failed_sign_ins_end_the_session(here: World) -> None:
    client = await here.tls()
    client.send(b"a LOGIN alice wrong\r\n" * 9)
    said = await client.at_end()
    assert said.count(b"AUTHENTICATIONFAILED") == 4
    assert said.endswith(b"* BYE too many failed sign-ins\r\n")


async def test_a_client_that_reads_nothing_holds_no_memory_and_nobody_up(here: World) -> None:
    body = b"Subject: big\r\n\r\n" + b"x" * 79 * 20_000
    await here.deliver(MESSAGE)
    await here.deliver(body)
    bystander, client = await here.client(), await here.client()
    before = psutil.Process().memory_info().rss
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    client.send(b"a FETCH 2 BODY.PEEK[]\r\n" * 200)  # 300 MB of answers
    for _ in range(20):
        await _unharmed(bystander, "a peer that does not read")
        await asyncio.sleep(0.02)
    assert psutil.Process().memory_info().rss - before < 32 * MIB


async def test_slow_clients_are_let_go(tmp_path: Path) -> None:
    async with world(tmp_path, login_timeout=0.5, idle_timeout=1.0) as here:
        stranger, agent = await here.tls(), await here.client()
        half = await here.client()
        half.send(b"a APPEND INBOX {1000}\r\n")
        assert await half.line() == b"+ go ahead"
        assert here.budget.held == 1000
        for client in (stranger, agent, half):
            assert (await asyncio.wait_for(client.reader.read(), PATIENCE)).endswith(b"* BYE too slow, closing\r\n")
        assert here.budget.held == 0


async def test_the_budget_of_the_node_bounds_what_is_uploaded(here: World) -> None:
    here.budget.shrink(10_000, share=10_000)
    first, second = await here.client(), await here.client()
    first.send(b"a APPEND INBOX {9000}\r\n")
    assert await first.line() == b"+ go ahead"
    second.send(b"b APPEND INBOX {9000}\r\n")
    assert (await second.until(b"b"))[1].startswith(b"NO [LIMIT] ")
    first.send(MESSAGE + b"x" * (9000 - len(MESSAGE)) + b"\r\n")
    assert (await first.until(b"a"))[1].startswith(b"OK [APPENDUID ")
    assert (await second.append(MESSAGE)).startswith(b"OK [APPENDUID ")


@pytest.mark.parametrize(
    "message",
    [
        b"From: " + b"()" * 60_000 + b"\r\nTo: " + b"<" * 60_000 + b"\r\n\r\nx",
        b"".join(b"To: %b\r\n" % (b"a," * 400) for _ in range(200)) + b"\r\n",
        b"A:\r\n" * 40_000 + b"\r\nx",
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\n" * 30_000,
        b"Content-Type: message/rfc822\r\n\r\n" * 3000,
        b"Content-Type: text/plain" + b'; a="b"' * 20_000 + b"\r\n\r\nx",
    ],
    ids=["comments", "addresses", "fields", "parts", "messages", "parameters"],
)
async def test_a_message_made_to_be_slow_holds_up_nobody(here: World, message: bytes) -> None:
    await here.deliver()
    await here.deliver(message)
    bystander, client = await here.client(), await here.client()
    client.send(b"a UID FETCH 2 (ENVELOPE BODYSTRUCTURE BODY.PEEK[1.2] BODY.PEEK[HEADER.FIELDS (To)])\r\n")
    client.send(b"b SEARCH TEXT no-such-text\r\n")
    answer = asyncio.ensure_future(client.until(b"b"))
    while not answer.done():
        await _unharmed(bystander, "a message made to be slow")
        await asyncio.sleep(0.01)
    assert (await answer)[1] == b"OK SEARCH done"


BIG_HEADER = b"".join(b"X-%d: %b\r\n" % (n, b"y" * 900) for n in range(250)) + b"\r\nbody"
"""225 KiB."""


async def test_hundreds_of_items_of_one_large_header_hold_up_nobody(here: World) -> None:
    await here.deliver()
    await here.deliver(b"".join(b"H%d:\r\n" % n for n in range(25_000)) + b"\r\nbody")
    bystander, client = await here.client(), await here.client()
    items = b" ".join(b"BODY.PEEK[HEADER.FIELDS.NOT (a%d)]" % n for n in range(100))
    client.send(b"a UID FETCH 2 (%b)\r\n" % items)
    answer = asyncio.ensure_future(client.until(b"a"))
    worst = 0.0
    while not answer.done():
        started = time.monotonic()
        await _unharmed(bystander, "many items")
        worst = max(worst, time.monotonic() - started)
        await asyncio.sleep(0.01)
    assert (await answer)[1] == b"OK UID FETCH done"
    assert worst < 1.0


@pytest.mark.parametrize(
    "items",
    [b"BODY.PEEK[HEADER]", b"(" + b" ".join(b"BODY.PEEK[HEADER]<0.%d>" % (300_000 + n) for n in range(60)) + b")"],
    ids=["many messages", "many items"],
)
async def test_large_headers_that_nobody_takes_hold_no_memory(here: World, items: bytes) -> None:
    await here.deliver()
    for _ in range(200):
        await here.deliver(BIG_HEADER)
    bystander, client = await here.client(), await here.client()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    before = psutil.Process().memory_info().rss
    client.send(b"a UID FETCH 2:* %b\r\n" % items)
    for _ in range(50):
        await _unharmed(bystander, "large headers")
        await asyncio.sleep(0.02)
    assert psutil.Process().memory_info().rss - before < 24 * MIB


async def test_a_search_for_thousands_of_texts_is_refused_and_for_many_holds_up_nobody(here: World) -> None:
    await here.deliver()
    await here.deliver(b"Subject: big\r\n\r\n" + b"x" * 79 * 3000)
    bystander, client = await here.client(), await here.client()
    assert (await client.ask(b"SEARCH" + b" BODY x" * 8000))[1].startswith(b"NO [LIMIT] ")
    client.send(b"a SEARCH" + b" BODY xxxxxxxx" * 200 + b"\r\n")
    answer = asyncio.ensure_future(client.until(b"a"))
    while not answer.done():
        await _unharmed(bystander, "many texts")
        await asyncio.sleep(0.01)
    assert await answer == ([b"* SEARCH 2"], b"OK SEARCH done")


async def test_one_agent_alone_cannot_keep_others_from_storing(here: World) -> None:
    here.budget.shrink(64 * MIB + 1000, share=64 * MIB)
    greedy = [await here.client() for _ in range(3)]
    for client in greedy:
        client.send(b"a APPEND INBOX {30000000}\r\n")
    said = [await client.line() for client in greedy]
    assert [line.split(b" ")[0] for line in said] == [b"+", b"+", b"a"]
    assert said[2].startswith(b"a NO [LIMIT] ")
    other = await here.client(BOB)
    assert (await other.append(MESSAGE)).startswith(b"OK [APPENDUID ")
    for client in greedy:
        await client.close()


async def test_an_upload_that_trickles_is_let_go(tmp_path: Path) -> None:
    async with world(tmp_path, idle_timeout=1.0) as here:
        client = await here.client()
        client.send(b"a APPEND INBOX {1000000}\r\n")
        assert await client.line() == b"+ go ahead"
        said = asyncio.ensure_future(client.at_end())
        async with asyncio.timeout(PATIENCE):
            while not said.done():
                client.send(b"x")
                await asyncio.sleep(0.2)
        assert (await said).endswith(b"* BYE too slow, closing\r\n")
        assert here.budget.held == 0


async def test_another_password_ends_open_sessions_also_those_that_wait(here: World) -> None:
    working, waiting, other = await here.client(), await here.client(), await here.client(BOB)
    waiting.send(b"i IDLE\r\n")
    assert await waiting.line() == b"+ idling"
    agent = await here.store.agent(ALICE)
    assert agent is not None
    await here.store.update_agent(replace(agent, max_unacked=9), [])
    await asyncio.sleep(2 * ACCOUNTS_AFTER)
    await working.ok(b"NOOP")
    await here.store.update_agent(replace(agent, credential=scram.derive("another")), [])
    for client in (working, waiting):
        assert await client.at_end() == b"* BYE your password was changed; sign in again\r\n"
    await other.ok(b"NOOP")


@pytest.mark.parametrize("date", [b"01-Jan-0001 00:00:00 +1200", b"31-Dec-9999 23:59:59 -0100"])
async def test_a_date_that_cannot_be_told_is_not_taken(here: World, date: bytes) -> None:
    client = await here.client()
    assert (await client.ask(b'APPEND INBOX "%b" {1+}\r\nx' % date))[1] == b"BAD no such date"
    await client.append(MESSAGE)
    await client.ok(b"UID FETCH 1:* INTERNALDATE")


async def test_renaming_makes_no_names_that_create_would_not(here: World) -> None:
    client = await here.client()
    await client.ok(b"CREATE " + b"a/" + b"b" * 200)
    assert (await client.ask(b"RENAME a " + b"c" * 100))[1].startswith(b"NO [CANNOT]")
    await client.ok(b"RENAME a ccc")
