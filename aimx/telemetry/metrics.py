"""Counters, gauges and histograms as plain numbers: an increment on the hot path costs a tenth of a microsecond.

    ACCEPTED = metrics.counter("aimx.messages.accepted").labels("agent")   # once, at the top of the file that moves it
    ACCEPTED.value += 1                                                    # on the hot path

Names and labels come from the catalogue. A metric has at most `MAX_SERIES` label sets; further ones are counted under
"other", so that no peer can grow our memory. Cells are moved on the event loop's thread or by one writer each; a scrape
reads them without a lock.

A histogram keeps for each bucket the newest observation that belongs to a trace somebody collects (an exemplar), so
that a slow bucket leads to a slow trace.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from aimx.telemetry.catalogue import METRICS, MetricSpec, metric_spec

if TYPE_CHECKING:
    from aimx.telemetry.span import Span

MAX_SERIES = 200

Labels = tuple[str, ...]


class Cell:
    """A number. Counter: only ever goes up."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def add(self, amount: float = 1) -> None:
        self.value += amount

    def set(self, value: float) -> None:
        self.value = value


class Exemplar(NamedTuple):
    """One observation of a bucket, and the span it was made in."""

    value: float
    trace_id: str
    span_id: str
    """Both in hex."""
    t_ns: int
    """Unix nanoseconds."""


class Tally(NamedTuple):
    """A histogram's series at the moment of a snapshot."""

    counts: tuple[int, ...]
    """Of each bucket alone; the last is above all bounds."""
    total: float
    exemplars: tuple[Exemplar | None, ...]
    """One a bucket."""


class Distribution:
    """A histogram's numbers: `counts[i]` observations up to `bounds[i]`, the last of them above all bounds."""

    __slots__ = ("_examples", "bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self._examples: list[tuple[float, bytes, bytes, int] | None] = [None] * len(self.counts)

    def record(self, value: float, span: "Span | None" = None) -> None:
        """`span`: what this was observed in."""
        at = bisect_left(self.bounds, value)
        self.counts[at] += 1
        self.total += value
        if span is not None and span.recorded:
            self._examples[at] = (value, span.trace_id, span.span_id, time.time_ns())

    def tally(self) -> Tally:
        examples = [
            None if known is None else Exemplar(known[0], known[1].hex(), known[2].hex(), known[3])
            for known in self._examples
        ]
        return Tally(tuple(self.counts), self.total, tuple(examples))


C = TypeVar("C")


class Family(Generic[C]):
    """One metric with all its label sets."""

    def __init__(self, spec: MetricSpec, make: Callable[[], C]) -> None:
        self.spec = spec
        self.cells: dict[Labels, C] = {}
        self._make = make
        self._lock = Lock()
        if not spec.labels:
            self.cells[()] = make()

    def labels(self, *values: str) -> C:
        """The cell of these label values, in the catalogue's order. Keep it where the values are fixed."""
        cell = self.cells.get(values)
        return self._new(values) if cell is None else cell

    def _new(self, values: Labels) -> C:
        if len(values) != len(self.spec.labels):
            raise ValueError(f"{self.spec.name} has labels {self.spec.labels}")
        with self._lock:
            if len(self.cells) >= MAX_SERIES:
                values = ("other",) * len(values)
            return self.cells.setdefault(values, self._make())


class Point(NamedTuple):
    """A series at the moment of a snapshot."""

    labels: Labels
    value: float | Tally


Snapshot = list[tuple[MetricSpec, list[Point]]]
"""Every metric that has a series, in the catalogue's order."""


class Metrics:
    """All metrics of one process. Tests make their own; the program uses the module's functions."""

    def __init__(self, catalogue: Iterable[MetricSpec] = METRICS) -> None:
        self._numbers: dict[str, Family[Cell]] = {}
        self._distributions: dict[str, Family[Distribution]] = {}
        self._observers: dict[str, Callable[[], Iterable[tuple[Labels, float]]]] = {}
        self._order = [spec.name for spec in catalogue]
        for spec in catalogue:
            if spec.kind == "histogram":
                self._distributions[spec.name] = Family(spec, partial(Distribution, spec.buckets))
            else:
                self._numbers[spec.name] = Family(spec, Cell)

    def counter(self, name: str) -> Family[Cell]:
        return self._number(name, "counter")

    def gauge(self, name: str) -> Family[Cell]:
        return self._number(name, "gauge")

    def histogram(self, name: str) -> Family[Distribution]:
        return self._distributions[name]

    def observe(self, name: str, callback: Callable[[], Iterable[tuple[Labels, float]]]) -> None:
        """A gauge (or counter) whose series are asked for at each scrape: `callback() -> [((label, …), value), …]`."""
        self._numbers[name]
        self._observers[name] = callback

    def snapshot(self) -> Snapshot:
        return [(self._spec(name), points) for name in self._order if (points := self._points(name))]

    def _number(self, name: str, kind: str) -> Family[Cell]:
        family = self._numbers[name]
        if family.spec.kind != kind:
            raise ValueError(f"{name} is a {family.spec.kind}")
        return family

    def _spec(self, name: str) -> MetricSpec:
        family = self._numbers.get(name) or self._distributions[name]
        return family.spec

    def _points(self, name: str) -> list[Point]:
        if name in self._distributions:
            cells = list(self._distributions[name].cells.items())
            return [Point(labels, distribution.tally()) for labels, distribution in cells]
        observer = self._observers.get(name)
        if observer is not None:
            try:
                return [Point(labels, value) for labels, value in observer()]
            except Exception:  # a broken observer must not take the whole scrape with it
                return []
        return [Point(labels, cell.value) for labels, cell in list(self._numbers[name].cells.items())]


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Several processes as one, series by series: sums, but for what all of them see alike (`MetricSpec.shared`)."""
    found: dict[str, dict[Labels, float | Tally]] = {}
    for snapshot in snapshots:
        for spec, points in snapshot:
            series = found.setdefault(spec.name, {})
            for labels, value in points:
                known = series.get(labels)
                series[labels] = value if known is None else _both(spec, known, value)
    return [
        (spec, [Point(labels, value) for labels, value in found[spec.name].items()])
        for spec in METRICS
        if spec.name in found
    ]


def _both(spec: MetricSpec, a: float | Tally, b: float | Tally) -> float | Tally:
    if isinstance(a, Tally) and isinstance(b, Tally):
        counts = tuple(x + y for x, y in zip(a.counts, b.counts, strict=True))
        return Tally(counts, a.total + b.total, tuple(map(_newer, a.exemplars, b.exemplars)))
    assert not isinstance(a, Tally)
    assert not isinstance(b, Tally)
    return max(a, b) if spec.shared else a + b


def _newer(a: Exemplar | None, b: Exemplar | None) -> Exemplar | None:
    return max((one for one in (a, b) if one is not None), key=lambda one: one.t_ns, default=None)


PROCESS = Metrics()
"""The metrics of this process."""

counter = PROCESS.counter
gauge = PROCESS.gauge
histogram = PROCESS.histogram
observe = PROCESS.observe

__all__ = [
    "PROCESS",
    "Cell",
    "Distribution",
    "Exemplar",
    "Family",
    "Metrics",
    "Point",
    "Snapshot",
    "Tally",
    "counter",
    "gauge",
    "histogram",
    "merge",
    "metric_spec",
    "observe",
]
