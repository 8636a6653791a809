"""Several nodes of several workers over one PostgreSQL, as their clients and their operator meet them."""

import http.client
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg
import pytest

from tests.node_process import Account, NodeProcess
from tests.otlp_receiver import wait_until
from tests.postgres_server import PostgresServer
from tests.system.crash_load import Book, Door, Submitter, account_for, look

_numbers = count(1)


@dataclass
class Fleet:
    """One database, and the nodes over it: the first has the keys, the others were joined to it."""

    server: PostgresServer
    folder: Path
    url: str
    nodes: list[NodeProcess] = field(default_factory=list)

    def prepare(self, name: str, *, workers: int = 2, database: str | None = None) -> NodeProcess:
        flags = ("--database", database or self.url, "--workers", str(workers))
        return NodeProcess(self.folder / name, f'node = "{name}"\n', flags=flags)

    def add(self, *, workers: int = 2) -> NodeProcess:
        node = self.prepare(f"n{len(self.nodes) + 1}", workers=workers)
        if self.nodes:
            self.join(node)
        self.nodes.append(node.start())
        return node

    def join(self, node: NodeProcess, *options: str) -> None:
        keys = self.folder / "bundle.json"
        self.nodes[0].aimx("node", "invite", str(keys))
        node.aimx("node", "join", str(keys), *options)

    def workers(self, name: str) -> dict[int, int]:
        """Number and pid of each worker of a node that the database knows."""
        with psycopg.connect(self.url) as db:
            return dict(db.execute("SELECT worker, pid FROM aimx.node WHERE node = %s", (name,)).fetchall())

    def leader(self) -> int:
        """The pid of the worker that writes the audit log now; 0 for nobody."""
        with psycopg.connect(self.url) as db:
            row = db.execute("SELECT name FROM audit.leader WHERE expires > clock_timestamp()").fetchone()
            return int(row[0].split("/")[1]) if row else 0

    def agent(self, name: str, *options: str) -> Account:
        return self.nodes[0].add_agent(f"{name}{next(_numbers)}", *options)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with PostgresServer(settings={"max_connections": "200"}) as server:
        fleet = Fleet(server, tmp_path_factory.mktemp("fleet"), server.database())
        try:
            fleet.add()
            fleet.add()
            yield fleet
        except BaseException:
            for node in fleet.nodes:
                if node.process is not None:
                    node.kill()
            raise
        for node in fleet.nodes:
            if node.process is not None:
                node.stop()


def send(node: NodeProcess, sender: Account, to: Account, subject: str = "hello") -> None:
    with node.smtp(sender) as client:
        client.sendmail(sender.address, [to.address], f"From: {sender.address}\r\nSubject: {subject}\r\n\r\nhello\r\n")


def inbox(node: NodeProcess, who: Account) -> int:
    with node.imap(who, None) as client:
        _, (found,) = client.status("INBOX", "(MESSAGES)")
    return int(re.search(rb"MESSAGES (\d+)", found)[1])  # type: ignore[index]


def readiness(node: NodeProcess) -> tuple[int, str]:
    client = http.client.HTTPSConnection(*node.endpoint("http"), context=node.tls(), timeout=10)
    try:
        client.request("GET", "/readyz")
        answer = client.getresponse()
        return answer.status, answer.read().decode()
    finally:
        client.close()


def refuses(node: NodeProcess) -> bool:
    try:
        socket.create_connection(node.endpoint("smtp"), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


@contextmanager
def load(nodes: list[NodeProcess], senders: list[Account], readers: list[Account]) -> Iterator[Book]:
    """Clients that submit at each node and go on through whatever happens; at the end every promise was kept."""
    book, doors = Book(), [Door(node) for node in nodes]
    threads = [
        Submitter(f"{node.folder.name}-{at}-{next(_numbers)}", door, who, readers, book, at)
        for node, door in zip(nodes, doors, strict=True)
        for at, who in enumerate(senders)
    ]
    for door in doors:
        door.open()
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(book.answered) > 20 or any(thread.failure for thread in threads), 30)
        yield book
    finally:
        for door in doors:
            door.end()
        for thread in threads:
            thread.join(60)
    assert [thread.failure for thread in threads] == [None] * len(threads)
    node = nodes[-1]

    def arrived() -> bool:
        boxes = {who.address: [look(node, who)] for who in readers}
        return not account_for(book, boxes)

    with suppress(AssertionError):
        wait_until(arrived, 30)
    assert account_for(book, {who.address: [look(node, who)] for who in readers}) == []


