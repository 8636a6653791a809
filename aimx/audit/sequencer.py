"""The sequencer: carries leaves from the store's outbox into audit.db, and signs checkpoints.

Each round reads what is not yet in the log, commits it to audit.db, and only then marks it in the store. Killed at any
point it loses nothing and doubles nothing: what was committed and not marked is read again, and found by its event id.
It runs on its own thread, so neither hashing nor fsync ever holds up the event loop.

It refuses to start (`LogError`) on a log shorter than, or other than, what this node has signed before: going on from a
restored old copy would sign a fork.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from aimx import durable
from aimx.audit import events
from aimx.audit.keys import Keys
from aimx.audit.log import FILE, Appended, Fenced, Log, LogError
from aimx.audit.place import open_log, open_reader
from aimx.failpoint import reach
from aimx.store.contract import EventRow, SpanRef, StoredEvent, StoreError
from aimx.telemetry import metrics
from aimx.telemetry.context import Context
from aimx.telemetry.span import MAX_LINKS, Tracer
from aimx.tlog import checkpoint, tree
from aimx.tlog.errors import FormatError, ProofError

HIGH_WATER = "audit.checkpoint"
"""The newest checkpoint this node has signed, beside audit.db: a restored old copy of the one betrays itself."""

BATCH = 1000
"""Leaves in one commit of audit.db: about half a megabyte."""

LOOK_S = 5.0
"""Between looks into the outbox without being woken: the command line writes events from another process."""

PATIENCE_S = 1.0
"""After a failure (disk full, database locked) until the next try."""

_EV = re.compile(rb'"ev":"([a-z.]+)"')

log = logging.getLogger(__name__)

T = TypeVar("T")


class Outbox(Protocol):
    """The part of the Store contract that the sequencer needs."""

    def subscribe(self, topic: Literal["events"], callback: Callable[[], None]) -> Callable[[], None]: ...
    async def record(self, events: Sequence[EventRow]) -> None: ...
    async def unsequenced(self, limit: int) -> list[tuple[int, str, bytes]]: ...
    async def mark_sequenced(self, placed: Sequence[tuple[int, int]]) -> None: ...
    async def events_after(self, seq: int, limit: int) -> list[StoredEvent]: ...


class Sequencer:
    """Start it once the store is open; stop it before the store is closed. All methods belong to the loop's thread."""

    def __init__(
        self,
        outbox: Outbox,
        folder: Path,
        keys: Keys,
        *,
        node: str,
        database: str | None = None,
        tracer: Tracer | None = None,
        integrate_within: float = 0.2,
        checkpoint_every: float = 1.0,
        heartbeat_every: float = 3600.0,
    ) -> None:
        """`folder` is the data folder; durations are in seconds and as `[audit]` in the settings has them."""
        self._outbox = outbox
        self._folder = folder
        self._database = database
        self._keys = keys
        self._node = node
        self._tracer = tracer or Tracer()
        self._pause = integrate_within / 4
        self._checkpoint_every = checkpoint_every
        self._heartbeat_every = heartbeat_every
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aimx-audit")
        self._log: Log | None = None
        self._task: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._woken = asyncio.Event()
        self._stopping = asyncio.Event()
        self._flushes: list[asyncio.Future[int]] = []
        self._waiting_since: float | None = None
        self._signed_size = -1
        self._signed_at = 0.0
        self._grown_at = time.monotonic()

    @property
    def lag_ms(self) -> int:
        """For how long something has been waiting for the log; 0 when nothing is. Above 30 s SMTP answers 451."""
        since = self._waiting_since
        return 0 if since is None else int((time.monotonic() - since) * 1000)

    @property
    def size(self) -> int:
        """Leaves in the log."""
        return 0 if self._log is None else self._log.state.size

    async def start(self) -> None:
        """Open the log, making it at the first start. Raises LogError when it must not be gone on with."""
        self._log = await self._on_thread(lambda: open_log(self._folder, self._database))
        try:
            await self._on_thread(self._refuse_a_restored_copy)
            if self.size == 0:
                await self._open_new_log()
        except BaseException:
            await self._on_thread(self._log.close)
            raise
        metrics.observe("aimx.audit.lag", lambda: [((), self.lag_ms / 1000)])
        self._unsubscribe = self._outbox.subscribe("events", self.wake)
        self.wake()
        self._task = asyncio.create_task(self._run(), name="audit-sequencer")

    async def stop(self) -> None:
        """Put what is in the outbox into the log, sign, and let go. A failure leaves the rest for the next start."""
        self._stopping.set()
        self._woken.set()
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._task is not None:
            await self._task
            try:
                await self._drain()
                await self._sign_if_grown()
            except _OURS as error:
                log.error("audit log not finished; the next start goes on with it", extra={"error": str(error)})
        self._settle_flushes()
        if self._log is not None:
            await self._on_thread(self._log.close)
        self._thread.shutdown(wait=False)

    def wake(self) -> None:
        """The outbox grew. Costs nothing; call it as often as you like."""
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()
        self._woken.set()

    async def flush(self) -> int:
        """Everything committed before this call is in the log and under a signed checkpoint; returns the log's size.

        Waits as long as the disk makes it wait: bound it with a timeout.
        """
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._flushes.append(done)
        self.wake()
        return await done

    # --- the loop ---

    async def _run(self) -> None:
        while not self._stopping.is_set():
            await self._until(self._woken, self._next_deadline())
            self._woken.clear()
            flushes = len(self._flushes)
            try:
                await self._drain()
                await self._sign_if_grown(at_once=flushes > 0)
                await self._beat_if_idle()
                self._settle_flushes(flushes)
            except Fenced:
                log.warning("another sequencer works on this audit log; reading its state again")
                await self._on_thread(self._opened.reload)
                self.wake()
            except Exception as error:  # the one place where a failure of ours ends: mail waits (451), the loop lives
                bug = not isinstance(error, _OURS)
                log.error("audit log cannot be written; trying again", exc_info=bug, extra={"error": str(error)})
                self.wake()
                await self._until(self._stopping, PATIENCE_S)
            # A short rest lets the next commits gather, so that a busy node pays one fsync for many leaves.
            await self._until(self._stopping, self._pause)

    def _next_deadline(self) -> float:
        """Seconds until there is something to do without being woken."""
        now = time.monotonic()
        beat = self._grown_at + self._heartbeat_every - now
        sign = self._signed_at + self._checkpoint_every - now if self.size != self._signed_size else beat
        return max(0.0, min(beat, sign, LOOK_S))

    async def _drain(self) -> None:
        full = True
        while full:
            since, self._waiting_since = self._waiting_since, None
            try:
                batch = await self._outbox.unsequenced(BATCH)
                if batch:
                    await self._integrate(batch, since)
            except BaseException:
                self._waiting_since = since or time.monotonic()
                raise
            full = len(batch) == BATCH
            if full:
                self._waiting_since = since or time.monotonic()

    async def _integrate(self, batch: list[tuple[int, str, bytes]], since: float | None) -> None:
        began, start_ns = time.monotonic(), time.time_ns()
        leaves = [(eid, leaf) for _, eid, leaf in batch]
        reach("sequence.read")
        appended = await self._on_thread(lambda: self._opened.append(leaves))
        reach("sequence.appended")
        await self._outbox.mark_sequenced([(row[0], at) for row, at in zip(batch, appended.indexes, strict=True)])
        reach("sequence.marked")
        self._grown_at = time.monotonic()
        lag_s = 0.0 if since is None else self._grown_at - since
        _INTEGRATED.record(self._grown_at - began)
        _SIZE.set(appended.size)
        for name, count in Counter(_EV.findall(b"\n".join(leaf for _, leaf in leaves))).items():
            _LEAVES.labels(name.decode()).add(count)
        await self._trace(batch, appended, lag_s, start_ns)

    async def _trace(
        self, batch: list[tuple[int, str, bytes]], appended: Appended, lag_s: float, start_ns: int
    ) -> None:
        if self._tracer.sink is None:
            return
        end_ns = time.time_ns()
        # The outbox hands over leaves, which only commit to their spans; the rows know them.
        rows = await self._outbox.events_after(batch[0][0] - 1, MAX_LINKS)
        # An administrator's command exports no span that could be linked to.
        covered = [stored.row for stored in rows if stored.seq <= batch[-1][0] and stored.row.agent != "admin"]
        links = [Context(row.trace_id, row.span_id, 1) for row in covered]
        span = self._tracer.start(
            "audit integrate",
            links=links,
            start_ns=start_ns,
            attributes={
                "aimx.audit.size.before": appended.before,
                "aimx.audit.size.after": appended.size,
                "aimx.audit.leaves": len(batch),
                "aimx.audit.lag": lag_s,
            },
        )
        span.end(end_ns)

    async def _sign_if_grown(self, *, at_once: bool = False) -> None:
        due = at_once or self._stopping.is_set() or time.monotonic() >= self._signed_at + self._checkpoint_every
        if self.size == self._signed_size or not due:
            return
        with self._tracer.start("checkpoint sign") as span:
            await self._on_thread(self._sign)
            span.set("aimx.audit.size.after", self.size)
            span.set("aimx.audit.origin", self._keys.origin)
        self._signed_size, self._signed_at = self.size, time.monotonic()

    def _sign(self) -> None:
        signed = self._opened.sign([self._keys.log], _now_ms())
        reach("checkpoint.signed")
        durable.replace(self._folder / HIGH_WATER, signed.encode(), 0o644)

    async def _beat_if_idle(self) -> None:
        if time.monotonic() >= self._grown_at + self._heartbeat_every:
            with self._tracer.start("audit append") as span:
                stamp = events.Stamp(self._node, _now_ms(), SpanRef(span.trace_id, span.span_id))
                await self._outbox.record([events.heartbeat(stamp, size=self.size)])
            self._grown_at = time.monotonic()

    # --- the beginning ---

    async def _open_new_log(self) -> None:
        """Make `log.opened` leaf 0. The row goes through the outbox like any other, so that rows and leaves agree."""
        first = await self._outbox.events_after(0, 1)
        if first and first[0].index is not None:
            raise LogError(
                f"{self._folder / FILE} is empty, but the store has events that were in the log; "
                "put the newest copy of audit.db back"
            )
        waiting = await self._outbox.unsequenced(BATCH)
        if not any(_is_opening(leaf) for _, _, leaf in waiting):
            with self._tracer.start("audit append") as span:
                stamp = events.Stamp(self._node, _now_ms(), SpanRef(span.trace_id, span.span_id))
                log_key, receipt_key = self._keys.log.verifier.vkey(), self._keys.receipt.verifier.vkey()
                row = events.log_opened(stamp, origin=self._keys.origin, log=log_key, receipt=receipt_key)
                await self._outbox.record([row])
            waiting = await self._outbox.unsequenced(len(waiting) + BATCH)
        opening = [(seq, eid, leaf) for seq, eid, leaf in waiting if _is_opening(leaf)][:1]
        await self._integrate(opening, None)

    def _refuse_a_restored_copy(self) -> None:
        path = self._folder / HIGH_WATER
        try:
            seen = checkpoint.open_signed(path.read_bytes(), self._keys.log.verifier).checkpoint
        except FileNotFoundError:
            return
        except (FormatError, ProofError) as error:
            log.warning("the remembered checkpoint is unreadable and not heeded", extra={"error": str(error)})
            return
        size = self.size
        if seen.size > size:
            raise LogError(
                f"{self._folder / FILE} holds {size} leaves, but this node has signed for {seen.size}: "
                "an old copy was put in its place; put the newest one back"
            )
        reader = open_reader(self._folder, self._database)
        try:
            if tree.root_at(seen.size, reader.node_reader()) != seen.root:
                raise LogError(f"{self._folder / FILE} is not the log this node has signed for; put the right one back")
        finally:
            reader.close()

    # --- small things ---

    @property
    def _opened(self) -> Log:
        assert self._log is not None
        return self._log

    async def _on_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _until(self, what: asyncio.Event, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(what.wait(), seconds)

    def _settle_flushes(self, count: int | None = None) -> None:
        done, self._flushes = self._flushes[:count], self._flushes[len(self._flushes[:count]) :]
        for future in done:
            if not future.done():
                future.set_result(self.size)


_OURS = (StoreError, LogError, OSError)
_LEAVES = metrics.counter("aimx.audit.leaves")
_SIZE = metrics.gauge("aimx.audit.size").labels()
_INTEGRATED = metrics.histogram("aimx.audit.integrate.duration").labels()


def _is_opening(leaf: bytes) -> bool:
    return b'"ev":"log.opened"' in leaf


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
