"""Where the crash tests run: one node on SQLite, or several nodes of several workers over one PostgreSQL.

What can go wrong there is a method each, and `heal` ends all that goes on being wrong. Each is counted in `struck`.
"""

import asyncio
import json
import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from aimx.cli.agent import create
from aimx.failpoint import POINTS
from tests.disk import Disk, mounted
from tests.node_process import Account, NodeProcess
from tests.postgres_server import PostgresServer
from tests.shifted_clock import Clock

CONFIG = """
[delivery]
first_delay = "200ms"
max_delay = "1s"
lease = "3s"
deadline = "8s"
"""
PATIENCE_S = 120.0
STEPS = [name for name in POINTS if not name.startswith(("shard.", "key."))]
"""Named places that ordinary load comes by."""


@dataclass
class Link:
    """A node's network of its own: one line to the clients and one to the database, which can be cut."""

    name: str
    number: int

    @property
    def front(self) -> str:
        return f"10.203.{self.number}.2"

    @property
    def back(self) -> str:
        """Where the database is, as this node sees it."""
        return f"10.204.{self.number}.1"

    @property
    def networks(self) -> tuple[str, ...]:
        return (f"10.204.{self.number}.0/24",)

    def make(self) -> None:
        _ip("netns", "add", self.name)
        self._inside("link", "set", "lo", "up")
        for kind, net in (("f", 203), ("b", 204)):
            outer, inner = f"{self.name}{kind}", f"{self.name}{kind}i"
            _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", self.name)
            _ip("addr", "add", f"10.{net}.{self.number}.1/24", "dev", outer)
            _ip("link", "set", outer, "up")
            self._inside("addr", "add", f"10.{net}.{self.number}.2/24", "dev", inner)
            self._inside("link", "set", inner, "up")

    def _inside(self, *words: str) -> None:
        _ip("-n", self.name, *words)

    def cut(self) -> None:
        """Nothing comes through, and nobody is told so."""
        _ip("link", "set", f"{self.name}b", "down")

    def mend(self) -> None:
        _ip("link", "set", f"{self.name}b", "up")

    def remove(self) -> None:
        for kind in "fb":
            subprocess.run(["ip", "link", "del", f"{self.name}{kind}"], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def linked(count: int) -> Iterator[list[Link]]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("NOT TESTED: networks of their own need root and iproute2")
    first = os.getpid() % 120 * 2
    links = [Link(f"aimx{os.getpid() % 100000}{'abcdefgh'[number]}", first + number) for number in range(count)]
    try:
        try:
            for link in links:
                link.make()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"NOT TESTED: no network namespaces here: {error.stderr.decode().strip()}")
        yield links
    finally:
        for link in links:
            link.remove()