def grows(book: Book, by: int = 30) -> None:
    """Mail is taken: so many more than now."""
    goal = len(book.answered) + by
    wait_until(lambda: len(book.answered) >= goal, 60)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


# ── one mailbox, many processes ──────────────────────────────────────────────────────────────────────────────────────


def test_idle_at_one_node_wakes_for_mail_that_another_one_took(fleet: Fleet) -> None:
    first, second = fleet.nodes
    planner, critic = fleet.agent("planner"), fleet.agent("critic")
    with second.imap(critic) as client:
        client.send(b"i1 IDLE\r\n")
        assert client.readline().startswith(b"+ ")
        send(first, planner, critic)
        client.sock.settimeout(10)
        assert client.readline() == b"* 1 EXISTS\r\n"
        client.send(b"DONE\r\n")
        while not client.readline().startswith(b"i1 OK"):
            pass


def test_a_flag_set_at_one_node_shows_at_the_other(fleet: Fleet) -> None:
    first, second = fleet.nodes
    planner, critic = fleet.agent("planner"), fleet.agent("critic")
    send(first, planner, critic)
    with first.imap(critic) as here, second.imap(critic) as there:
        here.store("1", "+FLAGS", "($AimxDone)")

        def shows() -> bool:
            there.noop()
            return b"$AimxDone" in there.fetch("1", "(FLAGS)")[1][0]

        wait_until(shows)


def test_connections_are_spread_over_the_workers_of_a_node(fleet: Fleet) -> None:
    """Each worker has sockets of its own on the same port, and the scrape of any of them counts all sessions."""
    first = fleet.nodes[0]
    with suppress(OSError):
        opened = [socket.create_connection(first.endpoint("smtp"), timeout=5) for _ in range(12)]
    try:
        held = {pid: connections_of(pid, first.endpoint("smtp")[1]) for pid in fleet.workers("n1").values()}
        wait_until(lambda: all(connections_of(pid, first.endpoint("smtp")[1]) for pid in held), 5)
    finally:
        for one in opened:
            one.close()


def connections_of(pid: int, port: int) -> int:
    """Established connections to a local port that the process holds."""
    inodes = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port and fields[3] == "01":
            inodes.add(f"socket:[{fields[9]}]")
    held = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            held += os.readlink(descriptor) in inodes
    return held


# ── deaths ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_killed_under_load_loses_and_doubles_nothing_and_is_replaced(fleet: Fleet) -> None:
    senders, readers = [fleet.agent("s"), fleet.agent("s")], [fleet.agent("r"), fleet.agent("r")]
    with load(fleet.nodes, senders, readers) as book:
        before = fleet.workers("n1")
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: fleet.workers("n1").get(0) != before[0], 30)
        assert fleet.workers("n1")[1] == before[1], "the other one was not disturbed"
        grows(book)


def test_another_worker_goes_on_with_the_log_when_its_writer_is_killed(fleet: Fleet) -> None:
    senders, readers = [fleet.agent("s")], [fleet.agent("r"), fleet.agent("r")]
    with load(fleet.nodes, senders, readers) as book:
        wait_until(lambda: fleet.leader() > 0)
        led = fleet.leader()
        os.kill(led, signal.SIGKILL)
        wait_until(lambda: fleet.leader() not in (0, led), 30)
        grows(book)
    report = json.loads(fleet.nodes[1].aimx("audit", "verify", "--json").stdout)
    assert report["ok"], report
    # The killed one's place is taken again before the next test begins.
    wait_until(lambda: all(not gone(pid) for name in ("n1", "n2") for pid in fleet.workers(name).values()), 30)


