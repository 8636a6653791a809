"""`python -m bench.audit`: what the audit log costs and how fast it is; with `--database URL` in PostgreSQL.

    integrate   leaves a second out of a full outbox, and CPU a leaf of everything that takes
    pace        time from the outbox to the log at a steady rate (12,000 a second: three times the mail)
    cost        a node that takes mail over TLS, with the log and without: leaves, event rows, sequencing, receipts
    accept      the same of the acceptance alone, within a process: no sockets, no TLS, no delivery to wait for
    verify      all of a log, and of a log that has grown since the last time

The log may be in PostgreSQL; the mail's store is SQLite here. Of the rounds of `accept` the cheapest counts, since
other work on the machine only ever adds.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from unittest.mock import patch

import uvloop

from aimx.audit import events, keys
from aimx.audit.sequencer import Sequencer
from aimx.audit.verify import verify
from aimx.intake.intake import Intake
from aimx.message.identifier import new_eid
from aimx.store.contract import Backlog, EventRow, NewMessage, SpanRef, StoredEvent
from aimx.store.sqlite import SqliteStore, acceptance
from aimx.tlog.leaf import new_key
from bench import load as mail
from bench.accept import cpu_us, load, taken
from bench.generator import Generator
from bench.load import MAILBOXES, WARM_UP
from bench.node import AimxNode
from bench.tracing import alternate, median, ratio
from tests.protocol.mail_node import running

SPAN = SpanRef(b"\x01" * 16, b"\x02" * 8)
TICK_S = 0.01


class Timed:
    """The outbox, and when each event was written and marked as logged."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.written: dict[str, float] = {}
        self.waits: list[float] = []
        self._eids: dict[int, str] = {}

    def subscribe(self, topic: Literal["events"], callback: Callable[[], None]) -> Callable[[], None]:
        return self._store.subscribe(topic, callback)

    async def record(self, rows: Sequence[EventRow]) -> None:
        await self._store.record(rows)

    async def unsequenced(self, limit: int) -> list[tuple[int, str, bytes]]:
        found = await self._store.unsequenced(limit)
        self._eids.update((seq, eid) for seq, eid, _ in found)
        return found

    async def mark_sequenced(self, placed: Sequence[tuple[int, int]]) -> None:
        await self._store.mark_sequenced(placed)
        now = time.perf_counter()
        written = (self.written.pop(self._eids.pop(seq), None) for seq, _ in placed)
        self.waits += [now - at for at in written if at is not None]

    async def events_after(self, seq: int, limit: int) -> list[StoredEvent]:
        return await self._store.events_after(seq, limit)

    async def backlog(self) -> Backlog:
        return await self._store.backlog()


