"""A timeline as a tree in the terminal: a line for each message, what happened to it below, answers below that.

A dialogue would walk off the screen if every answer were set in: the only answer to a message stands under it with `↳`,
set in no further; only where a conversation branches does the tree branch.
"""

from collections import Counter
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from aimx.cli.screen import clock, span_of
from aimx.sidecar.timeline import Entry, Step, Timeline

_SIGN = {
    "accepted": ("·", "dim"),
    "routed": ("→", "dim"),
    "warned": ("⚠", "yellow"),
    "delivered": ("✓", "green"),
    "deferred": ("◷", "yellow"),
    "bounced": ("✗", "red"),
    "read": ("◉", "dim"),
    "acknowledged": ("✓", "cyan"),
    "refused": ("✗", "bold red"),
    "erased": ("-", "dim"),
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


def draw(timeline: Timeline, *, everything: bool = False) -> RenderableType:
    """The whole conversation. `everything`: every step a line of its own, with ids, spans and audit index."""
    return Group(_Drawing(timeline, everything).tree(), "", _sum(timeline))


class _Drawing:
    def __init__(self, timeline: Timeline, everything: bool) -> None:
        self._timeline = timeline
        self._everything = everything
        self._warned = False
        domains = {one.address.partition("@")[2] for one in timeline.participants if "@" in one.address}
        # Addresses go without their domain where there is only one.
        self._suffix = f"@{domains.pop()}" if len(domains) == 1 else ""

    def tree(self) -> Tree:
        root = Tree(_title(self._timeline), guide_style="dim")
        answers = Counter(entry.parent for entry in self._timeline.entries)
        place: dict[str | None, Tree] = {None: root}
        for entry in self._timeline.entries:
            node = place.get(entry.parent, root).add(self._line(entry))
            for step in entry.steps:
                if self._everything or step.kind not in _QUIET:
                    self._add_step(node, step, entry)
            only = entry.parent is not None and answers[entry.parent] == 1
            # Under an only answer go its own answers only if they branch; else the dialogue goes on at this margin.
            place[entry.id] = place.get(entry.parent, root) if only and answers[entry.id] == 1 else node
        return root

    def _line(self, entry: Entry) -> Text:
        out = Text()
        if entry.parent is not None:
            out.append("↳ ", "dim")
        out.append(f"+{span_of(entry.at_ms)}  ", "dim")
        out.append(self._short(entry.sender) or "AIMX", "bold")
        out.append(" → ")
        out.append(", ".join(self._short(address) for address in entry.recipients) or "?", "bold")
        if entry.subject:
            out.append(f"  {_cut(entry.subject)}", "italic")
        for word in _fates(entry):
            out.append_text(word)
        if entry.answered_after_ms is not None and entry.link == "in_reply_to":
            out.append(f", answered in {span_of(entry.answered_after_ms)}", "dim")
        if self._everything:
            out.append(f"  {entry.id if entry.stored else 'never stored'}  depth {entry.depth or 0}", "dim")
        return out

    def _add_step(self, node: Tree, step: Step, entry: Entry) -> None:
        if step.kind == "warned" and not self._everything:
            if self._warned:  # it warns again with each further message; once is enough to read
                return
            self._warned = True
        sign, style = _SIGN.get(step.kind, ("·", "dim"))
        out = Text()
        out.append(f"{sign} ", style).append(self._short(step.text), style)
        if step.t_ms > entry.t_ms or self._everything:
            out.append(f"  +{span_of(max(0, step.t_ms - entry.t_ms))}", "dim")
        if step.kind == "deferred":
            if step.wait_ms is not None:
                out.append(f", next try after {span_of(step.wait_ms)}", "yellow")
        elif step.wait_ms and self._everything:
            out.append(f", waited {span_of(step.wait_ms)}", "dim")
        if self._everything:
            place = "not yet in the log" if step.index is None else f"leaf {step.index}"
            out.append(f"  {step.event}  span {step.span_id}  {place}", "dim")
        node.add(out)

    def _short(self, text: str) -> str:
        return text.replace(self._suffix, "") if self._suffix else text


def _title(timeline: Timeline) -> Text:
    out = Text()
    out.append("trace ", "dim").append(timeline.trace_ids[0], "bold")
    for workflow in timeline.workflows:
        out.append("  workflow ", "dim").append(workflow)
    out.append(f"  {clock(timeline.started_ms)}", "dim")
    if timeline.truncated:
        out.append("  (only the newest messages)", "yellow")
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


def _cut(text: str, width: int = 48) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 1]}…"
