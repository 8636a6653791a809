"""The sequencer: carries leaves from the store's outbox into the log, and signs checkpoints.

Each round reads what is not yet in the log, commits it there, and only then marks it in the store. Killed at any point
it loses nothing and doubles nothing: what was committed and not marked is read again, and found by its event id. It
runs on its own thread, so neither hashing nor fsync ever holds up the event loop.

Several may run over one PostgreSQL. One leads, for as long as it says so; another takes over within two seconds of its
silence. Two that lead at once do no harm: the log compares before it swaps.

It refuses to start (`LogError`) on a log shorter than, or other than, what this node has signed before: going on from a
restored old copy would sign a fork.
"""

import asyncio
import contextlib
import json
import logging
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from aimx import durable
from aimx.audit import events, restored, succession
from aimx.audit import keys as keyring
from aimx.audit.keys import Keys
from aimx.audit.log import FILE, Appended, Fenced, Log, LogError, Shard
from aimx.audit.place import open_log, open_reader
from aimx.audit.succession import Closing, Sharding
from aimx.failpoint import reach
from aimx.message.identifier import new_eid
from aimx.store.contract import Backlog, EventRow, SpanRef, StoredEvent, StoreError
from aimx.telemetry import metrics
from aimx.telemetry.context import Context
from aimx.telemetry.span import MAX_LINKS, Tracer
from aimx.tlog import checkpoint, note
from aimx.tlog.errors import FormatError, ProofError

HIGH_WATER = "audit.checkpoint"
"""The newest checkpoint this node has signed, in the data folder: a restored old copy of the log betrays itself."""

BATCH = 1000
"""Leaves in one commit of the log: about half a megabyte."""

LOOK_S = 5.0
"""Between looks into the outbox without being woken: the command line writes events from another process."""

PATIENCE_S = 1.0
"""After a failure (disk full, database locked) until the next try."""

LEASE_S, RENEW_S, STANDBY_S = 1.5, 0.4, 0.3
"""How long a leader is believed, how often it says so, and how often the others ask."""

FENCED_OFF = 20
"""How often a start may find that another sequencer was quicker."""

_EV = re.compile(rb'"ev":"([a-z.]+)"')

log = logging.getLogger(__name__)

T = TypeVar("T")
Waiting = tuple[int, str, bytes]
"""(seq, eid, leaf), as the outbox hands it over."""


