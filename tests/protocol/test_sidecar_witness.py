"""A node as a witness over HTTP: the words and codes of https://c2sp.org/tlog-witness, and a memory that survives."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from aimx.audit.anchors import SqliteAnchors
from aimx.audit.witness import VKEY, Witness, load_key
from aimx.sidecar.app import create_app
from aimx.tlog import checkpoint, note, tree, witness
from aimx.tlog.checkpoint import Checkpoint
from aimx.tlog.witness import MAX_REQUEST, Request
from tests.protocol.sidecar_world import BASE, World, world

LOG = note.Signer("log.example/audit", b"\x01" * 32)
LEAVES = [tree.leaf_hash(str(i).encode()) for i in range(40)]
HASH = sha256(b"log.example/audit").hexdigest()


def request(old: int, size: int, leaves: list[bytes] = LEAVES, signer: note.Signer = LOG) -> Request:
    def read(level: int, index: int) -> bytes:
        return tree.fold(leaves[index << level : (index + 1) << level])

    signed = checkpoint.sign(Checkpoint(signer.verifier.name, size, tree.fold(leaves[:size])), [signer])
    return Request(old, tuple(tree.consistency_proof(old, size, read)), str(signed))


def client_of(here: World, folder: Path) -> tuple[httpx.AsyncClient, SqliteAnchors]:
    anchors = SqliteAnchors(folder / "anchors.db")
    made = Witness(load_key(folder, "fabric.local"), [LOG.verifier], anchors)
    context = replace(here.app.state.context, witness=made)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=create_app(context)), base_url=BASE), anchors


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with world(tmp_path) as here:
        client, anchors = client_of(here, tmp_path)
        async with client:
            yield client
        anchors.close()


@pytest.fixture
def key(http: httpx.AsyncClient, tmp_path: Path) -> note.Verifier:
    return note.Verifier.parse((tmp_path / VKEY).read_text())


async def ask(http: httpx.AsyncClient, asked: Request) -> httpx.Response:
    return await http.post("/add-checkpoint", content=asked.body())


async def test_a_log_is_cosigned_as_it_grows_and_told_its_size(http: httpx.AsyncClient, key: note.Verifier) -> None:
    for old, size in ((0, 5), (5, 9), (9, 9), (9, 40)):
        asked = request(old, size)
        answer = await ask(http, asked)
        assert answer.status_code == 200, answer.text
        text = note.parse(asked.note).text
        assert witness.accept(answer.content, text, key).verifier.name == "fabric.local/witness"
    stale = await ask(http, request(9, 40))
    assert (stale.status_code, stale.text, stale.headers["content-type"]) == (409, "40\n", "text/x.tlog.size")
    shown = await http.get(f"/witness/{HASH}/checkpoint")
    opened = checkpoint.open_signed(shown.content, LOG.verifier, [key])
    assert (opened.checkpoint.size, len(opened.signatures)) == (40, 2)


async def test_every_refusal_has_the_code_of_the_specification(http: httpx.AsyncClient) -> None:
    assert (await ask(http, request(0, 9))).status_code == 200
    stranger = note.Signer("other.example/audit", b"\x05" * 32)
    impostor = note.Signer("log.example/audit", b"\x06" * 32)
    rewritten = [LEAVES[1], *LEAVES[1:]]
    for asked, status in (
        (request(0, 9, signer=stranger), 404),
        (request(9, 12, signer=impostor), 403),
        (request(9, 12)._replace(old=13), 400),
        (request(9, 12, rewritten), 422),
        (request(9, 9, rewritten), 422),
        (request(3, 12), 409),
    ):
        answer = await ask(http, asked)
        assert answer.status_code == status, (asked, answer.text)
        if status != 409:
            assert answer.headers["content-type"] == "application/problem+json"
    assert (await http.post("/add-checkpoint", content=b"hello")).status_code == 400
    assert (await http.post("/add-checkpoint", content=b"x" * (MAX_REQUEST + 1))).status_code == 400
    assert (await ask(http, request(9, 12))).status_code == 200, "nothing of it was remembered"


async def test_two_futures_are_never_both_cosigned_however_they_race(http: httpx.AsyncClient) -> None:
    await ask(http, request(0, 5))
    fork = [*LEAVES[:5], *reversed(LEAVES[5:])]
    asked = [request(5, size, leaves) for size in range(6, 16) for leaves in (LEAVES, fork)]
    answers = await asyncio.gather(*(ask(http, one) for one in asked))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 19


async def test_what_was_cosigned_is_remembered_by_the_next_life(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        for old, size, status in ((0, 7, 200), (0, 3, 409)):
            client, anchors = client_of(here, tmp_path)
            async with client:
                assert (await ask(client, request(old, size))).status_code == status
            anchors.close()


async def test_a_node_that_is_no_witness_knows_no_log(tmp_path: Path) -> None:
    async with world(tmp_path) as here, here.client(None) as client:
        assert (await ask(client, request(0, 3))).status_code == 404
        assert (await client.get(f"/witness/{HASH}/checkpoint")).status_code == 404
        wrong = await client.get("/add-checkpoint")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
