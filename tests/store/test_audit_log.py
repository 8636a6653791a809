"""audit.db: it only grows, two writers cannot fork it, and proofs and tiles come out of it as C2SP has them."""

import sqlite3
from pathlib import Path

import pytest

from aimx.audit import keys
from aimx.audit.log import Fenced, Log, LogError, NotCovered, Reader
from aimx.tlog import checkpoint, proof, tile, tree
from aimx.tlog.note import ED25519, Signer
from aimx.tlog.tile import Tile

SIGNER = Signer("x.example/audit/2026h2", b"\x01" * 32, ED25519)


def leaves(start: int, end: int) -> list[tuple[str, bytes]]:
    return [(f"{n:026d}", b'{"eid":"%026d","t":%d}' % (n, n)) for n in range(start, end)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


def test_a_log_goes_on_where_it_was_left(path: Path) -> None:
    log = Log(path)
    assert log.append(leaves(0, 700)).indexes == list(range(700))
    log.close()
    log = Log(path)
    appended = log.append(leaves(700, 1000))
    assert (appended.before, appended.size) == (700, 1000)
    assert appended.root == tree.fold([tree.leaf_hash(entry) for _, entry in leaves(0, 1000)])
    log.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_event_enters_once_however_often_it_is_handed_over(path: Path) -> None:
    log = Log(path)
    log.append(leaves(0, 5))
    again = log.append(leaves(3, 8))
    assert again.indexes == [3, 4, 5, 6, 7]
    twice = log.append([*leaves(8, 9), *leaves(8, 9)])
    assert (twice.indexes, twice.size) == ([8, 8], 9)
    assert log.append(leaves(0, 9)).size == 9
    log.close()


def test_two_sequencers_cannot_fork_the_log(path: Path) -> None:
    one, two = Log(path), Log(path)
    one.append(leaves(0, 3))
    with pytest.raises(Fenced):
        two.append(leaves(3, 4))
    with pytest.raises(Fenced):
        two.sign(SIGNER, 0)
    two.reload()
    assert two.append(leaves(2, 5)).indexes == [2, 3, 4]
    with pytest.raises(Fenced):
        one.append(leaves(5, 6))
    one.close()
    two.close()


@pytest.mark.parametrize(
    "attack",
    [
        "UPDATE leaf SET entry = 'x' WHERE idx = 1",
        "DELETE FROM leaf WHERE idx = 2",
        "INSERT INTO leaf VALUES (9, 'e', x'00', x'00')",
        "INSERT OR REPLACE INTO leaf VALUES (1, 'e', x'00', x'00')",
        f"INSERT OR REPLACE INTO leaf VALUES (300, '{1:026d}', x'00', x'00')",
        "UPDATE node SET hash = x'00'",
        "DELETE FROM node",
        "INSERT OR REPLACE INTO node VALUES (1, 0, x'00')",
        "UPDATE state SET size = 1",
        "DELETE FROM state",
        "INSERT OR REPLACE INTO state VALUES (1, 0, x'00', x'00', NULL)",
        "UPDATE checkpoint SET note = 'x'",
        "DELETE FROM checkpoint",
        "INSERT OR REPLACE INTO checkpoint VALUES (300, 0, 'x')",
    ],
)
def test_the_database_refuses_a_careless_hand(path: Path, attack: str) -> None:
    log = Log(path)
    log.append(leaves(0, 300))
    log.sign(SIGNER, 0)
    log.close()
    with sqlite3.connect(path) as db, pytest.raises(sqlite3.IntegrityError):
        db.execute(attack)
    db.close()


def test_tiles_and_bundles_are_those_of_the_tree_partial_ones_included(path: Path) -> None:
    log, reader = Log(path), Reader(path)
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


def test_proofs_come_out_of_the_stored_nodes_and_hold(path: Path) -> None:
    log, reader = Log(path), Reader(path)
    log.append(leaves(0, 500))
    early = log.state.root
    log.append(leaves(500, 3000))
    with pytest.raises(NotCovered):
        reader.prove(7)
    signed = log.sign(SIGNER, 5)
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


def test_one_checkpoint_a_minute_is_kept_and_the_newest_always(path: Path) -> None:
    log, reader = Log(path), Reader(path)
    for n, t_ms in enumerate((0, 1000, 59_000, 60_000, 61_000, 130_000)):
        log.append(leaves(n, n + 1))
        log.sign(SIGNER, t_ms)
    assert [(size, t_ms) for size, t_ms, _ in reader.checkpoints()] == [(1, 0), (4, 60_000), (6, 130_000)]
    newest = checkpoint.open_signed(reader.checkpoint() or "", SIGNER.verifier).checkpoint
    assert (newest.size, newest.root) == (6, log.state.root)
    log.sign(SIGNER, 999_000)
    assert len(reader.checkpoints()) == 3, "a log that did not grow keeps no second checkpoint of the same size"
    reader.close()
    log.close()


def test_a_missing_or_foreign_file_is_said_to_be_so(path: Path) -> None:
    reader = Reader(path)
    with pytest.raises(LogError):
        reader.state()
    assert not path.exists(), "reading never makes a log"
    path.write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(LogError):
        reader.state()
    with pytest.raises(LogError):
        Log(path)


def test_keys_are_made_once_private_and_usable(tmp_path: Path) -> None:
    first = keys.load_or_create(tmp_path, "x.example", 1_780_000_000_000)
    again = keys.load_or_create(tmp_path, "y.example", 1_880_000_000_000)
    assert first.origin == again.origin == "x.example/audit/2026h1"
    assert [made.verifier for made in first] == [made.verifier for made in again]
    assert keys.load_public(tmp_path) == keys.PublicKeys(first.log.verifier, first.receipt.verifier)
    for name in ("log.key", "receipt.key"):
        assert (tmp_path / "keys" / name).stat().st_mode & 0o777 == 0o600
    assert sorted(file.name for file in (tmp_path / "keys").iterdir()) == ["log.key", "receipt.key"]
    (tmp_path / "keys" / "log.key").write_text("PRIVATE+KEY+nonsense\n")
    with pytest.raises(keys.KeyUnusable, match=r"log\.key"):
        keys.load_or_create(tmp_path, "x.example", 0)
    with pytest.raises(keys.KeyUnusable, match=r"audit\.vkeys"):
        keys.load_public(tmp_path / "nowhere")
