"""What one client may cost: time, commands, errors, recipients, memory, connections; and how the node stops."""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress

import pytest

from aimx.config import SignIn
from tests.protocol.smtp_harness import DOMAIN, PATIENCE, Node, Wire, running

MESSAGE = b"From: planner@fabric.local\r\nSubject: x\r\n\r\nhello\r\n"
SENDER = f"MAIL FROM:<planner@{DOMAIN}>"
RECIPIENT = f"RCPT TO:<critic@{DOMAIN}>"


async def begun(node: Node) -> Wire:
    wire = await node.signed_in()
    await wire.say(SENDER, 250)
    await wire.say(RECIPIENT, 250)
    await wire.say("DATA", 354)
    return wire


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.01)


# ── before the greeting ──


@pytest.mark.parametrize("tls", [False, True])
async def test_who_talks_before_being_greeted_is_refused(tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimx.smtp.server.GREET_AFTER", 0.5)
    async with running() as node:
        if tls:
            # The client's last handshake flight and its first command in one segment.
            up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = node.trust().wrap_bio(down, up, server_hostname="localhost")
            reader, writer = await asyncio.open_connection(*node.smtps)
            while True:
                try:
                    client.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    writer.write(up.read())
                    down.write(await reader.read(65536))
            client.write(b"EHLO x\r\n")
            writer.write(up.read())
            down.write(await asyncio.wait_for(reader.read(65536), PATIENCE))
            assert client.read(65536).startswith(b"554 5.5.1 ")
            writer.close()
        else:
            wire = await node.wire(tls=False, greeted=False)
            await wire.send(b"EHLO x\r\n")
            await wire.expect(554, "5.5.1")
            assert await wire.closed() == b""


async def test_another_protocol_is_shown_the_door() -> None:
    async with running() as node:
        wire = await node.wire(tls=False)
        await wire.send(b"POST / HTTP/1.1\r\nHost: x\r\n\r\nEHLO x\r\nSTARTTLS\r\n")
        await wire.expect(502)
        assert await wire.closed() == b""
        wire = await node.signed_in()
        await wire.send(b"BDAT 20 LAST\r\n" + SENDER.encode() + b"\r\n")
        await wire.expect(502)
        assert await wire.closed() == b""


# ── time ──


async def test_a_silent_client_is_told_and_closed() -> None:
    async with running(idle_timeout=0.2) as node:
        wire = await node.signed_in()
        await wire.expect(421, "4.4.2")
        assert await wire.closed() == b""


async def test_noop_is_no_progress() -> None:
    async with running(idle_timeout=0.4) as node:
        wire = await node.signed_in()

        async def chatter() -> None:
            while True:
                await wire.send(b"NOOP\r\n")
                await asyncio.sleep(0.05)

        chatting = asyncio.create_task(chatter())
        rest = await wire.closed()
        chatting.cancel()
        assert rest.endswith(b"421 4.4.2 too slow, closing\r\n")


async def test_steady_progress_holds_a_session_open() -> None:
    async with running(idle_timeout=0.5) as node:
        wire = await begun(node)
        for _ in range(8):
            await asyncio.sleep(0.1)
            await wire.send(b"a line\r\n")
        await wire.send(b".\r\n")
        await wire.expect(250)


async def test_an_upload_by_drops_is_cut() -> None:
    async with running(data_timeout=0.4, min_rate=1_000_000) as node:
        wire = await begun(node)

        async def drip() -> None:
            while True:
                await wire.send(b"x")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        await wire.expect(421, "4.4.2")
        dripping.cancel()
        assert node.mails == []


async def test_a_session_that_never_signs_in_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimx.smtp.server.SIGN_IN_WITHIN", 0.2)
    async with running() as node:
        strangers = [await node.wire(tls=False), await node.wire()]
        agent = await node.signed_in()
        for stranger in strangers:
            await stranger.expect(421, "4.4.2")
        assert (await agent.mail()).startswith("250")


async def test_a_handshake_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimx.listener.HANDSHAKE_WITHIN", 0.2)
    async with running() as node:
        reader, writer = await asyncio.open_connection(*node.smtps)
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        writer.close()
        wire = await node.wire(tls=False)
        await wire.say("EHLO x", 250)
        await wire.say("STARTTLS", 220)
        assert await wire.closed() == b""


async def test_our_own_slowness_is_not_held_against_the_client() -> None:
    async with running(idle_timeout=0.2) as node:
        wire = await begun(node)
        node.intake.hold = asyncio.Event()
        await wire.send(MESSAGE + b".\r\n")
        await node.intake.holding.wait()
        await asyncio.sleep(0.5)
        node.intake.hold.set()
        await wire.expect(250)


# ── numbers ──


async def test_errors_are_counted_and_a_mail_clears_them() -> None:
    async with running(max_errors=3) as node:
        wire = await node.signed_in()
        for _ in range(3):
            await wire.say("BOGUS", 500)
            await wire.say("DATA", 503)
            assert (await wire.mail()).startswith("250")
        await wire.say("BOGUS", 500)
        await wire.say("BOGUS", 500)
        await wire.say("BOGUS", 500)
        await wire.expect(421, "4.7.0")
        assert await wire.closed() == b""


async def test_commands_without_a_mail_are_counted() -> None:
    async with running(max_commands=20) as node:
        wire = await node.signed_in()
        for _ in range(20):
            await wire.say("NOOP", 250)
        await wire.say("NOOP", 421, "4.7.0")


async def test_recipients_are_limited_and_the_accepted_ones_get_the_mail() -> None:
    async with running(max_recipients=3) as node:
        wire = await node.signed_in()
        await wire.say(SENDER, 250)
        for n in range(3):
            await wire.say(f"RCPT TO:<a{n}@{DOMAIN}>", 250)
        await wire.say(RECIPIENT, 452, "4.5.3")
        await wire.say("DATA", 354)
        await wire.send(MESSAGE + b".\r\n")
        await wire.expect(250)
        assert len(node.mails[0].envelope.recipients) == 3


async def test_guessing_recipients_ends_the_session() -> None:
    async with running(max_recipients=5) as node:
        node.intake.unknown = {f"a{n}@{DOMAIN}" for n in range(6)}
        wire = await node.signed_in()
        await wire.say(SENDER, 250)
        for n in range(6):
            await wire.say(f"RCPT TO:<a{n}@{DOMAIN}>", 550, "5.1.1")
        await wire.expect(421, "4.7.0")


async def test_one_address_has_only_so_many_connections_and_strangers_fewer() -> None:
    async with running(max_connections_per_address=8) as node:
        agents = [await node.signed_in() for _ in range(6)]
        strangers = [await node.wire(tls=False) for _ in range(2)]
        refused = await node.wire(tls=False, greeted=False)
        await refused.expect(421, "4.7.0")
        assert await refused.closed() == b""
        with pytest.raises(ConnectionError):
            await node.wire()
        strangers.pop().close()
        await until(lambda: not (node.server.open_connections > 7))
        again = await node.wire(tls=False)
        await again.say("EHLO x", 250)
        for agent in agents:
            assert (await agent.mail()).startswith("250")


async def test_strangers_alone_cannot_take_all_places() -> None:
    async with running(max_connections_per_address=8) as node:
        strangers = [await node.wire(tls=False) for _ in range(2)]
        refused = await node.wire(tls=False, greeted=False)
        await refused.expect(421, "4.7.0")
        for stranger in strangers:
            stranger.close()


# ── size and memory ──


async def test_a_mail_over_the_limit_is_refused_at_its_end() -> None:
    async with running(max_size=10_000) as node:
        wire = await node.signed_in()
        assert (await wire.mail(b"S: x\r\n\r\n" + b"x" * 9_990 + b"\r\n")).startswith("250")
        assert (await wire.mail(b"S: x\r\n\r\n" + b"x" * 9_991 + b"\r\n")).startswith("552 5.3.4")
        assert (await wire.mail()).startswith("250")


async def test_a_mail_far_over_the_limit_is_not_read_to_its_end() -> None:
    async with running(max_size=10_000) as node:
        wire = await begun(node)
        sent = 0
        with suppress(ConnectionError):
            while sent < 10_000:
                await wire.send(b"x" * 998 + b"\r\n")
                sent += 1
        assert sent < 10_000
        assert node.mails == []


async def test_the_nodes_byte_budget_is_shared_and_given_back() -> None:
    async with running(byte_budget=300_000) as node:
        held, late = await begun(node), await begun(node)
        await held.send((b"x" * 998 + b"\r\n") * 200)
        await until(lambda: not (node.budget.left > 101_000))
        await late.send((b"x" * 998 + b"\r\n") * 200 + b".\r\n")
        await late.expect(452, "4.3.1")
        await held.send(b".\r\n")
        await held.expect(250)
        assert node.budget.left == node.budget.limit
        assert (await late.mail()).startswith("250")


async def test_one_agent_alone_cannot_keep_others_from_sending() -> None:
    async with running(byte_budget=6_000_000) as node:  # of which a quarter is for one
        greedy = [await begun(node) for _ in range(8)]
        for wire in greedy[:-1]:
            await wire.send((b"x" * 998 + b"\r\n") * 200)
        await until(lambda: node.budget.left < 6_000_000 - 1_390_000)
        await greedy[-1].send((b"x" * 998 + b"\r\n") * 200 + b".\r\n")
        await greedy[-1].expect(452, "4.3.1")
        other = await node.signed_in("critic")
        await other.say("MAIL FROM:<critic@fabric.local>", 250)
        await other.say(RECIPIENT, 250)
        await other.say("DATA", 354)
        await other.send((b"x" * 998 + b"\r\n") * 200 + b".\r\n")
        await other.expect(250)


@pytest.mark.parametrize("octets", [100, 700_000])
async def test_a_connection_that_breaks_in_data_leaves_nothing_behind(octets: int) -> None:
    async with running() as node:
        wire = await begun(node)
        await wire.send(b"S: x\r\n\r\n" + b"0123456\r\n" * (octets // 9))
        await until(lambda: node.budget.left < node.budget.limit)
        wire.writer.transport.abort()
        await until(
            lambda: not (node.server.open_connections or node.budget.left < node.budget.limit or node.store.staged)
        )
        assert node.mails == []


async def test_a_client_that_does_not_read_stops_being_read() -> None:
    async with running(idle_timeout=2.0, max_commands=10**9) as node:
        other = await node.signed_in()
        known = set(node.server._connections)
        wire = await node.signed_in()
        (connection,) = node.server._connections.keys() - known
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        wire.writer.write(b"HELP\r\n" * 1_000_000)
        await until(lambda: connection._write_paused)
        assert connection._socket is not None
        assert connection._socket.get_write_buffer_size() < 200_000
        await until(lambda: connection._read_paused)
        assert connection._receiver.waiting < 1_000_000
        assert (await other.mail()).startswith("250")
        await until(lambda: connection not in node.server._connections)
        wire.writer.transport.abort()


async def test_octets_sent_singly_cost_no_more_memory_than_they_are() -> None:
    async with running() as node:
        wire = await begun(node)
        (connection,) = node.server._connections
        dialog = connection._dialog
        assert dialog is not None
        for _ in range(3_000):
            connection.data_received(b"x")
        transaction = dialog._transaction
        assert transaction is not None
        assert transaction.upload is not None
        assert len(transaction.upload._held) <= 1
        await wire.send(b"\r\n.\r\n")
        await wire.expect(250)
        assert node.mails[0].content.startswith(b"x" * 3_000)


# ── stopping ──


async def test_stopping_finishes_the_mail_in_hand_and_tells_the_others() -> None:
    async with running() as node:
        idle, receiving, waiting, stranger = (
            await node.signed_in(),
            await begun(node),
            await begun(node),
            await node.wire(tls=False),
        )
        node.intake.hold = asyncio.Event()
        await waiting.send(MESSAGE + b".\r\n")
        await node.intake.holding.wait()
        await receiving.send(MESSAGE)
        stopping = asyncio.create_task(node.server.stop(5.0))
        await idle.expect(421, "4.3.2")
        await stranger.expect(421, "4.3.2")
        with pytest.raises(ConnectionError):
            await node.wire()
        node.intake.hold.set()
        await waiting.expect(250)
        await waiting.expect(421, "4.3.2")
        await receiving.send(b".\r\n")
        await receiving.expect(250)
        await receiving.expect(421, "4.3.2")
        await stopping
        assert len(node.mails) == 2
        assert node.server.open_connections == 0


async def test_stopping_does_not_wait_for_ever() -> None:
    async with running() as node:
        await begun(node)
        async with asyncio.timeout(5.0):
            await node.server.stop(0.2)
        assert node.server.open_connections == 0


async def test_a_slow_failed_sign_in_does_not_hold_others_up() -> None:
    async with running(SignIn(delay=1.0)) as node:
        guesser, agent = await node.wire(), await node.signed_in()
        await guesser.say("EHLO x", 250)
        await guesser.send(b"AUTH PLAIN AHBsYW5uZXIAd3Jvbmc=\r\n")
        async with asyncio.timeout(0.9):
            assert (await agent.mail()).startswith("250")
        await guesser.expect(535)
