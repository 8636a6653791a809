"""Shards, keys and restored copies: the log goes on under another name or key, and a verifier follows every step."""

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from aimx.audit import events, evidence, keys, restored
from aimx.audit.log import LogError
from aimx.audit.report import Report
from aimx.audit.sequencer import HIGH_WATER, Sequencer, high_water
from aimx.audit.succession import Sharding
from aimx.audit.verify import verify
from aimx.cli.receipt import _in_shards as in_shards
from aimx.message.identifier import new_eid
from aimx.sdk.receipt import Receipt, State
from aimx.tlog import checkpoint, note, receipt
from aimx.tlog.tile import Tile
from aimx.tlog.tree import leaf_hash
from tests.postgres_server import PostgresServer
from tests.store.audit_logs import KINDS, Place, place
from tests.store.audit_memory import MemoryStore

T0 = 1_780_000_000_000
"""In the first half of 2026."""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(params=KINDS)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    kind = cast("str", request.param)
    return place(kind, tmp_path, request.getfixturevalue("server") if kind == "postgres" else None)


@asynccontextmanager
async def running(store: MemoryStore, kept: Place, sharding: Sharding | None = None) -> AsyncIterator[Sequencer]:
    made = keys.load_or_create(kept.folder, "x.example", T0)
    sequencer = Sequencer(
        store,
        kept.folder,
        made,
        node="n1",
        database=kept.database,
        sharding=sharding,
        integrate_within=0.02,
        checkpoint_every=0.05,
    )
    await sequencer.start()
    try:
        yield sequencer
    finally:
        await sequencer.stop()


