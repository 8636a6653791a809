"""What an operator does for the worst day: `aimx db backup`, `aimx db restore`, `aimx verify-data`, with real nodes."""

import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aimx.backup import manifest
from tests.node_process import NodeProcess
from tests.postgres_server import PostgresServer

PROMPT = '[audit]\ncheckpoint_every = "100ms"\nintegrate_within = "20ms"\n'


class Place:
    """Where nodes of one kind keep their mail."""

    def __init__(self, server: PostgresServer | None) -> None:
        self.server = server
        self.environ = {} if server is None else {"PATH": f"{server.bin}{os.pathsep}{os.environ['PATH']}"}

    def node(self, folder: Path) -> NodeProcess:
        """Nothing is in it yet; on PostgreSQL with AIMX's roles and two workers."""
        url = self.empty()
        node = NodeProcess(folder, config=PROMPT, environ=self.environ, flags=_flags(url))
        if url is not None:
            node.aimx("db", "init", url)
        return node

    def empty(self) -> str | None:
        return None if self.server is None else self.server.database()

    def restore(self, backup: Path, folder: Path, *arguments: str) -> tuple[NodeProcess, Any]:
        url = self.empty()
        node = NodeProcess(folder, config=PROMPT, environ=self.environ, flags=_flags(url))
        given = [] if url is None else ["--database", url]
        done = node.aimx("db", "restore", str(backup), *given, *arguments, "--json", check=False, environ=self.environ)
        assert done.stdout, done.stderr
        return node, {"exit": done.returncode, **json.loads(done.stdout)}


def _flags(url: str | None) -> tuple[str, ...]:
    return () if url is None else ("--database", url, "--workers", "2")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer(settings={"fsync": "off"}) as running:
        yield running


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest) -> Place:
    return Place(request.getfixturevalue("server") if request.param == "postgres" else None)


@pytest.fixture
def sqlite_place() -> Place:
    return Place(None)


def send(node: NodeProcess, account: Any, *subjects: str) -> None:
    with node.smtp(account) as client:
        for subject in subjects:
            client.sendmail(account.address, [account.address], f"Subject: {subject}\r\n\r\nhello\r\n")


def subjects(node: NodeProcess, account: Any) -> list[str]:
    return [body.partition(b"\nSubject: ")[2].split(b"\r\n")[0].decode() for body in node.bodies(account)]


def backed_up(node: NodeProcess, place: Place, folder: Path, *options: str) -> Any:
    return json.loads(node.aimx("db", "backup", str(folder), *options, "--json", environ=place.environ).stdout)


def test_a_backup_of_a_busy_node_is_a_node_of_one_moment(place: Place, tmp_path: Path) -> None:
    with place.node(tmp_path / "first") as node:
        planner = node.add_agent("planner")
        large = f"{'x' * 70}\r\n" * 10_000
        with node.smtp(planner) as client:
            client.sendmail(planner.address, [planner.address], f"Subject: large\r\n\r\n{large}")
        before = [f"before {n}" for n in range(20)]
        send(node, planner, *before)
        meanwhile = threading.Thread(target=send, args=(node, planner, *(f"meanwhile {n}" for n in range(100))))
        meanwhile.start()
        told = backed_up(node, place, tmp_path / "backup", "--keys")
        meanwhile.join()
        assert "keys/log.key" in told["files"]
        assert len(subjects(node, planner)) == 121

    again, restored = place.restore(tmp_path / "backup", tmp_path / "second")
    assert (restored["exit"], restored["ok"], restored["behind"], restored["faults"]) == (0, True, None, [])
    with again:
        found = subjects(again, planner)
        assert found[:21] == ["large", *before], "and what came meanwhile is there up to one moment"
        assert found[21:] == [f"meanwhile {n}" for n in range(len(found) - 21)]
        send(again, planner, "after")
        assert subjects(again, planner)[-1] == "after"
        assert json.loads(again.aimx("verify-data", "--json").stdout)["ok"]


def test_a_backup_older_than_what_was_signed_says_so_and_goes_on_only_in_a_new_log(
    place: Place, tmp_path: Path
) -> None:
    with place.node(tmp_path / "first") as node:
        planner = node.add_agent("planner")
        send(node, planner, "kept")
        backed_up(node, place, tmp_path / "backup", "--keys")
        send(node, planner, *(f"lost {n}" for n in range(5)))
    newest = node.data / "audit.checkpoint"
    again, restored = place.restore(tmp_path / "backup", tmp_path / "second", "--newest", str(newest))
    assert (restored["exit"], "an old copy" in restored["behind"]) == (0, True)
    with pytest.raises(AssertionError, match=r"an old copy was put in its place.*restore-fork"):
        again.start()
    options = {} if place.server is None else {"AIMX_DATABASE__URL": again.flags[1]}
    forked = json.loads(again.aimx("audit", "restore-fork", "--yes", "--json", environ=options).stdout)
    assert forked["lost"] > 0
    with again:
        assert subjects(again, planner) == ["kept"]
        report = json.loads(again.aimx("audit", "verify", "--json").stdout)
        assert (report["ok"], report["lost"]) == (True, forked["lost"])


