"""A conversation as one tree: who answered whom, and under each message what happened to it and how long it took.

Read from the store's messages and events alone, so it needs no tracing backend and shows what one would miss: waits in
the queue, pickup, acknowledgement, and messages that were refused and never stored. The tree is kept flat, in reading
order, because a runaway loop makes it deeper than nested JSON may be.

Messages hang under what they answer: the message that In-Reply-To names; for a failure notice, the message that
failed; else the newest earlier message that was delivered to the sender, one less deep if there is one, which is how
the loop guard counts. Times are Unix milliseconds; `at_ms` counts from the start of the conversation.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from aimx.sidecar.conversation import Conversation, order, trace_conversation
from aimx.sidecar.visibility import concerns, facts, takes_part
from aimx.store.contract import MessageFilter, MessageRecord, NotFound, Store, StoredEvent

StepKind = Literal[
    "accepted", "routed", "warned", "delivered", "deferred", "bounced", "read", "flagged", "acknowledged",
    "copied", "moved", "appended", "expunged", "accessed", "erased", "refused", "relayed", "other",
]  # fmt: skip
Outcome = Literal["accepted", "waiting", "delivered", "read", "acknowledged", "bounced", "refused", "erased"]
Link = Literal["in_reply_to", "failure", "trace"]

_KINDS: dict[str, StepKind] = {
    "message.accepted": "accepted",
    "message.rejected": "refused",
    "message.deferred": "deferred",
    "message.bounced": "bounced",
    "message.read": "read",
    "message.flagged": "flagged",
    "message.copied": "copied",
    "message.moved": "moved",
    "message.appended": "appended",
    "message.expunged": "expunged",
    "message.erased": "erased",
    "mailbox.accessed": "accessed",
    "delivery.mailbox": "delivered",
    "message.relayed": "relayed",
    "delivery.webhook": "relayed",
    "delivery.lmtp": "relayed",
    "loop.warned": "warned",
    "loop.refused": "refused",
}


@dataclass(slots=True)
class Step:
    """One thing that happened to a message."""

    kind: StepKind
    event: str
    """The event's name in the audit log; a route hop is part of `message.accepted`."""
    eid: str
    t_ms: int
    at_ms: int
    agent: str | None
    """Whose mailbox or doing it was."""
    attempt: int | None
    """Number of the delivery attempt, the accepting commit's being 1."""
    wait_ms: int | None
    """How long it took to come to this: in the queue before a delivery, in the mailbox before it was read, in the
    agent's hands before it was acknowledged."""
    next_ms: int | None
    """Deferred: when the next attempt is due."""
    text: str
    """One line for a person."""
    trace_id: str
    span_id: str
    index: int | None
    """Place in the audit log; None while it waits to be logged."""
    detail: dict[str, Any]


@dataclass(slots=True)
class Copy:
    """What became of one recipient's copy."""

    address: str
    outcome: Outcome
    attempts: int
    delivered_ms: int | None = None
    read_ms: int | None = None
    acknowledged_ms: int | None = None
    next_ms: int | None = None
    """While it waits: the next attempt."""


@dataclass(slots=True)
class Entry:
    """One message of the conversation, or one that was refused and never stored."""

    id: str
    """The message's id; for a refused one, the id of the event that refused it."""
    stored: bool
    parent: str | None
    link: Link | None
    """How the parent is known."""
    level: int
    """Steps below the root, 0 for what starts the conversation."""
    t_ms: int
    at_ms: int
    sender: str
    """Empty for a failure notice, which AIMX itself sends."""
    recipients: list[str]
    subject: str | None
    message_id: str | None
    content_type: str | None
    size: int | None
    workflow: str | None
    depth: int | None
    context_source: str | None
    trace_id: str
    outcome: Outcome
    answered_after_ms: int | None
    """From the parent's delivery to this sender until this message came in."""
    duration_ms: int
    """From its acceptance to the last thing that happened to it."""
    copies: list[Copy] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)


@dataclass(slots=True)
class Participant:
    address: str
    sent: int = 0
    received: int = 0
    read: int = 0
    acknowledged: int = 0
    refused: int = 0


