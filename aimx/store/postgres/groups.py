"""Group commit: what waits while one transaction commits becomes the next one, by few statements for many items.

A group that fails is halved until the one at fault stands alone: it harms nobody else.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from aimx.store.contract import StoreError, Unavailable
from aimx.store.postgres.connection import is_lost, refusal
from aimx.store.postgres.writer import CLOSE_S, Tx, Undone, Writer
from aimx.telemetry import metrics

log = logging.getLogger(__name__)

DURATION = metrics.histogram("aimx.store.commit.duration").labels()
BATCH = metrics.histogram("aimx.store.commit.batch").labels()

Item = TypeVar("Item")

MOST = 256
"""Items in one commit: bounds how long the first of them waits for the last."""
HEAVIEST = 8 * 1024 * 1024
"""Octets in one commit, but for a single item that weighs more: bounds what is copied on its way out."""


class Job(NamedTuple):
    future: "asyncio.Future[Any]"
    item: Any


class Groups(Generic[Item]):
    """One group after the other. All on the event loop's thread."""

    def __init__(
        self,
        writer: Writer,
        batch: Callable[[Tx, list[Item]], Awaitable[Sequence[Any]]],
        weigh: Callable[[Item], int],
    ) -> None:
        """`batch` carries out many items; an item's result is an exception if it alone was refused."""
        self._writer = writer
        self._batch = batch
        self._weigh = weigh
        self._waiting: deque[Job] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def submit(self, item: Item) -> "asyncio.Future[Any]":
        """The item's result, after the commit of its group."""
        if self._closed:
            raise Unavailable("the store is closed")
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(Job(future, item))
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="aimx-store-groups")
        return future

    async def _work(self) -> None:
        """For as long as somebody waits."""
        try:
            await asyncio.sleep(0)  # the others that this turn of the loop brings
            while self._waiting:
                await self._settle(self._next())
        finally:
            self._task = None

    def _next(self) -> list[Job]:
        """The next group, at least one."""
        jobs: list[Job] = []
        weight = 0
        while self._waiting and len(jobs) < MOST:
            weight += self._weigh(self._waiting[0].item)
            if jobs and weight > HEAVIEST:
                break
            jobs.append(self._waiting.popleft())
        return jobs

    async def _settle(self, jobs: list[Job]) -> None:
        """Carry out these and answer each. Raises nothing."""
        began = time.perf_counter()
        try:
            results = await self._writer.transaction(lambda tx: self._batch(tx, [job.item for job in jobs]))
        except Undone as undone:
            if len(jobs) > 1 and not is_lost(undone.cause):
                half = len(jobs) // 2
                await self._settle(jobs[:half])
                await self._settle(jobs[half:])
            else:
                _answer(jobs, [refusal(undone.cause)] * len(jobs))
        except StoreError as error:
            _answer(jobs, [error] * len(jobs))
        except Exception as error:
            log.exception("store: a group could not be written")
            _answer(jobs, [error] * len(jobs))
        else:
            _answer(jobs, results)
            DURATION.record(time.perf_counter() - began)
            BATCH.record(len(jobs))

    async def close(self) -> None:
        """Commit what was submitted, then take nothing more."""
        self._closed = True
        if self._task is not None:
            await asyncio.wait([self._task], timeout=CLOSE_S)


def _answer(jobs: Sequence[Job], results: Sequence[Any]) -> None:
    for job, result in zip(jobs, results, strict=True):
        if job.future.done():  # its caller has gone
            continue
        if isinstance(result, BaseException):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
