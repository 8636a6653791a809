"""What all transports that leave the node have in common: turns, the lease, the event, the span's end, the metrics.

A transport is a `Carrier` (one file each); `Outbound` makes a `Transport` of it. What became of an attempt is one
commit.
"""

import asyncio
import time
from contextlib import suppress

from aimx.config import Delivery
from aimx.delivery import attempt, trace
from aimx.delivery.destination import Destinations
from aimx.delivery.transport import Carrier, Delivered, Later, Never, Parcel, Result
from aimx.message.header import HeaderBlock
from aimx.store.contract import Due, EventRow, NotFound, Store, Unavailable
from aimx.telemetry.span import Span

AFTER_FAILURE = 0.5
"""Seconds to wait when the store cannot serve."""
SHUT = Later("circuit-open", "4.4.1", "the destination failed several times in a row and is left alone for a while")


class Outbound:
    """A `Transport` around a carrier."""

    def __init__(
        self, carrier: Carrier, store: Store, node: str, destinations: Destinations, settings: Delivery
    ) -> None:
        self.name = carrier.name
        self._carrier = carrier
        self._store = store
        self._node = node
        self._destinations = destinations
        self._lease_ms = int(settings.lease * 1000)

    async def attempt(self, due: Due, span: Span, now_ms: int, final: bool) -> Result:
        """As `Transport.attempt`. A `Never` is left to the queue to store, with the notice to the sender."""
        destination = due.target.destination
        span.set("aimx.destination.circuit", self._destinations.circuit(destination))
        if not await self._destinations.enter(destination):
            result: Result = SHUT
        else:
            met: Result | None = None
            try:
                if _now_ms() - now_ms > self._lease_ms / 3:
                    await self._renew(due)  # it has waited for its turn: somebody else may have taken it up meanwhile
                met = result = await self._carry(due, span)
            finally:
                self._destinations.leave(destination, met)
        await self._record(due, result, span, now_ms, final)
        return result

    async def _carry(self, due: Due, span: Span) -> Result:
        """The carrier's result, with the lease kept as long as it takes. Raises NotFound when the lease is lost."""
        record, header = await self._store.message(due.eid), await self._store.header(due.eid)
        if record is None or not header:
            raise NotFound("the message is not there any more")
        parcel = Parcel(due, record, HeaderBlock.parse(header)[0], self._store)
        carrying = asyncio.ensure_future(self._carrier.carry(parcel, span))
        try:
            while not (await asyncio.wait({carrying}, timeout=self._lease_ms / 3000))[0]:
                with suppress(Unavailable):
                    await self._renew(due)
            return carrying.result()
        finally:
            if not carrying.done():
                carrying.cancel()
                await asyncio.wait({carrying})

    async def _renew(self, due: Due) -> None:
        await self._store.renew(due, _now_ms() + self._lease_ms)

    async def _settle(self, due: Due, row: EventRow) -> None:
        """The other side has it: that the store cannot serve for a moment must not send it a second time."""
        until_ms = _now_ms() + self._lease_ms
        while True:
            try:
                return await self._store.settle(due, [row])
            except Unavailable:
                if _now_ms() > until_ms:
                    raise
                await asyncio.sleep(AFTER_FAILURE)

    async def _record(self, due: Due, result: Result, span: Span, now_ms: int, final: bool) -> None:
        this = attempt.Attempt.of(due, span, now_ms, final)
        row: EventRow | None = None
        match result:
            case Delivered():
                row = attempt.departed(self._node, this, due.target, result)
                await self._settle(due, row)
            case Later():
                row = attempt.deferred(self._node, this, due.target, result.reason, attempt.answered(result))
                await self._store.defer(due, this.span, now_ms, result.reason, [row])
            case Never():
                pass
        trace.finish(span, this, due.target, result, row)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def close(carriers: list[Carrier]) -> None:
    """At the node's end, all at once."""
    await asyncio.gather(*(carrier.close() for carrier in carriers), return_exceptions=True)
