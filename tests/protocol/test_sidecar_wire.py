"""The HTTP side as a client on the network meets it: TLS, uvicorn, one event loop with the rest of the node."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from aimx.identity.certificate import Certificates
from tests.protocol.sidecar_world import ADMIN, PLANNER, RESEARCHER, World, world


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[World, str, ssl.SSLContext]]:
    certificates = Certificates(tmp_path / "tls", ("fabric.local",))
    certificates.ensure()
    listener = socket.create_server(("127.0.0.1", 0))
    async with world(tmp_path) as here:
        config = uvicorn.Config(here.app, log_config=None, server_header=False)
        config.load()
        config.ssl = certificates.server_context()
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server._serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        trust = ssl.create_default_context(cafile=str(certificates.ca))
        yield here, f"https://127.0.0.1:{listener.getsockname()[1]}", trust
        server.should_exit = True
        await serving


async def test_a_client_that_trusts_the_local_authority_reads_a_large_message_in_parts(
    served: tuple[World, str, ssl.SSLContext],
) -> None:
    here, url, trust = served
    body = bytes(range(256)) * 8192
    eid = await here.send(PLANNER, RESEARCHER, payload=body, content_type="application/octet-stream")
    headers = {"Authorization": f"Bearer {ADMIN}"}
    async with httpx.AsyncClient(base_url=url, verify=trust, headers=headers) as http:
        async with http.stream("GET", f"/v1/messages/{eid}/raw") as answer:
            received = b"".join([part async for part in answer.aiter_bytes()])
        assert received.endswith(body)
        assert answer.headers["content-length"] == str(len(received))
        assert "server" not in answer.headers
        assert answer.extensions["network_stream"].get_extra_info("ssl_object").version() == "TLSv1.3"
        head = await http.head(f"/v1/messages/{eid}/raw")
        assert (head.status_code, head.content) == (200, b"")
        assert (await http.get("/healthz")).json() == {"status": "ok"}


async def test_half_a_message_never_looks_whole(
    served: tuple[World, str, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, url, trust = served
    eid = await here.send(PLANNER, RESEARCHER, payload=b"x" * 600_000)
    read = here.store.read_body

    async def fails_later(eid: str, start: int, length: int) -> bytes:
        if start:
            raise OSError("disk gone")
        return await read(eid, start, length)

    monkeypatch.setattr(here.store, "read_body", fails_later)
    headers = {"Authorization": f"Bearer {ADMIN}"}
    async with httpx.AsyncClient(base_url=url, verify=trust, headers=headers) as http:
        with pytest.raises(httpx.HTTPError):
            await http.get(f"/v1/messages/{eid}/raw")
        assert (await http.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /v1/messages/%00%ff%zz HTTP/1.1",
        b"GET /v1/workflows/%ed%a0%80 HTTP/1.1",
        b"GET /v1/messages?agent=%ff%fe&workflow=%00 HTTP/1.1",
        b"GET //v1//messages HTTP/1.1",
        b"GET /../../etc/passwd HTTP/1.1",
        b"GET /tile/0/../entries/000 HTTP/1.1",
        b"GET http://elsewhere/v1/messages/1 HTTP/1.1",
    ],
)
async def test_odd_targets_get_an_answer_that_is_no_failure_of_ours(
    served: tuple[World, str, ssl.SSLContext], request_line: bytes
) -> None:
    _, url, trust = served
    host, _, port = url.removeprefix("https://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=trust)
    writer.write(
        request_line + b"\r\nHost: x\r\nAuthorization: Bearer " + ADMIN.encode() + b"\r\nConnection: close\r\n\r\n"
    )
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    status = int(answer.split(b" ", 2)[1])
    assert status in (200, 400, 404, 422), answer
    assert b"Traceback" not in answer
