"""The log, wherever it is kept: it only grows, two writers cannot fork it, and proofs and tiles come out of it as C2SP
has them."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import psycopg
import pytest

from aimx.audit import keys
from aimx.audit.log import Fenced, LogError, NotCovered, Shard
from aimx.audit.place import open_log, open_reader
from aimx.audit.postgres import PostgresLog, install
from aimx.tlog import checkpoint, proof, tile, tree
from aimx.tlog.note import ED25519, Signer
from aimx.tlog.tile import Tile
from tests.postgres_server import PostgresServer
from tests.store.audit_logs import KINDS, Place, leaves, opening, place

SIGNER = Signer("x.example/audit/2026h2", b"\x01" * 32, ED25519)
NEXT = Signer("x.example/audit/2027h1", b"\x02" * 32, ED25519)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(params=KINDS)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A new log of each kind; PostgreSQL is started only for those that need it."""
    kind = cast("str", request.param)
    return place(kind, tmp_path, request.getfixturevalue("server") if kind == "postgres" else None)


def test_a_log_goes_on_where_it_was_left(kept: Place) -> None:
    log = kept.log()
    assert log.append(leaves(0, 700)).indexes == list(range(700))
    log.close()
    log = kept.log()
    appended = log.append(leaves(700, 1000))
    assert (appended.before, appended.size) == (700, 1000)
    assert appended.root == tree.fold([tree.leaf_hash(entry) for _, entry in leaves(0, 1000)])
    log.close()


def test_an_event_enters_once_however_often_it_is_handed_over(kept: Place) -> None:
    log = kept.log()
    log.append(leaves(0, 5))
    again = log.append(leaves(3, 8))
    assert again.indexes == [3, 4, 5, 6, 7]
    twice = log.append([*leaves(8, 9), *leaves(8, 9)])
    assert (twice.indexes, twice.size) == ([8, 8], 9)
    assert log.append(leaves(0, 9)).size == 9
    log.close()


def test_two_sequencers_cannot_fork_the_log(kept: Place) -> None:
    one, two = kept.log(), kept.log()
    one.append(leaves(0, 3))
    with pytest.raises(Fenced):
        two.append(leaves(3, 4))
    with pytest.raises(Fenced):
        two.sign([SIGNER], 0)
    two.reload()
    assert two.append(leaves(2, 5)).indexes == [2, 3, 4]
    with pytest.raises(Fenced):
        one.append(leaves(5, 6))
    one.close()
    two.close()


ATTACKS = {
    "a leaf edited": "UPDATE leaf SET entry = 'x' WHERE idx = 1",
    "a leaf deleted": "DELETE FROM leaf WHERE idx = 2",
    "a leaf beyond the end": "INSERT INTO leaf VALUES ({shard} 309, 'e', '', '')",
    "a leaf twice": f"INSERT INTO leaf VALUES ({{shard}} 300, '{1:026d}', '', '')",
    "a node edited": "UPDATE node SET hash = ''",
    "a node deleted": "DELETE FROM node",
    "a node beyond the end": "INSERT INTO node VALUES ({shard} 1, 9, '')",
    "the state set back": "UPDATE state SET size = 1",
    "the state deleted": "DELETE FROM state",
    "a checkpoint edited": "UPDATE checkpoint SET note = 'x'",
    "a checkpoint deleted": "DELETE FROM checkpoint",
    "a checkpoint of the past": "INSERT INTO checkpoint VALUES ({shard} 299, 0, 'x')",
}
IN_SQLITE = {
    "a leaf replaced": "INSERT OR REPLACE INTO leaf VALUES (1, 'e', x'00', x'00')",
    "a leaf replaced by its id": f"INSERT OR REPLACE INTO leaf VALUES (300, '{1:026d}', x'00', x'00')",
    "a node replaced": "INSERT OR REPLACE INTO node VALUES (1, 0, x'00')",
    "the state replaced": "INSERT OR REPLACE INTO state VALUES (1, 0, x'00', x'00', NULL)",
    "a checkpoint replaced": "INSERT OR REPLACE INTO checkpoint VALUES (300, 0, 'x')",
}
IN_POSTGRES = {
    "all leaves cut off": "TRUNCATE leaf",
    "one shard's leaves cut off": "TRUNCATE leaf_1",
    "one shard's leaf edited": "UPDATE leaf_1 SET entry = 'x' WHERE idx = 1",
    "nodes cut off": "TRUNCATE node",
    "checkpoints cut off": "TRUNCATE checkpoint",
    "the state cut off": "TRUNCATE state",
    "a leaf replaced": "INSERT INTO leaf VALUES (1, 1, 'e', '', '') ON CONFLICT (shard, idx) DO UPDATE SET eid = 'e'",
    "the newest shard dropped": "SELECT drop_shard(1)",
    "a shard begun out of turn": "SELECT begin_shard(3, '', '')",
}