@dataclass
class Site:
    nodes: list[NodeProcess]
    dice: random.Random
    server: PostgresServer | None = None
    url: str = ""
    disk: Disk | None = None
    """Where the mail is: the node's folder or PostgreSQL's."""
    clocks: list[Clock] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    struck: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    """The named places at which it was to die."""
    kills: int = 0
    """Processes of AIMX that died by SIGKILL."""
    _deaths: Counter[int] = field(default_factory=Counter)

    def start(self) -> None:
        for node in self.nodes:
            node.patience_s = PATIENCE_S
        first, *others = self.nodes
        first.start()
        for node in others:
            keys = first.folder / "bundle.json"
            first.aimx("node", "invite", str(keys))
            node.aimx("node", "join", str(keys))
            node.start()

    def add_agent(self, name: str, max_unacked: int | None = None) -> Account:
        """As `aimx agent add` does, without the time a process takes."""
        made = asyncio.run(create(self.nodes[0].data, name, max_unacked=max_unacked, quota=None, may_prioritise=False))
        return Account(made.address, made.password)

    @property
    def one_process(self) -> bool:
        return self.server is None

    # ── processes die ──

    def worker_killed(self) -> None:
        """One of several; the others go on, its parent replaces it."""
        node = self.dice.choice(self.nodes)
        workers = node.workers()
        if self.one_process or not workers:
            return self.node_killed(node)
        with suppress(ProcessLookupError):
            os.kill(self.dice.choice(workers), signal.SIGKILL)
            self.kills += 1
        return None

    def node_killed(self, node: NodeProcess | None = None) -> None:
        """All its processes at once, and sometimes again while it starts."""
        node = node or self.dice.choice(self.nodes)
        self._kill(node)
        node.environ = self._plain(node)
        if self.dice.random() < 0.2:
            node.start_and_kill(self.dice.uniform(0.0, 0.8))
            self.kills += 1
        node.start(same_ports=True)

    def parent_killed(self) -> None:
        """Its workers end in good order without being told; then a new parent may have the folder."""
        node = self.dice.choice(self.nodes)
        if self.one_process:
            return self.node_killed(node)
        orphans = [os.pidfd_open(pid) for pid in node.workers()]
        assert node.process is not None
        node.process.kill()
        node.process.wait(10)
        node.process = None
        self.kills += 1
        for orphan in orphans:
            assert select.select([orphan], [], [], 15)[0], "a worker outlives its parent"
            os.close(orphan)
        self._count_deaths(node)
        node.environ = self._plain(node)
        node.start(same_ports=True)
        return None

    def step_reached(self, point: str | None = None) -> None:
        """It dies at a named step. A node of several workers stays so armed: each of them dies there, one by one."""
        node = self.dice.choice(self.nodes)
        point = point or self.dice.choice(STEPS)
        self.steps[point] += 1
        self._kill(node)
        often = point.startswith(("accept", "store")) or not self.one_process
        times = self.dice.randrange(1, 30) if often else self.dice.randrange(1, 4)
        node.environ = {**self._plain(node), "AIMX_FAILPOINT": f"{point}:{times}"}
        try:
            process = node.start(same_ports=True).process
        except AssertionError:  # it came by there while it started
            self.kills += 1
        else:
            if not self.one_process:
                return
            assert process is not None
            with suppress(subprocess.TimeoutExpired):
                assert process.wait(5) == -signal.SIGKILL
            self._kill(node)
        node.environ = self._plain(node)
        node.start(same_ports=True)

    def _kill(self, node: NodeProcess) -> None:
        if node.process is None:
            return
        self._count_deaths(node)
        self.kills += 1 + len(node.workers())
        node.kill()

    def _count_deaths(self, node: NodeProcess) -> None:
        """Of workers, at the step the node was armed with."""
        if "AIMX_FAILPOINT" in node.environ:
            self.kills += node.log.read_text().count('"event":"worker.ended"') - self._deaths[id(node)]
        self._deaths[id(node)] = node.log.read_text().count('"event":"worker.ended"')

    def _plain(self, node: NodeProcess) -> dict[str, str]:
        return {name: value for name, value in node.environ.items() if name != "AIMX_FAILPOINT"}

    # ── what they stand on goes away ──

    def postgres_crashed(self) -> None:
        assert self.server is not None
        self.server.stop("immediate")
        time.sleep(self.dice.choice((0, self.dice.uniform(0, 3))))
        self.server.start()

    def power_cut(self) -> None:
        """Of the machine the mail is on. With PostgreSQL the nodes are other machines and live on, most often."""
        assert self.disk is not None
        if self.server is None:
            (node,) = self.nodes
            node.freeze()  # without power nobody runs on: a node that hears of the cut is another test
            self.disk.cut()
            node.kill()
            self.kills += 1
            self.disk.remount()
            node.start(same_ports=True)
            return
        self.server.lose_power(self.disk.cut)
        self.disk.remount()
        if self.dice.random() < 0.2:
            self._kill(self.nodes[0])
            self.nodes[0].environ = self._plain(self.nodes[0])
        self.server.start()
        if self.nodes[0].process is None:
            self.nodes[0].start(same_ports=True)

    def disk_filled(self) -> None:
        assert self.disk is not None
        with suppress(OSError):
            self.disk.fill()
        time.sleep(self.dice.uniform(0.5, 2))
        self.disk.relieve()
        if self.server is not None and self.server.process is not None and self.server.process.poll() is not None:
            self.server.process = None  # it does not start again by itself when it finds no room for that either
            self.server.start()

    def clock_jumped(self) -> None:
        """One node's, by seconds, either way; it stays wrong until the next jump."""
        self.dice.choice(self.clocks).shift(self.dice.uniform(-15, 15))

    def network_cut(self) -> None:
        """Between one node and the database; the node's clients still reach it."""
        link = self.dice.choice(self.links)
        link.cut()
        time.sleep(self.dice.choice((0.3, 2, 6, 14)))
        link.mend()

    # ── the account ──

    def strike(self, fault: str) -> None:
        """`worker_killed`, `step_reached:store.committed`, …"""
        name, _, rest = fault.partition(":")
        self.struck[name] += 1
        began = time.monotonic()
        getattr(self, name)(*([rest] if rest else []))
        print(f"{self.struck.total()}. {fault}, {self.kills} killed ({time.monotonic() - began:.1f} s)", flush=True)

    def heal(self) -> None:
        """All is well from now on."""
        for link in self.links:
            link.mend()
        for clock in self.clocks:
            clock.shift(0)
        if self.disk is not None:
            self.disk.relieve()
        if self.server is not None and self.server.process is None:
            self.server.start()
        for node in self.nodes:
            if "AIMX_FAILPOINT" in node.environ or node.process is None or node.process.poll() is not None:
                if node.process is not None and node.process.poll() is None:
                    self._kill(node)
                node.process = None
                node.environ = self._plain(node)
                node.start(same_ports=True)

    def wait_until_nothing_waits(self) -> None:
        """No lease is stuck, no delivery forgotten."""
        until = time.monotonic() + PATIENCE_S
        while waiting := json.loads(self.nodes[0].aimx("queue", "list", "--json", "--limit", "5").stdout or "[]"):
            assert time.monotonic() < until, waiting
            time.sleep(0.3)

    def counters(self) -> dict[int, tuple[int, int]]:
        """Mailbox → its next UID and its MODSEQ, once no entry is beyond them."""
        beyond = self._ask(
            "SELECT e.mailbox, e.uid, e.modseq FROM entry e JOIN mailbox m ON m.id = e.mailbox"
            " WHERE e.uid >= m.uidnext OR e.modseq > m.modseq"
        )
        assert not beyond, beyond
        return {box: (uidnext, modseq) for box, uidnext, modseq in self._ask("SELECT id, uidnext, modseq FROM mailbox")}

    def _ask(self, sql: str) -> list[tuple[Any, ...]]:
        if self.server is not None:
            with psycopg.connect(self.url, options="-c search_path=aimx") as db:
                return db.execute(sql.encode()).fetchall()
        with closing(sqlite3.connect(f"file:{self.nodes[0].data / 'mail.db'}?mode=ro", uri=True)) as db:
            return db.execute(sql).fetchall()

    def verdict(self) -> dict[str, object]:
        said = self.nodes[0].aimx("audit", "verify", "--json", check=False)
        assert said.stdout, said.stderr
        return json.loads(said.stdout)

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def kill(self) -> None:
        for node in self.nodes:
            if node.process is not None:
                with suppress(AssertionError):
                    node.kill()

    def __str__(self) -> str:
        struck = ", ".join(f"{name} {times}" for name, times in sorted(self.struck.items()))
        return f"{self.kills} processes killed; {struck} (at {len(self.steps)} different steps)"


