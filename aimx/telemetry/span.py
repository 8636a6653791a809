"""Spans, cheap enough to make seven for every mail.

A `Tracer` without a sink makes ids and nothing else: headers and audit leaves need them also when nobody collects
spans. With a sink, a finished and sampled span is handed over; sending happens on another thread (`export`).
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from enum import IntEnum
from os import register_at_fork, urandom
from types import TracebackType
from typing import Protocol

from aimx.telemetry.context import KNOWN_FLAGS, RANDOM, SAMPLED, Context

SpanContext = Context

AttributeValue = str | bool | int | float | Sequence[str]
Attributes = dict[str, AttributeValue]

MAX_LINKS = 128
MAX_EVENTS = 128


class Kind(IntEnum):
    """OTLP's numbers."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER = Kind


class Sink(Protocol):
    """Takes finished spans; `take` must neither block nor raise."""

    def take(self, span: "Span") -> None: ...

    def flush(self, timeout_s: float) -> bool: ...

    def close(self, timeout_s: float) -> bool: ...


class Sampler(Protocol):
    """Decides for one span: record it or not."""

    def __call__(self, trace_id: bytes, parent: Context | None) -> bool: ...


class Facts(dict[str, AttributeValue]):
    """Attributes that many spans say alike: made once, encoded once. Never changed after it was made."""

    __slots__ = ("wire",)

    def __init__(self, facts: Mapping[str, AttributeValue]) -> None:
        super().__init__(facts)
        self.wire: bytes | None = None
        """As `otlp` wrote it the first time."""