@dataclass(slots=True)
class Counts:
    messages: int = 0
    deliveries: int = 0
    retries: int = 0
    """Delivery attempts after the first."""
    waiting: int = 0
    read: int = 0
    acknowledged: int = 0
    bounced: int = 0
    refused: int = 0


@dataclass(slots=True)
class Timeline:
    trace_ids: list[str]
    """What was asked for first, then every other one that the events carry."""
    workflows: list[str]
    started_ms: int
    duration_ms: int
    depth: int
    """The deepest message's."""
    outcome: Outcome
    """The most telling of all messages': refused, bounced, waiting, then as far as the last one got."""
    truncated: bool
    counts: Counts
    participants: list[Participant]
    """In order of appearance."""
    entries: list[Entry]
    """The tree in reading order: each message is followed by what answered it."""

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return asdict(self)


async def timeline(store: Store, what: bytes | str, viewer: str | None = None) -> Timeline:
    """The conversation of a trace (16 bytes, or 32 hex digits), or of a message's trace (its id or Message-ID).

    `viewer` limits it to what that agent sent or received. Raises NotFound when there is nothing (to see).
    """
    return assemble(await trace_conversation(store, await _trace_of(store, what, viewer), viewer))


async def _trace_of(store: Store, what: bytes | str, viewer: str | None) -> bytes:
    if isinstance(what, bytes):
        return what
    if len(what) == 32 and "@" not in what:
        try:
            return bytes.fromhex(what)
        except ValueError:
            raise NotFound(f"{what} is neither a trace id nor a message id") from None
    if "@" in what:
        name = what if what.startswith("<") else f"<{what}>"
        found = await store.find(MessageFilter(message_id=name, viewer=viewer), 1)
        record = found[0] if found else None
    else:
        record = await store.message(what)
    if record is None or (viewer is not None and not takes_part(record, viewer)):
        raise NotFound(f"there is no message {what}")
    return record.origin.trace_id


# ── the tree, from plain data ────────────────────────────────────────────────────────────────────────────────────────


def assemble(found: Conversation) -> Timeline:
    """The tree. Pure."""
    records, events, refused = found.records, found.events, found.refused
    rows = [event.row for stored in events.values() for event in stored] + [event.row for event in refused]
    times = [record.t_ms for record in records] + [row.t_ms for row in rows]
    started = min(times)
    entries = [_entry(record, events.get(record.eid, []), started) for record in records]
    known = _Answers(records, events)
    for entry, record in zip(entries, records, strict=True):
        entry.parent, entry.link = known.parent(entry, record.in_reply_to)
    for event in refused:
        entry = _refusal(event, started)
        entry.parent, entry.link = known.parent(entry, _text(event.row.detail.get("in_reply_to")))
        entries.append(entry)
    by_id = {entry.id: entry for entry in entries}
    for entry in entries:
        if entry.parent is not None:
            entry.answered_after_ms = _answered_after(entry, by_id[entry.parent])
    ordered = _in_reading_order(entries)
    known_traces = [*found.traces, *(record.origin.trace_id for record in records), *(row.trace_id for row in rows)]
    return Timeline(
        trace_ids=[trace_id.hex() for trace_id in dict.fromkeys(known_traces)],
        workflows=list(dict.fromkeys(entry.workflow for entry in entries if entry.workflow)),
        started_ms=started,
        duration_ms=max(times) - started,
        depth=max((entry.depth or 0 for entry in entries), default=0),
        outcome=_overall(entries),
        truncated=found.truncated,
        counts=_counts(entries),
        participants=_participants(entries),
        entries=ordered,
    )


class _Answers:
    """Which earlier message another one answers."""

    def __init__(self, records: list[MessageRecord], events: Mapping[str, list[StoredEvent]]) -> None:
        self._by_message_id: dict[str, list[MessageRecord]] = {}
        self._by_recipient: dict[str, list[MessageRecord]] = {}
        for record in records:
            self._by_message_id.setdefault(record.message_id, []).append(record)
            for address in record.delivered_to:
                self._by_recipient.setdefault(address, []).append(record)
        self._failed: dict[str, str] = {}
        for eid, stored in events.items():
            for event in stored:
                notice = event.row.detail.get("dsn")
                if event.row.ev == "message.bounced" and isinstance(notice, str):
                    self._failed[notice] = eid

    def parent(self, entry: Entry, in_reply_to: str | None) -> tuple[str | None, Link | None]:
        earlier = (entry.t_ms, entry.id)
        failed = self._failed.get(entry.id)
        if failed is not None and failed != entry.id:
            return failed, "failure"
        for record in reversed(self._by_message_id.get(in_reply_to or "", [])):
            if order(record) < earlier:
                return record.eid, "in_reply_to"
        seen = self._by_recipient.get(entry.sender, [])
        seen = seen[: bisect_left(seen, earlier, key=order)]
        if not seen or (entry.depth is not None and entry.depth <= seen[0].depth):
            return None, None
        above = (record for record in reversed(seen) if entry.depth is not None and record.depth == entry.depth - 1)
        return next(above, seen[-1]).eid, "trace"


