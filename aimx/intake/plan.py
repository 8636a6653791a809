"""From routes to the first attempts: the hops, their spans and headers, and a target for every final recipient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from aimx.delivery import trace
from aimx.delivery.attempt import Attempt
from aimx.delivery.retry import Backoff
from aimx.routing.table import Landing, Route, Step
from aimx.store.contract import EventRow, Outcome, Placed, Queued, SpanRef, Target
from aimx.telemetry.context import Context, Hop
from aimx.telemetry.span import CONSUMER, PRODUCER, Facts, Span

MAX_FACTS = 50
"""Landings that an event's facts name; the log holds all recipients either way."""


@dataclass(slots=True)
class First:
    """What the accepting commit makes of one target, and the spans of either outcome."""

    target: Target
    enqueue: Span
    deliver: Span | None
    """Of the attempt that the commit makes; None where it leaves the node, for then the queue makes the first."""

    def end(self, message: Attempt, outcome: Outcome, row: EventRow | None) -> None:
        """Delivered at once: under the route. Buffered: enqueued, with this as its failed first attempt."""
        if isinstance(outcome, Queued):
            self.enqueue.end()
            return
        assert self.deliver is not None, "an attempt was made"
        assert row is not None, "and is in the log"
        if not isinstance(outcome, Placed):
            self.enqueue.set("aimx.queue.reason", outcome.reason)
            self.enqueue.end()
            self.deliver.parent = self.enqueue.context
        trace.end(self.deliver, message, outcome, row)


@dataclass(slots=True)
class Plan:
    firsts: list[First]
    """One for each final recipient and way to it."""
    hops: list[Hop]
    """One for each different step, oldest first."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What all targets of one message share. Times are Unix milliseconds."""

    creation: Context
    now_ms: int
    deadline_ms: int
    backoff: Backoff
    by: str
    """The name hops are stamped with."""
    verdict: str = "pass"
    """The loop guard's."""
    trace_only: bool = False
    """Nothing will be delivered: the route's spans say so."""
    hops_before: int = 0
    """Of peers, which the message has behind it."""
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By envelope recipient: what it was given with (RFC 3461)."""


def plan(routes: Sequence[Route], parent: Span, terms: Terms) -> Plan:
    """Route spans are made and ended here; those of the attempts end with their outcome."""
    spans: dict[tuple[Step, ...], Span] = {}
    made = Plan([], [])
    seen: set[tuple[str, str]] = set()
    for route in routes:
        for landing in route.landings:
            priority = route.priority or 0
            hop = _hop(landing, parent, spans, made.hops, terms, priority)
            if (landing.address, landing.transport) not in seen:
                seen.add((landing.address, landing.transport))
                made.firsts.append(first(landing, route.recipient, hop, terms, priority))
    for span in spans.values():
        span.set("aimx.hop.count", terms.hops_before + len(made.hops))
        span.end()
    return made


@lru_cache(1024)
def _queued(queue: str) -> Facts:
    return Facts({"messaging.destination.name": queue})


def first(landing: Landing, original: str, parent: Span, terms: Terms, priority: int = 0) -> First:
    """The way to one final recipient; `original` is the envelope's that led to it."""
    queue = landing.queue
    enqueue = parent.child(f"enqueue {queue}", PRODUCER, attributes=_queued(queue))
    waiting = SpanRef(enqueue.trace_id, enqueue.span_id)
    deliver = None
    if landing.transport == "mailbox":
        deliver = parent.child(
            "deliver mailbox", CONSUMER, links=(terms.creation,), attributes=trace.attributes(queue, 1)
        )
    target = Target(
        address=landing.address,
        original=original,
        span=waiting,
        attempt=waiting if deliver is None else SpanRef(deliver.trace_id, deliver.span_id),
        queue=queue,
        transport=landing.transport,
        priority=priority,
        next_ms=terms.now_ms + (terms.backoff.delay_ms(1) if deliver is not None else 0),
        deadline_ms=terms.deadline_ms,
        destination=landing.destination,
        options=_options(landing, terms.options.get(original, {})),
    )
    return First(target, enqueue, deliver)


def _options(landing: Landing, given: Mapping[str, str]) -> dict[str, str]:
    return {"via": landing.via, **given} if landing.via else dict(given)


def _hop(
    landing: Landing,
    parent: Span,
    spans: dict[tuple[Step, ...], Span],
    hops: list[Hop],
    terms: Terms,
    priority: int,
) -> Span:
    """The span of the landing's last step. A list of fifty takes one hop, and stamps one line on one shared body."""
    path: tuple[Step, ...] = ()
    for step in landing.steps:
        # Mailboxes reached by the same rule share a hop: which one is said by the attempt, not by the route.
        path = (*path, step if step.decision != "mailbox" else Step(step.rule, "mailbox", ""))
        known = spans.get(path)
        if known is None:
            said = _decision(path[-1], priority, len(path), terms.verdict)
            known = spans[path] = parent.child(f"route {step.rule}", attributes=said)
            if terms.trace_only:
                known.set("aimx.trace_only", True)
            hops.append(Hop(terms.hops_before + len(hops) + 1, known.context, terms.by, step.rule))
        parent = known
    return parent


@lru_cache(1024)
def _decision(step: Step, priority: int, index: int, verdict: str) -> Facts:
    """Of a `route` span. What has a name is named; a mailbox is said by the attempt."""
    named = {} if step.decision in ("mailbox", "refuse") else {"messaging.destination.name": step.target}
    return Facts(
        {
            "aimx.route.rule": step.rule,
            "aimx.route.decision": step.decision,
            "aimx.priority": priority,
            "aimx.hop.index": index,
            "aimx.loop.verdict": verdict,
            **named,
        }
    )


def facts(routes: Sequence[Route]) -> list[dict[str, str | int | None]]:
    """The routes for the timeline: what was decided for each recipient, by which rule."""
    return [
        {
            "recipient": route.recipient,
            "rule": landing.steps[0].rule,
            "decision": landing.steps[0].decision,
            "target": landing.address,
            "queue": landing.queue,
            "priority": route.priority,
        }
        for route in routes
        for landing in route.landings
    ][:MAX_FACTS]