@contextmanager
def sqlite_site(folder: Path, dice: random.Random, *, disk_mib: int = 0, **options: str) -> Iterator[Site]:
    with ExitStack() as stack:
        disk = stack.enter_context(mounted(disk_mib)) if disk_mib else None
        clock = Clock(folder / "clock")
        node = NodeProcess(
            folder / "n1", CONFIG, environ=clock.environ, **{"prelude": "tests.shifted_clock", **options}
        )
        if disk is not None:
            node.data = disk.path / "data"
        yield from _run(Site([node], dice, disk=disk, clocks=[clock]))


@contextmanager
def postgres_site(
    folder: Path,
    dice: random.Random,
    *,
    nodes: int = 1,
    workers: int = 2,
    disk_mib: int = 0,
    apart: bool = False,
    settings: dict[str, str] | None = None,
) -> Iterator[Site]:
    """`apart`: each node is in a network of its own."""
    with ExitStack() as stack:
        disk = stack.enter_context(mounted(disk_mib)) if disk_mib else None
        links = stack.enter_context(linked(nodes)) if apart else []
        networks = tuple(network for link in links for network in link.networks)
        server = stack.enter_context(
            PostgresServer(settings=settings or {}, place=disk.path if disk is not None else None, networks=networks)
        )
        url = server.database()
        NodeProcess(folder / "made").aimx("db", "init", url)
        site = Site([], dice, server, url, disk, links=links)
        for number in range(nodes):
            name, link = f"n{number + 1}", links[number] if apart else None
            clock = Clock(folder / f"clock{number + 1}")
            site.clocks.append(clock)
            site.nodes.append(
                NodeProcess(
                    folder / name,
                    f'node = "{name}"\nworkers = {workers}\n' + CONFIG,
                    environ=clock.environ,
                    flags=("--database", url.replace("127.0.0.1", link.back) if link else url),
                    wrapper=("nsenter", f"--net=/run/netns/{link.name}") if link else (),
                    prelude="tests.shifted_clock",
                    **({"host": link.front} if link else {}),
                )
            )
        yield from _run(site)


def _run(site: Site) -> Iterator[Site]:
    try:
        site.start()
        yield site
    finally:
        site.kill()
