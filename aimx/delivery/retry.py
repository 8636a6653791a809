"""When should a delivery be tried again? A small value with the formula in it."""

from collections.abc import Callable
from dataclasses import dataclass
from random import uniform

from aimx.config import Delivery


@dataclass(frozen=True, slots=True)
class Backoff:
    """delay(n) = min(max, first · factor^(n-1)) · (1 ± jitter), for the wait after attempt n (counted from 1)."""

    first_ms: float
    factor: float
    max_ms: float
    jitter: float
    spread: Callable[[float, float], float] = uniform

    @classmethod
    def of(cls, settings: Delivery) -> "Backoff":
        return cls(settings.first_delay * 1000, settings.factor, settings.max_delay * 1000, settings.jitter)

    def delay_ms(self, attempt: int) -> int:
        """Milliseconds to wait after that attempt; never 0."""
        # Past the cap the power is of no interest and would overflow.
        power = min(attempt - 1, 64)
        delay = min(self.max_ms, self.first_ms * self.factor**power)
        return max(1, round(delay * (1 + self.spread(-self.jitter, self.jitter))))