def deferred(count: int) -> list[EventRow]:
    """Events as a delivery makes them."""
    key, stamp = new_key(), events.Stamp("n1", time.time_ns() // 1_000_000, SPAN, "a0@fabric.local")
    message = new_eid()
    return [
        events.message_deferred(
            stamp, message=message, key=key, recipient="a1@fabric.local", why="bench", attempt=n, next_ms=None
        )
        for n in range(count)
    ]


@asynccontextmanager
async def sequenced(folder: Path, database: str | None) -> AsyncIterator[tuple[SqliteStore, Timed, Sequencer]]:
    store = SqliteStore(folder / "mail.db", "n1")
    await store.open()
    outbox = Timed(store)
    made = keys.load_or_create(folder, "bench.example", time.time_ns() // 1_000_000)
    sequencer = Sequencer(outbox, folder, made, node="n1", database=database)
    await sequencer.start()
    try:
        yield store, outbox, sequencer
    finally:
        await sequencer.stop()
        await store.close()


async def integrate(folder: Path, database: str | None, count: int) -> None:
    store = SqliteStore(folder / "mail.db", "n1")
    await store.open()
    for start in range(0, count, 5000):
        await store.record(deferred(min(5000, count - start)))
    await store.close()
    async with sequenced(folder, database) as (_, _, sequencer):
        cpu, began = time.process_time(), time.perf_counter()
        await sequencer.flush()
        took, used = time.perf_counter() - began, time.process_time() - cpu
    print(f"integrate  {count / took:,.0f} leaves/s; {used / count * 1e6:.1f} µs CPU a leaf in all")


async def pace(folder: Path, database: str | None, rate: int, seconds: float) -> None:
    rows = deferred(int(rate * seconds))
    step = int(rate * TICK_S)
    async with sequenced(folder, database) as (_, outbox, sequencer):
        await sequencer.flush()
        outbox.waits.clear()
        cpu, began, late = time.process_time(), time.perf_counter(), 0.0
        for n, start in enumerate(range(0, len(rows), step), 1):
            some = rows[start : start + step]
            await outbox.record(some)
            now = time.perf_counter()
            outbox.written.update((row.eid, now) for row in some)
            late = max(late, now - began - n * TICK_S)
            await asyncio.sleep(max(0.0, began + n * TICK_S - time.perf_counter()))
        written = time.perf_counter() - began
        await sequencer.flush()
        used = time.process_time() - cpu
    waits = sorted(outbox.waits)
    shown = {name: waits[min(len(waits) - 1, int(len(waits) * part))] for name, part in (("p50", 0.5), ("p99", 0.99))}
    print(
        f"pace       {len(rows) / written:,.0f} events/s written (latest {late * 1000:.0f} ms behind), in the log after"
        f" p50 {shown['p50'] * 1000:.0f} ms, p99 {shown['p99'] * 1000:.0f} ms, max {waits[-1] * 1000:.0f} ms;"
        f" {used / len(rows) * 1e6:.1f} µs CPU an event, writing it included"
    )


async def accept(folder: Path, count: int, rounds: int) -> None:
    found: list[Intake] = []
    used: dict[bool, list[float]] = {True: [], False: []}
    wall: dict[bool, list[float]] = {True: [], False: []}
    with taken(found):
        async with running(folder, [f"a{n}" for n in range(100)]) as node:
            node.node.tracer.sink = None
            intake, receipts = found[0], found[0]._receipts
            await load(intake, 0, 400)
            run = 0
            for _ in range(rounds):
                for logged in (True, False):
                    run += 1
                    intake._receipts = receipts if logged else None
                    before, began = cpu_us()["process"], time.perf_counter()
                    if logged:
                        await load(intake, run, count)
                    else:
                        with unlogged():
                            await load(intake, run, count)
                    wall[logged].append((time.perf_counter() - began) / count * 1e6)
                    used[logged].append((cpu_us()["process"] - before) / count)
    on, off = min(used[True]), min(used[False])
    print(
        f"accept     {on:.0f} µs CPU a message with the log, {off:.0f} without: {on - off:.0f} µs, {1 - off / on:.0%}"
    )
    on, off = min(wall[True]), min(wall[False])
    print(f"           {1e6 / on:,.0f} messages/s with the log, {1e6 / off:,.0f} without: -{1 - off / on:.0%}")


def cost(folder: Path, count: int, rounds: int) -> None:
    """Two nodes take turns, as in bench.tracing; neither is traced. Of the ratios of all rounds the median counts."""
    generator, names = Generator(folder), [f"box{n:03d}" for n in range(MAILBOXES)]
    nodes = {
        "off": AimxNode(folder / "off", names, {}, prelude="bench.unlogged"),
        "on": AimxNode(folder / "on", names, {}),
    }
    with nodes["off"].running(), nodes["on"].running():
        loads = {name: node.over_tls(generator) for name, node in nodes.items()}
        for name, node in nodes.items():
            mail.measure(node, loads[name], WARM_UP)
        turns = alternate(lambda name: mail.measure(nodes[name], loads[name], count), rounds)
    for field, what in (
        ("delivered_per_s", "messages/s delivered"),
        ("cpu_us", "µs CPU a message, the log's writing included"),
    ):
        on, off = median(turns["on"], field), median(turns["off"], field)
        middle, each = ratio(turns, field)
        print(f"cost       {on:,.0f} {what}, {off:,.0f} without: ratio {middle:.3f} ({each[0]:.2f} to {each[-1]:.2f})")


class unlogged:
    """No leaf is made and no event is written: what accepting would be without an audit log."""

    def __enter__(self) -> None:
        constant = deferred(1)[0]

        def nothing(ev: str, stamp: Any, **given: Any) -> EventRow:
            return constant

        def write(*given: Any) -> None:
            """No row, no outbox."""

        self._patches = (patch.object(events, "event", nothing), patch.object(acceptance, "record", write))
        for one in self._patches:
            one.start()

    def __exit__(self, *error: object) -> None:
        for one in self._patches:
            one.stop()


async def verified(folder: Path, database: str | None, count: int, more: int) -> None:
    """A tenth of the leaves are messages' acceptances, whose contents are hashed again."""
    async with sequenced(folder, database) as (store, _, sequencer):
        await grow(store, count)
        await sequencer.flush()
        report = await verify(store, folder, database=database)
        assert report.ok, report.lines()
        print(f"verify     {report.leaves:,} leaves, {report.contents:,} messages in {report.seconds:.1f} s")
        if more:
            await grow(store, more)
            await sequencer.flush()
            report = await verify(store, folder, database=database)
            print(f"           {more:,} later {report.seconds:.1f} s")


async def grow(store: SqliteStore, count: int) -> None:
    for _ in range(0, count, 10_000):
        for _ in range(10):
            await asyncio.gather(*(_accept(store) for _ in range(100)))
        await store.record(deferred(9_000))


async def _accept(store: SqliteStore) -> None:
    t_ms = time.time_ns() // 1_000_000
    eid, header, body = new_eid(t_ms), b"Subject: hi\r\n\r\n", b"x" * 2000
    message = NewMessage(
        eid=eid,
        t_ms=t_ms,
        sender="a0@fabric.local",
        agent="a0@fabric.local",
        recipients=("a1@fabric.local",),
        header=header,
        body=body,
        message_id=f"<{eid}@fabric.local>",
        in_reply_to=None,
        subject="hi",
        content_type="text/plain",
        workflow=None,
        priority=0,
        origin=SPAN,
        trace_flags=1,
        tracestate="",
        baggage="",
        context_source="new",
        received=SPAN,
        depth=1,
        loop_key=eid,
        payload=b"p",
        template=b"t",
    )
    row = events.message_accepted(
        events.Stamp("n1", t_ms, SPAN, "a0@fabric.local"),
        eid=eid,
        key=new_key(),
        data=sha256(header + body).digest(),
        header=sha256(header).digest(),
        body=sha256(body).digest(),
        sender="a0@fabric.local",
        recipients=("a1@fabric.local",),
        size=len(header + body),
    )
    await store.accept(message, [], lambda outcomes: [row])


async def measure(options: argparse.Namespace) -> None:
    for what in options.what or ("integrate", "pace", "cost", "accept", "verify"):
        with TemporaryDirectory(prefix="aimx-audit-") as folder:
            match what:
                case "integrate":
                    await integrate(Path(folder), options.database, options.leaves)
                case "pace":
                    await pace(Path(folder), options.database, options.rate, options.seconds)
                case "cost":
                    await asyncio.to_thread(cost, Path(folder), options.messages, options.rounds)
                case "accept":
                    await accept(Path(folder), options.messages, options.rounds)
                case "verify":
                    await verified(Path(folder), options.database, options.leaves, options.more)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.audit", description=__doc__)
    parser.add_argument("what", nargs="*", metavar="integrate | pace | cost | accept | verify", help="[all]")
    parser.add_argument("--database", help="an empty PostgreSQL database for the log")
    parser.add_argument("--leaves", type=int, default=100_000)
    parser.add_argument("--more", type=int, default=10_000, help="leaves after the first verification")
    parser.add_argument("--rate", type=int, default=12_000, help="events a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--messages", type=int, default=4000, help="a round of `cost` and `accept`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    uvloop.run(measure(parser.parse_args(arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
