"""The OpenAPI document against the live application: schemathesis finds nothing.

It makes requests from the document, good and bad, and checks every answer against it: status codes, media types,
bodies and headers that are described; wrong values refused, right ones taken; no request without its token answered.
"""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from aimx.store.contract import Hold
from tests.protocol.sidecar_world import ADMIN, CRITIC, PLANNER, RESEARCHER, TRACE, world

EXPECTED = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "403", "404", "409", "410", "429", "5xx"]
"""
"""What a right request may be answered: 410 for what an earlier one erased, 429 while a verification runs."""


@dataclass
class Live:
    url: str
    document: dict[str, Any]
    message: str


@contextmanager
def live(folder: Path) -> Iterator[Live]:
    """The application on a socket, in a thread of its own: schemathesis is synchronous."""
    found: list[Live] = []
    up, down = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def run() -> None:
        async with world(folder) as here:
            one = await here.send(PLANNER, RESEARCHER)
            await here.send(RESEARCHER, PLANNER, answers=one, depth=2)
            await here.send(PLANNER, CRITIC)
            await here.send(PLANNER, CRITIC)
            await here.refuse(PLANNER, RESEARCHER, answers=one)
            for address in (PLANNER, RESEARCHER, CRITIC):  # else a message is gone when the next request asks for it
                await here.store.hold(Hold("agent", address, "schemathesis", "admin", 1_780_000_000_000), [])
            await here.sequencer.flush()
            server = uvicorn.Server(uvicorn.Config(here.app, port=0, log_config=None, lifespan="off"))
            serving = asyncio.create_task(server._serve())
            while not server.started:
                await asyncio.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            found.append(Live(f"http://127.0.0.1:{port}", here.app.openapi(), one))
            up.set()
            await down.wait()
            server.should_exit = True
            await serving

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    try:
        assert up.wait(20), "the application did not start"
        yield found[0]
    finally:
        loop.call_soon_threadsafe(down.set)
        thread.join(20)
        loop.close()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("sidecar")) as found:
        yield found


def test_known_ids_lead_to_answers(app: Live) -> None:
    """Without this the next test could pass on problems alone."""
    with httpx.Client(base_url=app.url, headers={"Authorization": f"Bearer {ADMIN}"}, timeout=20) as http:
        job = http.post("/v1/audit/verifications").headers["location"].rpartition("/")[2]
        while http.get(f"/v1/audit/verifications/{job}").json()["state"] == "running":
            time.sleep(0.01)
        for path, operations in app.document["paths"].items():
            if "get" not in operations or "{origin_hash}" in path:
                continue
            path = path.replace("verifications/{id}", f"verifications/{job}")
            path += "?from=1&to=2" if path.endswith("/consistency") else ""
            place = path.replace("{trace_id}", TRACE.hex()).replace("{level}", "0").replace("{path}", "000.p/1")
            place = place.replace("{shard}", "2026h1")
            place = place.replace("{id}", "report-17" if "workflows" in path else app.message)
            assert http.get(place).status_code == 200, place


@pytest.mark.timeout(110)
def test_every_answer_is_the_one_that_the_document_promises(app: Live, tmp_path: Path) -> None:
    description = tmp_path / "openapi.json"
    description.write_text(json.dumps(with_known_ids(app)))
    (tmp_path / "schemathesis.toml").write_text(EXPECTED)
    found = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", str(description), "--url", app.url),
            *("--header", f"Authorization: Bearer {ADMIN}", "--checks", "all", "--mode", "all"),
            *("--max-examples", "10", "--seed", "1", "--no-color", "--request-timeout", "20"),
            *("--suppress-health-check", "all", "--warnings", "off"),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
    )
    assert found.returncode == 0, found.stdout[-8000:] + found.stderr[-2000:]


def with_known_ids(app: Live) -> dict[str, Any]:
    """The document, with ids that exist offered as examples, so that more than 404 is seen."""
    document: dict[str, Any] = json.loads(json.dumps(app.document))
    known = {"id": app.message, "trace_id": TRACE.hex(), "event": app.message}
    for path, operations in document["paths"].items():
        for parameter in operations.get("get", {}).get("parameters", ()):
            if parameter["name"] == "id" and path.startswith("/v1/workflows"):
                parameter["schema"]["examples"] = ["report-17"]
            elif parameter["name"] in known:
                parameter["schema"]["examples"] = [known[parameter["name"]]]
    return document
