"""What may not come in: the refusal, its reasons and its event."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from aimx.audit import events
from aimx.identity.refused import Refusals, Via
from aimx.identity.sender import header_refusal
from aimx.intake import stamp
from aimx.intake.arrival import Arrival, ref
from aimx.intake.envelope import Envelope, Reply
from aimx.message.header import HeaderBlock, bare
from aimx.routing.table import Route
from aimx.store.contract import EventRow
from aimx.telemetry.span import Span

MAX_RECEIVED = 100
"""RFC 5321 §6.3: a large one, normally at least 100."""


class Refused(Exception):
    """The message may not come in. `rule` is of low cardinality; `row` an event other than `message.rejected`."""

    def __init__(self, reply: Reply, rule: str, row: EventRow | None = None) -> None:
        self.reply = reply
        self.rule = rule
        self.row = row


def check_hops(header: HeaderBlock) -> None:
    """A message that was everywhere goes in circles, whoever writes it (RFC 5321 §6.3). Raises Refused."""
    count = header.count("Received")
    if count > MAX_RECEIVED:
        text = f"mail loop: the message has {count} Received fields (limit {MAX_RECEIVED})"
        raise Refused(Reply(554, "5.4.6", text), "received")


def check_sender(header: HeaderBlock, agent: str, domains: tuple[str, ...]) -> None:
    """An agent may send only as itself. Raises Refused."""
    for field in ("From", "Sender"):
        refusal = header_refusal(field, header.structured(field), agent)
        if refusal is not None:
            raise Refused(Reply(550, "5.7.1", refusal), "sender")
    if stamp.claims_another(header, agent, domains):
        own = stamp.agent_id(agent, domains)
        raise Refused(Reply(550, "5.7.1", f"X-Agent-ID must be {own} or left out; you are {agent}"), "agent-id")


def check_stranger(header: HeaderBlock, domains: Collection[str]) -> None:
    """Whoever is shown as one of ours has signed in as it: a stranger is not. Raises Refused."""
    for field in ("From", "Sender"):
        # A reader may decode RFC 2047 words where none may stand, and drops comments between the parts of an address.
        values = {*header.structured(field), *header.get_all(field)}
        readings = {reading.lower() for value in values for reading in (value, bare(value))}
        for domain in domains:
            if any(_shows(reading, domain) for reading in readings):
                raise Refused(
                    Reply(550, "5.7.1", f"{field} names {domain}, whose agents do not send from outside"), "sender"
                )


def _shows(value: str, domain: str) -> bool:
    """Whether an address in this domain stands in the field, be it as a name, with space as RFC 5322 §4.4 lets it."""
    labels = r"\s*\.\s*".join(map(re.escape, domain.split(".")))
    return re.search(rf"@\s*{labels}(?![\w.-]*\w)", value) is not None


def by_route(route: Route, span: Span) -> Refused:
    """One recipient's refusal, with the span of the rule that made it."""
    assert route.refusal is not None
    status = "5.1.1" if route.unknown else "5.7.1"
    rule = route.refusal.rule
    hop = span.child(f"route {rule}", attributes={"aimx.route.rule": rule, "aimx.route.decision": "refuse"})
    hop.error(status)
    hop.end()
    return Refused(Reply(550, status, f"<{route.recipient}>: {route.refusal.target}; nobody got it"), rule)


def event(node: str, envelope: Envelope, arrival: Arrival, refused: Refused) -> EventRow:
    """What the log says of a refusal for good."""
    reply = refused.reply
    return refused.row or events.message_rejected(
        events.Stamp(node, arrival.now_ms, ref(arrival.span.context), envelope.agent),
        code=reply.code,
        status=reply.enhanced,
        by=envelope.agent or "",
        recipients=envelope.recipients,
        facts=facts(envelope, arrival, refused.rule, reply),
    )


class TurnedAway(Counter[tuple[int, str, int]]):
    """Strangers' refusals since they were last recorded: how many by code, status and minute (Unix ms of its start)."""

    def add(self, reply: Reply, now_ms: int) -> None:
        self[reply.code, reply.enhanced, now_ms - now_ms % 60_000] += 1

    def rows(self, stamp: events.Stamp) -> list[EventRow]:
        """One event for each of them."""
        return [
            events.message_rejected(stamp, code=code, status=status, by="", n=n, since_ms=minute_ms)
            for (code, status, minute_ms), n in self.items()
        ]


def of_logins(stamp: events.Stamp, refused: Mapping[Via, Refusals]) -> list[EventRow]:
    """One event for each door, however many attempts there were."""
    return [
        events.login_refused(
            stamp,
            via=via,
            n=door.n,
            since_ms=door.since_ms,
            sources=sorted(door.sources),
            accounts=sorted(door.accounts),
        )
        for via, door in refused.items()
    ]


def facts(envelope: Envelope, arrival: Arrival, rule: str, reply: Reply) -> dict[str, Any]:
    """For the timeline."""
    return {
        "sender": envelope.sender,
        "recipients": list(envelope.recipients),
        "rule": rule,
        "text": reply.text,
        "reply": f"{reply.code} {reply.enhanced}",
        "depth": arrival.depth,
        "workflow": arrival.told.workflow,
        "message_id": arrival.told.message_id,
        "in_reply_to": arrival.told.in_reply_to,
    }
