"""The loop guard at the door: what it sees of a message, and what its verdict becomes."""

from collections.abc import Sequence

from aimx.audit import events
from aimx.config import Settings
from aimx.intake.arrival import Arrival, ref
from aimx.intake.envelope import Envelope, Reply
from aimx.intake.refusal import Refused, facts
from aimx.message import fingerprint
from aimx.routing import loop
from aimx.routing.table import Route
from aimx.telemetry import metrics
from aimx.telemetry.span import Attributes

LOOPS = metrics.counter("aimx.loops.detected")
DEPTH = metrics.histogram("aimx.depth").labels()


def guard(settings: Settings, envelope: Envelope, arrival: Arrival, routes: Sequence[Route]) -> loop.Verdict:
    """Pass or warn; raises Refused. Sets `arrival.depth` and `arrival.template`."""
    verdict = weigh(settings, envelope, arrival, routes)
    DEPTH.record(arrival.depth, arrival.span)
    if verdict.rule is not None:
        LOOPS.labels(verdict.rule, verdict.kind).add()
    if verdict.kind == "refuse":
        raise _refused(settings.node, envelope, arrival, verdict)
    return verdict


def weigh(settings: Settings, envelope: Envelope, arrival: Arrival, routes: Sequence[Route]) -> loop.Verdict:
    """The verdict, and what the span says of it. Counts nothing. Sets `arrival.depth` and `arrival.template`."""
    sender = envelope.agent or envelope.sender
    limits = loop.limits_for(settings, sender, arrival.told.workflow)
    finals = tuple(sorted({landing.address for route in routes for landing in route.landings}))
    arrival.depth = loop.depth(arrival.lineage, sender, finals)
    # The template is the dearest thing here, so it is made only where two take turns: not for the first message of
    # its chain (`loop` lets it count, whatever it said), nor for one that goes to several.
    if len(finals) == 1 and arrival.lineage.count and limits.max_alternations:
        is_short = len(arrival.said) <= fingerprint.LIMIT
        arrival.template = fingerprint.template_hash(arrival.said) if is_short else arrival.payload
    candidate = loop.Candidate(
        sender=sender,
        recipients=finals,
        payload=arrival.payload,
        template=arrival.template,
        depth=arrival.depth,
        t_ms=arrival.now_ms,
        workflow=arrival.told.workflow,
    )
    verdict = loop.judge(candidate, arrival.lineage, limits)
    arrival.span.set("aimx.depth", arrival.depth)
    if verdict.rule is not None:
        _say(arrival, verdict)
    return verdict


def _say(arrival: Arrival, verdict: loop.Verdict) -> None:
    assert verdict.rule is not None
    said: Attributes = {
        "aimx.loop.rule": verdict.rule,
        "aimx.loop.count": verdict.count,
        "aimx.loop.limit": verdict.limit,
    }
    arrival.span.say({"aimx.loop.detected": True, **said})
    arrival.span.event("loop.refused" if verdict.kind == "refuse" else "loop.warned", said)


def reply(verdict: loop.Verdict) -> Reply:
    """What a refused message is answered."""
    return Reply(554, "5.4.6", f"loop refused: {verdict.text}")


def _refused(node: str, envelope: Envelope, arrival: Arrival, verdict: loop.Verdict) -> Refused:
    assert verdict.rule is not None
    row = events.loop_refused(
        events.Stamp(node, arrival.now_ms, ref(arrival.span.context), envelope.agent),
        rule=verdict.rule,
        count=verdict.count,
        by=envelope.agent or "",
        loop=arrival.loop_key,
        recipients=envelope.recipients,
        facts=facts(envelope, arrival, verdict.rule, Reply(554, "5.4.6", verdict.text))
        | {"count": verdict.count, "limit": verdict.limit},
    )
    return Refused(reply(verdict), f"loop.{verdict.rule}", row)
