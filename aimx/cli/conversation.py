"""A timeline as a tree in the terminal: a line for each message, what happened to it below, answers below that."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text
from rich.tree import Tree

from aimx.cli.screen import clock, span_of
from aimx.sidecar.timeline import Entry, Step, Timeline

_SIGN = {
    "accepted": ("·", "dim"),
    "routed": ("→", "dim"),
    "warned": ("!", "yellow"),
    "delivered": ("✓", "green"),
    "deferred": ("◷", "yellow"),
    "bounced": ("✗", "red"),
    "read": ("◉", "dim"),
    "acknowledged": ("✓", "cyan"),
    "refused": ("⛔", "bold red"),
    "erased": ("␡", "dim"),
}
_OUTCOME = {
    "acknowledged": "cyan",
    "read": "green",
    "delivered": "green",
    "accepted": "green",
    "waiting": "yellow",
    "bounced": "red",
    "refused": "bold red",
    "erased": "dim",
}
_QUIET = frozenset({"accepted", "routed", "delivered", "read", "acknowledged", "flagged", "accessed"})
"""Steps of an ordinary day: told in the message's own line unless everything is asked for."""
MAX_DRAWN_LEVEL = 12
"""Answers deeper than this are drawn at this depth: a loop of sixty would walk off the screen."""


def draw(timeline: Timeline, *, everything: bool = False) -> RenderableType:
    """The whole conversation. `everything`: every step a line of its own, with span and audit index."""
    shorten = _shortener(timeline)
    root = Tree(_title(timeline), guide_style="dim")
    above: dict[str | None, Tree] = {None: root}
    for entry in timeline.entries:
        branch = above.get(entry.parent, root)
        node = branch.add(_line(entry, timeline, shorten))
        for step in entry.steps:
            if everything or step.kind not in _QUIET:
                node.add(_step(step, entry, shorten, everything=everything))
        above[entry.id] = node if entry.level < MAX_DRAWN_LEVEL else branch
    return Group(root, "", _sum(timeline))


def _title(timeline: Timeline) -> Text:
    out = Text()
    out.append("trace ", "dim").append(timeline.trace_ids[0], "bold")
    for workflow in timeline.workflows:
        out.append("  workflow ", "dim").append(workflow)
    out.append(f"  {clock(timeline.started_ms)}", "dim")
    if timeline.truncated:
        out.append("  (only the newest messages)", "yellow")
    return out


def _line(entry: Entry, timeline: Timeline, shorten: "_Shorten") -> Text:
    out = Text()
    out.append(f"+{span_of(entry.at_ms)} ".rjust(9), "dim")
    out.append(shorten(entry.sender) or "AIMX", "bold")
    out.append(" → ")
    out.append(", ".join(shorten(address) for address in entry.recipients) or "?", "bold")
    if entry.subject:
        out.append(f"  {_cut(entry.subject)}", "italic")
    for word in _fates(entry):
        out.append_text(word)
    if entry.answered_after_ms is not None and entry.link == "in_reply_to":
        out.append(f"  answered after {span_of(entry.answered_after_ms)}", "dim")
    if entry.id and entry.stored:
        out.append(f"  {entry.id}", "dim")
    return out


def _fates(entry: Entry) -> Iterator[Text]:
    """What became of each copy, in a few words."""
    if not entry.copies:
        yield Text(f"  {entry.outcome}", _OUTCOME[entry.outcome])
    for copy in entry.copies:
        name = f" {copy.address.partition('@')[0]}:" if len(entry.copies) > 1 else ""
        out = Text(f" {name} {copy.outcome}", _OUTCOME[copy.outcome])
        if copy.attempts > 1:
            out.append(f" at attempt {copy.attempts}", "yellow")
        until = copy.acknowledged_ms or copy.read_ms or copy.delivered_ms
        if until is not None:
            out.append(f" in {span_of(max(0, until - entry.t_ms))}", "dim")
        yield out


def _step(step: Step, entry: Entry, shorten: "_Shorten", *, everything: bool) -> Text:
    sign, style = _SIGN.get(step.kind, ("·", "dim"))
    out = Text()
    out.append(f"{sign} ", style).append(shorten(step.text), style)
    out.append(f"  +{span_of(max(0, step.t_ms - entry.t_ms))}", "dim")
    if step.kind == "deferred":
        if step.wait_ms is not None:
            out.append(f"  next try after {span_of(step.wait_ms)}", "yellow")
    elif step.wait_ms and everything:
        out.append(f"  waited {span_of(step.wait_ms)}", "dim")
    if everything:
        place = "not yet in the log" if step.index is None else f"leaf {step.index}"
        out.append(f"  {step.event}  span {step.span_id}  {place}", "dim")
    return out


def _sum(timeline: Timeline) -> Text:
    counts = timeline.counts
    out = Text()
    out.append(f"{counts.messages} messages", "bold")
    out.append(f" between {len(timeline.participants)} agents in {span_of(timeline.duration_ms)}, ")
    out.append(f"depth {timeline.depth}, {counts.deliveries} delivered, {counts.acknowledged} acknowledged")
    for number, word, style in (
        (counts.retries, "retried", "yellow"),
        (counts.waiting, "waiting", "yellow"),
        (counts.bounced, "bounced", "red"),
        (counts.refused, "refused", "bold red"),
    ):
        if number:
            out.append(", ").append(f"{number} {word}", style)
    return out


class _Shorten:
    """Addresses without their domain where there is only one."""

    def __init__(self, domains: set[str]) -> None:
        self._suffix = f"@{domains.pop()}" if len(domains) == 1 else ""

    def __call__(self, text: str) -> str:
        return text.replace(self._suffix, "") if self._suffix else text


def _shortener(timeline: Timeline) -> _Shorten:
    return _Shorten({one.address.partition("@")[2] for one in timeline.participants if "@" in one.address})


def _cut(text: str, width: int = 48) -> str:
    text = " ".join(text.split())
    return escape(text) if len(text) <= width else f"{text[: width - 1]}…"
