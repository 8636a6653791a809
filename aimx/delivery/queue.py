"""Works what the accepting commit could not finish.

A delivery is a row under lease. `claim` has stored the next attempt before this one is made, so whatever happens here,
and however often the process dies, the worst is that the attempt comes again after its delay; the row and the mailbox
entry change in one commit, so it never comes twice.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from aimx.config import Settings
from aimx.delivery import trace
from aimx.delivery.destination import Destinations
from aimx.delivery.retry import Backoff
from aimx.delivery.transport import Delivered, Later, Never, Result, Transport
from aimx.failpoint import reach
from aimx.store.contract import Due, NotFound, Store, Unavailable, worker_name
from aimx.telemetry.span import Span, Tracer

log = logging.getLogger("aimx.delivery")

LONGEST_SLEEP = 60.0
"""Seconds. A clock that jumps, or a row another process queued, is noticed after this at the latest."""
AFTER_FAILURE = 1.0
"""Seconds to wait when the store cannot serve."""
AFTER_NOTHING = 0.05
"""Seconds to wait when what was due turned out to be taken by another process."""

FAILED = Later("internal", "4.3.0", "the node failed at it; its log says why")


class Reports(Protocol):
    """Tells the sender what became of a delivery."""

    async def failed(self, due: Due, result: Never | Later, span: Span) -> None:
        """Given up, in the commit that settles the delivery. The span is the `dead-letter` one."""

    async def delayed(self, due: Due, result: Later, span: Span) -> None: ...
    async def delivered(self, due: Due, result: Delivered, span: Span) -> None: ...


class Queue:
    """One for a node. Wakes when something was queued or comes due; never polls."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        transports: Mapping[str, Transport],
        tracer: Tracer,
        reports: Reports,
        destinations: Destinations | None = None,
        worker: int = 0,
    ) -> None:
        """`destinations`: shared with the transports that leave the node; `worker`: which of the node's processes."""
        self._store = store
        self._transports = transports
        self._tracer = tracer
        self._reports = reports
        self._warn_ms = int(settings.delivery.warn_after * 1000)
        self._destinations = destinations or Destinations(settings.delivery)
        self._backoff = Backoff.of(settings.delivery)
        self._owner = worker_name(settings.node, worker)
        self._lease_ms = int(settings.delivery.lease * 1000)
        self._max_idle_ms = int(settings.trace.max_idle * 1000)
        self._slots = settings.delivery.concurrency
        self._outbound_slots = settings.delivery.outbound_concurrency
        self._wake = asyncio.Event()
        self._stopping = False
        self._draining = False
        self._unsubscribe: Callable[[], None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._working: set[asyncio.Task[None]] = set()
        """Attempts at mailboxes: short, and the store's work."""
        self._outbound: set[asyncio.Task[None]] = set()
        """Attempts that leave the node, which are mostly waiting."""

    def start(self) -> None:
        self._unsubscribe = self._store.subscribe("queue", self._wake.set)
        self._task = asyncio.create_task(self._run(), name="aimx-delivery")

    def drain(self, on: bool) -> None:
        """Leave what is due to other nodes, or take it again."""
        self._draining = on
        self._wake.set()

    async def stop(self, grace: float = 2.0) -> None:
        """Finish the attempts in hand, within `grace` seconds; what is left keeps its row."""
        self._stopping = True
        self._wake.set()
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._task is not None:
            await self._task
        if working := self._working | self._outbound:
            _, late = await asyncio.wait(working, timeout=grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                until_ms = await self._work()
            except Unavailable:
                await asyncio.sleep(AFTER_FAILURE)
            except Exception:
                log.exception("the queue could not be read")
                await asyncio.sleep(AFTER_FAILURE)
            else:
                await self._sleep_until(until_ms)

    async def _sleep_until(self, until_ms: int | None) -> None:
        seconds = LONGEST_SLEEP if until_ms is None else min(LONGEST_SLEEP, max(0.0, until_ms / 1000 - time.time()))
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _work(self) -> int | None:
        """Start the attempts of what is due. When to look again (Unix milliseconds), if nothing wakes us before.

        No more is taken than can be begun at once: what waits here would hold up what is more urgent.
        """
        free = min(self._slots - len(self._working), self._outbound_slots - len(self._outbound))
        if self._draining or free < max(1, self._slots // 2):
            return None  # the end of the draining, or of an attempt, will wake us
        # In this order: a circuit that opens for a probe between the two is then no longer among the closed ones.
        probe_ms = self._next_probe()
        closed = self._destinations.closed()
        due_ms = await self._store.next_due(closed)
        now_ms = time.time_ns() // 1_000_000
        if due_ms is None or due_ms > now_ms:
            return min((ms for ms in (due_ms, probe_ms) if ms is not None), default=None)
        found = await self._store.claim(now_ms, free, self._owner, self._lease_ms, self._backoff.delay_ms, closed)
        reach("claim.committed")
        for due in found:
            tasks = self._working if due.target.transport == "mailbox" else self._outbound
            task = asyncio.create_task(self._attempt(due))
            tasks.add(task)
            task.add_done_callback(self._done)
        return now_ms if found else now_ms + int(AFTER_NOTHING * 1000)

    def _next_probe(self) -> int | None:
        """When what is left out because its circuit is open comes in again, for that lets a probe through."""
        seconds = self._destinations.next_change()
        return None if seconds is None else time.time_ns() // 1_000_000 + int(seconds * 1000) + 1

    def _done(self, task: asyncio.Task[None]) -> None:
        self._working.discard(task)
        self._outbound.discard(task)
        self._wake.set()

    async def _attempt(self, due: Due) -> None:
        now_ms = time.time_ns() // 1_000_000
        final = now_ms >= due.target.deadline_ms
        span = trace.begin(self._tracer, due, now_ms, self._max_idle_ms)
        try:
            result = await self._try(due, span, now_ms, final)
            match result:
                case Delivered():
                    await self._reports.delivered(due, result, span)
                case Later() if not final:
                    # Due once: for the first attempt after that time.
                    if due.last_ms - due.created_ms < self._warn_ms <= now_ms - due.created_ms:
                        await self._reports.delayed(due, result, span)
                case Later() | Never():
                    await self._give_up(due, result, span)
        except NotFound:
            pass  # settled meanwhile by whoever held the lease before
        except Unavailable:
            span.error("unavailable")
        except Exception:
            log.exception("a delivery could not be ended", extra={"context": span.context})
            span.error("internal")
        finally:
            span.end()

    async def _try(self, due: Due, span: Span, now_ms: int, final: bool) -> Result:
        """One attempt. A failure of ours counts as one more, so that at the deadline the sender hears of it."""
        try:
            reach("attempt.begin")
            result = await self._transports[due.target.transport].attempt(due, span, now_ms, final)
            reach("attempt.committed")
            return result
        except (NotFound, Unavailable):
            raise
        except Exception:
            log.exception("an attempt failed", extra={"context": span.context})
            span.error("internal")
            return FAILED

    async def _give_up(self, due: Due, result: Never | Later, last: Span) -> None:
        with trace.given_up(self._tracer, due, result, last) as span:
            reach("settle.begin")
            await self._reports.failed(due, result, span)
            reach("settle.committed")