class Outbox(Protocol):
    """The part of the Store contract that the sequencer needs."""

    def subscribe(self, topic: Literal["events"], callback: Callable[[], None]) -> Callable[[], None]: ...
    async def record(self, events: Sequence[EventRow]) -> None: ...
    async def unsequenced(self, limit: int) -> list[Waiting]: ...
    async def mark_sequenced(self, placed: Sequence[tuple[int, int]]) -> None: ...
    async def events_after(self, seq: int, limit: int) -> list[StoredEvent]: ...
    async def backlog(self) -> Backlog: ...


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
        sharding: Sharding | None = None,
        remembered: Callable[[str], Sequence[tuple[str, str]]] = lambda origin: (),
    ) -> None:
        """`folder` is the data folder; durations are in seconds and as `[audit]` in the settings has them.

        `remembered` knows signed checkpoints of an origin that are kept elsewhere, as (whence, note).
        """
        self._outbox = outbox
        self._folder = folder
        self._database = database
        self.keys = keys
        """Those in force: they change while the node runs."""
        self._node = node
        self._name = f"{node}/{os.getpid()}/{secrets.token_hex(4)}"
        self._tracer = tracer or Tracer()
        self._pause = integrate_within / 4
        self._checkpoint_every = checkpoint_every
        self._heartbeat_every = heartbeat_every
        self._sharding = sharding or Sharding()
        self._remembered = remembered
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aimx-audit")
        self._log: Log | None = None
        self._shard = Shard(1, keys.origin, 0, 0)
        """The newest shard as it was found or begun; its size is in the log's state."""
        self._leading = database is None
        self._asked_at = 0.0
        self._receipt_waits: float | None = None
        """Since when a receipt key has been seen that is to be put in force."""
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
            if self._database is None:
                await self._begin()
            else:
                if not await self._lead():
                    await self._on_thread(self._refuse_other_keys)
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
                if self._leading:
                    await self._drain()
                    await self._sign_if_grown()
                    await self._on_thread(lambda: self._opened.lead(self._name, 0.0))
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
                if await self._lead():
                    await self._drain()
                    await self._sign_if_grown(at_once=flushes > 0)
                    await self._close_if_due()
                    await self._beat_if_idle()
                    self._settle_flushes(flushes)
                else:
                    await self._follow(flushes)
            except Fenced:
                log.warning("another sequencer works on this audit log; reading its state again")
                self._asked_at, self._leading = 0.0, self._database is None
                await self._recover()
            except Exception as error:  # the one place where a failure of ours ends: mail waits (451), the loop lives
                bug = not isinstance(error, _OURS)
                log.error("audit log cannot be written; trying again", exc_info=bug, extra={"error": str(error)})
                self.wake()
                await self._until(self._stopping, PATIENCE_S)
                await self._recover()
            # A short rest lets the next commits gather, so that a busy node pays one fsync for many leaves.
            await self._until(self._stopping, self._pause)

    async def _recover(self) -> None:
        """What was written last is not known for sure: the log is."""
        self.wake()
        try:
            await self._on_thread(self._opened.reload)
            if self._leading:
                await self._go_on()
        except _OURS as error:
            log.error("audit log cannot be read; trying again", extra={"error": str(error)})

    def _next_deadline(self) -> float:
        """Seconds until there is something to do without being woken."""
        if self._database is not None and not self._leading:
            return STANDBY_S
        now = time.monotonic()
        beat = self._grown_at + self._heartbeat_every - now
        sign = self._signed_at + self._checkpoint_every - now if self.size != self._signed_size else beat
        return max(0.0, min(beat, sign, LOOK_S if self._database is None else RENEW_S))

    async def _lead(self) -> bool:
        """Whether this sequencer is the one that works now."""
        if self._database is None:
            return True
        now, led = time.monotonic(), self._leading
        if led and now < self._asked_at + RENEW_S:
            return True
        self._leading = now >= self._asked_at and await self._on_thread(lambda: self._opened.lead(self._name, LEASE_S))
        if self._leading and not led:
            await self._take_over()
        self._asked_at = max(now, self._asked_at)
        return self._leading

    async def _take_over(self) -> None:
        """From another leader, or from nobody. Whoever cannot lets others try for a while."""
        try:
            await self._on_thread(self._opened.reload)
            await self._go_on()
        except BaseException:
            self._leading, self._asked_at = False, time.monotonic() + LOOK_S
            await self._on_thread(lambda: self._opened.lead(self._name, 0.0))
            raise

    async def _follow(self, flushes: int) -> None:
        """Another one leads: say how far it is behind, and take its keys into use.

        Settles the oldest `flushes`; what was asked for since may be newer than what is read here.
        """
        oldest_ms = (await self._outbox.backlog()).outbox_oldest_ms
        age_s = 0.0 if oldest_ms is None else max(0.0, time.time() - oldest_ms / 1000)
        self._waiting_since = None if oldest_ms is None else time.monotonic() - age_s
        await self._on_thread(self._follow_keys)
        if flushes and oldest_ms is None:
            state = await self._on_thread(self._opened.reload)
            if state.signed is not None and _size_of(state.signed) == state.size:
                self._settle_flushes(flushes)

    async def _drain(self) -> None:
        full = True
        while full:
            since, self._waiting_since = self._waiting_since, None
            try:
                batch = await self._outbox.unsequenced(BATCH)
                for part in _parts(batch):
                    await self._integrate(part, since)
                    await self._heed(part[-1])
            except BaseException:
                self._waiting_since = since or time.monotonic()
                raise
            full = len(batch) == BATCH
            if full:
                self._waiting_since = since or time.monotonic()

    async def _integrate(self, batch: Sequence[Waiting], since: float | None) -> None:
        began, start_ns = time.monotonic(), time.time_ns()
        leaves = [(eid, leaf) for _, eid, leaf in batch]
        reach("sequence.read")
        appended = await self._on_thread(lambda: self._opened.append(leaves))
        reach("sequence.appended")
        start = self._shard.start
        await self._outbox.mark_sequenced(
            [(row[0], start + at) for row, at in zip(batch, appended.indexes, strict=True)]
        )
        reach("sequence.marked")
        self._grown_at = time.monotonic()
        lag_s = 0.0 if since is None else self._grown_at - since
        _INTEGRATED.record(self._grown_at - began)
        _SIZE.set(appended.size)
        for name, count in Counter(_EV.findall(b"\n".join(leaf for _, leaf in leaves))).items():
            _LEAVES.labels(name.decode()).add(count)
        await self._trace(batch, appended, lag_s, start_ns)

    async def _trace(self, batch: Sequence[Waiting], appended: Appended, lag_s: float, start_ns: int) -> None:
        if self._tracer.sink is None:
            return
        end_ns = time.time_ns()
        # The outbox hands over leaves, which only commit to their spans; the rows know them.
        rows = await self._outbox.events_after(batch[0][0] - 1, MAX_LINKS)
        # Neither an administrator's command nor the node's own housekeeping exports a span that could be linked to.
        rows = [one for one in rows if one.seq <= batch[-1][0] and one.row.agent not in ("admin", "aimx")]
        links = [Context(one.row.trace_id, one.row.span_id, 1) for one in rows]
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
        await self._sign()

    async def _sign(self) -> None:
        with self._tracer.start("checkpoint sign") as span:
            await self._on_thread(self._sign_now)
            span.set("aimx.audit.size.after", self.size)
            span.set("aimx.audit.origin", self.keys.origin)
        self._signed_size, self._signed_at = self.size, time.monotonic()

    def _sign_now(self) -> None:
        signed = self._opened.sign(self.keys.signing, _now_ms())
        reach("checkpoint.signed")
        durable.replace(self._folder / HIGH_WATER, signed.encode(), 0o644)

    async def _beat_if_idle(self) -> None:
        if time.monotonic() >= self._grown_at + self._heartbeat_every:
            with self._tracer.start("audit append") as span:
                stamp = events.Stamp(self._node, _now_ms(), SpanRef(span.trace_id, span.span_id))
                await self._outbox.record([events.heartbeat(stamp, size=self.size)])
            self._grown_at = time.monotonic()

    # --- beginnings and ends ---

    async def _begin(self) -> None:
        for _ in range(FENCED_OFF):
            with contextlib.suppress(Fenced):  # another one began at the same moment
                await self._on_thread(self._opened.reload)
                return await self._go_on()
        raise LogError(f"{self._where} is written by others without a pause")

    async def _go_on(self) -> None:
        """From wherever the log was left, by this node or another: before anything else is appended."""
        self._shard = await self._on_thread(self._find_shard)
        if self.size == 0 and self._shard.number == 1:
            await self._open_new_log()
            self._shard = await self._on_thread(self._find_shard)
        await self._on_thread(self._settle_keys)
        if (end := await self._on_thread(self._find_end)) is not None:
            await self._succeed(end)
        await self._on_thread(self._refuse_other_keys)

    async def _open_new_log(self) -> None:
        """Make `log.opened` leaf 0. The row goes through the outbox like any other, so that rows and leaves agree."""
        first = await self._outbox.events_after(0, 1)
        if first and first[0].index is not None:
            raise LogError(
                f"{self._where} is empty, but the store has events that were in the log; "
                f"put the newest copy of {FILE} back"
            )
        await self._integrate([await self._opening_row(self.keys, None, 0, "first")], None)

    async def _opening_row(self, keys: Keys, prev: str | None, start: int, why: str) -> Waiting:
        """The outbox's row that opens a shard under `keys`; one that was recorded before a kill is used again."""
        key = keys.log.verifier.vkey()
        while True:
            for row in await self._outbox.unsequenced(BATCH):
                if _opens(row[2], key):
                    return row
            with self._tracer.start("audit append") as span:
                stamp = events.Stamp(self._node, _now_ms(), SpanRef(span.trace_id, span.span_id))
                receipt = keys.receipt.verifier.vkey()
                made = events.log_opened(
                    stamp, origin=keys.origin, log=key, receipt=receipt, prev=prev, start=start, why=why
                )
                await self._outbox.record([made])
            for row in await self._outbox.unsequenced(1_000_000):
                if row[1] == made.eid:
                    return row

    async def _close_if_due(self) -> None:
        """Record that this shard ends. It does once that leaf is in it: everything before is, by then."""
        now_ms = _now_ms()
        why = succession.due(self._shard._replace(size=self.size), self._sharding, now_ms)
        if why is None:
            return
        shards, domain = await self._on_thread(self._find_shards), self.keys.origin.partition("/")[0]
        name = succession.next_origin(domain, shards, self._sharding, now_ms)
        with self._tracer.start("audit append") as span:
            stamp = events.Stamp(self._node, now_ms, SpanRef(span.trace_id, span.span_id))
            eid = new_eid(now_ms)
            made = await self._on_thread(
                lambda: keyring.make_next(self._folder, "log", name, eid, signer=self._sharding.signer)
            )
            key = made.key.verifier.vkey()
            await self._outbox.record(
                [events.log_closed(stamp, eid=eid, origin=self._shard.origin, next=name, log=key)]
            )
        await self._drain()

    async def _heed(self, row: Waiting) -> None:
        """A leaf that is in the log now may change who signs, and where the log goes on."""
        _, eid, leaf = row
        if b'"ev":"key.rotated"' in leaf:
            reach("key.logged")
            await self._on_thread(lambda: self._put_in_force(eid))
            if self._database is not None:
                await self._step_down_without(leaf)
            await self._sign()
        elif (end := succession.closing(leaf, self._shard.origin)) is not None:
            await self._succeed(end)

    async def _step_down_without(self, leaf: bytes) -> None:
        """The new log key may lie in another machine's folder: then only that one can sign from here on."""
        if _rotated_to(leaf) in (None, self.keys.log.verifier.vkey()):
            return
        self._leading, self._asked_at = False, time.monotonic() + LOOK_S
        await self._on_thread(lambda: self._opened.lead(self._name, 0.0))
        raise LogError(f"the log's key was rotated on another machine; {_BRING}")

    async def _succeed(self, end: Closing) -> None:
        """The newest shard is closed: sign its end, begin the next one, and let the next key sign from now on."""
        waiting = keyring.waiting(self._folder, "log")
        if waiting is None or waiting.key.verifier.vkey() != end.log:
            raise LogError(f"{end.next} was announced under a key that this node does not have; start the one that has")
        reach("shard.closed")
        await self._sign()
        prev = self._opened.state.signed
        place = self._shard.start + self.size
        why = "period" if self._sharding.leaves is None or self.size < self._sharding.leaves else "size"
        following = Keys(waiting.key, self.keys.receipt)
        _, eid, leaf = await self._opening_row(following, prev, place, why)
        await self._on_thread(lambda: self._opened.begin((eid, leaf), following.signing, _now_ms()))
        reach("shard.begun")
        await self._on_thread(self._settle_keys)
        self._shard = await self._on_thread(self._find_shard)
        await self._sign()
        log.info("the audit log goes on in a new shard", extra={"event": "audit.shard", "origin": self.keys.origin})

    # These run on the sequencer's thread.

    def _find_shards(self) -> list[Shard]:
        with contextlib.closing(open_reader(self._folder, self._database)) as reader:
            return reader.shards()

    def _find_shard(self) -> Shard:
        with contextlib.closing(open_reader(self._folder, self._database)) as reader:
            return reader.described()

    def _find_end(self) -> Closing | None:
        with contextlib.closing(open_reader(self._folder, self._database)) as reader:
            return succession.ended(reader)

    def _put_in_force(self, eid: str) -> None:
        """Use the key that waited for this event, if one did."""
        for what in ("log", "receipt"):
            waiting = keyring.waiting(self._folder, what)
            if waiting is not None and waiting.eid == eid:
                same = waiting.key.verifier.name == self.keys.origin
                overlap_ms = self._sharding.overlap_ms if same else 0
                self.keys = keyring.put_in_force(self._folder, what, _now_ms(), overlap_ms)

    def _follow_keys(self) -> None:
        """The leader of this folder, or a hand, put other keys there; or the leader is elsewhere and cannot."""
        self.keys = keyring.load(self._folder, _now_ms())
        receipt = keyring.waiting(self._folder, "receipt")
        if receipt is None:
            self._receipt_waits = None
        elif self._receipt_waits is None:
            self._receipt_waits = time.monotonic()
        elif time.monotonic() > self._receipt_waits + LOOK_S:
            self._settle_keys()

    def _settle_keys(self) -> None:
        """After a kill between a leaf and what follows from it: the log knows which keys are in force."""
        with contextlib.closing(open_reader(self._folder, self._database)) as reader:
            newest = reader.described().origin
            for what in ("log", "receipt"):
                waiting = keyring.waiting(self._folder, what)
                if waiting is None or reader.place_of(waiting.eid) is None:
                    continue
                if what == "receipt" or waiting.key.verifier.name == newest:
                    self._put_in_force(waiting.eid)
        self.keys = keyring.load(self._folder, _now_ms())

    def _refuse_other_keys(self) -> None:
        """A log whose newest checkpoint none of our keys has signed is another one's to go on with."""
        signed = self._opened.state.signed
        if signed is None:
            return
        self.keys = keyring.load(self._folder, _now_ms())
        try:
            parsed = note.parse(signed)
            held = note.verify(parsed, self._own_verifiers())
            if parsed.signatures[0] not in [one.signature for one in held]:  # the key in force signs first
                raise ProofError("only a key that was rotated out is here")
        except (FormatError, ProofError) as error:
            raise LogError(f"{self._where} was signed by another key than this node's ({error}); {_BRING}") from error
        self._refuse_a_rotation_elsewhere(_size_of(signed))

    def _refuse_a_rotation_elsewhere(self, start: int) -> None:
        """Whoever put a `key.rotated` into the log and had the key has signed it at once; these are not signed yet."""
        newest = None
        with contextlib.closing(open_reader(self._folder, self._database)) as reader:
            for at in range(start, self.size, BATCH):
                for leaf in reader.leaves(at, min(at + BATCH, self.size)):
                    newest = _rotated_to(leaf.entry) or newest
        if newest is not None and newest not in [verifier.vkey() for verifier in self._own_verifiers()]:
            raise LogError(f"the log's key was rotated on another machine; {_BRING}")

    def _own_verifiers(self) -> list[note.Verifier]:
        """Also of the key that waits: who was killed may have used it, and not lived to put it in force."""
        waiting = keyring.waiting(self._folder, "log")
        following = [] if waiting is None else [waiting.key]
        return [key.verifier for key in (*self.keys.signing, *following)]

    def _refuse_a_restored_copy(self) -> None:
        public = keyring.load_public(self._folder).logs
        with contextlib.closing(open_reader(self._folder, self._database)) as reader:
            origin = reader.described().origin
            known = restored.heads([*high_water(self._folder), *self._remembered(origin)], public)
            wrong = restored.fault(reader, known)
        if wrong is not None:
            raise LogError(f"{self._where} {wrong}; {restored.ADVICE}")

    # --- small things ---

    @property
    def _where(self) -> str:
        return str(self._folder / FILE) if self._database is None else "the audit log's database"

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