def test_postgresql_crashing_under_load_loses_nothing_and_needs_no_restart_of_ours(fleet: Fleet) -> None:
    senders, readers = [fleet.agent("s")], [fleet.agent("r"), fleet.agent("r")]
    before = {name: fleet.workers(name) for name in ("n1", "n2")}
    with load(fleet.nodes, senders, readers) as book:
        fleet.server.restart("immediate")
        grows(book)
    assert {name: fleet.workers(name) for name in ("n1", "n2")} == before


def test_a_node_that_dies_with_its_machine_leaves_its_queue_to_the_others(fleet: Fleet) -> None:
    """What waits there for a busy agent is delivered by another node, and its name can be used again."""
    planner, critic = fleet.agent("planner"), fleet.agent("critic", "--max-unacked", "1")
    third = fleet.add(workers=2)
    workers = fleet.workers("n3")
    send(third, planner, critic, "one")
    send(third, planner, critic, "two")
    assert inbox(fleet.nodes[0], critic) == 1
    third.kill()
    wait_until(lambda: all(gone(pid) for pid in workers.values()), 15)  # they hear that their parent is gone
    with fleet.nodes[0].imap(critic) as client:
        client.store("1", "+FLAGS", "($AimxDone)")
    wait_until(lambda: inbox(fleet.nodes[1], critic) == 2, 30)
    third.start()
    third.stop()
    fleet.nodes.remove(third)
    assert fleet.workers("n3") == {}, "who leaves in good order says so"


# ── the operator ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_draining_node_takes_nothing_new_finishes_and_says_so(fleet: Fleet) -> None:
    first, second = fleet.nodes
    critic = fleet.agent("critic")
    with second.imap(critic) as stays:
        first.aimx("node", "drain", "n2")
        wait_until(lambda: refuses(second) and readiness(second)[0] == 503, 15)
        assert "draining" in readiness(second)[1]
        states = {(one["node"], one["state"]) for one in json.loads(first.aimx("node", "list", "--json").stdout)}
        assert states == {("n1", "serving"), ("n2", "draining")}
        assert stays.noop()[0] == "OK"
        assert readiness(first)[0] == 200
    first.aimx("node", "undrain", "n2")
    wait_until(lambda: readiness(second)[0] == 200 and not refuses(second), 15)
    for _ in range(8):  # whichever worker it comes to
        send(second, critic, critic)
    assert inbox(first, critic) == 8


def test_a_node_that_is_not_there_cannot_drain(fleet: Fleet) -> None:
    done = fleet.nodes[0].aimx("node", "drain", "n9", check=False)
    assert done.returncode == 1
    assert "no node calls itself 'n9'" in done.stderr


def test_receipts_of_every_node_hold_for_every_node(fleet: Fleet) -> None:
    first, second = fleet.nodes
    assert (first.data / "keys/receipt.key").read_text() == (second.data / "keys/receipt.key").read_text()
    assert (first.data / "tls/ca.pem").read_text() == (second.data / "tls/ca.pem").read_text()
    planner = fleet.agent("planner")
    with second.smtp(planner) as client:
        client.mail(planner.address)
        client.rcpt(planner.address)
        _, answer = client.data(f"From: {planner.address}\r\n\r\nhello\r\n")
    eid = re.search(rb"<([0-9A-Z]{26})>", answer)[1].decode()  # type: ignore[index]
    evidence = first.aimx("audit", "prove", eid).stdout
    assert eid in evidence or evidence


def refused(node: NodeProcess, flags: tuple[str, ...]) -> str:
    free = [f"--{name}=127.0.0.1:0" for name in ("smtp", "smtps", "imap", "imaps", "http")]
    done = node.aimx("serve", "--data", str(node.data), "--config", str(node.toml), *flags, *free, check=False)
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("aimx: ")]
    assert "Traceback" not in done.stderr
    assert lines, done.stderr
    return lines[0]


