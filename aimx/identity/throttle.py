"""Failed sign-ins: counted by address and by account, refused unheard past a limit, in bounded memory.

The caller asks `wait`, checks the secret and tells the outcome with no other attempt on the same account in between
(`Directory` holds a lock), so a thousand attempts at once gain nothing.

Three counters, each over a fixed window that begins with its first failure:

- the *pair* (address, account) once it has signed in: only this counts then, so that nobody locks an agent out from
  elsewhere, nor a neighbour on the same address by failing;
- else the *account*: `max_failures`;
- and the *address*: `ADDRESS_FACTOR` times that, for one address may hold many agents.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from aimx.rate import network

ADDRESS_FACTOR = 4
MAX_ENTRIES = 20_000
"""Per table; the longest untouched goes first."""


@dataclass(slots=True)
class _Count:
    began: float
    failures: int


class _Table:
    """Failures by key within a window."""

    __slots__ = ("_counts", "_window")

    def __init__(self, window: float) -> None:
        self._counts: OrderedDict[str, _Count] = OrderedDict()
        self._window = window

    def wait(self, key: str, limit: int, now: float) -> float:
        """Seconds until `key` may try again; 0 when it may now."""
        count = self._counts.get(key)
        if count is None or count.failures < limit:
            return 0.0
        return max(0.0, count.began + self._window - now)

    def add(self, key: str, now: float) -> None:
        count = self._counts.get(key)
        if count is None or now - count.began >= self._window:
            self._counts[key] = _Count(now, 1)
        else:
            count.failures += 1
        self._counts.move_to_end(key)
        if len(self._counts) > MAX_ENTRIES:
            self._counts.popitem(last=False)

    def forget(self, key: str) -> None:
        self._counts.pop(key, None)


class Throttle:
    """Who may try to sign in now. `clock` gives seconds that never go back."""

    def __init__(self, max_failures: int, window: float, clock: Callable[[], float]) -> None:
        self._limit = max_failures
        self._clock = clock
        self._addresses = _Table(window)
        self._accounts = _Table(window)
        self._pairs = _Table(window)
        self._known: OrderedDict[str, None] = OrderedDict()
        self.failures = 0
        """Attempts that failed, since the start."""
        self.refused = 0
        """Attempts refused unheard, since the start."""

    def wait(self, address: str, account: str) -> float:
        """Seconds until this address may try this account; 0 when it may now. A refusal is counted."""
        now = self._clock()
        pair = _pair(address, account)
        if pair in self._known:
            wait = self._pairs.wait(pair, self._limit, now)
        else:
            wait = max(
                self._accounts.wait(account, self._limit, now),
                self._addresses.wait(network(address), self._limit * ADDRESS_FACTOR, now),
            )
        if wait > 0:
            self.refused += 1
        return wait

    def failed(self, address: str, account: str) -> None:
        """The secret was wrong."""
        now = self._clock()
        pair = _pair(address, account)
        if pair in self._known:
            self._pairs.add(pair, now)
        else:
            self._accounts.add(account, now)
            self._addresses.add(network(address), now)
        self.failures += 1

    def succeeded(self, address: str, account: str) -> None:
        """The secret was right. Clears what the pair failed before, never what others failed."""
        pair = _pair(address, account)
        self._pairs.forget(pair)
        self._known[pair] = None
        self._known.move_to_end(pair)
        if len(self._known) > MAX_ENTRIES:
            self._known.popitem(last=False)


def _pair(address: str, account: str) -> str:
    return f"{network(address)} {account}"