_BRING = "bring that node's keys: aimx node invite there, aimx node join --replace here"
_OURS = (StoreError, LogError, OSError)
_LEAVES = metrics.counter("aimx.audit.leaves")
_SIZE = metrics.gauge("aimx.audit.size").labels()
_INTEGRATED = metrics.histogram("aimx.audit.integrate.duration").labels()


def high_water(folder: Path) -> list[tuple[str, str]]:
    """The newest checkpoint this node has signed, and how it is called; empty before the first."""
    try:
        return [("the newest checkpoint this node has signed", (folder / HIGH_WATER).read_text(errors="replace"))]
    except FileNotFoundError:
        return []


def _rotated_to(leaf: bytes) -> str | None:
    """The log key that the leaf puts in force, if it is a `key.rotated` of the log's."""
    if b'"ev":"key.rotated"' not in leaf:
        return None
    said = json.loads(leaf)
    return str(said["new"]) if said["what"] == "log" else None


def _opens(leaf: bytes, key: str) -> bool:
    return b'"ev":"log.opened"' in leaf and f'"log":"{key}"'.encode() in leaf


def _parts(batch: Sequence[Waiting]) -> Iterator[Sequence[Waiting]]:
    """A batch, cut behind each leaf after which something is to be done before the next one."""
    start = 0
    for at, (_, _, leaf) in enumerate(batch, 1):
        if b'"ev":"key.rotated"' in leaf or b'"ev":"log.closed"' in leaf or at == len(batch):
            yield batch[start:at]
            start = at


def _size_of(signed: str) -> int:
    return checkpoint.parse(signed.partition("\n\n")[0] + "\n").size


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
