"""What the SDK hands over is accepted once, whatever happens to the connection and to the node."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import aimx
from aimx.failpoint import POINTS
from tests.node_process import Account, NodeProcess

LARGE = "x" * 40_000


class Cutter:
    """A way to the node that can be cut after the data and before the answer, which it then swallows."""

    def __init__(self, host: str, port: int) -> None:
        self._node = host, port
        self.cuts = 0
        """How many connections are still to be cut."""
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        up = await asyncio.open_connection(*self._node)
        self._sent = 0
        there = asyncio.create_task(self._there(reader, up[1]))
        try:
            while octets := await up[0].read(65536):
                if self.cuts and self._sent > len(LARGE):
                    self.cuts -= 1
                    break
                writer.write(octets)
                await writer.drain()
        finally:
            there.cancel()
            for end in (writer, up[1]):
                end.close()

    async def _there(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while octets := await reader.read(65536):
            self._sent += len(octets)
            writer.write(octets)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def cutting(node: NodeProcess, account: Account) -> AsyncIterator[tuple[Cutter, str]]:
    """With the URL that leads through it."""
    host, port = node.endpoint("smtps")
    cutter = Cutter(host, port)
    server = await asyncio.start_server(cutter.serve, "127.0.0.1", 0)
    try:
        own = server.sockets[0].getsockname()[1]
        yield cutter, account.url.replace(f"smtp={port}", f"smtp={own}")
    finally:
        server.close()


async def payloads(account: Account) -> list[object]:
    async with aimx.connect(account.url) as me:
        return [message.payload async for message in me.inbox(follow=False)]


@pytest.fixture
def account(node: NodeProcess, new_agent: object) -> Account:
    return new_agent()  # type: ignore[operator,no-any-return]


async def test_cut_after_the_data_it_is_sent_again_and_accepted_once(node: NodeProcess, account: Account) -> None:
    async with cutting(node, account) as (cutter, url), aimx.connect(url) as me:
        cutter.cuts = 1
        sent = await me.send(me.address, LARGE)
        assert (cutter.cuts, cutter.connections) == (0, 2)
        assert sent.receipt is not None
        async with aimx.connect(account.url) as reader:
            (message,) = [message async for message in reader.inbox(follow=False)]
        assert (message.id, message.payload) == (sent.id, LARGE)


async def test_cut_twice_it_is_unconfirmed_and_can_be_sent_again_by_hand(node: NodeProcess, account: Account) -> None:
    async with cutting(node, account) as (cutter, url), aimx.connect(url) as me:
        cutter.cuts = 2
        with pytest.raises(aimx.Unconfirmed) as lost:
            await me.send(me.address, LARGE)
        assert lost.value.idempotency_key in str(lost.value)
        await me.send(me.address, LARGE, idempotency_key=lost.value.idempotency_key)
    assert await payloads(account) == [LARGE]


async def test_the_same_key_in_two_clients_is_one_message(account: Account) -> None:
    async with aimx.connect(account.url) as me, aimx.connect(account.url) as other:
        one, two = await asyncio.gather(*(c.send(me.address, {"n": 1}, idempotency_key="job-7") for c in (me, other)))
        assert one.id == two.id
        with pytest.raises(aimx.KeyReused, match="another message") as refused:
            await me.send(me.address, {"n": 2}, idempotency_key="job-7")
        assert not refused.value.temporary
        with pytest.raises(aimx.InvalidMessage):
            await me.send(me.address, {}, idempotency_key="two words")
        await me.send(me.address, {"n": 3}, headers={"idempotency-key": "job-8"})
        await me.send(me.address, {"n": 3}, idempotency_key="job-8")
    assert await payloads(account) == [{"n": 1}, {"n": 3}]


def test_the_command_line_sends_once_under_a_key(node: NodeProcess, account: Account) -> None:
    environ = {"AIMX_URL": account.url}
    ids = {node.aimx("send", account.name, "{}", "--idempotency-key", "k", environ=environ).stdout[:40] for _ in "ab"}
    assert len(ids) == 1
    refused = node.aimx("send", account.name, "[]", "--idempotency-key", "k", environ=environ, check=False)
    assert (refused.returncode, refused.stderr[:20]) == (1, "aimx: 554 5.7.1 Idem")


# ── crashes ──────────────────────────────────────────────────────────────────────────────────────────────────────────

SHORT = {"accept.committed", "store.commit"}
ON_THE_WAY = [
    pytest.param(name, marks=() if name in SHORT else pytest.mark.torture)
    for name in POINTS
    if name.startswith(("accept.", "store."))
]


@pytest.mark.parametrize("point", ON_THE_WAY)
async def test_a_node_that_dies_on_the_way_accepts_what_the_sdk_sends_again_once(tmp_path: Path, point: str) -> None:
    """The SDK waits for the node to come back and sends again by itself; the sender sees nothing of it."""
    node = NodeProcess(tmp_path)
    with node:
        account = node.add_agent("stayer")
        async with aimx.connect(account.url) as me:
            sent = [await me.send(me.address, 0)]
            node.stop()
            # A start commits a few times itself; the tenth commit is one of ours or of the log behind them.
            node.environ = {"AIMX_FAILPOINT": f"{point}:10" if point.startswith("store.") else f"{point}:2"}
            await asyncio.to_thread(node.start, same_ports=True)
            coming_back = asyncio.create_task(asyncio.to_thread(come_back, node))
            for number in range(1, 25):
                sent.append(await again(me, number))
            await coming_back
        got = [message async for message in aimx.connect(account.url).inbox(follow=False)]
        assert [message.payload for message in got] == list(range(25))
        assert [message.id for message in got] == [one.id for one in sent]
        node.aimx("audit", "verify")


def come_back(node: NodeProcess) -> None:
    assert node.process is not None
    node.process.wait(30)
    node.process, node.environ = None, {}
    node.start(same_ports=True)


async def again(me: aimx.AsyncClient, number: int) -> aimx.Sent:
    """As an agent does that keeps a key for each piece of work."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await me.send(me.address, number, idempotency_key=f"work-{number}")
            except (aimx.Unconfirmed, aimx.Unreachable):
                await asyncio.sleep(0.1)
