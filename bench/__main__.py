"""`python -m bench`: AIMX and other servers, one machine, one run, the same mail; a table of ratios in Markdown.

2 kB, one recipient, 40 kept connections. What is plain comes from Postfix's own smtp-source, each connection to a
mailbox of its own; what is TLS from our compiled generator, to a hundred mailboxes; RabbitMQ is driven by aio-pika.
Each server starts with its own configuration and folders on loopback. Rounds alternate between the servers, so that a
machine that grows slower does so for all; the median round counts, and the spread is stated.

`--quick` is the same with shorter rounds. `python -m bench.accept` measures the CPU of AIMX's own way of a message
alone, thread by thread; `python -m bench.tracing` what tracing costs; `python -m bench.audit cost` what the log costs.
"""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from bench.dovecot import Dovecot
from bench.generator import Generator, Result, Unavailable
from bench.load import CONNECTIONS, MAILBOXES, SIZE, WARM_UP, Load, Round, Subject, machine, measure, median
from bench.node import AimxNode
from bench.postfix import Postfix
from bench.rabbitmq import RabbitMq
from bench.smtp_source import SmtpSource
from bench.stock import Stock
from tests.node_process import Account
from tests.postgres_server import PostgresServer

READERS = 10
RATE = 100
POSTGRES = {"shared_buffers": "256MB", "max_wal_size": "2GB"}
BASE, QUEUE, IDLE = "Postfix → Maildir", "RabbitMQ", "aiosmtpd, keeps nothing"


@dataclass(slots=True)
class Row:
    """A server and how it is loaded."""

    name: str
    server: Subject
    load: Load
    rounds: list[Round] = field(default_factory=list)
    wait: Result | None = None
    """Of paced mail: until an agent that waits has the body."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="within six minutes on two cores")
    parser.add_argument("--count", type=int, help="messages a round [10000; quick: 3000]")
    parser.add_argument("--rounds", type=int, help="[5; quick: 3]")
    parser.add_argument("--paced-seconds", type=int, help="length of a run at 100/s [20; quick: 6]")
    parser.add_argument("--only", action="append", choices=list(SERVERS), help="leave out the rest")
    parser.add_argument("--json", type=Path, help="also write all figures there")
    options = parser.parse_args(arguments)
    options.count = options.count or (3000 if options.quick else 10_000)
    options.rounds = options.rounds or (3 if options.quick else 5)
    if options.paced_seconds is None:
        options.paced_seconds = 6 if options.quick else 20
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped on the way out
    folder = Path(mkdtemp(prefix="aimx-bench-"))
    folder.chmod(0o711)  # others' servers drop root and must come in
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["rm", "-rf", str(folder)], check=False)
        try:
            rows = run(options, Bench(folder, stack))
        except Unavailable as error:
            print(f"bench: {error}", file=sys.stderr)
            return 2
    if options.json:
        figures = [
            {
                "server": row.name,
                "rounds": [asdict(one) for one in row.rounds],
                "wait": asdict(row.wait) if row.wait else None,
            }
            for row in rows
        ]
        options.json.write_text(json.dumps({"machine": machine(), "servers": figures}, indent=1) + "\n")
    return 0


class Bench:
    """What all servers share: a folder, the generators, a collector that keeps nothing."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.generator = Generator(folder)
        self._source = SmtpSource()
        sink = stack.enter_context(self.generator.sink())
        self.traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        self.names = [f"box{n:03d}" for n in range(MAILBOXES)]
        self.bare = [Account(f"{name}@fabric.local", "") for name in self.names]

    def plain(self, smtp: str, count: int) -> Result:
        return self._source.run(smtp, self.bare, self.bare, count=count, connections=CONNECTIONS, size=SIZE)


# ── the servers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def postfix(bench: Bench) -> Iterator[Row]:
    server = Postfix(bench.folder / "postfix", bench.bare)
    bench.stack.enter_context(server.running())
    yield Row(BASE, server, partial(bench.plain, server.smtp))


def dovecot(bench: Bench) -> Iterator[Row]:
    store = Dovecot(bench.folder / "dovecot", bench.bare)
    bench.stack.enter_context(store.running())
    server = Postfix(bench.folder / "postfix-lmtp", bench.bare, store)
    bench.stack.enter_context(server.running())
    yield Row("Postfix → Dovecot LMTP", server, partial(bench.plain, server.smtp))


def rabbitmq(bench: Bench) -> Iterator[Row]:
    server = RabbitMq(bench.folder / "rabbitmq", MAILBOXES)
    bench.stack.enter_context(server.running())
    yield Row(QUEUE, server, partial(server.load, connections=CONNECTIONS, size=SIZE))


