"""What outsiders said and what was witnessed is kept, on every database, and a witness never goes back."""

import sqlite3
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from aimx.audit.anchors import KEEP_EVERY_MS, Anchor, Anchors, SqliteAnchors, Witnessed, read_anchors
from aimx.audit.anchors_postgres import PostgresAnchors, install
from aimx.audit.log import LogError

ORIGIN = "x.example/audit/2026h2"
T0 = 1_780_000_000_000


def anchor(size: int, t_ms: int = T0, name: str = "w1") -> Anchor:
    return Anchor("witness", name, ORIGIN, size, t_ms, f"note {size}", b"\x00\xff")


def witnessed(size: int, root: bytes = b"r" * 32) -> Witnessed:
    return Witnessed(size, root, f"note {size}")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Any]:
    server = pytest.importorskip("tests.postgres_server", reason="NOT TESTED: no helper that starts PostgreSQL")
    with server.PostgresServer() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgres"])
def anchors(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Anchors]:
    found: Anchors
    if request.param == "postgres":
        url = request.getfixturevalue("postgres").database()
        install(url)
        install(url)  # once more is no error
        found = PostgresAnchors(url)
    else:
        found = SqliteAnchors(tmp_path / "anchors.db")
    yield found
    found.close()


def test_an_anchor_is_given_back_as_it_was(anchors: Anchors) -> None:
    assert anchors.newest("witness", "w1", ORIGIN) is None
    anchors.add(anchor(5))
    anchors.add(anchor(9, name="w2"))
    assert anchors.newest("witness", "w1", ORIGIN) == anchor(5)
    assert anchors.newest("mail", "w1", ORIGIN) is None
    assert anchors.all(ORIGIN) == [anchor(5), anchor(9, name="w2")]
    assert anchors.all("another") == []


def test_of_each_outsider_one_an_hour_and_the_newest_are_kept(anchors: Anchors) -> None:
    minute = 60_000
    for number in range(150):
        anchors.add(anchor(number, T0 + number * minute))
        anchors.add(anchor(number, T0 + number * minute, "w2"))
    for name in ("w1", "w2"):
        kept = [found for found in anchors.all(ORIGIN) if found.name == name]
        assert kept[-1].size == 149
        assert 3 <= len(kept) <= 5
        times = [found.t_ms for found in kept[:-1]]
        assert all(later - earlier >= KEEP_EVERY_MS for earlier, later in pairwise(times))


def test_what_is_witnessed_is_replaced_only_by_who_knows_it(anchors: Anchors) -> None:
    assert anchors.witnessed(ORIGIN) is None
    assert anchors.witness(ORIGIN, 0, witnessed(4))
    assert not anchors.witness(ORIGIN, 0, witnessed(5)), "somebody who has not seen the first"
    assert anchors.witness(ORIGIN, 4, witnessed(9))
    assert not anchors.witness(ORIGIN, 4, witnessed(8))
    assert anchors.witnessed(ORIGIN) == witnessed(9)
    assert anchors.witness("another", 0, witnessed(0))
    assert anchors.witness("another", 0, witnessed(3))
    assert anchors.origins() == ["another", ORIGIN]


def test_the_database_itself_refuses_to_go_back(anchors: Anchors) -> None:
    anchors.witness(ORIGIN, 0, witnessed(9))
    with pytest.raises(LogError):
        anchors.witness(ORIGIN, 9, witnessed(8))
    with pytest.raises(LogError):
        anchors.witness(ORIGIN, 9, witnessed(9, b"x" * 32))
    assert anchors.witnessed(ORIGIN) == witnessed(9)


def test_of_many_at_once_one_is_first(anchors: Anchors) -> None:
    anchors.witness(ORIGIN, 0, witnessed(4))
    won: list[int] = []
    barrier = threading.Barrier(8)

    def race(size: int) -> None:
        barrier.wait()
        if anchors.witness(ORIGIN, 4, witnessed(size)):
            won.append(size)

    threads = [threading.Thread(target=race, args=(size,)) for size in range(10, 18)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = anchors.witnessed(ORIGIN)
    assert found is not None
    assert won == [found.size]


def test_anchors_are_read_without_a_node_and_a_damaged_file_is_said(tmp_path: Path) -> None:
    assert read_anchors(tmp_path / "none.db", ORIGIN) == []
    assert not (tmp_path / "none.db").exists()
    kept = SqliteAnchors(tmp_path / "anchors.db")
    kept.add(anchor(5))
    assert read_anchors(tmp_path / "anchors.db", ORIGIN) == [anchor(5)]
    kept.close()
    (tmp_path / "broken.db").write_bytes(b"not a database" * 100)
    with pytest.raises(LogError):
        read_anchors(tmp_path / "broken.db", ORIGIN)
    with pytest.raises(LogError):
        SqliteAnchors(tmp_path / "broken.db")
    assert sqlite3.connect(tmp_path / "anchors.db").execute("PRAGMA integrity_check").fetchone() == ("ok",)