def test_a_node_with_keys_of_its_own_is_refused(fleet: Fleet) -> None:
    stranger = fleet.prepare("n7", workers=1)
    assert "aimx node join" in refused(stranger, stranger.flags)
    done = stranger.aimx("node", "join", str(fleet.folder / "bundle.json"), check=False)
    assert "--replace" in done.stderr, "keys are not lost by mistake"


def test_a_key_rotated_on_one_machine_is_in_force_there_and_brought_to_the_other(fleet: Fleet) -> None:
    """Whoever lacks the new key writes no more of the log: nothing is signed by a key that has no say."""
    first, second = fleet.nodes
    planner = fleet.agent("planner")
    rotated = json.loads(second.aimx("audit", "rotate-key", "--json").stdout)
    wait_until(lambda: (second.data / "audit.vkeys").read_text().startswith(rotated["new"]), 30)
    wait_until(lambda: fleet.leader() in fleet.workers("n2").values(), 30)
    send(first, planner, planner)
    bundle = fleet.folder / "rotated.json"
    second.aimx("node", "invite", str(bundle))
    first.aimx("node", "join", str(bundle), "--replace")
    for pid in fleet.workers("n2").values():
        os.kill(pid, signal.SIGKILL)
    send(first, planner, planner)
    wait_until(lambda: fleet.leader() > 0, 30)
    report = json.loads(first.aimx("audit", "verify", "--json").stdout)
    assert report["ok"], report
    wait_until(lambda: all(not gone(pid) for pid in fleet.workers("n2").values()), 30)


def test_a_second_node_of_the_same_name_is_refused(fleet: Fleet) -> None:
    double = NodeProcess(fleet.folder / "double", 'node = "n1"\n', flags=("--database", fleet.url, "--workers", "2"))
    fleet.join(double)
    line = refused(double, double.flags)
    assert line.startswith("aimx: node: another node calls itself n1 (on ")


def test_doctor_looks_at_the_database_and_at_the_nodes(fleet: Fleet) -> None:
    def found() -> dict[str, dict[str, str]]:
        done = fleet.nodes[0].aimx("doctor", "--json", check=False)
        return {one["what"]: one for one in json.loads(done.stdout)}

    sound = found()
    assert {sound[what]["verdict"] for what in ("database", "durability", "log rights", "clock", "nodes")} == {"ok"}
    assert "2 nodes, 4 workers" in sound["nodes"]["text"]
    assert sound["rights"]["verdict"] == "note", "it signs in as superuser here"
    fleet.server.run("ALTER SYSTEM SET synchronous_commit = off")
    fleet.server.run("SELECT pg_reload_conf()")
    try:
        wait_until(lambda: found()["durability"]["verdict"] == "note", 20)
    finally:
        fleet.server.run("ALTER SYSTEM RESET synchronous_commit")
        fleet.server.run("SELECT pg_reload_conf()")


def test_doctor_refuses_a_database_without_fsync(tmp_path: Path) -> None:
    with PostgresServer(settings={"fsync": "off"}) as server:
        node = NodeProcess(tmp_path, flags=("--database", server.database()))
        with node:
            done = node.aimx("doctor", "--json", check=False)
    assert done.returncode == 1
    (finding,) = [one for one in json.loads(done.stdout) if one["what"] == "durability"]
    assert finding["verdict"] == "wrong"
    assert "fsync = on" in finding["fix"]


def test_several_workers_without_a_database_are_refused(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path)
    done = node.aimx("serve", "--data", str(node.data), "--workers", "2", check=False)
    assert done.returncode in (1, 2)
    assert "--database" in done.stderr


def test_a_database_that_is_away_is_one_line_without_its_password(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path)
    line = refused(node, ("--database", "postgresql://aimx_app:s3cr3t@127.0.0.1:9/aimx"))
    assert line.startswith("aimx: database.url: ")
    assert "s3cr3t" not in (node.log.read_text() if node.log.exists() else "") + line