@pytest.fixture
def backup(sqlite_place: Place, tmp_path: Path) -> Path:
    with sqlite_place.node(tmp_path / "first") as node:
        send(node, node.add_agent("planner"), "one", "two")
        backed_up(node, sqlite_place, tmp_path / "backup")
    return tmp_path / "backup"


def spoil(backup: Path, name: str, *statements: str) -> None:
    """Change a backup as somebody does who knows how it is made."""
    with sqlite3.connect(backup / name, isolation_level=None) as db:
        for (trigger,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            db.execute(statement)
    db.close()
    (backup / manifest.FILE).unlink()
    manifest.finish(backup, "sqlite", "n1")


def test_a_damaged_backup_is_refused_before_anything_is_touched(
    backup: Path, sqlite_place: Place, tmp_path: Path
) -> None:
    octets = bytearray((backup / "mail.db").read_bytes())
    octets[len(octets) // 2] ^= 1
    (backup / "mail.db").write_bytes(octets)
    node = sqlite_place.node(tmp_path / "second")
    done = node.aimx("db", "restore", str(backup), check=False)
    assert (done.returncode, "is not the file that was backed up" in done.stderr) == (1, True)
    (backup / manifest.FILE).unlink()
    done = node.aimx("db", "restore", str(backup), check=False)
    assert (done.returncode, "not finished" in done.stderr) == (1, True)
    assert not (node.data / "mail.db").exists()


@pytest.mark.parametrize(
    ("name", "statement", "code"),
    [
        ("audit.db", "UPDATE leaf SET entry = CAST(replace(CAST(entry AS TEXT), 'accepted', 'rejected') AS BLOB)", 3),
        ("mail.db", "DELETE FROM content", 4),
        ("mail.db", "UPDATE content SET data = CAST(replace(CAST(data AS TEXT), 'hello', 'jello') AS BLOB)", 4),
        ("mail.db", "UPDATE mailbox SET messages = 0", 4),
    ],
)
def test_what_was_altered_in_a_backup_is_not_put_in_place(
    backup: Path, sqlite_place: Place, tmp_path: Path, name: str, statement: str, code: int
) -> None:
    spoil(backup, name, statement)
    node, restored = sqlite_place.restore(backup, tmp_path / "second")
    assert (restored["exit"], restored["ok"]) == (code, False)
    assert sorted(path.name for path in node.data.iterdir()) == ["lock"]


def test_nothing_that_is_there_is_overwritten(backup: Path, sqlite_place: Place, tmp_path: Path) -> None:
    first = NodeProcess(tmp_path / "first", config=PROMPT)
    done = first.aimx("db", "restore", str(backup), check=False)
    assert (done.returncode, "move it away first" in done.stderr) == (1, True)
    done = first.aimx("db", "backup", str(backup), check=False)
    assert (done.returncode, "not empty" in done.stderr) == (1, True)
    with first:
        done = first.aimx("db", "restore", str(backup), check=False)
        assert (done.returncode, "another node runs" in done.stderr) == (1, True)


def test_a_restore_into_its_own_folder_keeps_the_newest_checkpoint_and_the_keys(
    backup: Path, sqlite_place: Place, tmp_path: Path
) -> None:
    node = NodeProcess(tmp_path / "first", config=PROMPT)
    with node:
        node.add_agent("critic")
    keys = (node.data / "keys" / "log.key").read_bytes()
    for path in [*node.data.glob("*.db"), *node.data.glob("*.db-*")]:
        path.unlink()
    done = json.loads(node.aimx("db", "restore", str(backup), "--json").stdout)
    assert (done["ok"], "an old copy" in done["behind"]) == (True, True)
    assert (node.data / "keys" / "log.key").read_bytes() == keys


def test_verify_data_finds_and_mends_beside_the_log(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, config=PROMPT)
    with node:
        planner = node.add_agent("planner")
        send(node, planner, "one", "two")
        assert json.loads(node.aimx("verify-data", "--json").stdout)["ok"], "beside a running node"
    with sqlite3.connect(node.data / "mail.db") as db:
        db.execute("UPDATE mailbox SET messages = 7 WHERE messages > 0")
    db.close()
    found = node.aimx("verify-data", check=False)
    assert (found.returncode, "mailbox-counts" in found.stdout, "INBOX" in found.stdout) == (4, True, True)
    with node:
        refused = node.aimx("verify-data", "--fix", check=False)
        assert (refused.returncode, "another node runs" in refused.stderr) == (1, True)
    assert "mended mailbox-counts" in node.aimx("verify-data", "--fix", check=False).stdout
    with node:
        told = json.loads(node.aimx("verify-data", "--json").stdout)
        assert (told["ok"], told["mended"]) == (True, [])
        with node.imap(planner) as client:
            assert client.status("INBOX", "(MESSAGES)")[1] == [b"INBOX (MESSAGES 2)"]
