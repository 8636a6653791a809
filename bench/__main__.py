"""`python -m bench`: Postfix and AIMX with the same generator in one run, and a table of ratios.

Each server gets the same mail: 2 kB, one recipient, 40 kept connections, 100 mailboxes. Rounds alternate between the
servers, so that a machine that grows slower does so for all; the median round counts.

`python -m bench.accept` measures the CPU of AIMX's own way of a message alone, thread by thread;
`python -m bench.tracing` what tracing every message costs.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Protocol

from bench.generator import Generator, Result, Unavailable
from bench.node import AimxNode
from bench.postfix import Postfix
from bench.smtp_source import SmtpSource
from tests.node_process import Account

MAILBOXES = 100
CONNECTIONS = 40
SIZE = 2048
WARM_UP = 400
DELIVERY_LIMIT_S = 60.0


class Subject(Protocol):
    """A server under load."""

    def delivered(self) -> int: ...
    def settled(self) -> bool: ...
    def cpu_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Round:
    """One load on one server. Rates are messages a second; CPU is the server's, in microseconds a message."""

    accepted_per_s: float
    delivered_per_s: float
    cpu_us: float
    p50_ms: float
    p99_ms: float


def measure(server: Subject, load: Callable[[int], Result], count: int) -> Round:
    """Accepted: until the last 250. Delivered: until the last message is in its mailbox. CPU: until all is settled."""
    before, cpu = server.delivered(), server.cpu_s()
    result = load(count)
    if result.accepted != count:
        raise RuntimeError(f"{result.refused} of {count} messages were refused")
    limit = time.monotonic() + DELIVERY_LIMIT_S
    while server.delivered() < before + count:
        if time.monotonic() > limit:
            raise RuntimeError(f"{server.delivered() - before} of {count} messages delivered in time")
        time.sleep(0.02)
    done = max(time.time(), result.last_at) if server.delivered() > 0 else 0.0
    while not server.settled() and time.monotonic() < limit:
        time.sleep(0.05)
    return Round(
        accepted_per_s=result.per_second,
        delivered_per_s=count / (done - result.first_at),
        cpu_us=(server.cpu_s() - cpu) / count * 1e6,
        p50_ms=result.submit_ms["p50"],
        p99_ms=result.submit_ms["p99"],
    )


def median(rounds: list[Round]) -> Round:
    return Round(*(statistics.median(values) for values in zip(*(asdict(one).values() for one in rounds), strict=True)))


def profiler(path: Path) -> tuple[str, ...]:
    """Start the node under py-spy (pip install py-spy)."""
    return ("py-spy", "record", "--native", "--gil", "--rate", "200", "--format", "raw", "-o", str(path), "--")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--count", type=int, default=6000, help="messages a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["postfix", "aimx", "plain", "latency"], help="leave out the rest")
    parser.add_argument("--paced-seconds", type=int, default=10, help="length of the latency run at 100/s")
    parser.add_argument("--json", type=Path, help="also write all figures there")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped on the way out
    folder = Path(mkdtemp(prefix="aimx-bench-"))
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["rm", "-rf", str(folder)], check=False)
        try:
            figures = run(options, folder, stack)
        except Unavailable as error:
            print(f"bench: {error}", file=sys.stderr)
            return 2
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def run(options: argparse.Namespace, folder: Path, stack: ExitStack) -> dict[str, Any]:
    generator = Generator(folder)
    names = [f"box{n:03d}" for n in range(MAILBOXES)]
    sink = stack.enter_context(generator.sink())
    collector = {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    loads: dict[str, tuple[Subject, Callable[[int], Result]]] = {}
    if options.only not in ("latency", "plain"):
        if options.only != "aimx":
            loads |= postfix(folder, names, generator, stack)
        if options.only != "postfix":
            loads |= aimx("AIMX, audited", folder / "plain", names, {}, generator, stack)
            loads |= aimx("AIMX, audited, traced", folder / "traced", names, collector, generator, stack)
    figures: dict[str, Any] = {"machine": machine(), "rounds": rounds(loads, options)}
    print_rates(figures["rounds"], TABLE)
    if options.only in (None, "plain"):
        figures["plain"] = rounds(plain(folder / "in-the-clear", names, collector, stack), options)
        print_rates(figures["plain"], PLAIN_TABLE)
    stack_of_latency = options.only in (None, "latency")
    if stack_of_latency:
        figures["latency"] = latency(folder / "latency", collector, generator, options.paced_seconds)
        print_latency(figures["latency"])
    return figures


def postfix(folder: Path, names: list[str], generator: Generator, stack: ExitStack) -> dict[str, Any]:
    accounts = [Account(f"{name}@fabric.local", "") for name in names]
    try:
        server = Postfix(folder / "postfix", accounts)
    except Unavailable as error:
        print(f"without Postfix: {error}", file=sys.stderr)
        return {}
    stack.enter_context(server.running())

    def load(count: int) -> Result:
        return generator.run(server.smtp, accounts, accounts, count=count, connections=CONNECTIONS, size=SIZE)

    return {f"Postfix {server.version} → Maildir": (server, load)}


def aimx(
    name: str, folder: Path, names: list[str], environ: dict[str, str], generator: Generator, stack: ExitStack
) -> dict[str, Any]:
    server = AimxNode(folder, names, environ)
    stack.enter_context(server.running())

    def load(count: int) -> Result:
        return generator.run(
            server.smtp,
            server.accounts,
            server.accounts,
            count=count,
            ca=server.ca,
            connections=CONNECTIONS,
            size=SIZE,
            traceparent=True,
            workflow=True,
        )

    return {name: (server, load)}


def plain(
    folder: Path, names: list[str], environ: dict[str, str], stack: ExitStack
) -> dict[str, tuple[Subject, Callable[[int], Result]]]:
    """The same generator, the same mail, no TLS and no AUTH for both."""
    accounts = [Account(f"{name}@fabric.local", "") for name in names]
    source = SmtpSource()
    postfix = Postfix(folder / "postfix", accounts)
    aimx = AimxNode(folder / "aimx", names, environ)
    stack.enter_context(postfix.running())
    stack.enter_context(aimx.running())

    def load(smtp: str) -> Callable[[int], Result]:
        return lambda count: source.run(smtp, accounts, accounts, count=count, connections=CONNECTIONS, size=SIZE)

    return {
        f"Postfix {postfix.version} → Maildir": (postfix, load(postfix.smtp)),
        "AIMX plain, audited, traced": (aimx, load(aimx.plain)),
    }


def rounds(loads: dict[str, tuple[Subject, Callable[[int], Result]]], options: argparse.Namespace) -> dict[str, Any]:
    taken: dict[str, list[Round]] = {name: [] for name in loads}
    for server, load in loads.values():
        measure(server, load, WARM_UP)
    for _ in range(options.rounds):
        for name, (server, load) in loads.items():
            taken[name].append(measure(server, load, options.count))
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return {name: {"median": asdict(median(some)), "all": list(map(asdict, some))} for name, some in taken.items()}


def latency(folder: Path, environ: dict[str, str], generator: Generator, seconds: int) -> dict[str, Any]:
    """Submit → EXISTS in IDLE → body, for ten agents that wait, at a hundred messages a second in all."""
    server = AimxNode(folder, [f"agent{n}" for n in range(10)], environ)
    with server.running():
        common = {"ca": server.ca, "imap": server.imap, "mode": "idle", "rate": 100, "traceparent": True}
        for count in (100, 100 * seconds):
            result = generator.run(
                server.smtp, server.accounts, server.accounts, count=count, connections=10, size=SIZE, **common
            )
    return {"250": result.submit_ms, "EXISTS": result.exists_ms, "body": result.body_ms, "read": result.read}


def machine() -> str:
    cpu = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpu if line.startswith("model name")), "?")
    return f"{os.cpu_count()} × {model}, Linux {platform.release()}, Python {platform.python_version()}"


