"""Between mail and collector: a bounded buffer of finished spans and the thread that sends them.

What does not fit is dropped and counted, shutting down waits no longer than it was told, and nothing here ever waits
for a collector on a thread that has mail to do.
"""

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from aimx.telemetry import metrics
from aimx.telemetry.otlp import encode_span
from aimx.telemetry.span import Sink, Span

log = logging.getLogger(__name__)

_EXPORTED = metrics.counter("aimx.spans.exported").labels()
_DROPPED = metrics.counter("aimx.spans.dropped")
_FULL = _DROPPED.labels("full")
"""The buffer was: spans come faster than the collector takes them, or it is away."""
_REFUSED = _DROPPED.labels("refused")
"""The collector did not take a batch, also when asked again."""
_CLOSED = _DROPPED.labels("closed")
"""Not sent when the process ended."""
_EVENTS = metrics.counter("aimx.spans.events")
_APPEND = b"audit append"
_EVENT = re.compile(rb"aimx\.audit\.event\x12.\x0a.([a-z.]+)", re.DOTALL)
"""As `otlp.encode_span` writes it: key, then an AnyValue with its string, each with its length."""

MAX_OCTETS = 64 << 20
"""Of encoded spans in the buffer, beside its number of spans: those with many links are large."""
BATCH_OCTETS = 1 << 20
HEAD = 64
"""Octets of an encoded span within which its name begins: ids come before it, a parent and times after."""
DROPS_EVERY = 60.0
"""Seconds between two log lines about dropped spans."""

Item = Span | bytes
"""A finished span, as it is or as `otlp.encode_span` wrote it."""


class Transport(NamedTuple):
    """One way out. `send` blocks, and says whether the collector took the batch; `shutdown` cancels it."""

    send: Callable[[Sequence[Any]], bool]
    shutdown: Callable[[], None]
    takes_bytes: bool
    """It takes encoded spans, too; else only spans as they are."""


class Limits(NamedTuple):
    """Spans that may wait, spans sent at once, and how long one waits for others, in seconds."""

    spans: int
    batch: int
    delay_s: float


def counted(spans: Sequence[Any], taken: bool) -> None:
    """A batch was sent; `taken`: the collector has it. Its items are an `Item` each, or the stock SDK's spans."""
    (_EXPORTED if taken else _REFUSED).value += len(spans)
    if taken:
        for ev in map(_told, spans):
            if ev is not None:
                _EVENTS.labels(ev, "exported").add()


def _told(span: Any) -> str | None:
    """The event whose `audit append` this is: one span of those an event stands for, its last and most easily lost."""
    if type(span) is bytes:
        found = _EVENT.search(span) if span.find(_APPEND, 0, HEAD) >= 0 else None
        return found[1].decode() if found else None
    return span.attributes.get("aimx.audit.event") if span.name == "audit append" else None


class Pipeline(Sink):
    """A bounded buffer and the thread that empties it and owns the exporters.

    Where all of these take bytes, `take` encodes: a few microseconds on the thread that ends the span.
    """

    def __init__(self, make: Callable[[], list[Transport]], limits: Limits) -> None:
        """`make` is called on the thread."""
        self._make = make
        self._capacity = limits.spans
        self._batch = min(limits.batch, limits.spans)
        self._delay = limits.delay_s
        self._encode = False
        self._buffer: deque[Item] = deque()
        self._octets_in = self._octets_out = 0
        self._wake = threading.Event()
        self._waiting: deque[threading.Event] = deque()
        self._closing = self._given_up = False
        self._in_hand = 0
        self._transports: list[Transport] = []
        self._drops = Drops()
        self._thread = threading.Thread(target=self._run, name="aimx-spans", daemon=True)
        self._thread.start()

    def take(self, span: Span) -> None:
        waiting = len(self._buffer)
        if waiting >= self._capacity or self._octets_in - self._octets_out > MAX_OCTETS:
            _FULL.value += 1
        elif self._closing:
            _CLOSED.value += 1
        elif not self._encode:
            self._buffer.append(span)
        else:
            encoded = encode_span(span)
            self._octets_in += len(encoded)
            self._buffer.append(encoded)
        if waiting + 1 == self._batch:
            self._wake.set()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything taken so far was sent or given up; False when that took longer."""
        if not self._thread.is_alive():
            return not self._buffer
        done = threading.Event()
        self._waiting.append(done)
        self._wake.set()
        return done.wait(timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Flush, and end the thread. After `timeout_s` what is left is dropped and counted."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_s)
        in_time = not self._thread.is_alive()
        self._given_up = True
        _CLOSED.value += len(self._buffer) + self._in_hand
        self._buffer.clear()
        self._drops.tell(at_once=True)
        for transport in self._transports:
            # Cancels a call that hangs; the thread is a daemon and does not hold the process.
            threading.Thread(target=transport.shutdown, daemon=True).start()
        return in_time

    def _run(self) -> None:
        try:
            self._transports = self._make()
        except Exception:
            log.exception("span export is off: the exporter could not be made")
            self._closing = True
            return
        self._encode = all(transport.takes_bytes for transport in self._transports)
        while not (self._closing and not self._buffer):
            self._wake.wait(self._delay)
            self._wake.clear()
            waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
            while self._buffer:
                self._send(self._next_batch())
            for done in waiting:
                done.set()
            self._drops.tell()

    def _next_batch(self) -> list[Item]:
        """As many as a batch may have, and as a collector takes at once: by default gRPC refuses 4 MiB."""
        batch: list[Item] = []
        octets = 0
        while self._buffer and len(batch) < self._batch and octets < BATCH_OCTETS:
            item = self._buffer.popleft()
            octets += len(item) if isinstance(item, bytes) else 0
            batch.append(item)
        self._octets_out += octets
        return batch

    def _send(self, batch: list[Item]) -> None:
        self._in_hand = len(batch)
        for transport in self._transports:
            try:
                taken = transport.send(batch)
            except Exception:  # whatever a transport raises must not end the thread
                log.exception("spans could not be exported")
                taken = False
            if not self._given_up:
                counted(batch, taken)
        self._in_hand = 0
        self._drops.tell()


class Drops:
    """Says how many spans were dropped and why, at most once a minute. For the exporting thread."""

    def __init__(self) -> None:
        self._told = self._counts()
        self._next = 0.0

    def tell(self, at_once: bool = False) -> None:
        now, counts = time.monotonic(), self._counts()
        lost = {reason: count - self._told[reason] for reason, count in counts.items() if count > self._told[reason]}
        if lost and (at_once or now >= self._next):
            self._told, self._next = counts, now + DROPS_EVERY
            log.warning("spans dropped; mail is not concerned", extra={"event": "spans.dropped", **lost})

    @staticmethod
    def _counts() -> dict[str, int]:
        return {"full": int(_FULL.value), "refused": int(_REFUSED.value), "closed": int(_CLOSED.value)}
