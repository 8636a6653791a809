"""A destination gets as much at a time as it takes, and is left alone while it is in trouble."""

import asyncio

from aimx.config import Delivery
from aimx.delivery.destination import MAX_KNOWN, Destinations
from aimx.delivery.transport import DELIVERED, Later, Never

DOWN = Later("connect", "4.4.1", "no connection", everybody=True)
BUSY = Later("4.2.1", "4.2.1", "one mailbox")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def some(**settings: object) -> tuple[Destinations, Clock]:
    clock = Clock()
    return Destinations(Delivery.model_validate({"breaker_failures": 3, **settings}), clock), clock


async def attempt(destinations: Destinations, result: object, name: str = "a.example") -> bool:
    if not await destinations.enter(name):
        return False
    destinations.leave(name, result)  # type: ignore[arg-type]
    return True


async def test_failures_in_a_row_open_the_circuit_and_a_probe_closes_it() -> None:
    destinations, clock = some(breaker_delay="30s")
    for _ in range(3):
        assert await attempt(destinations, DOWN)
    assert destinations.closed() == {"a.example"}
    assert not await attempt(destinations, DELIVERED), "left alone"
    assert destinations.next_change() == 30
    clock.now += 30
    assert destinations.closed() == set()
    assert destinations.circuit("a.example") == "half-open"
    assert await destinations.enter("a.example")
    assert destinations.closed() == {"a.example"}, "one probe at a time"
    destinations.leave("a.example", DELIVERED)
    assert destinations.circuit("a.example") == "closed"
    assert destinations.closed() == set()


async def test_each_failed_probe_doubles_the_pause_up_to_the_limit() -> None:
    destinations, clock = some(breaker_delay="30s", breaker_max_delay="100s")
    for _ in range(3):
        await attempt(destinations, DOWN)
    pauses = []
    for _ in range(4):
        pause = destinations.next_change()
        assert pause is not None
        pauses.append(pause)
        clock.now += pause
        assert await attempt(destinations, DOWN)
    assert pauses == [30, 60, 100, 100]


async def test_what_concerns_one_recipient_says_nothing_of_the_destination() -> None:
    destinations, _ = some()
    for _ in range(20):
        assert await attempt(destinations, BUSY)
        assert await attempt(destinations, Never("5.1.1", "5.1.1", "nobody"))
    await attempt(destinations, DOWN)
    await attempt(destinations, DOWN)
    assert await attempt(destinations, BUSY), "it answers: the row of failures is broken"
    await attempt(destinations, DOWN)
    assert destinations.circuit("a.example") == "closed"


async def test_the_limit_grows_with_successes_and_falls_with_failures() -> None:
    destinations, _ = some(destination_concurrency=8, breaker_failures=100)

    async def at_once() -> int:
        entered = 0
        while "a.example" not in destinations.closed() and await destinations.enter("a.example"):
            entered += 1
        for _ in range(entered):
            destinations.leave("a.example", None)
        return entered

    for _ in range(100):
        await attempt(destinations, DELIVERED)
    assert await at_once() == 8
    await attempt(destinations, DOWN)
    assert await at_once() == 4
    for _ in range(10):
        await attempt(destinations, DOWN)
    assert await at_once() == 1


async def test_who_waits_for_a_turn_gets_it_or_is_sent_away_when_the_circuit_opens() -> None:
    destinations, _ = some(destination_concurrency=1, breaker_failures=1)
    assert await destinations.enter("a.example")
    waiting = [asyncio.create_task(destinations.enter("a.example")) for _ in range(3)]
    await asyncio.sleep(0)
    destinations.leave("a.example", DELIVERED)
    assert await waiting[0]
    destinations.leave("a.example", DOWN)
    assert await asyncio.gather(*waiting[1:]) == [False, False]


async def test_who_gives_up_waiting_leaves_no_turn_behind() -> None:
    destinations, _ = some(destination_concurrency=1)
    assert await destinations.enter("a.example")
    first, second = (asyncio.create_task(destinations.enter("a.example")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    destinations.leave("a.example", DELIVERED)
    assert await second


async def test_the_other_sides_wish_to_be_left_alone_is_kept() -> None:
    destinations, clock = some()
    await attempt(destinations, Later("http.429", "4.3.0", "busy", everybody=True, wait=7.0))
    assert destinations.next_change() == 7
    clock.now += 7
    assert await attempt(destinations, DELIVERED)


async def test_memory_is_bounded() -> None:
    destinations, _ = some(breaker_failures=1)
    for n in range(MAX_KNOWN + 500):
        await attempt(destinations, DOWN if n % 2 else DELIVERED, f"{n}.example")
    assert len(destinations._known) == MAX_KNOWN
    assert len(destinations._noted) <= MAX_KNOWN
