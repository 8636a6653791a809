"""A timeline as a tree in the terminal: a line for each message, what happened to it below, answers below that.

A dialogue would walk off the screen if every answer were set in: the only answer to a message stands under it with `↳`,
set in no further; only where a conversation branches does the tree branch.
"""

from collections import Counter
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from aimx.cli.screen import clock, harmless, span_of
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


_INDENT = "  "


class _Line:
    """A line of phrases. Where it is too long for the screen it is broken between them; what goes on is set in."""

    def __init__(self) -> None:
        self._phrases: list[tuple[str, Text]] = []

    def say(self, *pieces: tuple[str, str] | str, after: str = "  ") -> None:
        """Add a phrase of (words, style) pieces, `after` whatever stands between it and the one before."""
        self._phrases.append((after, Text.assemble(*pieces)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        line = Text()
        for after, phrase in self._phrases:
            if not line or line.cell_len + len(after.rstrip()) + len(_INDENT) + phrase.cell_len <= options.max_width:
                line.append(after if line else "").append_text(phrase)
            else:
                yield from self._folded(line.append(after.rstrip()), console, options.max_width)
                line = Text(_INDENT).append_text(phrase)
        yield from self._folded(line, console, options.max_width)

    @staticmethod
    def _folded(line: Text, console: Console, width: int) -> Iterator[Text]:
        if line.cell_len <= width:
            yield line
            return
        first, *rest = line.wrap(console, max(width - len(_INDENT), 8))
        first.rstrip()
        yield first
        for more in rest:
            more.rstrip()
            yield Text(_INDENT).append_text(more)


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

    def _line(self, entry: Entry) -> _Line:
        line = _Line()
        line.say(("" if entry.parent is None else "↳ ", "dim"), (f"+{span_of(entry.at_ms)}", "dim"))
        to = ", ".join(self._short(address) for address in entry.recipients) or "?"
        line.say((self._short(entry.sender) or "AIMX", "bold"), " → ", (to, "bold"))
        if entry.subject:
            line.say((_cut(entry.subject), "italic"))
        for word in _fates(entry):
            line.say(*word)
        if entry.answered_after_ms is not None and entry.link == "in_reply_to":
            line.say((f"answered in {span_of(entry.answered_after_ms)}", "dim"), after=", ")
        if self._everything:
            line.say((entry.id if entry.stored else "never stored", "dim"))
            line.say((f"depth {entry.depth or 0}", "dim"))
        return line

    def _add_step(self, node: Tree, step: Step, entry: Entry) -> None:
        if step.kind == "warned" and not self._everything:
            if self._warned:  # it warns again with each further message; once is enough to read
                return
            self._warned = True
        sign, style = _SIGN.get(step.kind, ("·", "dim"))
        line = _Line()
        line.say((f"{sign} ", style), (self._short(step.text), style))
        if step.t_ms > entry.t_ms or self._everything:
            line.say((f"+{span_of(max(0, step.t_ms - entry.t_ms))}", "dim"))
        if step.kind == "deferred":
            if step.wait_ms is not None:
                line.say((f"next try after {span_of(step.wait_ms)}", "yellow"), after=", ")
        elif step.wait_ms and self._everything:
            line.say((f"waited {span_of(step.wait_ms)}", "dim"), after=", ")
        if self._everything:
            line.say((step.event, "dim"))
            line.say((f"span {step.span_id}", "dim"))
            line.say(("not yet in the log" if step.index is None else f"leaf {step.index}", "dim"))
        node.add(line)

    def _short(self, text: str) -> str:
        return text.replace(self._suffix, "") if self._suffix else text


def _title(timeline: Timeline) -> _Line:
    line = _Line()
    line.say(("trace ", "dim"), (timeline.trace_ids[0], "bold"))
    for workflow in timeline.workflows:
        line.say(("workflow ", "dim"), workflow)
    line.say((clock(timeline.started_ms), "dim"))
    if timeline.truncated:
        line.say(("(only the newest messages)", "yellow"))
    return line


def _fates(entry: Entry) -> Iterator[list[tuple[str, str]]]:
    """What became of each copy, in a few words."""
    if not entry.copies:
        yield [(entry.outcome, _OUTCOME[entry.outcome])]
    for copy in entry.copies:
        name = f"{copy.address.partition('@')[0]}: " if len(entry.copies) > 1 else ""
        out = [(f"{name}{copy.outcome}", _OUTCOME[copy.outcome])]
        if copy.attempts > 1:
            out.append((f" at attempt {copy.attempts}", "yellow"))
        until = copy.acknowledged_ms or copy.read_ms or copy.delivered_ms
        if until is not None:
            out.append((f" in {span_of(max(0, until - entry.t_ms))}", "dim"))
        yield out


def _sum(timeline: Timeline) -> _Line:
    counts = timeline.counts
    line = _Line()
    line.say((_many(counts.messages, "message"), "bold"), f" between {_many(len(timeline.participants), 'agent')}")
    line.say(f"in {span_of(timeline.duration_ms)}", after=" ")
    line.say(f"depth {timeline.depth}", after=", ")
    for number, word, style, always in (
        (counts.deliveries, "delivered", "", True),
        (counts.acknowledged, "acknowledged", "", True),
        (counts.retries, "retried", "yellow", False),
        (counts.waiting, "waiting", "yellow", False),
        (counts.bounced, "bounced", "red", False),
        (counts.refused, "refused", "bold red", False),
    ):
        if number or always:
            line.say((f"{number} {word}", style), after=", ")
    return line


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _cut(text: str, width: int = 48) -> str:
    text = harmless(" ".join(text.split()))
    return text if len(text) <= width else f"{text[: width - 1]}…"
