"""SIGKILL at any moment and at every step: what the store had committed is in the log once, and the log verifies."""

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from aimx.audit import keys
from aimx.audit.evidence import check, message_proof
from aimx.audit.place import open_reader
from aimx.audit.report import Report
from aimx.audit.verify import verify
from aimx.failpoint import POINTS
from aimx.store.contract import Store
from tests.postgres_server import PostgresServer
from tests.system.audit_writer import sequencer_of, store_of

STEPS = [name for name in POINTS if name.startswith(("sequence.", "checkpoint.", "shard.", "key."))]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def database(request: pytest.FixtureRequest) -> str | None:
    if request.param == "sqlite":
        return None
    server: PostgresServer = request.getfixturevalue("server")
    return server.database()


def writer(folder: Path, *options: str, database: str | None = None, die_at: str = "") -> subprocess.Popen[str]:
    given = [*options, *(("--database", database) if database else ())]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **({"AIMX_FAILPOINT": die_at} if die_at else {})}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.system.audit_writer", str(folder), *given],
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
    )


def told_by(child: subprocess.Popen[str]) -> list[str]:
    """The whole lines of a process that has died."""
    rest, _ = child.communicate(timeout=60)
    return rest.split("\n")[:-1]


def kill_at_a_random_moment(folder: Path, chance: random.Random) -> list[str]:
    """Run a writer, kill it, and return the eids whose acceptance it had been told of."""
    child = writer(folder)
    assert child.stdout is not None
    told = [child.stdout.readline().strip()]
    for _ in range(chance.randrange(120)):
        told.append(child.stdout.readline().strip())
    child.send_signal(signal.SIGKILL)
    return [eid for eid in told + told_by(child) if eid]


async def verified(folder: Path, database: str | None = None, *, start: bool = True) -> tuple[Report, Store]:
    store = store_of(folder, database, guest=not start)
    await store.open()
    if start:
        sequencer = sequencer_of(store, folder, database)
        async with asyncio.timeout(60):
            await sequencer.start()
            await sequencer.flush()
        await sequencer.stop()
    return await verify(store, folder, database=database, patience_s=0.1), store


DEEPER = {step: f"{step}:2" for step in STEPS if step != "key.logged"}
"""Not at the very first leaf, and not at the very first shard."""

STEPWISE = [("sqlite", step) for step in STEPS] + [
    pytest.param("postgres", step, marks=() if step in {"sequence.appended", "shard.begun"} else pytest.mark.torture)
    for step in STEPS
]


@pytest.mark.parametrize(("database", "step"), STEPWISE, indirect=["database"])
async def test_killed_at_any_step_nothing_is_lost_doubled_or_forked(
    tmp_path: Path, database: str | None, step: str
) -> None:
    child = writer(tmp_path, "--leaves", "40", "--rotate", database=database, die_at=DEEPER.get(step, step))
    told = await asyncio.to_thread(told_by, child)
    assert child.returncode == -signal.SIGKILL, "it died where it was to die"
    report, store = await verified(tmp_path, database)
    assert report.ok, report.lines()
    assert report.words[:2] == ("CONSISTENT", "COMPLETE")
    assert report.events == report.leaves == report.size
    for eid in told:
        assert await store.message(eid) is not None
    await store.close()
    assert keys.waiting(tmp_path, "log") is None


async def test_two_at_once_killed_at_random_make_one_log(tmp_path: Path, server: PostgresServer) -> None:
    """Two processes over one PostgreSQL, both accepting and both sequencing; one or the other dies all the time."""
    database, chance = server.database(), random.Random(os.urandom(8))
    told: list[str] = []
    children = [writer(tmp_path, "--worker", str(n), "--leaves", "150", database=database) for n in range(2)]
    try:
        for turn in range(8):
            child = children[turn % 2]
            assert child.stdout is not None
            for _ in range(chance.randrange(10, 60)):
                told.append((await asyncio.to_thread(child.stdout.readline)).strip())
            child.kill()
            told += await asyncio.to_thread(told_by, child)
            children[turn % 2] = writer(tmp_path, "--worker", str(turn % 2), "--leaves", "150", database=database)
    finally:
        for child in children:
            child.kill()
            told += await asyncio.to_thread(told_by, child)
    report, store = await verified(tmp_path, database)
    assert report.ok, report.lines()
    assert report.words[:2] == ("CONSISTENT", "COMPLETE")
    assert report.events == report.leaves == report.size
    assert report.messages >= len(set(told)) >= 80
    with closing(open_reader(tmp_path, database)) as reader:
        assert len(reader.shards()) > 1
    await store.close()


async def test_nothing_is_lost_or_doubled_by_kill_9(tmp_path: Path) -> None:
    chance = random.Random(os.urandom(8))
    told: list[str] = []
    for _ in range(5):
        told += await asyncio.to_thread(kill_at_a_random_moment, tmp_path, chance)
        report, store = await verified(tmp_path, start=False)
        await store.close()
        assert not report.inconsistent, report.lines()
        assert report.ok, "right after the kill the tail is pending, and nothing is wrong"
    report, store = await verified(tmp_path)
    assert report.ok, report.lines()
    assert report.words[:2] == ("CONSISTENT", "COMPLETE")
    assert report.events == report.leaves == report.size
    assert report.messages == report.contents == report.size - 1 >= len(told)
    reader = open_reader(tmp_path)
    log = keys.load_public(tmp_path).log
    for eid in chance.sample(told, 5):
        assert check(await message_proof(store, reader, eid), log).checkpoint.size == report.size
    reader.close()
    await store.close()


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("past")
    kill_at_a_random_moment(folder, random.Random(1))

    async def settle() -> None:
        _, store = await verified(folder)
        await store.close()

    asyncio.run(settle())
    return folder


ATTACKS = {
    "message-differs": "UPDATE content SET data = CAST('PS: pay eve' AS BLOB) WHERE message = 3",
    "opening-differs": "UPDATE event SET detail = replace(detail, 'a@x.example', 'e@x.example') WHERE seq = 4",
    "opening-missing": "UPDATE event SET key = NULL, detail = '{}' WHERE seq = 4",
    "event-differs": "UPDATE event SET leaf = CAST(replace(leaf, 'n1', 'n2') AS BLOB) WHERE seq = 4",
    "leaf-unexplained": "DELETE FROM event WHERE seq = 4",
    "message-missing": "DELETE FROM content WHERE message = 3; DELETE FROM message WHERE id = 3",
    "message-unlogged": "CREATE TEMP TABLE forged AS SELECT * FROM message WHERE id = 3;"
    " UPDATE forged SET id = 9999, eid = '01JZ0000000000000000000009', message_id = '<x@y>';"
    " INSERT INTO message SELECT * FROM forged",
}


@pytest.mark.parametrize("kind", ATTACKS)
async def test_an_administrator_at_the_mail_database_is_found_out(past: Path, tmp_path: Path, kind: str) -> None:
    for file in past.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with sqlite3.connect(tmp_path / "mail.db") as db:
        db.executescript(ATTACKS[kind])
    db.close()
    report, store = await verified(tmp_path, start=False)
    await store.close()
    assert report.words[0] == "CONSISTENT", "the log itself was left alone"
    assert kind in {finding.kind for finding in report.findings}, report.lines()
    assert json.loads(json.dumps(report.to_json()))["first"] is not None