async def until(condition: object, seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


async def verified(store: MemoryStore, kept: Place, **options: object) -> Report:
    options = {"patience_s": 0.1, **options}
    return await verify(store, kept.folder, database=kept.database, **options)  # type: ignore[arg-type]


def kinds(report: Report) -> set[str]:
    return {finding.kind for finding in report.findings}


async def rotate(store: MemoryStore, folder: Path, what: keys.What = "log") -> None:
    """What `aimx audit rotate-key` does, beside a node that may run."""
    now = keys.load(folder, T0)
    old = now.log.verifier if what == "log" else now.receipt.verifier
    eid = new_eid()
    made = keys.make_next(folder, what, old.name, eid)
    stamp = events.Stamp("n1", time.time_ns() // 1_000_000, events.no_span(), "admin")
    await store.record(
        [events.key_rotated(stamp, what=what, by="admin", old=old.vkey(), new=made.key.verifier.vkey(), eid=eid)]
    )


async def test_when_its_time_is_over_a_shard_is_closed_and_the_next_one_names_its_end(kept: Place) -> None:
    store = MemoryStore()
    async with running(store, kept) as sequencer:
        store.accept()
        await sequencer.flush()
    first = (kept.folder / HIGH_WATER).read_text()
    old = keys.load_public(kept.folder)
    async with running(store, kept, Sharding("1mo")) as sequencer:
        await until(lambda: sequencer.keys.origin != old.log.name)
        eid = store.accept()
        await sequencer.flush()
        reader = kept.reader()
        found = await evidence.message_proof(store, reader, eid)
        assert evidence.check(found, sequencer.keys.log.verifier).checkpoint.origin == sequencer.keys.origin
        assert (found.index, sequencer.keys.log.verifier.public == old.log.public) == (1, False)
    one, two = reader.shards()
    assert (one.origin, two.start, two.size) == ("x.example/audit/2026h1", one.size, 3)
    closed = json.loads(reader.shard(1).entry(one.size - 1) or b"")
    opened = json.loads(reader.shard(2).entry(0) or b"")
    assert (closed["ev"], closed["next"], closed["log"]) == ("log.closed", two.origin, opened["log"])
    assert (opened["why"], opened["receipt"]) == ("period", old.receipt.vkey())
    last = checkpoint.open_signed(opened["prev"], old.log).checkpoint
    assert (last.origin, last.size) == (one.origin, one.size)
    assert reader.shard(1).checkpoint() == opened["prev"]
    assert reader.shard(1).tile(Tile(0, 0, one.size)) is not None
    assert sorted(stored.index or 0 for stored in store.rows) == list(range(one.size + 3))
    reader.close()
    report = await verified(store, kept, remembered=[first])
    assert report.ok, report.lines()
    assert (report.shards, report.size, report.leaves) == (2, one.size + 3, one.size + 3)
    report = await verified(store, kept, remembered=[first], keys=old)
    assert report.ok, "whoever was given the first key is led to the next one"


async def test_shards_by_size_follow_each_other_and_every_event_has_one_place(kept: Place) -> None:
    store = MemoryStore()
    async with running(store, kept, Sharding(leaves=50)) as sequencer:
        for _ in range(12):
            for _ in range(10):
                store.accept()
            await sequencer.flush()
    reader = kept.reader()
    shards = reader.shards()
    assert len(shards) >= 4
    assert len({shard.origin for shard in shards}) == len(shards)
    reader.close()
    assert sorted(stored.index or 0 for stored in store.rows) == list(range(len(store.rows)))
    report = await verified(store, kept)
    assert report.ok, report.lines()
    assert report.events == report.leaves == len(store.rows)


@pytest.mark.parametrize("step", ["_succeed", "_opening_row", "_settle_keys"])
async def test_killed_while_a_shard_is_closed_the_next_start_goes_on_with_it(kept: Place, step: str) -> None:
    """The steps in between; a process killed for real is in tests/system."""
    store = MemoryStore()

    class Killed(BaseException):
        pass

    async with running(store, kept) as sequencer:
        store.accept()
        await sequencer.flush()
    calls = 0
    made = keys.load_or_create(kept.folder, "x.example", T0)
    dying = Sequencer(store, kept.folder, made, node="n1", database=kept.database, sharding=Sharding("1mo"))
    await dying.start()

    def die(*given: object) -> object:
        nonlocal calls
        calls += 1
        raise Killed

    setattr(dying, step, die)
    dying.wake()
    assert dying._task is not None
    assert dying._log is not None
    with pytest.raises(Killed):
        await asyncio.wait_for(dying._task, 15)
    assert calls == 1
    await dying._on_thread(dying._log.close)
    if kept.database is not None:
        kept.run("UPDATE leader SET name = '', expires = now()")
    async with running(store, kept, Sharding("1mo")) as sequencer:
        await until(lambda: sequencer.keys.origin != "x.example/audit/2026h1")
        store.accept()
        await sequencer.flush()
    report = await verified(store, kept)
    assert report.ok, report.lines()
    assert report.shards == 2
    assert keys.waiting(kept.folder, "log") is None


async def test_a_rotated_key_takes_over_and_both_sign_while_they_overlap(kept: Place) -> None:
    store = MemoryStore()
    async with running(store, kept) as sequencer:
        store.accept()
        await sequencer.flush()
        old = keys.load_public(kept.folder)
        before = (kept.folder / HIGH_WATER).read_text()
        await rotate(store, kept.folder)
        await until(lambda: sequencer.keys.log.verifier != old.log)
        store.accept()
        await sequencer.flush()
        both = (kept.folder / HIGH_WATER).read_text()
        for key in (old.log, sequencer.keys.log.verifier):
            assert checkpoint.open_signed(both, key).checkpoint.origin == old.log.name
    public = keys.load_public(kept.folder)
    assert public.earlier == (old.log,)
    for given in (old, public, keys.PublicKeys(public.log, public.receipt)):
        report = await verified(store, kept, remembered=[before], keys=given)
        assert report.ok, report.lines()
    async with running(store, kept, Sharding(overlap_ms=0)) as sequencer:
        await rotate(store, kept.folder)
        await until(lambda: sequencer.keys.log.verifier != public.log)
        assert sequencer.keys.retiring[0].verifier == old.log
    assert (await verified(store, kept)).ok
    keys.load(kept.folder, T0 + 10**12)
    assert sorted(path.name for path in (kept.folder / "keys").iterdir()) == ["log.key", "receipt.key"], (
        "a key that has had its time is destroyed"
    )
    assert len(keys.load_public(kept.folder).logs) == 3, "and stays known"


async def test_a_thief_of_a_rotated_key_cannot_speak_for_the_log(kept: Place) -> None:
    store = MemoryStore()
    async with running(store, kept, Sharding(overlap_ms=0)) as sequencer:
        store.accept()
        await sequencer.flush()
        stolen = sequencer.keys.log
        await rotate(store, kept.folder)
        await until(lambda: sequencer.keys.log.verifier != stolen.verifier)
        store.accept()
        await sequencer.flush()
    log = kept.log()
    log.sign([stolen], 0)
    log.close()
    assert kinds(await verified(store, kept)) == {"checkpoint-invalid"}
    with pytest.raises(LogError, match="another key"):
        async with running(store, kept):
            pass


async def test_a_key_that_nothing_vouches_for_is_strange(kept: Place) -> None:
    store = MemoryStore()
    async with running(store, kept):
        store.accept()
    other = keys.load_or_create(kept.folder / "other", "x.example", T0).public()
    report = await verified(store, kept, keys=other)
    assert "checkpoint-invalid" in kinds(report) or "key-strange" in kinds(report)
    assert report.words[0] == "INCONSISTENT"


async def test_a_rotated_receipt_key_is_logged_with_its_window_and_used_at_once(kept: Place) -> None:
    store = MemoryStore()
    async with running(store, kept) as sequencer:
        old = sequencer.keys.receipt.verifier
        await rotate(store, kept.folder, "receipt")
        await until(lambda: sequencer.keys.receipt.verifier != old)
        await sequencer.flush()
    public = keys.load_public(kept.folder)
    assert public.receipts == (public.receipt, old)
    rotated = next(stored.row for stored in store.rows if stored.row.ev == "key.rotated")
    said = json.loads(rotated.leaf)
    assert (said["what"], said["old"], said["new"]) == ("receipt", old.vkey(), public.receipt.vkey())
    assert (await verified(store, kept)).ok


async def test_a_shard_whose_retention_ended_is_dropped_whole_and_the_rest_still_verifies(kept: Place) -> None:
    store = MemoryStore()
    async with running(store, kept, Sharding(leaves=50)) as sequencer:
        for _ in range(6):
            for _ in range(10):
                store.accept()
            await sequencer.flush()
    reader = kept.reader()
    oldest = reader.shards()[0]
    last = reader.shard(1).checkpoint() or ""
    reader.close()
    log = kept.log()
    log.drop(1)
    log.close()
    assert kinds(await verified(store, kept)) == {"shard-missing"}, "and nothing says so"
    stamp = events.Stamp("n1", time.time_ns() // 1_000_000, events.no_span())
    store.put(events.log_dropped(stamp, origin=oldest.origin, size=oldest.size, last=last, by="admin"))
    assert (await verified(store, kept)).ok, "the leaf that says so is on its way"
    async with running(store, kept) as sequencer:
        await sequencer.flush()
    report = await verified(store, kept)
    assert report.ok, report.lines()
    assert report.memory is not None
    assert (await verified(store, kept, memory=report.memory)).ok, "what was accepted once is not asked again"
    assert report.dropped >= 50
    assert "DROPPED" in "\n".join(report.lines())


async def test_a_shard_that_does_not_begin_where_the_last_one_ended_is_found(kept: Place) -> None:
    store = MemoryStore()
    async with running(store, kept):
        store.accept()
    made = keys.load(kept.folder, T0)
    stamp = events.Stamp("n1", T0, events.no_span())
    forged = events.log_opened(
        stamp,
        origin="x.example/audit/forged",
        log=note.Signer("x.example/audit/forged", b"\x09" * 32).verifier.vkey(),
        receipt=made.receipt.verifier.vkey(),
        start=3,
    )
    store.put(forged)
    log = kept.log()
    log.begin((forged.eid, forged.leaf), [note.Signer("x.example/audit/forged", b"\x09" * 32)], T0)
    log.close()
    assert "shard-unlinked" in kinds(await verified(store, kept))


# --- restored copies ---


async def restored_to_an_old_copy(store: MemoryStore, folder: Path) -> str:
    """301 leaves signed for, and an audit.db put back that holds fewer. Returns the lost head."""
    kept = Place(folder, None)
    async with running(store, kept) as sequencer:
        store.accept()
        await sequencer.flush()
    shutil.copy(folder / "audit.db", folder / "old")
    async with running(store, kept) as sequencer:
        for _ in range(10):
            store.accept()
        await sequencer.flush()
    for name in ("audit.db-wal", "audit.db-shm"):
        (folder / name).unlink(missing_ok=True)
    (folder / "old").replace(folder / "audit.db")
    return (folder / HIGH_WATER).read_text()


async def fork(store: MemoryStore, folder: Path, known: list[tuple[str, str]]) -> tuple[str, int]:
    made = keys.load_or_create(folder, "x.example", T0)
    heads = restored.heads(known, keys.load_public(folder).logs)
    return await restored.fork(
        store,
        folder,
        made,
        heads,
        node="n1",
        database=None,
        sharding=Sharding(),
        high_water=folder / HIGH_WATER,
    )


async def test_a_restored_copy_is_refused_and_an_honest_new_log_names_the_lost_head(tmp_path: Path) -> None:
    store, kept = MemoryStore(), Place(tmp_path, None)
    lost_head = await restored_to_an_old_copy(store, tmp_path)
    with pytest.raises(LogError, match=r"old copy.*restore-fork"):
        async with running(store, kept):
            pass
    assert "truncated" in kinds(await verified(store, kept))
    name, lost = await fork(store, tmp_path, high_water(tmp_path))
    assert (lost, ".restored1" in name) == (20, True)
    async with running(store, kept) as sequencer:
        assert sequencer.keys.origin == name
        store.accept()
        await sequencer.flush()
    reader = kept.reader()
    opened = json.loads(reader.shard(2).entry(0) or b"")
    assert (opened["why"], opened["prev"], opened["start"]) == ("restored", lost_head, 3 + 20)
    reader.close()
    report = await verified(store, kept, remembered=[lost_head])
    assert report.ok, report.lines()
    assert report.lost == 20
    assert "RESTORED" in "\n".join(report.lines())
    with pytest.raises(LogError, match="nothing to fork"):
        await fork(store, tmp_path, high_water(tmp_path))


async def test_a_head_kept_elsewhere_betrays_a_copy_whose_own_memory_was_put_back_too(tmp_path: Path) -> None:
    store = MemoryStore()
    lost_head = await restored_to_an_old_copy(store, tmp_path)
    (tmp_path / HIGH_WATER).unlink()
    made = keys.load_or_create(tmp_path, "x.example", T0)
    asked: list[str] = []

    def witnesses(origin: str) -> list[tuple[str, str]]:
        asked.append(origin)
        return [("witness w1", lost_head)]

    with pytest.raises(LogError, match="witness w1 counts 23"):
        await Sequencer(store, tmp_path, made, node="n1", remembered=witnesses).start()
    assert asked == ["x.example/audit/2026h1"]


# --- one leads ---


@pytest.fixture
def shared(tmp_path: Path, server: PostgresServer) -> Place:
    return place("postgres", tmp_path, server)


async def test_a_standby_takes_over_within_two_seconds_of_a_leaders_silence(shared: Place) -> None:
    store = MemoryStore()
    async with running(store, shared) as first:
        await first.flush()
        async with running(store, shared) as second:
            await until(lambda: second._task is not None and not second._leading)
            assert first._task is not None
            first._task.cancel()  # silent from now on, without a word
            store.accept()
            began = time.monotonic()
            await until(lambda: all(stored.index is not None for stored in store.rows))
            assert time.monotonic() - began < 4, "two seconds are promised; the rest is for a busy test machine"
            assert second._leading
            first._task = None
    report = await verified(store, shared)
    assert report.ok, report.lines()


async def test_a_leader_that_stops_hands_over_at_once(shared: Place) -> None:
    store = MemoryStore()
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(running(store, shared))
        await first.flush()
        async with running(store, shared) as second:
            assert (first._leading, second._leading) == (True, False)
            await stack.aclose()
            store.accept()
            assert await second.flush() == 3
            assert second._leading
    assert (await verified(store, shared)).ok


async def test_a_node_without_the_logs_key_lets_others_lead(shared: Place, tmp_path: Path) -> None:
    store = MemoryStore()
    async with running(store, shared) as first:
        store.accept()
        await first.flush()
    stranger = Place(tmp_path / "elsewhere", shared.database)
    with pytest.raises(LogError, match="another key"):
        async with running(store, stranger):
            pass
    async with running(store, shared) as first:
        store.accept()
        assert await first.flush() == 5


async def test_a_receipt_of_a_closed_shard_is_still_kept_and_no_suppression(tmp_path: Path) -> None:
    store, kept = MemoryStore(), Place(tmp_path, None)
    async with running(store, kept) as sequencer:
        store.accept()
        await sequencer.flush()
    async with running(store, kept, Sharding("1mo")) as sequencer:
        await until(lambda: sequencer.keys.origin != "x.example/audit/2026h1")
        await sequencer.flush()
    logs = keys.load_public(tmp_path).logs
    row = next(stored.row for stored in store.rows if stored.row.ev == "message.accepted")
    for leaf, state in ((leaf_hash(row.leaf), State.INCLUDED), (bytes(32), State.SUPPRESSED)):
        issued = receipt.Receipt(row.eid, leaf, T0, bytes(4), bytes(64))
        held = Receipt(issued, (), "a@x.example", ("b@x.example",))
        found, _ = await in_shards(held, tmp_path, list(logs))
        assert found == state