def stock(bench: Bench) -> Iterator[Row]:
    server = Stock()
    bench.stack.enter_context(server.running())

    def load(count: int) -> Result:
        result = bench.plain(server.smtp, count)
        server.answered += result.accepted
        return result

    yield Row(IDLE, server, load)


def sqlite(bench: Bench) -> Iterator[Row]:
    yield from _aimx("AIMX, SQLite, 1 process", AimxNode(bench.folder / "sqlite", bench.names, bench.traced), bench)


def postgres(bench: Bench) -> Iterator[Row]:
    database = bench.stack.enter_context(PostgresServer(settings=POSTGRES))
    node = AimxNode(bench.folder / "postgres", bench.names, bench.traced, server=database, workers=2)
    yield from _aimx("AIMX, PostgreSQL, 2 workers", node, bench)


def _aimx(name: str, node: AimxNode, bench: Bench) -> Iterator[Row]:
    bench.stack.enter_context(node.running())
    yield Row(f"{name}, plain", node, partial(bench.plain, node.plain))
    yield Row(f"{name}, TLS", node, node.over_tls(bench.generator))


SERVERS = {
    "postfix": postfix,
    "dovecot": dovecot,
    "rabbitmq": rabbitmq,
    "stock": stock,
    "sqlite": sqlite,
    "postgres": postgres,
}


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def run(options: argparse.Namespace, bench: Bench) -> list[Row]:
    rows: list[Row] = []
    for name in options.only or SERVERS:
        try:
            rows += SERVERS[name](bench)
        except Unavailable as error:
            print(f"without {name}: {error}", file=sys.stderr)
    for row in rows:
        measure(row.server, row.load, WARM_UP)
    for number in range(options.rounds):
        for row in rows if number % 2 == 0 else reversed(rows):
            row.rounds.append(measure(row.server, row.load, options.count))
            print(".", end="", flush=True, file=sys.stderr)
    if options.paced_seconds:
        for row in rows:
            row.wait = paced(row, bench, options.paced_seconds)
    print(file=sys.stderr)
    print_table(rows, options)
    return rows


def paced(row: Row, bench: Bench, seconds: int) -> Result | None:
    """Ten agents that wait (IMAP IDLE, basic.consume), at a hundred messages a second in all."""
    if isinstance(row.server, RabbitMq):
        row.server.paced(RATE, rate=RATE, connections=READERS, size=SIZE)
        return row.server.paced(RATE * seconds, rate=RATE, connections=READERS, size=SIZE)
    if not isinstance(row.server, AimxNode) or not row.name.endswith("TLS"):
        return None
    node, readers = row.server, row.server.accounts[:READERS]
    for count in (RATE, RATE * seconds):
        result = bench.generator.run(
            node.smtp, readers, readers, count=count, connections=READERS, size=SIZE,
            ca=node.ca, imap=node.imap, mode="idle", rate=RATE, traceparent=True,
        )  # fmt: skip
    return result


def print_table(rows: list[Row], options: argparse.Namespace) -> None:
    found = {row.name: median(row.rounds) for row in rows}
    print(
        f"\n{machine()}; {options.rounds} rounds of {options.count} messages, {SIZE} octets, one recipient,"
        f" {CONNECTIONS} kept connections.\n"
        "AIMX: durable before 250, every event in the log, every message traced and exported. plain: as Postfix is"
        " asked; TLS: TLS 1.3, AUTH, traceparent, workflow.\n"
    )
    heads = ["server", "delivered/s (spread)", "× Postfix", "× RabbitMQ", "CPU µs", "× aiosmtpd", "250 p50/p99 ms"]
    heads.append(f"body at {RATE}/s p50/p99 ms")
    print(line(heads), line(["---"] + ["--:"] * (len(heads) - 1)), sep="\n")
    for row in rows:
        one = found[row.name]
        rates = [each.delivered_per_s for each in row.rounds]
        print(line([
            row.name,
            f"{one.delivered_per_s:,.0f} ({min(rates):,.0f}–{max(rates):,.0f})",
            ratio(one.delivered_per_s, found.get(BASE), "delivered_per_s"),
            ratio(one.delivered_per_s, found.get(QUEUE), "delivered_per_s"),
            f"{one.cpu_us:,.0f}",
            ratio(one.cpu_us, found.get(IDLE), "cpu_us"),
            f"{one.p50_ms:.1f} / {one.p99_ms:.1f}" if one.p50_ms else "",
            f"{row.wait.body_ms['p50']:.1f} / {row.wait.body_ms['p99']:.1f}" if row.wait else "",
        ]))  # fmt: skip


def ratio(mine: float, other: Round | None, figure: str) -> str:
    return f"{mine / getattr(other, figure):.2f}" if other else "–"


def line(cells: list[Any]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
