"""How often somebody may do something: token buckets by key, in bounded memory."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

MOST = 20_000
"""Keys remembered; the longest untouched goes first, and is as if it had never come."""


class Rate:
    """`per_second` on average, `burst` at once. For one thread."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds that never go back."""
        self.per_second = per_second
        self._burst = float(burst)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Tokens left, and when that was so."""

    def take(self, key: str) -> float:
        """Seconds until `key` may; 0 when it may now, and has."""
        now = self._clock()
        left, then = self._buckets.get(key, (self._burst, now))
        left = min(self._burst, left + (now - then) * self.per_second)
        wait = 0.0 if left >= 1 else (1 - left) / self.per_second
        self._buckets[key] = (left if wait else left - 1, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > MOST:
            self._buckets.popitem(last=False)
        return wait


def rate(per_second: float | None, burst: int) -> Rate | None:
    """None, where there is no limit."""
    return None if per_second is None else Rate(per_second, burst)


def rate_of_minute(count: float | None) -> Rate | None:
    """A minute's worth may come at once. None, where there is no limit."""
    return None if count is None else Rate(count / 60, math.ceil(count))


def network(address: str) -> str:
    """An IPv6 customer has at least a /64; counting single addresses there would count nothing."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(IPv6Address(int(parsed) >> 64 << 64))
    return address
