"""The whole contract of delivery is one method: try once, and say delivered, later or never."""

from dataclasses import dataclass
from typing import Protocol

from aimx.store.contract import Due
from aimx.telemetry.span import Span


@dataclass(frozen=True, slots=True)
class Delivered:
    """It is there; the delivery is settled in the store."""


DELIVERED = Delivered()


@dataclass(frozen=True, slots=True)
class Later:
    """Not now. `reason` is low-cardinality, `status` an enhanced code (4.x.x), `text` for people."""

    reason: str
    status: str
    text: str


@dataclass(frozen=True, slots=True)
class Never:
    """Not ever (5.x.x)."""

    reason: str
    status: str
    text: str


Result = Delivered | Later | Never


class Transport(Protocol):
    """One way out of the queue."""

    name: str

    async def attempt(self, due: Due, span: Span, now_ms: int, final: bool) -> Result:
        """Make one attempt. The transport stores its outcome and ends `span`; the queue decides about giving up.

        `final`: the deadline has passed, there will be no further attempt.
        """
