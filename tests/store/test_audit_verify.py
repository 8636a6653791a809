"""Every attack that needs no witness is caught, by its name, and an honest log is not accused."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from aimx.audit import events, keys, memory
from aimx.audit.integrity import CHUNK
from aimx.audit.report import Report
from aimx.audit.sequencer import HIGH_WATER, Sequencer
from aimx.audit.sqlite import SqliteLog, SqliteReader
from aimx.audit.verify import verify
from aimx.store.contract import SpanRef
from aimx.tlog import tree
from aimx.tlog.leaf import new_key
from tests.store.audit_memory import MemoryStore


class Node:
    """A stopped node with a past: 300 messages accepted, 601 leaves, signed; and the checkpoint somebody kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = MemoryStore()
        self.kept = ""

    async def live(self, messages: int) -> None:
        made = keys.load_or_create(self.folder, "x.example", 1_780_000_000_000)
        sequencer = Sequencer(self.store, self.folder, made, node="n1")
        await sequencer.start()
        for _ in range(messages):
            self.store.accept()
        await sequencer.stop()

    def remember(self) -> None:
        self.kept = (self.folder / HIGH_WATER).read_text()

    def tamper(self, *statements: str) -> None:
        """What an administrator does who has read the schema: the triggers go first."""
        with sqlite3.connect(self.folder / "audit.db") as db:
            triggers = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")]
            for name in triggers:
                db.execute(f"DROP TRIGGER {name}")
            for statement in statements:
                db.execute(statement)
        db.close()

    def rebuild(self, change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> None:
        """Write the whole log again with other leaves, all hashes right; the signatures cannot be made again."""
        reader = SqliteReader(self.folder / "audit.db")
        size = reader.state().size
        leaves = change([(leaf.eid, leaf.entry) for leaf in reader.leaves(0, size)])
        signed, kept = reader.checkpoint(), reader.checkpoints()
        reader.close()
        for name in ("audit.db", "audit.db-wal", "audit.db-shm"):
            (self.folder / name).unlink(missing_ok=True)
        log = SqliteLog(self.folder / "audit.db")
        log.append(leaves)
        log._db.execute("UPDATE state SET signed = ?", (signed,))
        log._db.executemany("INSERT INTO checkpoint VALUES (?, ?, ?)", kept)
        log.close()

    async def verify(self, **options: object) -> Report:
        return await verify(self.store, self.folder, patience_s=0.05, **options)  # type: ignore[arg-type]


@pytest.fixture
async def node(tmp_path: Path) -> Node:
    node = Node(tmp_path)
    await node.live(150)
    node.remember()
    await node.live(150)
    return node


def kinds(report: Report) -> list[str]:
    return [finding.kind for finding in report.findings]


async def test_an_honest_log_is_consistent_and_complete_and_says_it_is_not_anchored(node: Node) -> None:
    report = await node.verify()
    assert report.ok, report.lines()
    assert report.words == ("CONSISTENT", "COMPLETE", "NOT ANCHORED")
    assert (report.leaves, report.events, report.openings, report.messages, report.contents) == (
        601,
        601,
        601,
        300,
        300,
    )
    assert report.lines()[0] == "CONSISTENT, COMPLETE, NOT ANCHORED"
    assert report.to_json()["first"] is None


async def test_an_edited_leaf_is_named(node: Node) -> None:
    node.tamper("UPDATE leaf SET entry = CAST(replace(entry, 'n1', 'n2') AS BLOB) WHERE idx = 17")
    report = await node.verify()
    assert (report.findings[0].kind, report.findings[0].leaf) == ("leaf-edited", 17)
    assert {"leaf-edited", "node-differs", "root-differs", "checkpoint-contradicted", "event-differs"} <= set(
        kinds(report)
    )
    assert not report.ok
    assert report.words[0] == "INCONSISTENT"


async def test_an_edited_leaf_with_its_hash_put_right_is_found_by_the_tree(node: Node) -> None:
    reader = SqliteReader(node.folder / "audit.db")
    entry = (reader.entry(17) or b"").replace(b'"n1"', b'"n2"')
    reader.close()
    node.tamper(f"UPDATE leaf SET entry = x'{entry.hex()}', hash = x'{tree.leaf_hash(entry).hex()}' WHERE idx = 17")
    report = await node.verify()
    assert report.findings[0].kind == "node-differs"
    assert ("event-differs", 17) in [(finding.kind, finding.leaf) for finding in report.findings]


async def test_a_deleted_leaf_is_named(node: Node) -> None:
    node.tamper("DELETE FROM leaf WHERE idx = 300")
    report = await node.verify()
    assert (report.findings[0].kind, report.findings[0].leaf) == ("leaf-missing", 300)


async def test_swapped_leaves_are_found(node: Node) -> None:
    node.tamper(
        "UPDATE leaf SET idx = -1 WHERE idx = 590",
        "UPDATE leaf SET idx = 590 WHERE idx = 591",
        "UPDATE leaf SET idx = 591 WHERE idx = -1",
    )
    report = await node.verify()
    assert report.words[:2] == ("INCONSISTENT", "UNRECONCILED")
    assert {590, 591} == {finding.leaf for finding in report.findings if finding.kind == "event-differs"}


async def test_a_cut_off_tail_is_found_by_any_remembered_checkpoint(node: Node) -> None:
    newest = (node.folder / HIGH_WATER).read_text()
    (node.folder / HIGH_WATER).unlink()
    node.rebuild(lambda leaves: leaves[:301])
    node.tamper("UPDATE state SET signed = NULL", "DELETE FROM checkpoint")
    node.store.rows[301:] = []
    node.store.mail = {
        eid: mail for eid, mail in node.store.mail.items() if any(s.row.eid == eid for s in node.store.rows)
    }
    report = await node.verify(remembered=[node.kept])
    assert report.ok, (
        "without the newest checkpoint a cut at a signed size cannot be seen: that is what anchors are for"
    )
    report = await node.verify(remembered=[node.kept, newest])
    assert kinds(report) == ["truncated"]


async def test_a_cut_off_tail_is_found_by_the_nodes_own_memory(node: Node) -> None:
    node.rebuild(lambda leaves: leaves[:500])
    report = await node.verify()
    assert "truncated" in kinds(report)
    assert "event-unlogged" not in kinds(report), "events beyond the log's end are the truncation's own trace"
    assert report.words[0] == "INCONSISTENT"


async def test_a_log_rewritten_without_the_key_contradicts_its_signatures(node: Node) -> None:
    node.rebuild(lambda leaves: [(eid, entry.replace(b'"n1"', b'"n2"')) for eid, entry in leaves])
    for stored in node.store.rows:
        stored.row.leaf = stored.row.leaf.replace(b'"n1"', b'"n2"')
    report = await node.verify(remembered=[node.kept])
    assert set(kinds(report)) == {"checkpoint-contradicted"}
    assert "remembered checkpoint 1" in " ".join(finding.text for finding in report.findings)


async def test_a_rewritten_log_without_any_signature_is_unsigned(node: Node) -> None:
    node.rebuild(lambda leaves: [(eid, entry.replace(b'"t":17', b'"t":16')) for eid, entry in leaves])
    node.tamper("UPDATE state SET signed = NULL", "DELETE FROM checkpoint")
    (node.folder / HIGH_WATER).unlink()
    assert "unsigned" in kinds(await node.verify())


async def test_a_forged_signature_is_found(node: Node) -> None:
    other = keys.load_or_create(node.folder / "other", "x.example", 1_780_000_000_000)
    log = SqliteLog(node.folder / "audit.db")
    log.sign([other.log], 0)
    log.close()
    assert "checkpoint-invalid" in kinds(await node.verify())


async def test_a_message_dropped_before_sequencing_is_found(node: Node) -> None:
    eid = node.store.accept()
    node.store.rows[-2:] = []
    await node.live(1)
    report = await node.verify()
    assert [(finding.kind, finding.eid) for finding in report.findings] == [("message-unlogged", eid)]
    assert report.words[:2] == ("CONSISTENT", "UNRECONCILED")


async def test_an_event_held_back_from_the_log_is_pending_at_first_and_overdue_after_a_minute(node: Node) -> None:
    node.store.accept()
    report = await node.verify()
    assert (report.ok, report.words[1], report.pending) == (True, "PENDING", 2)
    node.store.accept(t_ms=time.time_ns() // 1_000_000 - 61_000)
    report = await node.verify()
    assert kinds(report) == ["event-overdue", "event-overdue"]


async def test_a_leaf_whose_event_was_deleted_is_unexplained(node: Node) -> None:
    del node.store.rows[40]
    report = await node.verify()
    assert ("leaf-unexplained", 40) in [(finding.kind, finding.leaf) for finding in report.findings]


async def test_an_event_that_points_at_a_leaf_that_is_not_its_own_is_found(node: Node) -> None:
    node.store.rows[40].index = 41
    assert "event-differs" in kinds(await node.verify())


@pytest.mark.parametrize("lie", ["sender", "trace", "time", "agent"])
async def test_a_timeline_told_otherwise_is_found(node: Node, lie: str) -> None:
    stored = next(stored for stored in node.store.rows if stored.row.ev == "message.accepted")
    row = stored.row
    match lie:
        case "sender":
            stored.row = replace(row, detail={**row.detail, "open": {**row.detail["open"], "from": "eve@x.example"}})
        case "trace":
            stored.row = replace(row, trace_id=b"\x09" * 16)
        case "time":
            stored.row = replace(row, t_ms=row.t_ms + 1)
        case "agent":
            stored.row = replace(row, detail={"open": {"from": "a@x.example"}})
    report = await node.verify()
    assert report.findings[0].eid == row.eid
    assert report.words[:2] == ("CONSISTENT", "UNRECONCILED")


async def test_an_edited_mail_is_found(node: Node) -> None:
    eid = next(iter(node.store.mail))
    record, header, body = node.store.mail[eid]
    node.store.mail[eid] = (record, header, body + b"PS: send money\r\n")
    report = await node.verify()
    assert [(finding.kind, finding.eid) for finding in report.findings] == [("message-differs", eid)]
    assert (await node.verify(contents=False)).ok, "only reading every mail shows it"
    node.store.mail[eid] = (replace(record, recipients=("eve@x.example",)), header, body)
    assert kinds(await node.verify(contents=False)) == ["message-differs"]


async def test_an_erased_message_is_said_to_be_erased_and_a_silently_erased_one_is_found(node: Node) -> None:
    eid = next(iter(node.store.mail))
    record, _, _ = node.store.mail[eid]
    rows = [stored for stored in node.store.rows if stored.row.ref == eid]

    def erase() -> None:
        node.store.mail[eid] = (record, b"", b"")
        for stored in rows:
            stored.row = replace(stored.row, key=None, detail={})

    erase()
    report = await node.verify()
    assert {(finding.kind, finding.eid) for finding in report.findings} == {
        ("opening-missing", stored.row.eid) for stored in rows
    }
    stamp = events.Stamp("n1", time.time_ns() // 1_000_000, SpanRef(b"\x01" * 16, b"\x02" * 8), "admin")
    node.store.put(events.message_erased(stamp, message=eid, by="admin", why="request", leaf=rows[0].index))
    await node.live(1)
    report = await node.verify()
    assert report.ok, report.lines()
    assert (report.erased, report.words[1]) == (2, "COMPLETE")
    assert "ERASED" in "\n".join(report.lines())


async def test_a_message_that_vanished_without_a_word_is_found(node: Node) -> None:
    eid = next(iter(node.store.mail))
    del node.store.mail[eid]
    report = await node.verify()
    assert [(finding.kind, finding.eid) for finding in report.findings] == [("message-missing", eid)]


async def test_a_missing_log_is_said_to_be_missing(node: Node) -> None:
    (node.folder / "audit.db").unlink()
    report = await node.verify()
    assert kinds(report) == ["log-unreadable"]


async def test_a_running_node_is_verified_without_false_alarm(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.live(10)
    made = keys.load_or_create(tmp_path, "x.example", 0)
    sequencer = Sequencer(node.store, tmp_path, made, node="n1", checkpoint_every=0.1)
    await sequencer.start()
    stop = asyncio.Event()

    async def traffic() -> None:
        while not stop.is_set():
            node.store.accept()
            await asyncio.sleep(0.002)

    task = asyncio.create_task(traffic())
    try:
        for _ in range(8):
            report = await verify(node.store, tmp_path, patience_s=2.0)
            assert report.ok, report.lines()
            await asyncio.sleep(0.05)
    finally:
        stop.set()
        await task
        await sequencer.stop()
    assert (await node.verify()).words[1] == "COMPLETE"


async def test_a_long_log_is_checked_in_pieces(tmp_path: Path) -> None:
    """More than one chunk, with a signed size in the middle of one."""
    node = Node(tmp_path)
    await node.live(3)
    span = SpanRef(b"\x01" * 16, b"\x02" * 8)
    key = new_key()
    beats = [
        events.event("heartbeat", events.Stamp("n1", 1, span), fields={"size": n}, values={}, key=key)
        for n in range(CHUNK)
    ]
    node.store.put(*beats)
    await node.live(1)
    report = await node.verify()
    assert report.ok, report.lines()
    assert report.leaves == CHUNK + 9
    node.tamper(f"UPDATE leaf SET entry = CAST(entry || ' ' AS BLOB) WHERE idx = {CHUNK + 1}")
    assert (await node.verify()).findings[0].leaf == CHUNK + 1


async def test_a_very_long_log_is_checked_by_processes_of_its_own_to_the_same_end(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = await node.verify()
    monkeypatch.setattr("aimx.audit.verify.APART_ABOVE", 0)
    together = await node.verify()
    assert replace(together, seconds=0.0) == replace(alone, seconds=0.0)
    stored = node.store.rows[40]
    stored.row = replace(stored.row, t_ms=1)
    node.tamper("UPDATE leaf SET entry = CAST(replace(entry, 'n1', 'n2') AS BLOB) WHERE idx = 17")
    together = await node.verify()
    assert (together.findings[0].kind, together.findings[0].leaf) == ("leaf-edited", 17)
    assert ("opening-differs", 40) in [(finding.kind, finding.leaf) for finding in together.findings]
    monkeypatch.undo()
    alone = await node.verify()
    assert (alone.wrong, alone.words) == (together.wrong, together.words)
    (node.folder / "audit.db").write_bytes(b"no database" * 1000)
    monkeypatch.setattr("aimx.audit.verify.APART_ABOVE", 0)
    assert kinds(await node.verify()) == ["log-unreadable"]


# --- going on from the last verification ---


async def test_a_second_verification_reads_only_what_is_new(node: Node) -> None:
    first = await node.verify()
    assert first.memory is not None
    again = await node.verify(memory=first.memory)
    assert again.ok, again.lines()
    assert (again.leaves, again.events, again.contents, again.since) == (0, 0, 0, 601)
    await node.live(20)
    third = await node.verify(memory=again.memory)
    assert third.ok, third.lines()
    assert (third.leaves, third.events, third.contents) == (40, 40, 20)
    assert third.memory is not None
    full = await node.verify()
    assert full.memory is not None
    assert replace(third.memory, full_ms=0) == replace(full.memory, full_ms=0)


async def test_what_is_remembered_survives_its_file_and_a_broken_file_is_no_memory(node: Node) -> None:
    found = (await node.verify()).memory
    assert found is not None
    memory.save(node.folder, found, full=True)
    loaded = memory.load(node.folder)
    assert loaded is not None
    assert replace(loaded, full_ms=0) == found
    assert loaded.full_ms
    for text in ("", "{}", "[1]", '{"size": 1}'):
        (node.folder / memory.FILE).write_text(text)
        assert memory.load(node.folder) is None


async def test_going_on_still_finds_what_is_wrong_with_the_new_and_with_the_tree(node: Node) -> None:
    remembered = (await node.verify()).memory
    await node.live(20)
    node.tamper("UPDATE leaf SET entry = CAST(replace(entry, 'n1', 'n2') AS BLOB) WHERE idx = 620")
    report = await node.verify(memory=remembered)
    assert (report.findings[0].kind, report.findings[0].leaf) == ("leaf-edited", 620)
    assert report.memory is None
    node.tamper("UPDATE node SET hash = zeroblob(32) WHERE level = 1 AND idx = 0")
    report = await node.verify(memory=remembered)
    assert report.findings[0].kind == "checkpoint-contradicted"


async def test_a_log_cut_below_what_was_verified_is_found_without_any_checkpoint(node: Node) -> None:
    remembered = (await node.verify()).memory
    (node.folder / HIGH_WATER).unlink()
    node.rebuild(lambda leaves: leaves[:301])
    node.tamper("UPDATE state SET signed = NULL", "DELETE FROM checkpoint")
    assert "truncated" in kinds(await node.verify(memory=remembered))


async def test_progress_is_told_up_to_the_end(node: Node) -> None:
    told: list[tuple[int, int]] = []
    await node.verify(progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (1202, 1202)
    assert told == sorted(told)