TABLE = (
    f"{SIZE} octets, one recipient, {MAILBOXES} mailboxes, {CONNECTIONS} kept connections with pipelining.\n"
    "Postfix: plain SMTP, no AUTH, as Debian ships it. AIMX: TLS 1.3 and AUTH, SQLite synchronous=FULL, one\n"
    "process, every event in the log; traced: every span exported over OTLP.\n"
)
PLAIN_TABLE = (
    f"Both in the clear and without AUTH, from Postfix's smtp-source: {SIZE} octets, one recipient, {CONNECTIONS}\n"
    "kept connections, each to a mailbox of its own. Postfix as Debian ships it. AIMX: SQLite synchronous=FULL,\n"
    "one process, every event in the log, every span exported over OTLP.\n"
)


def print_rates(found: dict[str, Any], about: str) -> None:
    if not found:
        return
    print(f"\n{machine()}")
    print(about)
    base = next((one["median"] for name, one in found.items() if name.startswith("Postfix")), None)
    print(f"{'':32}{'accepted/s':>12}{'delivered/s':>13}{'ratio':>8}{'CPU µs':>9}{'p50 ms':>9}{'p99 ms':>9}")
    for name, one in found.items():
        row = one["median"]
        ratio = f"{row['delivered_per_s'] / base['delivered_per_s']:.2f}" if base else "–"
        print(
            f"{name:32}{row['accepted_per_s']:>12.0f}{row['delivered_per_s']:>13.0f}{ratio:>8}"
            f"{row['cpu_us']:>9.0f}{known(row['p50_ms']):>9}{known(row['p99_ms']):>9}"
        )
    plain, traced = (found.get(name, {}).get("median") for name in ("AIMX, audited", "AIMX, audited, traced"))
    if plain and traced:
        slower = 1 - traced["delivered_per_s"] / plain["delivered_per_s"]
        dearer = traced["cpu_us"] - plain["cpu_us"]
        print(f"\ntracing every message costs {slower:.0%} of throughput, {dearer:.0f} µs CPU a message")


def known(ms: float) -> str:
    """smtp-source does not say how long an answer took."""
    return f"{ms:.1f}" if ms else "–"


def print_latency(found: dict[str, Any]) -> None:
    print(f"\npaced at 100/s, ten agents in IDLE, traced, {found['read']} read; ms from when a message was due")
    print(f"{'':32}{'p50':>9}{'p90':>9}{'p99':>9}{'max':>9}")
    for name in ("250", "EXISTS", "body"):
        row = found[name]
        print(f"{'until ' + name:32}" + "".join(f"{row[q]:>9.1f}" for q in ("p50", "p90", "p99", "max")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