class Span:
    """One piece of work. Ends once; what is said after the end is ignored by the exporter.

    `events` and `links` may be written directly. Times are Unix nanoseconds.
    """

    __slots__ = (
        "_context",
        "description",
        "dropped_links",
        "end_ns",
        "error_type",
        "events",
        "facts",
        "kind",
        "links",
        "name",
        "own",
        "parent",
        "sampled",
        "span_id",
        "start_ns",
        "trace_id",
        "tracer",
    )

    def __init__(
        self,
        tracer: "Tracer",
        name: str,
        kind: Kind,
        trace_id: bytes,
        parent: Context | None,
        sampled: bool,
        attributes: Attributes | None,
        start_ns: int | None,
    ) -> None:
        self.tracer = tracer
        self.name = name
        self.kind = kind
        self.trace_id = trace_id
        self.span_id = _random()
        self.parent = parent
        self.sampled = sampled
        self.facts: tuple[Facts, ...] = ()
        self.own: Attributes = {}
        """What only this span says; `attributes` is that and the facts."""
        if attributes is not None:
            self.say(attributes)
        self.start_ns = time.time_ns() if start_ns is None else start_ns
        self.end_ns = 0
        self.events: list[tuple[str, int, Mapping[str, AttributeValue] | None]] | None = None
        self.links: list[tuple[Context, Mapping[str, AttributeValue] | None]] | None = None
        self.dropped_links = 0
        self.error_type: str | None = None
        self.description = ""
        self._context: Context | None = None

    @property
    def attributes(self) -> Attributes:
        """All that was said, for whoever reads a span; `set` and `say` write."""
        said: Attributes = {}
        for facts in self.facts:
            said |= facts
        return said | self.own

    @property
    def context(self) -> Context:
        """To be continued by others: child spans, headers. Tracestate and baggage are the parent's."""
        found = self._context
        if found is None:
            parent = self.parent
            if parent is None:
                found = Context(self.trace_id, self.span_id, RANDOM | self.sampled)
            else:
                flags = (parent.flags & KNOWN_FLAGS & ~SAMPLED) | self.sampled
                found = Context(self.trace_id, self.span_id, flags, parent.tracestate, parent.baggage)
            self._context = found
        return found

    @property
    def recorded(self) -> bool:
        """Somebody will see it. Where nobody does, children that only tell more need not be made."""
        return self.sampled and self.tracer.sink is not None

    def child(
        self,
        name: str,
        kind: Kind = INTERNAL,
        *,
        links: Sequence[Context] = (),
        attributes: Attributes | None = None,
        start_ns: int | None = None,
    ) -> "Span":
        """A span under this one. The sampler is not asked again: it decided for all of this work."""
        span = Span(self.tracer, name, kind, self.trace_id, self.context, self.sampled, attributes, start_ns)
        for context in links:
            span.link(context)
        return span

    def set(self, key: str, value: AttributeValue) -> None:
        self.own[key] = value

    def say(self, attributes: Attributes) -> None:
        """Several at once. `Facts` are kept as they are, so a key of theirs must not be said again."""
        if type(attributes) is Facts:
            self.facts += (attributes,)
        else:
            self.own |= attributes

    def event(self, name: str, attributes: Mapping[str, AttributeValue] | None = None, t_ns: int | None = None) -> None:
        """Something that happened at a moment; at most 128 are kept."""
        if not self.sampled:
            return
        if self.events is None:
            self.events = []
        if len(self.events) < MAX_EVENTS:
            self.events.append((name, time.time_ns() if t_ns is None else t_ns, attributes))

    def link(self, context: Context, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        """A span elsewhere that this one belongs with; at most 128 are kept, the rest is counted."""
        if not self.sampled:
            return
        if self.links is None:
            self.links = []
        if len(self.links) < MAX_LINKS:
            self.links.append((context, attributes))
        else:
            self.dropped_links += 1

    def error(self, error_type: str, description: str = "") -> None:
        """Status ERROR. `error_type` is of low cardinality (an enhanced code, `timeout`), never an exception's text."""
        self.error_type = error_type
        self.description = description

    def end(self, end_ns: int | None = None) -> None:
        if self.end_ns:
            return
        self.end_ns = time.time_ns() if end_ns is None else end_ns
        sink = self.tracer.sink
        if sink is not None and self.sampled:
            sink.take(self)

    def __enter__(self) -> "Span":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None and self.error_type is None:
            self.error(kind.__qualname__)
        self.end()


def always(trace_id: bytes, parent: Context | None) -> bool:
    return True


def never(trace_id: bytes, parent: Context | None) -> bool:
    return False


_randoms: deque[bytes] = deque()


def _random() -> bytes:
    """Eight random bytes, from any thread. Fetched by the page: the system call lets go of the interpreter, and beside
    a busy thread each of a mail's seven would wait to get it back."""
    try:
        return _randoms.pop()
    except IndexError:
        page = urandom(4096)
        _randoms.extend([page[at : at + 8] for at in range(8, 4096, 8)])
        return page[:8]


register_at_fork(after_in_child=_randoms.clear)  # else parent and child would give out the same ids


class Tracer:
    """Starts spans. Safe to use from any thread; make a new one after a fork."""

    __slots__ = ("sampler", "sink")

    def __init__(self, sink: Sink | None = None, sampler: Sampler = always) -> None:
        self.sink = sink
        self.sampler = sampler

    def start(
        self,
        name: str,
        kind: Kind = INTERNAL,
        parent: Context | None = None,
        *,
        links: Sequence[Context] = (),
        attributes: Attributes | None = None,
        start_ns: int | None = None,
    ) -> Span:
        """A span from now, or `start_ns`, on; `parent=None` begins a trace. `attributes` are as for `Span.say`."""
        trace_id = _random() + _random() if parent is None else parent.trace_id
        span = Span(self, name, kind, trace_id, parent, self.sampler(trace_id, parent), attributes, start_ns)
        for context in links:
            span.link(context)
        return span

    @property
    def exporting(self) -> bool:
        return self.sink is not None

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until finished spans were sent; False when that took longer. Blocks: not for the event loop."""
        return self.sink is None or self.sink.flush(timeout_s)

    def close(self, timeout_s: float = 3.0) -> bool:
        """Flush and end the export, within `timeout_s`. Blocks: not for the event loop."""
        return self.sink is None or self.sink.close(timeout_s)
