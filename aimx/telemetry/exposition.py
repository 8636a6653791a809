"""A snapshot of the metrics as Prometheus reads it: its own text format 0.0.4, or OpenMetrics 1.0 with exemplars."""

import math
from typing import Literal

from aimx.telemetry.catalogue import MetricSpec
from aimx.telemetry.metrics import Exemplar, Point, Snapshot, Tally

Format = Literal["text", "openmetrics"]

CONTENT_TYPES: dict[Format, str] = {
    "text": "text/plain; version=0.0.4; charset=utf-8",
    "openmetrics": "application/openmetrics-text; version=1.0.0; charset=utf-8",
}


def negotiate(accept: str) -> Format:
    """What a scraper's Accept header asks for. OpenMetrics only where it is named and not refused."""
    for asked in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in asked.split(";"))
        if kind == "application/openmetrics-text":
            refused = any(part.replace(" ", "") in ("q=0", "q=0.0") for part in parameters)
            if not refused and not any(part.startswith("version=0.") for part in parameters):
                return "openmetrics"
    return "text"


def render(snapshot: Snapshot, form: Format = "text") -> str:
    """The whole answer to a scrape."""
    lines: list[str] = []
    for spec, points in snapshot:
        name = prometheus_name(spec)
        family = name.removesuffix("_total") if form == "openmetrics" else name
        lines.append(f"# HELP {family} {_escape(spec.doc)}")
        lines.append(f"# TYPE {family} {spec.kind}")
        for point in points:
            lines += _lines(name, spec, point, form)
    if form == "openmetrics":
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def prometheus_name(spec: MetricSpec) -> str:
    """OpenTelemetry's mapping: dots to underscores, the unit as a suffix, `_total` on counters."""
    name = spec.name.replace(".", "_")
    suffix = {"s": "_seconds", "By": "_bytes"}.get(spec.unit, "")
    if suffix and not name.endswith(suffix):
        name += suffix
    return name + "_total" if spec.kind == "counter" else name


def prometheus_label(label: str) -> str:
    return label.replace(".", "_")


def _lines(name: str, spec: MetricSpec, point: Point, form: Format) -> list[str]:
    pairs = [
        f'{prometheus_label(label)}="{_escape(value)}"' for label, value in zip(spec.labels, point.labels, strict=True)
    ]
    if isinstance(point.value, Tally):
        return _histogram(name, pairs, spec.buckets, point.value, form)
    return [f"{name}{_braces(pairs)} {_number(point.value)}"]


def _histogram(name: str, pairs: list[str], bounds: tuple[float, ...], tally: Tally, form: Format) -> list[str]:
    lines, seen = [], 0
    for bound, count, exemplar in zip((*bounds, math.inf), tally.counts, tally.exemplars, strict=True):
        seen += count
        labels = _braces([*pairs, f'le="{_number(bound)}"'])
        mark = _exemplar(exemplar) if exemplar is not None and form == "openmetrics" else ""
        lines.append(f"{name}_bucket{labels} {seen}{mark}")
    lines.append(f"{name}_sum{_braces(pairs)} {_number(tally.total)}")
    lines.append(f"{name}_count{_braces(pairs)} {seen}")
    return lines


def _exemplar(one: Exemplar) -> str:
    ids = f'trace_id="{one.trace_id}",span_id="{one.span_id}"'
    return f" # {{{ids}}} {_number(one.value)} {one.t_ns / 1e9:.3f}"


def _braces(pairs: list[str]) -> str:
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _number(value: float) -> str:
    if value == math.inf:
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(value)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
