"""`python -m bench.accept`: CPU a message inside one process, by thread, without sockets, TLS and a generator.

Forty tasks hand messages to the intake of a whole node, on SQLite or, with `--database postgresql://…`, on an empty
PostgreSQL database (what that server takes shows in the wall time alone). Of the rounds the cheapest counts for each
figure, since other work on the machine only ever adds. `--profile` says where the event loop's thread spends its share,
and how many calls a message takes: that number does not depend on the machine.
"""

import argparse
import asyncio
import cProfile
import pstats
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import uvloop

import aimx.node
from aimx.intake.envelope import Envelope
from aimx.intake.intake import Intake
from aimx.store.postgres import PostgresStore
from tests.protocol import mail_node
from tests.protocol.mail_node import running

TASKS = 40
MAILBOXES = 100
HEADER = (
    "From: a0@fabric.local\r\nTo: {to}\r\nSubject: hello there\r\nMessage-ID: <{n}.{run}.x@fabric.local>\r\n"
    "Date: Mon, 23 Nov 2026 06:00:00 +0000\r\nX-Workflow-ID: wf-{run}-{n}\r\n"
    "traceparent: 00-{n:016x}{run:016x}-{n:016x}-01\r\nMIME-Version: 1.0\r\nContent-Type: application/json\r\n\r\n"
)
BODY = b'{"k": "vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv"}\r\n' * 26


async def send(intake: Intake, run: int, n: int) -> None:
    to = f"a{n % MAILBOXES}@fabric.local"
    upload = intake.upload()
    upload.write(HEADER.format(to=to, run=run, n=n).encode() + BODY)
    envelope = Envelope(
        agent="a0@fabric.local",
        sender="a0@fabric.local",
        recipients=(to,),
        upload=upload,
        peer="127.0.0.1:1",
        helo="x",
        protocol="ESMTPSA",
        tls="TLSv1.3",
        started_ns=time.time_ns(),
    )
    reply = await intake.accept(envelope)
    if not reply.accepted:
        raise RuntimeError(str(reply))


async def load(intake: Intake, run: int, count: int) -> None:
    async def task(first: int) -> None:
        for n in range(first, count, TASKS):
            await send(intake, run, n + 1)

    await asyncio.gather(*(task(first) for first in range(TASKS)))


def cpu_us() -> dict[str, float]:
    """CPU of every thread of this process until now. Linux; the kernel counts in hundredths of a second."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    used: dict[str, float] = {"process": time.process_time() * 1e6}
    for stat in Path("/proc/self/task").glob("*/stat"):
        name = names.get(int(stat.parent.name), "other")
        user, system = stat.read_text().rpartition(")")[2].split()[11:13]
        used[f"{name} user"] = used.get(f"{name} user", 0) + int(user) * 1e4
        used[f"{name} system"] = used.get(f"{name} system", 0) + int(system) * 1e4
    return used


@contextmanager
def taken(into: list[Intake]) -> Iterator[None]:
    """The intake that a node makes for itself."""

    class Taken(Intake):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[arg-type]
            into.append(self)

    with patch.object(aimx.node, "Intake", Taken):
        yield


@contextmanager
def kept_in(database: str | None) -> Iterator[None]:
    """Where node and helper keep their mail; None: in the node's folder."""
    if database is None:
        yield
        return

    def serve(_path: Path, _none: None, node: str, worker: int) -> PostgresStore:
        return PostgresStore(database, node, worker)

    def help_out(_path: Path, node: str, *, guest: bool = False) -> PostgresStore:
        return PostgresStore(database, node, guest=guest)

    with patch.object(aimx.node, "open_store", serve), patch.object(mail_node, "SqliteStore", help_out):
        yield


async def measure(folder: Path, options: argparse.Namespace) -> None:
    found: list[Intake] = []
    with taken(found), kept_in(options.database):
        async with running(folder, [f"a{n}" for n in range(MAILBOXES)]) as node:
            node.node.tracer.sink = None
            await load(found[0], 0, 400)
            if options.profile:
                await profile(found[0], options.count)
                return
            rounds = []
            for run in range(1, options.rounds + 1):
                before, began = cpu_us(), time.perf_counter()
                await load(found[0], run, options.count)
                after = {"wall": (time.perf_counter() - began) * 1e6, **cpu_us()}
                rounds.append({name: (used - before.get(name, 0)) / options.count for name, used in after.items()})
            cheapest = {name: min(one.get(name, 0) for one in rounds) for name in rounds[0]}
            best = max(1e6 / one["wall"] for one in rounds)
            print(f"{best:,.0f} messages a second in the best round")
            print("µs a message:", ", ".join(f"{name} {used:.0f}" for name, used in cheapest.items() if used >= 1))


async def profile(intake: Intake, count: int) -> None:
    profiler = cProfile.Profile(time.thread_time)
    profiler.enable()
    await load(intake, 1, count)
    profiler.disable()
    stats = pstats.Stats(profiler).sort_stats("tottime")
    print(f"{stats.total_calls / count:.0f} calls a message")  # type: ignore[attr-defined]
    stats.print_stats(60)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.accept", description=__doc__)
    parser.add_argument("--count", type=int, default=4000, help="messages a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--database", metavar="URL", help="PostgreSQL instead of SQLite")
    parser.add_argument("--profile", action="store_true", help="one round under cProfile")
    with TemporaryDirectory(prefix="aimx-accept-") as folder:
        uvloop.run(measure(Path(folder), parser.parse_args(arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
