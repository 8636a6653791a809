"""What every server under load is asked: take so many messages; how fast, and for how much CPU?"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from bench.generator import Result

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


Load = Callable[[int], Result]


@dataclass(frozen=True, slots=True)
class Round:
    """One load on one server. Rates are messages a second; CPU is the server's, in microseconds a message."""

    accepted_per_s: float
    delivered_per_s: float
    cpu_us: float
    p50_ms: float
    p99_ms: float


def measure(server: Subject, load: Load, count: int) -> Round:
    """Accepted: until the last 250. Delivered: until the last message is in its mailbox. CPU: until all is settled."""
    before, cpu = server.delivered(), server.cpu_s()
    result = load(count)
    if result.accepted != count:
        raise RuntimeError(f"{result.refused} of {count} messages were refused")
    limit, done = time.monotonic() + DELIVERY_LIMIT_S, result.last_at
    while server.delivered() < before + count:
        if time.monotonic() > limit:
            raise RuntimeError(f"{server.delivered() - before} of {count} messages delivered in time")
        time.sleep(0.02)
        done = time.time()
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


class Answering:
    """A server whose answer is all it does: what it accepted is delivered."""

    def __init__(self) -> None:
        self.answered = 0

    def delivered(self) -> int:
        return self.answered

    def settled(self) -> bool:
        return True


def machine() -> str:
    cpu = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpu if line.startswith("model name")), "?")
    return f"{os.cpu_count()} × {model}, Linux {platform.release()}, Python {platform.python_version()}"