@pytest.fixture
def grown(kept: Place) -> Place:
    log = kept.log()
    log.append(leaves(0, 300))
    log.sign([SIGNER], 0)
    log.close()
    return kept


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_database_refuses_a_careless_hand(grown: Place, attack: str) -> None:
    statement = ATTACKS[attack].format(shard="" if grown.database is None else "1,")
    with pytest.raises((sqlite3.IntegrityError, psycopg.DatabaseError)):
        grown.run(statement)


@pytest.mark.parametrize("kept", ["sqlite"], indirect=True)
@pytest.mark.parametrize("attack", IN_SQLITE)
def test_sqlite_refuses_a_replacement(grown: Place, attack: str) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        grown.run(IN_SQLITE[attack])


@pytest.mark.parametrize("kept", ["postgres"], indirect=True)
@pytest.mark.parametrize("replica", [False, True])
@pytest.mark.parametrize("attack", IN_POSTGRES)
def test_postgres_refuses_what_only_postgres_can_do_also_from_a_replica(
    grown: Place, attack: str, replica: bool
) -> None:
    with pytest.raises(psycopg.DatabaseError):
        grown.run(IN_POSTGRES[attack], replica=replica)


@pytest.mark.parametrize("kept", ["postgres"], indirect=True)
@pytest.mark.parametrize("role", ["aimx_app", "aimx_api", "aimx_seq"])
def test_no_role_of_the_node_may_take_anything_from_the_log(grown: Place, role: str) -> None:
    for statement in (
        "DELETE FROM leaf",
        "UPDATE leaf SET entry = ''",
        "TRUNCATE leaf",
        "DELETE FROM state",
        "DELETE FROM checkpoint",
        "SELECT drop_shard(1)",
        "ALTER TABLE leaf DISABLE TRIGGER kept",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            grown.run(f"SET ROLE {role}", statement)
    if role != "aimx_seq":
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            grown.run(f"SET ROLE {role}", "INSERT INTO leaf VALUES (1, 300, 'e', '', '')")


@pytest.mark.parametrize("kept", ["postgres"], indirect=True)
def test_the_sequencers_role_is_enough_for_all_its_work(grown: Place) -> None:
    assert grown.database is not None
    log = PostgresLog(grown.database.replace("postgres@", "aimx_seq@"))
    log.append(leaves(300, 600))
    log.sign([SIGNER], 61_000)
    log.begin(opening(NEXT.verifier.name, 600), [NEXT], 62_000)
    assert log.lead("n1", 1.0)
    log.close()
    reader = open_reader(grown.folder, grown.database.replace("postgres@", "aimx_api@"))
    assert [shard.size for shard in reader.shards()] == [600, 1]
    reader.close()


def test_tiles_and_bundles_are_those_of_the_tree_partial_ones_included(kept: Place) -> None:
    log, reader = kept.log(), kept.reader()
    entries = [entry for _, entry in leaves(0, 66_000)]
    for start in range(0, 66_000, 5000):
        log.append(leaves(start, min(start + 5000, 66_000)))
    hashes = [tree.leaf_hash(entry) for entry in entries]
    level1 = [tree.fold(hashes[i : i + 256]) for i in range(0, 66_000 - 255, 256)]
    assert reader.tile(Tile(0, 3)) == b"".join(hashes[768:1024])
    assert reader.tile(Tile(0, 257, 208)) == b"".join(hashes[65_792:])
    assert reader.tile(Tile(1, 0)) == b"".join(level1[:256])
    assert reader.tile(Tile(1, 1, 1)) == level1[256]
    assert reader.tile(Tile(2, 0, 1)) == tree.fold(level1[:256])
    assert tile.decode_bundle(reader.tile(Tile(None, 257, 208)) or b"") == entries[65_792:]
    for beyond in (Tile(0, 257), Tile(0, 258, 1), Tile(2, 0, 2), Tile(None, 900)):
        assert reader.tile(beyond) is None
    reader.close()
    log.close()


def test_the_tiles_of_every_size_up_to_600_are_there_and_right(kept: Place) -> None:
    log, reader = kept.log(), kept.reader()
    log.append(leaves(0, 600))
    hashes = [tree.leaf_hash(entry) for _, entry in leaves(0, 600)]
    level1 = [tree.fold(hashes[i : i + 256]) for i in (0, 256)]
    for size in range(1, 601):
        for one in tile.tiles(size):
            if one.width == tile.WIDTH and size % tile.WIDTH:
                continue  # seen at its own size
            found, start = reader.tile(one), one.index * tile.WIDTH
            if one.level is None:
                assert tile.decode_bundle(found or b"") == [entry for _, entry in leaves(start, start + one.width)]
            else:
                assert found == b"".join((level1 if one.level else hashes)[start : start + one.width])
    reader.close()
    log.close()


def test_proofs_come_out_of_the_stored_nodes_and_hold(kept: Place) -> None:
    log, reader = kept.log(), kept.reader()
    log.append(leaves(0, 500))
    early = log.state.root
    log.append(leaves(500, 3000))
    with pytest.raises(NotCovered):
        reader.prove(7)
    signed = log.sign([SIGNER], 5)
    for index in (0, 255, 256, 2559, 2560, 2999):
        found = proof.parse(reader.prove(index).text())
        opened = proof.verify(found, leaves(index, index + 1)[0][1], SIGNER.verifier)
        assert (opened.checkpoint.size, str(opened.note)) == (3000, signed)
    tree.verify_consistency(500, 3000, early, log.state.root, reader.consistency(500, 3000))
    log.append(leaves(3000, 3001))
    with pytest.raises(NotCovered):
        reader.prove(3000)
    reader.close()
    log.close()


def test_one_checkpoint_a_minute_is_kept_and_the_newest_always(kept: Place) -> None:
    log, reader = kept.log(), kept.reader()
    for n, t_ms in enumerate((0, 1000, 59_000, 60_000, 61_000, 130_000)):
        log.append(leaves(n, n + 1))
        log.sign([SIGNER], t_ms)
    assert [(size, t_ms) for size, t_ms, _ in reader.checkpoints()] == [(1, 0), (4, 60_000), (6, 130_000)]
    newest = checkpoint.open_signed(reader.checkpoint() or "", SIGNER.verifier).checkpoint
    assert (newest.size, newest.root) == (6, log.state.root)
    log.sign([SIGNER], 999_000)
    assert len(reader.checkpoints()) == 3, "a log that did not grow keeps no second checkpoint of the same size"
    reader.close()
    log.close()


def test_two_keys_sign_one_checkpoint_and_each_alone_is_enough(kept: Place) -> None:
    other = Signer(SIGNER.verifier.name, b"\x03" * 32, ED25519)
    log = kept.log()
    log.append(leaves(0, 3))
    text = log.sign([SIGNER, other], 0)
    for signer in (SIGNER, other):
        assert checkpoint.open_signed(text, signer.verifier).checkpoint.size == 3
    log.close()


def test_a_new_shard_begins_whole_and_readers_follow_it(kept: Place) -> None:
    log, stale, reader = kept.log(), kept.log(), kept.reader()
    log.append([opening(SIGNER.verifier.name, 0), *leaves(1, 300)])
    log.sign([SIGNER], 0)
    stale.reload()
    first = reader.shard(1)
    log.begin(opening(NEXT.verifier.name, 300), [NEXT], 5)
    with pytest.raises(Fenced):
        stale.begin(opening(NEXT.verifier.name, 300), [NEXT], 5)
    stale.reload()
    assert stale.append(leaves(300, 303)).indexes == [1, 2, 3]
    assert reader.shards() == [
        Shard(1, "x.example/audit/2026h2", 0, 300),
        Shard(2, "x.example/audit/2027h1", 300, 4),
    ]
    assert (reader.state().size, first.state().size) == (4, 300)
    assert checkpoint.open_signed(reader.checkpoint() or "", NEXT.verifier).checkpoint.size == 1
    assert (reader.place_of(f"{302:026d}"), reader.place_of(f"{7:026d}"), reader.place_of("?")) == (303, 7, None)
    one, index = reader.at(303)
    assert (one.entry(index), index) == (leaves(302, 303)[0][1], 3)
    assert reader.at(299)[1] == 299
    with pytest.raises(NotCovered):
        reader.at(304)
    old = reader.named("2026h2")
    assert old is not None
    assert old.tile(Tile(0, 0)) == first.tile(Tile(0, 0)) is not None
    assert reader.named("2031h1") is None
    for each in (log, stale, reader):
        each.close()


def test_only_the_oldest_shard_can_be_dropped_and_then_it_is_gone_whole(kept: Place) -> None:
    log = kept.log()
    log.append([opening(SIGNER.verifier.name, 0), *leaves(1, 300)])
    log.sign([SIGNER], 0)
    log.begin(opening(NEXT.verifier.name, 300), [NEXT], 5)
    with pytest.raises(LogError):
        log.drop(2)
    log.drop(1)
    log.append(leaves(301, 302))
    log.close()
    reader = kept.reader()
    assert reader.numbers() == [2]
    assert reader.place_of(f"{301:026d}") == 301
    reader.close()
    log = kept.log()
    assert log.append(leaves(302, 303)).indexes == [2]
    log.close()


@pytest.mark.parametrize("kept", ["postgres"], indirect=True)
def test_one_leads_until_it_lets_go_or_is_silent(kept: Place) -> None:
    one, two = kept.log(), kept.log()
    assert one.lead("a", 30.0)
    assert not two.lead("b", 30.0)
    assert one.lead("a", 30.0)
    assert one.lead("a", 0.0)
    assert two.lead("b", 30.0), "let go"
    kept.run("UPDATE leader SET expires = now() - interval '1 second'")
    assert one.lead("a", 30.0), "silent for too long"
    assert not two.lead("b", 30.0)
    one.close()
    two.close()


@pytest.mark.parametrize("kept", ["postgres"], indirect=True)
def test_a_restarted_database_is_found_again_and_nothing_is_lost(kept: Place, server: PostgresServer) -> None:
    log, reader = kept.log(), kept.reader()
    log.append(leaves(0, 300))
    assert reader.state().size == 300
    server.stop("immediate")
    with pytest.raises(LogError):
        log.append(leaves(300, 301))
    with pytest.raises(LogError):
        reader.state()
    server.start()
    log.reload()
    assert log.append(leaves(299, 302)).indexes == [299, 300, 301]
    assert reader.state().size == 302
    log.close()
    reader.close()


def test_the_schema_is_made_once_by_whoever_comes_first(server: PostgresServer) -> None:
    url = server.database()
    log = PostgresLog(url)
    log.append(leaves(0, 3))
    install(url)
    assert log.append(leaves(3, 4)).indexes == [3]
    log.close()


def test_a_database_that_is_not_there_is_said_to_be_so_without_its_password(tmp_path: Path) -> None:
    for call in (open_log, lambda *where: open_reader(*where).state()):
        with pytest.raises(LogError, match="database cannot be") as caught:
            call(tmp_path, "postgresql://me:hidden@127.0.0.1:1/x")
        assert "hidden" not in str(caught.value)


def test_a_missing_or_foreign_file_is_said_to_be_so(tmp_path: Path) -> None:
    reader, path = open_reader(tmp_path), tmp_path / "audit.db"
    with pytest.raises(LogError):
        reader.state()
    assert not path.exists(), "reading never makes a log"
    path.write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(LogError):
        reader.state()
    with pytest.raises(LogError):
        open_log(tmp_path)


def test_a_file_of_the_log_is_its_owners_alone(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.append([opening(SIGNER.verifier.name, 0)])
    log.begin(opening(NEXT.verifier.name, 1), [NEXT], 0)
    log.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["audit.2.db", "audit.db"]
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


def test_keys_are_made_once_private_and_usable(tmp_path: Path) -> None:
    first = keys.load_or_create(tmp_path, "x.example", 1_780_000_000_000)
    again = keys.load_or_create(tmp_path, "y.example", 1_880_000_000_000)
    assert first.origin == again.origin == "x.example/audit/2026h1"
    assert first.public() == again.public()
    assert keys.load_public(tmp_path) == keys.PublicKeys(first.log.verifier, first.receipt.verifier)
    for name in ("log.key", "receipt.key"):
        assert (tmp_path / "keys" / name).stat().st_mode & 0o777 == 0o600
    assert sorted(file.name for file in (tmp_path / "keys").iterdir()) == ["log.key", "receipt.key"]
    (tmp_path / "keys" / "log.key").write_text("PRIVATE+KEY+nonsense\n")
    with pytest.raises(keys.KeyUnusable, match=r"log\.key"):
        keys.load_or_create(tmp_path, "x.example", 0)
    with pytest.raises(keys.KeyUnusable, match=r"audit\.vkeys"):
        keys.load_public(tmp_path / "nowhere")
