"""A workflow as a graph: who wrote to whom, how often, and where it was stopped. Pure."""

from dataclasses import asdict, dataclass, field
from typing import Any

from aimx.sidecar.timeline import Entry, Timeline

LONGEST_RING = 16
"""Agents in a circle that is still shown as one."""


@dataclass(slots=True)
class Edge:
    """Everything that one agent wrote to another."""

    sender: str
    recipient: str
    messages: int = 0
    refused: int = 0
    retries: int = 0
    deepest: int = 0
    first_ms: int = 0
    last_ms: int = 0


@dataclass(slots=True)
class Stop:
    """A message that was refused."""

    sender: str
    recipients: list[str]
    t_ms: int
    rule: str | None
    """Of the loop guard, or the name of the route rule."""
    count: int | None
    limit: int | None
    text: str
    ring: list[str]
    """The agents in the circle that it would have closed once more, in the order of writing; else empty."""


@dataclass(slots=True)
class Warned:
    """What the loop guard warned of, and let through."""

    rule: str
    times: int
    highest: int
    limit: int
    """From which it warns."""


@dataclass(slots=True)
class Graph:
    """`messages` and `depth` count what was accepted; times are Unix milliseconds."""

    workflows: list[str]
    trace_ids: list[str]
    started_ms: int
    duration_ms: int
    messages: int
    depth: int
    agents: list[str]
    edges: list[Edge]
    """Busiest first."""
    stops: list[Stop]
    warnings: list[Warned]
    """One for each rule."""
    truncated: bool = field(default=False)

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return asdict(self)


def graph(timeline: Timeline) -> Graph:
    """Of a conversation that `assemble` made."""
    edges: dict[tuple[str, str], Edge] = {}
    by_id = {entry.id: entry for entry in timeline.entries}
    entries = sorted(timeline.entries, key=lambda entry: (entry.t_ms, entry.id))
    for entry in entries:
        retries = {copy.address: max(0, copy.attempts - 1) for copy in entry.copies}
        for recipient in _reached(entry):
            edge = edges.setdefault((entry.sender, recipient), Edge(entry.sender, recipient, first_ms=entry.t_ms))
            edge.messages += entry.stored
            edge.refused += not entry.stored
            edge.retries += retries.get(recipient, 0)
            edge.deepest = max(edge.deepest, entry.depth or 0)
            edge.last_ms = entry.t_ms
    return Graph(
        workflows=timeline.workflows,
        trace_ids=timeline.trace_ids,
        started_ms=timeline.started_ms,
        duration_ms=timeline.duration_ms,
        messages=timeline.counts.messages,
        depth=max((entry.depth or 0 for entry in entries if entry.stored), default=0),
        agents=list(dict.fromkeys(name for edge in edges.values() for name in (edge.sender, edge.recipient))),
        edges=sorted(edges.values(), key=lambda edge: (-edge.messages, edge.first_ms)),
        stops=[_stop(entry, by_id) for entry in entries if not entry.stored],
        warnings=_warnings(entries),
        truncated=timeline.truncated,
    )


def _reached(entry: Entry) -> list[str]:
    return [copy.address for copy in entry.copies] or entry.recipients


def _warnings(entries: list[Entry]) -> list[Warned]:
    found: dict[str, Warned] = {}
    for entry in entries:
        for step in entry.steps:
            loop = step.detail.get("loop")
            if step.kind != "warned" or not isinstance(loop, dict):
                continue
            rule, count, limit = str(loop.get("rule")), loop.get("count"), loop.get("limit")
            warned = found.setdefault(rule, Warned(rule, 0, 0, limit if isinstance(limit, int) else 0))
            warned.times += 1
            warned.highest = max(warned.highest, count if isinstance(count, int) else 0)
    return list(found.values())


def _stop(entry: Entry, by_id: dict[str, Entry]) -> Stop:
    detail = entry.steps[0].detail
    rule, count, limit = (detail.get(name) for name in ("rule", "count", "limit"))
    return Stop(
        sender=entry.sender,
        recipients=entry.recipients,
        t_ms=entry.t_ms,
        rule=rule if isinstance(rule, str) else None,
        count=count if isinstance(count, int) else None,
        limit=limit if isinstance(limit, int) else None,
        text=entry.steps[0].text,
        ring=_ring(entry, by_id),
    )


def _ring(entry: Entry, by_id: dict[str, Entry]) -> list[str]:
    """Back along what is answered until the refused sender wrote before: who wrote in between closes the circle."""
    writers = [entry.sender]
    above = by_id.get(entry.parent or "")
    while above is not None and len(writers) <= LONGEST_RING:
        if above.sender == entry.sender:
            return writers[::-1][-1:] + writers[::-1][:-1]
        writers.append(above.sender)
        above = by_id.get(above.parent or "")
    return []
