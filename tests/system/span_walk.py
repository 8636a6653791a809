"""Walks the spans that a collector got and says what is wrong with them, by the catalogue.

    faults(spans, foreign={"00f067aa0ba902b7"}, secrets=["ada@fabric.local"])

`foreign` are span ids that a sender typed by hand: nobody exports those, so their children are no orphans.
"""

from collections.abc import Collection, Iterator, Sequence

from aimx.telemetry.catalogue import COMMON, Relation, SpanSpec, span_spec
from tests.otlp_receiver import Link, Received

CREATORS = frozenset({"send", "smtp receive", "imap append", "dead-letter {queue}"})
"""Spans whose context a message carries as its creation context."""
WITHIN = frozenset({"route {rule}", "mailbox append", "audit append", "relay {peer}", "lmtp {name}", "webhook {name}"})
"""Work that is done before what asked for it goes on."""
SLACK_NS = 5_000_000
"""Two clocks of one machine: the wall's reading at a begin and at an end may be corrected in between."""

Key = tuple[str, str]


def faults(spans: Sequence[Received], *, foreign: Collection[str] = (), secrets: Sequence[str] = ()) -> list[str]:
    """One line for each thing that is wrong; empty when nothing is."""
    known = {(span.trace_id, span.span_id): span for span in spans}
    return [
        f"{span.name} ({span.trace_id[:8]}/{span.span_id}): {fault}"
        for span in spans
        for fault in _of(span, known, foreign, secrets)
    ]


def _of(span: Received, known: dict[Key, Received], foreign: Collection[str], secrets: Sequence[str]) -> Iterator[str]:
    yield from _told(span, secrets)
    if span.end_ns < span.start_ns:
        yield "ends before it starts"
    parent = known.get((span.trace_id, span.parent_id))
    if span.parent_id and parent is None and span.parent_id not in foreign:
        yield f"orphan: nobody exported its parent {span.parent_id}"
    if parent is not None and span.start_ns < parent.start_ns - SLACK_NS:
        yield f"starts {(parent.start_ns - span.start_ns) / 1e6:.1f} ms before its parent {parent.name}"
    spec = span_spec(span.name)
    if spec is None:
        if span.resource.get("service.name") != "agents":
            yield "is not in the catalogue"
        return
    if span.kind != spec.kind.name:
        yield f"is {span.kind}, not {spec.kind.name}"
    if spec.name in WITHIN and parent is not None and span.end_ns > parent.end_ns + SLACK_NS:
        yield f"ends {(span.end_ns - parent.end_ns) / 1e6:.1f} ms after its parent {parent.name}"
    if not any(_is(relation, span.parent_id, parent, foreign) for relation in spec.parents):
        yield f"hangs under {parent.name if parent else span.parent_id or 'nothing'}, not {', '.join(spec.parents)}"
    for link in span.links:
        target = known.get((link.trace_id, link.span_id))
        if not any(_links(relation, link, target, foreign) for relation in spec.links):
            yield f"is linked to {target.name if target else link.span_id}, not {', '.join(spec.links) or 'anything'}"
    yield from _declared(span, spec)


def _declared(span: Received, spec: SpanSpec) -> Iterator[str]:
    for name in span.attributes.keys() - {*COMMON, *spec.attributes}:
        yield f"has the attribute {name}, which the catalogue does not give it"
    for event in span.events:
        if event.name not in spec.events:
            yield f"has the event {event.name}, which the catalogue does not give it"
        if not span.start_ns - SLACK_NS <= event.t_ns <= span.end_ns + SLACK_NS:
            yield f"has the event {event.name} outside of its time"
    if span.error != ("error.type" in span.attributes):
        yield "has an error without error.type, or the reverse"


def _told(span: Received, secrets: Sequence[str]) -> Iterator[str]:
    """No name, attribute, event or status tells an address, a subject or content."""
    said = {"name": span.name, "status": span.description} | span.attributes
    for event in span.events:
        said |= {f"{event.name}.{name}": value for name, value in event.attributes.items()} | {event.name: event.name}
    for name, value in said.items():
        if name == "messaging.message.id":
            continue  # a Message-ID looks like an address and is none
        for secret in secrets:
            if secret in str(value):
                yield f"tells {secret!r} in {name}"


def _is(relation: str, parent_id: str, parent: Received | None, foreign: Collection[str]) -> bool:
    match relation:
        case Relation.ROOT:
            return not parent_id
        case Relation.CURRENT:
            return parent_id in foreign or (parent is not None and span_spec(parent.name) is None)
        case Relation.CREATION:
            # … or a span of the agent's own, when it is traced by something else than the SDK.
            return parent_id in foreign or (parent is not None and _template(parent) in {*CREATORS, None})
        case _:
            return parent is not None and _template(parent) == relation


def _links(relation: str, link: Link, target: Received | None, foreign: Collection[str]) -> bool:
    match relation:
        case Relation.COVERED:
            return target is not None
        case Relation.CLAIMED:
            return link.span_id in foreign
        case _:
            return _is(relation, link.span_id, target, foreign)


def _template(span: Received) -> str | None:
    spec = span_spec(span.name)
    return spec.name if spec is not None else None
