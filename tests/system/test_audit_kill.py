"""SIGKILL at any moment: whatever the store had committed is in the log once, and the log verifies, after a restart."""

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from aimx.audit import keys
from aimx.audit.evidence import check, message_proof
from aimx.audit.report import Report
from aimx.audit.sequencer import Sequencer
from aimx.audit.sqlite import SqliteReader
from aimx.audit.verify import verify
from aimx.store.sqlite import SqliteStore

WRITER = """
import asyncio, hashlib, sys, time
from pathlib import Path
from aimx.audit import events, keys
from aimx.audit.sequencer import Sequencer
from aimx.message.identifier import new_eid
from aimx.store.contract import NewMessage, SpanRef
from aimx.store.sqlite import SqliteStore
from aimx.tlog.leaf import new_key

folder = Path(sys.argv[1])

def message():
    t_ms = time.time_ns() // 1_000_000
    eid, span = new_eid(t_ms), SpanRef(b"\\x01" * 16, b"\\x02" * 8)
    header, body = b"Subject: hi\\r\\n\\r\\n", eid.encode() + b"\\r\\n"
    made = NewMessage(
        eid=eid, t_ms=t_ms, sender="a@x.example", agent="a@x.example", recipients=("b@x.example",), header=header,
        body=body, message_id=f"<{eid}@x.example>", in_reply_to=None, subject="hi", content_type="text/plain",
        workflow=None, priority=0, origin=span, trace_flags=1, tracestate="", baggage="", context_source="new",
        received=span, depth=1, loop_key="t", payload=b"p", template=b"t",
    )
    row = events.message_accepted(
        events.Stamp("n1", t_ms, span, "a@x.example"), eid=eid, key=new_key(),
        data=hashlib.sha256(header + body).digest(), header=hashlib.sha256(header).digest(),
        body=hashlib.sha256(body).digest(), sender="a@x.example", recipients=("b@x.example",), size=len(header + body),
    )
    return made, row

async def main():
    store = SqliteStore(folder / "mail.db", "n1")
    await store.open()
    sequencer = Sequencer(
        store, folder, keys.load_or_create(folder, "x.example", 0), node="n1",
        integrate_within=0.01, checkpoint_every=0.02,
    )
    await sequencer.start()
    while True:
        made, row = message()
        await store.accept(made, [], lambda outcomes: [row])
        print(made.eid, flush=True)

asyncio.run(main())
"""


def kill_at_a_random_moment(folder: Path, chance: random.Random) -> list[str]:
    """Run a writer, kill it, and return the eids whose acceptance it had been told of."""
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    told = [child.stdout.readline().strip()]
    for _ in range(chance.randrange(120)):
        told.append(child.stdout.readline().strip())
    child.send_signal(signal.SIGKILL)
    rest, _ = child.communicate(timeout=30)
    return [eid for eid in told + rest.split("\n")[:-1] if eid]


async def verified(folder: Path, *, start: bool = True) -> tuple[Report, SqliteStore]:
    store = SqliteStore(folder / "mail.db", "n1", guest=not start)
    await store.open()
    if start:
        sequencer = Sequencer(store, folder, keys.load_or_create(folder, "x.example", 0), node="n1")
        await sequencer.start()
        async with asyncio.timeout(30):
            await sequencer.flush()
        await sequencer.stop()
    return await verify(store, folder, patience_s=0.1), store


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
    reader = SqliteReader(tmp_path / "audit.db")
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
