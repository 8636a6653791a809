"""When is it too much? What presses on the node, and what a peer is told of it: always a 4xx that says why.

Asked at MAIL, before the octets come, and again at their end. Everything here gives way by itself: there is no switch
to be set back.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aimx.config import Settings
from aimx.intake.envelope import Reply
from aimx.rate import rate, rate_of_minute
from aimx.store.contract import Busy, Full, Unavailable
from aimx.telemetry import metrics

REFUSED = metrics.counter("aimx.pressure.refusals")

TRY_LATER = Reply(451, "4.3.0", "the message could not be stored now and was not taken; send it again")
NO_ROOM = Reply(452, "4.3.1", "no room is left on the node's disk; nothing was taken, send it again later")
TOO_BUSY = Reply(451, "4.3.2", "the node's store has more to do than it can; nothing was taken, send it again")
QUEUE_FULL = Reply(451, "4.4.5", "as much mail waits as the node keeps, and yours would have to; send it again later")


def of_store(error: Exception) -> Reply:
    """What the store's failure is for the peer. Without the error's text: that may hold data."""
    match error:
        case Full():
            return counted("disk", NO_ROOM)
        case Busy():
            return counted("store", TOO_BUSY)
        case Unavailable():
            return counted("store", TRY_LATER)
        case _:
            return counted("failure", TRY_LATER)


class Pressure:
    """One for a node; for the event loop's thread."""

    def __init__(self, settings: Settings, outbox_age: Callable[[], float]) -> None:
        """`outbox_age`: seconds the audit log is behind."""
        limits = settings.limits
        self.queue_depth = 0
        """As last measured."""
        self._outbox_age = outbox_age
        self._max_lag = settings.audit.max_lag
        self._queue = limits.queue
        self._store_wait = limits.store_wait
        self._messages = rate(limits.messages_per_second, limits.message_burst)
        self._strangers = rate_of_minute(settings.mx.messages_per_minute)
        self._commits: dict[object, float] = {}
        """When each began that has not ended, the oldest first."""

    def refusal(self) -> Reply | None:
        """Why nobody's message can be taken now."""
        behind = self._outbox_age()
        if behind > self._max_lag:
            return counted("audit", Reply(451, "4.3.2", "the audit log is behind; send the message again in a minute"))
        began = next(iter(self._commits.values()), None)
        if began is not None and (age := time.monotonic() - began) > self._store_wait:
            text = f"the node's store is slow: a message has waited {age:.0f} s for it; send yours again later"
            return counted("store", Reply(451, "4.3.2", text))
        return None

    def hasty(self, agent: str) -> Reply | None:
        """To be asked once for each message of an agent: whether it sends more than it may."""
        if self._messages is None or not (wait := self._messages.take(agent)):
            return None
        many = f"you send more than {self._messages.per_second:g} messages a second"
        return counted("agent", Reply(451, "4.7.1", f"{many}; send it again in {max(1, round(wait))} s"))

    def hasty_stranger(self, network: str) -> Reply | None:
        """The same for who comes from this network without being an agent."""
        if self._strangers is None or not (wait := self._strangers.take(network)):
            return None
        many = f"more than {self._strangers.per_second * 60:g} messages a minute come from your address"
        return counted("address", Reply(451, "4.7.1", f"{many}; send it again in {max(1, round(wait))} s"))

    def queue_refusal(self) -> Reply | None:
        """For a message that would have to wait."""
        return None if self.queue_depth < self._queue else counted("queue", QUEUE_FULL)

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Around each accepting commit."""
        mark = object()
        self._commits[mark] = time.monotonic()
        try:
            yield
        finally:
            del self._commits[mark]


def counted(reason: str, reply: Reply) -> Reply:
    """The same reply; that we could not is counted."""
    REFUSED.labels(reason).add()
    return reply
