"""`python -m bench.tracing`: what it costs to trace every message, against the same node with tracing off.

Two nodes, alike but for a collector, take turns: a round of mail for one, the same for the other, the order swapped
each time, so that what else the machine does hits both. The collector is a process of its own that keeps nothing
(`generator sink`, OTLP over HTTP). Every message is sampled; the node's own counters say how many spans went out and
that none was dropped.

Throughput is delivered messages a second, flat out. CPU is the process's own, per message. Latency is from when a
message was due to its body in the hands of an agent that waits in IDLE, at a steady rate; for it both nodes work at the
same time, half of the rate each, so that both share every stall of the machine. Of the ratios of all rounds the median
counts.
"""

import argparse
import json
import ssl
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from bench.generator import Generator, Unavailable
from bench.load import MAILBOXES, SIZE, WARM_UP, machine, measure
from bench.node import AimxNode
from tests.node_process import cpu_seconds

READERS = 10


@dataclass(frozen=True, slots=True)
class Turn:
    """One node's part of a round. CPU in microseconds a message, latency in milliseconds."""

    delivered_per_s: float
    cpu_us: float
    collector_cpu_us: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Submit → IDLE → body, in milliseconds; CPU in microseconds a message, its reading included."""

    p50: float
    p99: float
    cpu_us: float


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tracing", description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="messages a turn")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--rate", type=int, default=100, help="messages a second of the latency turns")
    parser.add_argument("--paced-seconds", type=int, default=8, help="length of a latency turn; 0 leaves them out")
    parser.add_argument("--sdk", choices=["aimx", "stock"], default="aimx", help="which SDK exports")
    parser.add_argument("--json", type=Path, help="also write all figures there")
    options = parser.parse_args(arguments)
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
    sink = stack.enter_context(generator.sink())
    traced = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "AIMX_TRACE__SDK": options.sdk,
    }
    names = [f"box{n:03d}" for n in range(MAILBOXES)]
    nodes = {"off": AimxNode(folder / "off", names, {}), "on": AimxNode(folder / "on", names, traced)}
    for node in nodes.values():
        stack.enter_context(node.running())
    loads = {name: (node, node.over_tls(generator)) for name, node in nodes.items()}
    print(
        f"\n{machine()}\n{SIZE} octets, one recipient, {MAILBOXES} mailboxes, TLS, SQLite, audited; SDK {options.sdk}"
    )

    def flat_out(name: str) -> Turn:
        server, load = loads[name]
        collector = cpu_seconds(sink.pid)
        round_ = measure(server, load, options.count)
        return Turn(round_.delivered_per_s, round_.cpu_us, (cpu_seconds(sink.pid) - collector) / options.count * 1e6)

    for server, load in loads.values():
        measure(server, load, WARM_UP)
    turns = alternate(flat_out, options.rounds)
    spans = exported(loads["on"][0])
    print_turns(turns, spans, WARM_UP + options.rounds * options.count)
    figures: dict[str, Any] = {"machine": machine(), "turns": plain(turns), "spans": spans}
    if options.paced_seconds:
        waits = latency(options, folder, traced, generator)
        print_waits(waits, options.rate)
        figures["waits"] = plain(waits)
    return figures


def alternate(turn: Callable[[str], Any], rounds: int) -> dict[str, list[Any]]:
    taken: dict[str, list[Any]] = {"off": [], "on": []}
    for number in range(rounds):
        for name in ("off", "on") if number % 2 == 0 else ("on", "off"):
            taken[name].append(turn(name))
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return taken


def latency(
    options: argparse.Namespace, folder: Path, traced: dict[str, str], generator: Generator
) -> dict[str, list[Wait]]:
    names = [f"agent{n}" for n in range(READERS)]
    nodes = {"off": AimxNode(folder / "idle-off", names, {}), "on": AimxNode(folder / "idle-on", names, traced)}
    generators = {"off": generator, "on": Generator(folder / "idle-on")}
    taken: dict[str, list[Wait]] = {"off": [], "on": []}

    def paced(name: str, seconds: int) -> Wait:
        node, count, cpu = nodes[name], options.rate * seconds // 2, nodes[name].cpu_s()
        common = {"ca": node.ca, "imap": node.imap, "mode": "idle", "rate": options.rate / 2, "traceparent": True}
        result = generators[name].run(
            node.smtp, node.accounts, node.accounts, count=count, connections=READERS, size=SIZE, **common
        )
        return Wait(result.body_ms["p50"], result.body_ms["p99"], (node.cpu_s() - cpu) / count * 1e6)

    with nodes["off"].running(), nodes["on"].running(), ThreadPoolExecutor(2) as both:
        for seconds in (1, *[options.paced_seconds] * options.rounds):
            waits = list(both.map(paced, nodes, [seconds] * 2))
            print(".", end="", flush=True, file=sys.stderr)
            if seconds == 1 != options.paced_seconds:
                continue  # to warm up
            for name, wait in zip(nodes, waits, strict=True):
                taken[name].append(wait)
    print(file=sys.stderr)
    return taken


def exported(node: AimxNode) -> dict[str, float]:
    """What the node says of its spans: `exported`, and the reasons of those it dropped."""
    ready = node.process.ready
    token = Path(ready["admin_token_file"]).read_text().strip()
    request = urllib.request.Request(f"{ready['http']}/metrics", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, context=ssl.create_default_context(cafile=ready["ca"])) as answer:
        lines = answer.read().decode().splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if line.startswith("aimx_spans_"))
    return {name.removeprefix("aimx_spans_"): float(value) for name, value in found.items()}


def ratio(turns: dict[str, list[Any]], field: str) -> tuple[float, list[float]]:
    """On over off, round by round, and the median of these."""
    each = [getattr(on, field) / getattr(off, field) for off, on in zip(turns["off"], turns["on"], strict=True)]
    return statistics.median(each), sorted(each)


def median(turns: list[Any], field: str) -> float:
    return statistics.median(getattr(turn, field) for turn in turns)


def print_turns(turns: dict[str, list[Turn]], spans: dict[str, float], messages: int) -> None:
    print(f"\n{'':12}{'delivered/s':>13}{'CPU µs':>10}{'collector CPU µs':>19}")
    for name, some in turns.items():
        figures = [median(some, field) for field in ("delivered_per_s", "cpu_us", "collector_cpu_us")]
        print(f"{'tracing ' + name:12}{figures[0]:>13.0f}{figures[1]:>10.0f}{figures[2]:>19.0f}")
    for field, what in (("delivered_per_s", "throughput"), ("cpu_us", "CPU a message")):
        middle, each = ratio(turns, field)
        print(f"{what}, on to off: {middle:.3f}   (rounds: {', '.join(f'{one:.2f}' for one in each)})")
    said = ", ".join(f"{name} {number:.0f}" for name, number in spans.items())
    print(f"spans: {said}; {spans.get('exported_total', 0) / messages:.1f} a message")


def print_waits(waits: dict[str, list[Wait]], rate: int) -> None:
    print(f"\nsubmit → IDLE → body, both at once at {rate / 2:.0f}/s, ms\n{'':12}{'p50':>8}{'p99':>8}{'CPU µs':>10}")
    for name, some in waits.items():
        p50, p99, cpu = [median(some, field) for field in ("p50", "p99", "cpu_us")]
        print(f"{'tracing ' + name:12}{p50:>8.2f}{p99:>8.2f}{cpu:>10.0f}")
    for field, what in (("p50", "p50"), ("p99", "p99"), ("cpu_us", "CPU a message")):
        middle, each = ratio(waits, field)
        print(f"{what}, on to off: {middle:.3f}   (rounds: {', '.join(f'{one:.2f}' for one in each)})")


def plain(turns: dict[str, list[Any]]) -> dict[str, list[dict[str, float]]]:
    return {name: [asdict(turn) for turn in some] for name, some in turns.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