def _in_reading_order(entries: list[Entry]) -> list[Entry]:
    """Depth first, each level by time; sets `level`. Without recursion: a loop may be deep."""
    below: dict[str | None, list[Entry]] = {}
    for entry in entries:
        below.setdefault(entry.parent, []).append(entry)
    for siblings in below.values():
        siblings.sort(key=lambda entry: (entry.t_ms, entry.id))
    ordered: list[Entry] = []
    stack = list(reversed(below.get(None, [])))
    levels = {entry.id: 0 for entry in stack}
    while stack:
        entry = stack.pop()
        entry.level = levels[entry.id]
        ordered.append(entry)
        for child in reversed(below.get(entry.id, [])):
            levels[child.id] = entry.level + 1
            stack.append(child)
    return ordered


def _entry(record: MessageRecord, events: list[StoredEvent], started: int) -> Entry:
    steps = _steps(record, events, started)
    copies = _copies(record, steps)
    last = max((step.t_ms for step in steps), default=record.t_ms)
    return Entry(
        id=record.eid,
        stored=True,
        parent=None,
        link=None,
        level=0,
        t_ms=record.t_ms,
        at_ms=record.t_ms - started,
        sender=record.sender,
        recipients=list(record.recipients),
        subject=record.subject,
        message_id=record.message_id,
        content_type=record.content_type,
        size=record.header_size + record.body_size,
        workflow=record.workflow,
        depth=record.depth,
        context_source=record.context_source,
        trace_id=record.origin.trace_id.hex(),
        outcome="erased" if any(step.kind == "erased" for step in steps) else _fate(copies),
        answered_after_ms=None,
        duration_ms=max(0, last - record.t_ms),
        copies=copies,
        steps=steps,
    )


def _refusal(event: StoredEvent, started: int) -> Entry:
    row = event.row
    detail = row.detail
    recipients = detail.get("recipients")
    step = _step(event, started)
    return Entry(
        id=row.eid,
        stored=False,
        parent=None,
        link=None,
        level=0,
        t_ms=row.t_ms,
        at_ms=row.t_ms - started,
        sender=_text(detail.get("sender")) or row.agent or "",
        recipients=[str(address) for address in recipients] if isinstance(recipients, list | tuple) else [],
        subject=_text(detail.get("subject")),
        message_id=_text(detail.get("message_id")),
        content_type=_text(detail.get("content_type")),
        size=_number(detail.get("size")),
        workflow=_text(detail.get("workflow")),
        depth=_number(detail.get("depth")),
        context_source=_text(detail.get("context_source")),
        trace_id=row.trace_id.hex(),
        outcome="refused",
        answered_after_ms=None,
        duration_ms=0,
        steps=[step],
    )


def _answered_after(entry: Entry, parent: Entry) -> int | None:
    delivered = [copy.delivered_ms for copy in parent.copies if copy.address == entry.sender]
    since = delivered[0] if delivered and delivered[0] is not None else parent.t_ms
    return max(0, entry.t_ms - since)


# ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _steps(record: MessageRecord, events: list[StoredEvent], started: int) -> list[Step]:
    steps: list[Step] = []
    delivered: dict[str | None, int] = {}
    read: dict[str | None, int] = {}
    # By time, then by order of commit: clocks of two writers may differ by a little.
    for event in sorted(events, key=lambda event: (event.row.t_ms, event.seq)):
        step = _step(event, started)
        match step.kind:
            case "accepted":
                steps.append(step)
                steps += _hops(event, step)
                if "loop" in step.detail:
                    steps.append(replace(step, kind="warned", text=_say_loop(step.detail["loop"])))
                continue
            case "delivered" | "relayed":
                step.wait_ms = _first(event.row.detail.get("waited_ms"), step.t_ms - record.t_ms)
                delivered.setdefault(step.agent, step.t_ms)
            case "read":
                since = delivered.get(step.agent, record.t_ms)
                step.wait_ms = _first(event.row.detail.get("pickup_ms"), step.t_ms - since)
                read.setdefault(step.agent, step.t_ms)
            case "acknowledged":
                since = read.get(step.agent, delivered.get(step.agent, record.t_ms))
                step.wait_ms = max(0, step.t_ms - since)
            case "bounced":
                step.wait_ms = max(0, step.t_ms - record.t_ms)
            case "deferred":
                step.wait_ms = _number(event.row.detail.get("delay_ms"))
            case _:
                pass
        step.text = _say(step)
        steps.append(step)
    return steps


def _step(event: StoredEvent, started: int) -> Step:
    row = event.row
    kind = _KINDS.get(row.ev, "other")
    if kind == "flagged" and row.detail.get("ack"):
        kind = "acknowledged"
    step = Step(
        kind=kind,
        event=row.ev,
        eid=row.eid,
        t_ms=row.t_ms,
        at_ms=row.t_ms - started,
        agent=concerns(row),
        attempt=_number(row.detail.get("attempt")),
        wait_ms=None,
        next_ms=_number(row.detail.get("next_ms")) if kind == "deferred" else None,
        text="",
        trace_id=row.trace_id.hex(),
        span_id=row.span_id.hex(),
        index=event.index,
        detail=facts(row),
    )
    step.text = _say(step)
    return step


def _hops(event: StoredEvent, accepted: Step) -> list[Step]:
    route = event.row.detail.get("route")
    hops: list[Step] = []
    for hop in route if isinstance(route, list | tuple) else ():
        if not isinstance(hop, dict):
            continue
        hops.append(
            Step(
                kind="routed",
                event=accepted.event,
                eid=accepted.eid,
                t_ms=accepted.t_ms,
                at_ms=accepted.at_ms,
                agent=None,
                attempt=None,
                wait_ms=None,
                next_ms=None,
                text=_say_hop(hop),
                trace_id=accepted.trace_id,
                span_id=_text(hop.get("span_id")) or accepted.span_id,
                index=accepted.index,
                detail=dict(hop),
            )
        )
    return hops


def _say_hop(hop: Mapping[str, Any]) -> str:
    """`research: pool workers → a@fabric.local`, `recipient: mailbox a@fabric.local`."""
    decision, target = hop.get("decision") or "mailbox", hop.get("target")
    group = f" {hop.get('queue') or ''} →".replace("  ", " ") if decision in ("pool", "list") else ""
    return f"{hop.get('rule') or 'recipient'}: {decision}{group} {target or ''}".rstrip()


def _say_loop(verdict: object) -> str:
    if not isinstance(verdict, dict):
        return "the loop guard warned"
    return (
        f"the loop guard warned: {verdict.get('rule')} is {verdict.get('count')}, it warns from {verdict.get('limit')}"
    )


def _say(step: Step) -> str:
    who = step.agent or "someone"
    detail = step.detail
    match step.kind:
        case "accepted":
            return f"accepted from {who}" if step.agent else "accepted"
        case "delivered":
            again = f" at attempt {step.attempt}" if step.attempt is not None and step.attempt > 1 else ""
            return f"delivered to {who}{again}"
        case "relayed":
            again = f" at attempt {step.attempt}" if step.attempt is not None and step.attempt > 1 else ""
            return (
                f"handed over for {who} to {detail.get('host') or 'elsewhere'} by {detail.get('via') or 'relay'}{again}"
            )
        case "deferred":
            return f"{who} could not take it ({detail.get('reason') or 'no reason given'}), attempt {step.attempt or 1}"
        case "bounced":
            return f"given up for {who} ({detail.get('reason') or 'no reason given'})"
        case "refused":
            return _text(detail.get("text")) or _text(detail.get("reply")) or "refused"
        case "read":
            return f"read by {who}"
        case "acknowledged":
            return f"acknowledged by {who}"
        case "flagged":
            flags = detail.get("flags")
            named = " ".join(map(str, flags)) if isinstance(flags, list | tuple) else _text(flags) or ""
            return f"flagged by {who} {named}".rstrip()
        case "accessed":
            return f"looked at by {who}"
        case "warned":
            return _text(detail.get("text")) or "the loop guard warned"
        case "copied" | "moved" | "appended" | "expunged":
            return f"{step.kind} by {who}"
        case "erased":
            return "erased"
        case _:
            return _text(detail.get("text")) or step.event


