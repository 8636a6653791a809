"""What a peer is told when it is too much, and that it ends by itself."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiosmtplib
import pytest

from aimx import node as node_module
from tests.protocol.mail_node import PASSWORD, MailNode, add_agent, address, running
from tests.protocol.test_mail import until


@asynccontextmanager
async def signed_in(node: MailNode, agent: str = "ada") -> AsyncIterator[aiosmtplib.SMTP]:
    host, port = node.ready.smtps.rsplit(":", 1)
    async with aiosmtplib.SMTP(hostname=host, port=int(port), use_tls=True, tls_context=node.tls()) as client:
        await client.login(address(agent), PASSWORD)
        yield client


async def mail(client: aiosmtplib.SMTP, to: str = "bob", agent: str = "ada") -> None:
    text = f"From: {address(agent)}\r\nTo: {address(to)}\r\n\r\nhello\r\n"
    await client.sendmail(address(agent), [address(to)], text)


async def refused(client: aiosmtplib.SMTP, code: int, begins: str, to: str = "bob") -> str:
    with pytest.raises(aiosmtplib.SMTPResponseException) as caught:
        await mail(client, to)
    assert (caught.value.code, caught.value.message[: len(begins)]) == (code, begins)
    return str(caught.value.message)


async def test_who_sends_too_fast_is_told_when_to_come_again_and_others_are_not_held_up(tmp_path: Path) -> None:
    limits = {"messages_per_second": 5, "message_burst": 3}
    async with running(tmp_path, ["ada", "bob"], limits=limits) as node, signed_in(node) as ada:
        for _ in range(3):
            await mail(ada)
        said = await refused(ada, 451, "4.7.1 you send more than 5 messages a second")
        assert said.endswith("in 1 s")
        async with signed_in(node, "bob") as bob:
            await mail(bob, "ada", "bob")

        async def again() -> bool:
            try:
                await mail(ada)
            except aiosmtplib.SMTPResponseException:
                return False
            return True

        await until(again)
        assert len(await node.inbox("bob")) == 4


async def test_with_a_full_queue_only_what_would_not_wait_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "MEASURE_EVERY", 0.02)
    delivery = {"first_delay": "20ms", "max_delay": "50ms", "jitter": 0.0}
    async with running(tmp_path, ["ada", "bob"], limits={"queue": 2}, delivery=delivery) as node:
        await add_agent(node.store, "busy", max_unacked=1)
        async with signed_in(node) as ada:
            for _ in range(3):
                await mail(ada, "busy")
            pressure = node.node._intake.pressure
            await until(lambda: _is(pressure.queue_depth == 2))
            assert "waits" in await refused(ada, 451, "4.4.5", "busy")
            await mail(ada, "bob")
            # Somebody reads, the queue empties, and mail is taken again.
            await until(lambda: _acked(node, 3))
            await until(lambda: _is(pressure.queue_depth == 0))
            await mail(ada, "busy")


async def _is(condition: bool) -> bool:
    return condition


async def _acked(node: MailNode, count: int) -> bool:
    await node.ack("busy")
    return len(await node.inbox("busy")) == count


async def test_while_the_store_is_slow_mail_is_turned_away_before_its_octets_come(tmp_path: Path) -> None:
    """Another process holds the file's lock, as a slow disk would."""
    async with running(tmp_path, ["ada", "bob"], limits={"store_wait": "200ms"}) as node:
        async with signed_in(node) as first, signed_in(node) as second:
            other = sqlite3.connect(node.folder / "mail.db", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            waiting = asyncio.create_task(mail(first))
            await asyncio.sleep(0)
            pressure = node.node._intake.pressure
            await until(lambda: _is(pressure.refusal() is not None))
            await refused(second, 451, "4.3.2 the node's store is slow")
            other.execute("ROLLBACK")
            other.close()
            await waiting
            await mail(second)
        assert len(await node.inbox("bob")) == 2


async def test_a_store_that_cannot_write_in_time_says_so_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aimx.store.sqlite import connection

    monkeypatch.setattr(connection.connect, "__kwdefaults__", {"busy_s": 0.05})
    async with running(tmp_path, ["ada", "bob"]) as node, signed_in(node) as ada:
        other = sqlite3.connect(node.folder / "mail.db", isolation_level=None, timeout=10)
        other.execute("BEGIN IMMEDIATE")
        await refused(ada, 451, "4.3.2 the node's store has more to do than it can")
        other.execute("ROLLBACK")
        other.close()
        await mail(ada)
        assert len(await node.inbox("bob")) == 1
        assert (await node.verify()).ok


async def test_an_address_that_connects_too_often_is_turned_away(tmp_path: Path) -> None:
    async with running(tmp_path, limits={"connections_per_minute": 3}) as node:
        host, port = node.ready.smtp.rsplit(":", 1)
        said = []
        for _ in range(4):
            reader, writer = await asyncio.open_connection(host, int(port))
            said.append(await reader.readline())
            writer.close()
        assert [line[:3] for line in said] == [b"220"] * 3 + [b"421"]
        assert b"4.7.0 too many connections" in said[3]
        reader, writer = await asyncio.open_connection(*node.ready.imap.rsplit(":", 1))
        assert (await reader.readline()).startswith(b"* OK")  # each protocol counts for itself
        writer.close()


async def test_imap_commands_that_fill_the_log_have_a_pace_and_others_have_none(tmp_path: Path) -> None:
    limits = {"changes_per_second": 2, "change_burst": 2}
    async with running(tmp_path, ["ada", "bob"], limits=limits) as node:
        await node.send("ada", "bob")

        def talk() -> list[str]:
            import imaplib

            host, port = node.ready.imaps.rsplit(":", 1)
            said = []
            with imaplib.IMAP4_SSL(host, int(port), ssl_context=node.tls()) as client:
                client.login(address("bob"), PASSWORD)
                client.select()
                client.store("1", "+FLAGS", "(a)")
                client.store("1", "+FLAGS", "(b)")
                for _ in range(20):
                    client.fetch("1", "(FLAGS)")
                    client.search(None, "ALL")
                answer, text = client.fetch("1", "(BODY[])")
                said += [answer, str(text[0])]
                answer, _ = client.noop()
                said.append(answer)
            return said

        answer, text, noop = await asyncio.to_thread(talk)
        assert (answer, noop) == ("NO", "OK")
        assert "[LIMIT] more than 2 such commands a second, try again in" in text
