"""The HTTP side of a running node and clients that only want its memory, its connections or its log."""

import asyncio
import logging
from pathlib import Path

import psutil
import pytest

from aimx.sidecar import connection, edge
from aimx.sidecar.answer import MOST_WAITING
from tests.protocol.mail_node import MailNode, running
from tests.protocol.sidecar_world import PLANNER, RESEARCHER, TRACE, world

MIB = 1024 * 1024
PATIENCE = 15.0


async def connect(node: MailNode) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = node.ready.http.removeprefix("https://").rsplit(":", 1)
    return await asyncio.open_connection(host, int(port), ssl=node.tls())


async def left(reader: asyncio.StreamReader) -> bytes:
    """What is said until the connection ends, one way or the other."""
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE)
    except ConnectionError:
        return b""


@pytest.mark.parametrize("field", [b"X-%d: %b\r\n" % (1, b"y" * 100), b"y" * 100], ids=["many fields", "long field"])
async def test_a_head_without_end_is_refused_and_not_kept(
    tmp_path: Path, field: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as node:
        reader, writer = await connect(node)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ")
        before = psutil.Process().memory_info().rss
        with caplog.at_level(logging.INFO):
            try:
                for _ in range(400):
                    writer.write(field * 1000)
                    await writer.drain()
            except ConnectionError:
                pass
            else:
                pytest.fail("40 MB of head were taken")
        assert not (await left(reader)).startswith(b"HTTP/1.1 200")
        assert psutil.Process().memory_info().rss - before < 24 * MIB
        writer.close()


@pytest.mark.parametrize("said", [b"", b"GET /healthz HTTP/1.1\r\nX-Slow: "], ids=["nothing", "half a head"])
async def test_who_does_not_ask_is_let_go(tmp_path: Path, said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_WITHIN", 0.5)
    async with running(tmp_path) as node:
        reader, writer = await connect(node)
        writer.write(said)
        assert await left(reader) == b""
        writer.close()


@pytest.mark.parametrize("path", [b"/v1/audit/holds", b"/add-checkpoint"])
async def test_a_body_without_end_is_not_kept(tmp_path: Path, path: bytes) -> None:
    async with running(tmp_path) as node:
        reader, writer = await connect(node)
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" % path
        writer.write(head + b"Content-Length: 40000000\r\n\r\n")
        for _ in range(4):
            writer.write(b"[" * 25_000)
            await writer.drain()
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 404"))
        writer.close()


async def test_who_does_not_end_what_he_asks_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_WITHIN", 0.5)
    monkeypatch.setattr(edge, "BODY_WITHIN", 0.5)
    async with running(tmp_path) as node:
        reader, writer = await connect(node)
        writer.write(b"POST /v1/audit/holds HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        writer.write(b"Content-Length: 9\r\n\r\n{")
        assert (await left(reader)).startswith(b"HTTP/1.1 400 ")
        writer.close()


async def test_a_second_request_may_come_later_than_a_head_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_WITHIN", 0.8)
    async with running(tmp_path) as node:
        reader, writer = await connect(node)
        for _ in range(4):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await asyncio.wait_for(reader.readuntil(b"}"), PATIENCE)).startswith(b"HTTP/1.1 200 OK\r\n")
            await asyncio.sleep(0.4)
        writer.close()


async def test_an_address_has_so_many_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_PER_ADDRESS", 3)
    async with running(tmp_path) as node:
        held = [await connect(node) for _ in range(3)]
        with pytest.raises(ConnectionError):
            await connect(node)
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        reader, writer = await connect(node)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await left(reader)).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()


async def test_nobody_is_waited_for_with_many_conversations(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.send(PLANNER, RESEARCHER)
        async with here.client(here.agents[PLANNER]) as greedy, here.client() as admin:
            asked = [greedy.get(f"/v1/traces/{TRACE.hex()}") for _ in range(20)]
            answers, other = await asyncio.gather(asyncio.gather(*asked), admin.get("/v1/workflows/report-17"))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) == MOST_WAITING
        assert other.status_code == 200