# ── outcomes and sums ────────────────────────────────────────────────────────────────────────────────────────────────


def _copies(record: MessageRecord, steps: list[Step]) -> list[Copy]:
    copies = {address: Copy(address, "accepted", 0) for address in record.delivered_to}
    for step in steps:
        if step.agent is None or step.kind not in (
            "delivered",
            "relayed",
            "deferred",
            "bounced",
            "read",
            "acknowledged",
        ):
            continue
        copy = copies.get(step.agent)
        if copy is None:
            if step.kind in ("read", "acknowledged"):
                continue  # of a copy that was moved or shared: not this recipient's delivery
            copy = copies.setdefault(step.agent, Copy(step.agent, "accepted", 0))
        _advance(copy, step)
    return list(copies.values())


def _advance(copy: Copy, step: Step) -> None:
    copy.attempts = max(copy.attempts, step.attempt or 0, 1)
    match step.kind:
        case "delivered" | "relayed":
            copy.delivered_ms = step.t_ms if copy.delivered_ms is None else copy.delivered_ms
            copy.next_ms = None
            if copy.outcome not in ("read", "acknowledged"):
                copy.outcome = "delivered"
        case "deferred":
            if copy.delivered_ms is None:
                copy.outcome, copy.next_ms = "waiting", step.next_ms
        case "bounced":
            copy.outcome, copy.next_ms = "bounced", None
        case "read":
            copy.read_ms = step.t_ms if copy.read_ms is None else copy.read_ms
            copy.outcome = "acknowledged" if copy.outcome == "acknowledged" else "read"
        case "acknowledged":
            copy.acknowledged_ms = step.t_ms if copy.acknowledged_ms is None else copy.acknowledged_ms
            copy.outcome = "acknowledged"
        case _:
            pass


_TELLING: tuple[Outcome, ...] = ("refused", "bounced", "waiting", "accepted", "delivered", "read", "acknowledged")
"""The first that any copy or message has is what is said of the whole."""


def _fate(copies: list[Copy]) -> Outcome:
    return min((copy.outcome for copy in copies), key=_TELLING.index, default="accepted")


def _overall(entries: list[Entry]) -> Outcome:
    for outcome in ("refused", "bounced", "waiting"):
        if any(entry.outcome == outcome for entry in entries):
            return outcome
    return max(entries, key=lambda entry: (entry.t_ms, entry.id)).outcome


def _counts(entries: list[Entry]) -> Counts:
    counts = Counts()
    for entry in entries:
        counts.messages += entry.stored
        counts.refused += not entry.stored
        for copy in entry.copies:
            counts.deliveries += copy.delivered_ms is not None
            counts.retries += max(0, copy.attempts - 1)
            counts.waiting += copy.outcome == "waiting"
            counts.bounced += copy.outcome == "bounced"
            counts.read += copy.read_ms is not None
            counts.acknowledged += copy.acknowledged_ms is not None
    return counts


def _participants(entries: list[Entry]) -> list[Participant]:
    found: dict[str, Participant] = {}

    def known(address: str) -> Participant:
        return found.setdefault(address, Participant(address))

    for entry in sorted(entries, key=lambda entry: (entry.t_ms, entry.id)):
        if entry.sender:
            known(entry.sender).sent += entry.stored
            known(entry.sender).refused += not entry.stored
        for copy in entry.copies:
            member = known(copy.address)
            member.received += copy.delivered_ms is not None
            member.read += copy.read_ms is not None
            member.acknowledged += copy.acknowledged_ms is not None
    return list(found.values())


def _first(value: object, otherwise: int) -> int:
    number = _number(value)
    return max(0, otherwise) if number is None else number


def _number(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
