"""The loop guard: from a message and what came before it in its workflow to a verdict. Pure.

The server, not the sender, keeps the chain, so any agent that merely replies or propagates `traceparent` is guarded.
Depth alone cannot tell ping-pong from a long dialogue; the verdict combines five counts:

- **depth**: 1 + the depth of what this answers, else of the newest of its trace delivered to the sender; but who
  goes on to ask somebody else in one trace goes no deeper by that: a loop comes back to whom it has written before;
- **repeats**: earlier messages of the same chain from this sender to the same recipients with the same payload (only
  those of lesser depth count: a planner that asks fifty researchers the same thing is no loop);
- **alternations**: the run in which two agents answer each other with payloads that differ only in numbers, times, ids
  (a new question after an answer ends it: a supervisor that hands out numbered chunks is no loop);
- **budget** and **deadline** of a workflow, where one is set.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from aimx.config import LoopLimits, Settings
from aimx.routing.pattern import matches
from aimx.store.contract import Lineage, Past

Rule = Literal["depth", "repeats", "alternations", "budget", "deadline"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """The message that asks to come in."""

    sender: str
    recipients: tuple[str, ...]
    """Final ones, after routing, in order of the alphabet, as in `Past`."""
    payload: bytes
    template: bytes
    """Empty where it was not made."""
    depth: int
    t_ms: int
    workflow: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    kind: Literal["pass", "warn", "refuse"]
    rule: Rule | None = None
    count: int = 0
    limit: int = 0
    text: str = ""
    """For people: which rule, the count, how to raise it."""


PASS = Verdict("pass")


def depth(lineage: Lineage, sender: str = "", recipients: Collection[str] = ()) -> int:
    """See the module's docstring. A message that answers nothing has depth 1. `recipients` are final ones."""
    answered = lineage.replied or lineage.referenced
    if answered is not None or lineage.traced is None:
        return 1 if answered is None else answered.depth + 1
    own = [earlier for earlier in lineage.past if earlier.sender == sender]
    if own and recipients and all(set(recipients).isdisjoint(earlier.recipients) for earlier in own):
        return own[0].depth
    return lineage.traced.depth + 1


def limits_for(settings: Settings, agent: str, workflow: str | None) -> LoopLimits:
    """The node's limits, overlaid by what the domain, the workflow's pattern and the agent's pattern set."""
    layers = []
    domain = settings.domain.get(agent.rpartition("@")[2])
    if domain is not None and domain.loop is not None:
        layers.append(domain.loop)
    layers += [limits for pattern, limits in settings.workflow.items() if workflow and matches(pattern, workflow)]
    layers += [limits for pattern, limits in settings.agent.items() if matches(pattern, agent)]
    if not layers:
        return settings.loop
    given = {name: getattr(layer, name) for layer in layers for name in layer.model_fields_set}
    return settings.loop.model_copy(update=given)


def judge(message: Candidate, lineage: Lineage, limits: LoopLimits) -> Verdict:
    """Refuse, warn or pass; the first rule that refuses speaks."""
    repeats = _repeats(message, lineage.past)
    alternations = _alternations(message, lineage.past)
    refusals: tuple[tuple[Rule, int, int], ...] = (
        ("repeats", repeats, limits.max_repeats),
        ("alternations", alternations, limits.max_alternations),
        ("depth", message.depth, limits.max_depth),
    )
    for rule, count, limit in refusals:
        if limit and count >= limit:
            return _verdict("refuse", rule, count, limit, message)
    if limits.budget is not None and lineage.count >= limits.budget:
        return _verdict("refuse", "budget", lineage.count, limits.budget, message)
    if limits.deadline is not None and lineage.first_ms is not None:
        age = (message.t_ms - lineage.first_ms) // 1000
        if age > limits.deadline:
            return _verdict("refuse", "deadline", age, int(limits.deadline), message)
    if limits.warn_depth and message.depth >= limits.warn_depth:
        return _verdict("warn", "depth", message.depth, limits.warn_depth, message)
    if limits.warn_repeats and repeats >= limits.warn_repeats:
        return _verdict("warn", "repeats", repeats, limits.warn_repeats, message)
    return PASS


def _repeats(message: Candidate, past: tuple[Past, ...]) -> int:
    return sum(
        1
        for earlier in past
        if earlier.payload == message.payload
        and earlier.sender == message.sender
        and earlier.depth < message.depth
        and earlier.recipients == message.recipients
    )


def _alternations(message: Candidate, past: tuple[Past, ...]) -> int:
    """How many times the pair has already taken turns, ending with this message, each side saying the same again.

    A chain's first message has no template: it is a turn whatever it said, for the others follow it.
    """
    if len(message.recipients) != 1 or not message.template:
        return 0
    pair = {message.sender, message.recipients[0]}
    said: dict[str, bytes] = {message.sender: message.template}
    turn, run, below = message.sender, 0, message.depth
    for earlier in past:
        if len(earlier.recipients) != 1 or {earlier.sender, earlier.recipients[0]} != pair:
            continue
        if earlier.sender == turn or earlier.depth > below:
            break
        if earlier.template and said.setdefault(earlier.sender, earlier.template) != earlier.template:
            break
        turn, below = earlier.sender, earlier.depth
        run += 1
    return run


_SAYS: dict[Rule, str] = {
    "depth": "this message is number {count} in a chain of answers",
    "repeats": "this agent has said exactly this {count} times before in the chain",
    "alternations": "these two agents have taken {count} turns saying the same but for numbers, times and ids",
    "budget": "the workflow already has {count} messages",
    "deadline": "the workflow began {count} s ago",
}
_SETTING: dict[Rule, str] = {
    "depth": "max_depth",
    "repeats": "max_repeats",
    "alternations": "max_alternations",
    "budget": "budget",
    "deadline": "deadline",
}


def _verdict(kind: Literal["warn", "refuse"], rule: Rule, count: int, limit: int, message: Candidate) -> Verdict:
    where = f'[workflow."{message.workflow}"]' if message.workflow else "[loop]"
    text = f"{_SAYS[rule].format(count=count)} (limit {limit}); if meant, raise {_SETTING[rule]} in {where}"
    return Verdict(kind, rule, count, limit, text)
