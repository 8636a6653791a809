"""`python -m bench.queue`: what a claim costs in a queue of 1,000 deliveries and in one of 1,000,000.

Each round asks when the next is due, claims 16 deliveries and defers them, as the node does. Four queues of each size:
all of it can go; nearly all waits for a closed destination, and the rest behind it; nearly all is held; and 10,000
destinations of which half are closed.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypeVar

from aimx.store.contract import Store
from aimx.store.sqlite import SqliteStore
from tests.store.factory import T0, new_agent, new_message, new_target, nothing

T = TypeVar("T")
CLAIMED = 16
AT_ONCE = 5_000
"""Deliveries of one message while the queue is filled."""
WARM_UP = 5
NOW = 2 * T0
OPEN, CLOSED = "open.example", "closed.example"


class Shape(NamedTuple):
    name: str
    destination: Callable[[int, int], str]
    """Of delivery n of a queue of so many."""
    closed: frozenset[str] = frozenset()
    held: str = ""
    """Deliveries for it are held."""


def _last_hundredth(n: int, size: int) -> str:
    return OPEN if n >= size - max(4 * CLAIMED, size // 100) else CLOSED


SHAPES = (
    Shape("all can go", lambda n, size: OPEN),
    Shape("nearly all closed, in front", _last_hundredth, closed=frozenset({CLOSED})),
    Shape("nearly all held", _last_hundredth, held=CLOSED),
    Shape(
        "10,000 destinations, half closed",
        lambda n, size: f"d{n % min(size, 10_000)}.example",
        closed=frozenset(f"d{n}.example" for n in range(0, 10_000, 2)),
    ),
)


class Cost(NamedTuple):
    """Milliseconds, medians over the rounds."""

    claim: float
    defer: float
    next_due: float


async def fill(store: Store, shape: Shape, size: int) -> None:
    for start in range(0, size, AT_ONCE):
        # Later ones come due later: what can go is found behind what cannot.
        message = new_message(t_ms=T0 + start)
        numbers = range(start, min(start + AT_ONCE, size))
        targets = [
            new_target(f"a{n}@example.org", transport="relay", destination=shape.destination(n, size)) for n in numbers
        ]
        await store.accept(message, targets, nothing)
    after = 0
    while shape.held and (page := await store.pending(None, AT_ONCE, after, shape.held)):
        after = page[-1].id
        await store.suspend([one.id for one in page], True, nothing)


async def one_round(store: Store, shape: Shape, now_ms: int) -> Cost:
    _, next_due = await timed(store.next_due(shape.closed))
    due, claim = await timed(store.claim(now_ms, CLAIMED, "n1/0", 60_000, lambda _: 1_000, shape.closed))
    assert len(due) == CLAIMED
    _, defer = await timed(gather([store.defer(one, one.origin, now_ms, "refused", []) for one in due]))
    return Cost(claim, defer, next_due)


async def gather(calls: Sequence[Awaitable[None]]) -> None:
    await asyncio.gather(*calls)


async def timed(call: Awaitable[T]) -> tuple[T, float]:
    began = time.perf_counter()
    found = await call
    return found, (time.perf_counter() - began) * 1000


async def compare(folder: Path, shape: Shape, sizes: Sequence[int], rounds: int) -> list[Cost]:
    """Rounds alternate between the queues, so that a machine that grows slower does so for all."""
    stores = [SqliteStore(folder / f"{size}.db", "n1") for size in sizes]
    taken: list[list[Cost]] = [[] for _ in sizes]
    try:
        for store, size in zip(stores, sizes, strict=True):
            await store.open()
            await store.add_agent(new_agent(), [])
            await fill(store, shape, size)
        for n in range(WARM_UP + rounds):
            for store, costs in zip(stores, taken, strict=True):
                costs.append(await one_round(store, shape, NOW + n * 2_000))
    finally:
        for store in stores:
            await store.close()
    return [Cost(*(statistics.median(some) for some in zip(*costs[WARM_UP:], strict=True))) for costs in taken]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.queue", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs=2, default=(1_000, 1_000_000))
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args(arguments)
    small, large = options.sizes
    print(f"SQLite, {CLAIMED} a claim; {small:,} → {large:,} waiting; ms, medians of {options.rounds} rounds\n")
    print(f"{'':36}{'claim':>18}{'defer':>18}{'next due':>18}{'claim ratio':>13}")
    for shape in SHAPES:
        with TemporaryDirectory(prefix="aimx-bench-") as folder:
            few, many = asyncio.run(compare(Path(folder), shape, (small, large), options.rounds))
        cells = "".join(f"{f'{a:.2f} → {b:.2f}':>18}" for a, b in zip(few, many, strict=True))
        print(f"{shape.name:36}{cells}{many.claim / few.claim:>13.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
