"""The whole contract of delivery is one method: try once, and say delivered, later or never."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from aimx.message.header import HeaderBlock
from aimx.store.contract import Due, MessageRecord, Store
from aimx.telemetry.span import Span

PIECE = 256 * 1024
"""Octets of a body in memory at a time."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """It is there. Where it left the node: who took it and what they said."""

    host: str = ""
    code: int = 0
    """SMTP reply code or HTTP status; 0 inside the node."""
    text: str = ""
    """What the other side said, one line."""
    tells: bool = False
    """The other side took over the duty to report success or failure to the sender (RFC 3461 §5.2.2)."""


DELIVERED = Delivered()


@dataclass(frozen=True, slots=True)
class Later:
    """Not now. `reason` is low-cardinality, `status` an enhanced code (4.x.x), `text` for people."""

    reason: str
    status: str
    text: str
    code: int = 0
    """What the other side answered; 0: nothing."""
    host: str = ""
    said: str = ""
    """Its own words, one line."""
    everybody: bool = False
    """The other side as a whole is in trouble, not this recipient: counts for the circuit breaker."""
    wait: float = 0.0
    """Seconds for which the other side asked to be left alone."""


@dataclass(frozen=True, slots=True)
class Never:
    """Not ever (5.x.x). Fields as in `Later`."""

    reason: str
    status: str
    text: str
    code: int = 0
    host: str = ""
    said: str = ""


Result = Delivered | Later | Never


class Transport(Protocol):
    """One way out of the queue."""

    name: str

    async def attempt(self, due: Due, span: Span, now_ms: int, final: bool) -> Result:
        """Make one attempt. The transport stores its outcome and ends `span`; the queue decides about giving up.

        `final`: the deadline has passed, there will be no further attempt.
        """


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message on its way out of the node, to one recipient."""

    due: Due
    record: MessageRecord
    header: HeaderBlock
    """As stored; the carrier may change this copy."""
    store: Store

    @property
    def address(self) -> str:
        return self.due.target.address

    @property
    def via(self) -> str:
        """Name of the relay, webhook or LMTP store that routing chose."""
        return str(self.due.target.options.get("via", ""))

    async def body(self) -> AsyncIterator[bytes]:
        """The body in order, in pieces."""
        for at in range(0, self.record.body_size, PIECE):
            yield await self.store.read_body(self.due.eid, at, PIECE)


class Carrier(Protocol):
    """What one transport that leaves the node does; `outbound.Outbound` makes a `Transport` of it."""

    name: str

    async def carry(self, parcel: Parcel, span: Span) -> Result:
        """Bring it to the other side. Spans of the dialogue go under `span`. Stores nothing.

        `verdict` makes a result of what the other side says. An exception counts as a failure of ours.
        """

    async def close(self) -> None:
        """The node stops: let go of connections."""
