"""How much at a time does the other side take, and is it there at all? Learned from what attempts meet.

Each destination (a domain, a smarthost, a webhook, …) has

- a **limit** of attempts at a time: up by one for as many successes as it is high, halved by a failure;
- a **circuit**: *closed* → *open* after so many failures in a row: nothing is tried for a while → *half-open*: one
  probe → closed by a success, open again, twice as long, by a failure.

Only failures of the destination as a whole count (`Later.everybody`). Nothing is stored: after a restart it is learned
again. Memory is bounded: of more than `MAX_KNOWN` destinations the longest unused is forgotten.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from aimx.config import Delivery
from aimx.delivery.transport import Later, Result
from aimx.telemetry import metrics

OPENED = metrics.counter("aimx.destination.circuit.opened")

MAX_KNOWN = 10_000
FIRST_LIMIT = 5

Circuit = Literal["closed", "half-open", "open"]


@dataclass(slots=True)
class Destination:
    """What is known of one."""

    limit: float
    delay: float
    """Seconds the circuit stays open the next time."""
    active: int = 0
    failures: int = 0
    """In a row."""
    until: float = 0.0
    """The circuit is open until then; 0: it is closed."""
    waiting: deque[asyncio.Future[bool]] = field(default_factory=deque)

    def circuit(self, now: float) -> Circuit:
        if not self.until:
            return "closed"
        return "open" if now < self.until else "half-open"

    def room(self, now: float) -> int:
        match self.circuit(now):
            case "closed":
                return int(self.limit) - self.active
            case "half-open":
                return 1 - self.active
            case "open":
                return 0


class Destinations:
    """One for a queue; on the event loop only."""

    def __init__(self, settings: Delivery, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._known: OrderedDict[str, Destination] = OrderedDict()
        self._noted: dict[str, Destination] = {}
        """Those with attempts in hand or a circuit that is not closed: all that `closed` need look at."""

    def closed(self) -> set[str]:
        """To be left alone now: the circuit is open, or as many attempts as it takes are in hand."""
        now = self._clock()
        return {name for name, one in self._noted.items() if one.room(now) <= len(one.waiting)}

    def next_change(self) -> float | None:
        """Seconds until a circuit lets a probe through; None: none is open."""
        now = self._clock()
        return min((one.until - now for one in self._noted.values() if one.until > now), default=None)

    def circuit(self, name: str) -> Circuit:
        one = self._known.get(name)
        return "closed" if one is None else one.circuit(self._clock())

    def circuits(self) -> list[tuple[tuple[str], float]]:
        """How many destinations have a circuit that is not closed, for the metric."""
        now = self._clock()
        found = {"half-open": 0, "open": 0}
        for one in self._noted.values():
            if one.until:
                found[one.circuit(now)] += 1
        return [((state,), float(count)) for state, count in found.items()]

    async def enter(self, name: str) -> bool:
        """Wait for a turn. True: go, and `leave` afterwards. False: the circuit is open."""
        now, one = self._clock(), self._find(name)
        if one.circuit(now) == "open":
            return False
        self._noted[name] = one
        if one.room(now) > 0 and not one.waiting:
            one.active += 1
            return True
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        one.waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self.leave(name, None)
            elif turn in one.waiting:
                one.waiting.remove(turn)
            raise

    def leave(self, name: str, result: Result | None) -> None:
        """An attempt is over; None: it says nothing of the destination."""
        one = self._find(name)
        one.active -= 1
        if isinstance(result, Later) and result.everybody:
            self._failed(name, one, result.wait)
        elif result is not None:
            one.failures, one.until, one.delay = 0, 0.0, self._settings.breaker_delay
            one.limit = min(float(self._settings.destination_concurrency), one.limit + 1 / one.limit)
        self._admit(one)
        if one.active or one.waiting or one.until:
            self._noted[name] = one
        else:
            self._noted.pop(name, None)

    def _failed(self, name: str, one: Destination, wait: float) -> None:
        now = self._clock()
        circuit = one.circuit(now)
        one.failures += 1
        if circuit == "open":
            return  # begun before it opened
        one.limit = max(1.0, one.limit / 2)
        if circuit == "half-open" or one.failures >= self._settings.breaker_failures:
            one.until = now + max(wait, one.delay)
            one.delay = min(one.delay * 2, self._settings.breaker_max_delay)
        elif wait > 0:
            one.until = now + wait
        else:
            return
        transport, colon, _ = name.partition(":")
        OPENED.labels(transport if colon else "relay").add()

    def _admit(self, one: Destination) -> None:
        """Let the next ones in, or send all away where the circuit has opened."""
        now = self._clock()
        if one.circuit(now) == "open":
            while one.waiting:
                _answer(one.waiting.popleft(), False)
        while one.waiting and one.room(now) > 0:
            if _answer(one.waiting.popleft(), True):
                one.active += 1

    def _find(self, name: str) -> Destination:
        one = self._known.get(name)
        if one is None:
            first = float(min(FIRST_LIMIT, self._settings.destination_concurrency))
            one = self._known[name] = Destination(first, self._settings.breaker_delay)
            if len(self._known) > MAX_KNOWN:
                idle = next(key for key, old in self._known.items() if not old.active and not old.waiting)
                del self._known[idle]  # at worst the new one, which is then known to its caller only
                self._noted.pop(idle, None)
        self._known.move_to_end(name)
        return one


def _answer(turn: asyncio.Future[bool], go: bool) -> bool:
    if turn.done():
        return False
    turn.set_result(go)
    return True
