"""THE span catalogue and THE metric catalogue, as data.

What AIMX emits is listed here and nowhere else: `docs/spans.md` is checked against it by a test, and `metrics`
refuses a name that is not in it. Conventions: OpenTelemetry messaging (development), `messaging.system` is `aimx`.
Names are of low cardinality: `{rule}` and the like stand for names from the configuration, never for an address, an
id or a subject.
"""

import re
from enum import StrEnum
from typing import NamedTuple

from aimx.telemetry.span import CLIENT, CONSUMER, INTERNAL, PRODUCER, SERVER, Kind


class Relation(StrEnum):
    """What a span hangs under or is linked to, where that is no one span of this catalogue."""

    ROOT = "none"
    """It begins a trace."""
    CURRENT = "the caller's current span"
    CREATION = "creation context"
    """What `traceparent` of the message says: the span in which an agent, or a node, made it."""
    CLAIMED = "a stranger's claimed context"
    COVERED = "spans of the events it covers"


ROOT, CURRENT, CREATION, CLAIMED, COVERED = Relation


class SpanSpec(NamedTuple):
    name: str
    """Template; `{word}` is a name from the configuration."""
    kind: Kind
    parents: tuple[str, ...]
    """Names of this catalogue, and `Relation`s: any of them can be the parent."""
    links: tuple[str, ...]
    """The same, for what it is linked to."""
    attributes: tuple[str, ...]
    events: tuple[str, ...]
    doc: str


COMMON = (
    "messaging.system",
    "messaging.operation.name",
    "messaging.message.id",
    "messaging.message.conversation_id",
    "gen_ai.conversation.id",
    "gen_ai.agent.id",
    "aimx.workflow.id",
    "aimx.agent.id",
    "error.type",
)
"""Attributes that any span about one message may carry."""

_MESSAGING = ("messaging.destination.name", "messaging.operation.type")

SPANS: tuple[SpanSpec, ...] = (
    SpanSpec(
        "send",
        PRODUCER,
        (CURRENT, ROOT, "process"),
        (),
        (*_MESSAGING, "messaging.message.body.size", "server.address", "server.port"),
        (),
        "The SDK sends a message. Its context is the creation context.",
    ),
    SpanSpec(
        "smtp receive",
        SERVER,
        (CREATION, "relay {peer}", ROOT),
        (CLAIMED, CREATION, "smtp receive"),
        (
            "messaging.message.envelope.size",
            "messaging.batch.message_count",
            "smtp.response.status_code",
            "smtp.response.enhanced_code",
            "aimx.context.source",
            "aimx.context.trusted",
            "aimx.context.invalid",
            "aimx.depth",
            "aimx.loop.detected",
            "aimx.loop.rule",
            "aimx.loop.count",
            "aimx.loop.limit",
            "aimx.trace_only",
            "aimx.idempotent.replay",
            "aimx.idempotent.first",
            "tls.protocol.version",
        ),
        ("smtp.auth", "smtp.recipient_refused", "loop.warned", "loop.refused"),
        "One SMTP transaction, from MAIL to the reply after the data.",
    ),
    SpanSpec(
        "route {rule}",
        INTERNAL,
        ("smtp receive", "route {rule}"),
        (),
        (
            "aimx.route.rule",
            "aimx.route.decision",
            "aimx.priority",
            "aimx.hop.index",
            "aimx.hop.count",
            "aimx.loop.verdict",
            "aimx.trace_only",
            "messaging.destination.name",
        ),
        (),
        "One routing decision: mailbox, pool member, list members, relay, webhook, lmtp, refuse.",
    ),
    SpanSpec(
        "audit append",
        INTERNAL,
        ("smtp receive", "deliver {transport}", "dead-letter {queue}", CREATION, ROOT),
        (),
        ("aimx.audit.event", "aimx.audit.leaf"),
        (),
        "From building the leaf to the commit that makes it durable. The leaf is a prefix of its hash.",
    ),
    SpanSpec(
        "enqueue {queue}",
        PRODUCER,
        ("route {rule}", "smtp receive", "dead-letter {queue}"),
        (),
        (*_MESSAGING, "aimx.queue.reason"),
        (),
        "One per queued recipient; its context is stored in the queue row.",
    ),
    SpanSpec(
        "deliver {transport}",
        CONSUMER,
        ("enqueue {queue}", "route {rule}", "smtp receive", "dead-letter {queue}", ROOT),
        (CREATION, "deliver {transport}"),
        (
            *_MESSAGING,
            "aimx.delivery.attempt",
            "aimx.queue.wait",
            "aimx.outcome",
            "aimx.trace.rollover",
            "aimx.destination.circuit",
        ),
        ("retry.scheduled",),
        "One attempt; a late one begins a trace (`aimx.trace.rollover`). Failed: status ERROR, and `retry.scheduled`"
        " says the delay and the next attempt.",
    ),
    SpanSpec(
        "relay {peer}",
        CLIENT,
        ("deliver {transport}",),
        (),
        (
            "server.address",
            "server.port",
            "tls.protocol.version",
            "smtp.response.status_code",
            "smtp.response.enhanced_code",
        ),
        (),
        "The dialogue with another server.",
    ),
    SpanSpec(
        "lmtp {name}",
        CLIENT,
        ("deliver {transport}",),
        (),
        (
            "server.address",
            "server.port",
            "tls.protocol.version",
            "smtp.response.status_code",
            "smtp.response.enhanced_code",
        ),
        (),
        "The dialogue with a mail store.",
    ),
    SpanSpec(
        "webhook {name}",
        CLIENT,
        ("deliver {transport}",),
        (),
        (
            "http.request.method",
            "http.request.resend_count",
            "http.response.status_code",
            "server.address",
            "server.port",
        ),
        (),
        "The request; `traceparent` goes in it too.",
    ),
    SpanSpec(
        "mailbox append",
        INTERNAL,
        ("deliver {transport}",),
        (),
        ("aimx.mailbox.uid", "aimx.mailbox.name"),
        (),
        "The entry in the mailbox.",
    ),
    SpanSpec(
        "dead-letter {queue}",
        PRODUCER,
        ("deliver {transport}",),
        (CREATION,),
        ("aimx.queue.reason", "aimx.delivery.attempt"),
        (),
        "Given up; the DSN is a new message in the same trace.",
    ),
    *(
        SpanSpec(
            f"imap {command}",
            SERVER,
            (CREATION, ROOT),
            (CREATION,),
            (
                "messaging.batch.message_count",
                "aimx.pickup.latency",
                "aimx.ack",
                "imap.command",
                "imap.response.status",
            ),
            (),
            doc,
        )
        for command, doc in (
            ("fetch", "Content of messages was read."),
            ("store", "Flags changed; `aimx.ack` when the change acknowledged messages."),
            ("append", "A client put a message into a mailbox."),
            ("copy", "Messages were copied."),
            ("move", "Messages were moved."),
            ("expunge", "Messages were removed."),
        )
    ),
    SpanSpec(
        "http {operation}",
        SERVER,
        (CURRENT, ROOT),
        (CLAIMED,),
        ("http.request.method", "http.route", "http.response.status_code", "url.scheme"),
        (),
        "One HTTP request, by its operation's name in `/openapi.json`. None for `/healthz`, `/readyz`, `/metrics`.",
    ),
    SpanSpec(
        "audit integrate",
        INTERNAL,
        (ROOT,),
        (COVERED,),
        ("aimx.audit.size.before", "aimx.audit.size.after", "aimx.audit.lag", "aimx.audit.leaves"),
        (),
        "The sequencer put leaves into the tree.",
    ),
    SpanSpec(
        "checkpoint sign",
        INTERNAL,
        (ROOT,),
        (),
        ("aimx.audit.size.after", "aimx.audit.origin"),
        (),
        "A tree head was signed.",
    ),
    SpanSpec(
        "checkpoint witness",
        CLIENT,
        (ROOT,),
        (),
        (
            "aimx.audit.size.after",
            "aimx.audit.anchor",
            "aimx.audit.witness",
            "aimx.audit.verdict",
            "http.response.status_code",
        ),
        (),
        "A checkpoint was handed to an outsider: a witness, a mailbox, a time stamp authority.",
    ),
    SpanSpec(
        "process",
        CONSUMER,
        (CREATION,),
        ("route {rule}",),
        (*_MESSAGING, "messaging.message.body.size"),
        (),
        "The SDK's worker handles a message; what it sends meanwhile stays in the trace.",
    ),
    SpanSpec(
        "ack",
        CLIENT,
        ("process", CURRENT, CREATION),
        (),
        _MESSAGING,
        (),
        "The SDK acknowledges a message.",
    ),
)

_TEMPLATES = [
    (
        re.compile(
            "".join(
                r"[^\s{}]++" if part.startswith("{") else re.escape(part) for part in re.split(r"(\{\w+\})", s.name)
            )
        ),
        s,
    )
    for s in SPANS
]


def span_spec(name: str) -> SpanSpec | None:
    """The catalogue entry that a span's name belongs to; None for a name that AIMX must not emit."""
    return next((spec for pattern, spec in _TEMPLATES if pattern.fullmatch(name)), None)


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_DELIVERY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400, 86400)
_STEPS = (1, 2, 3, 5, 8, 13, 21, 34, 55)
_HTTP = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""As the conventions for HTTP metrics advise."""
_DATABASE = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
"""As the conventions for database client metrics advise."""
_SIZES = (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26)


class MetricSpec(NamedTuple):
    """`kind` is counter, gauge or histogram; `unit` is UCUM (s, By, or an annotation such as {message})."""

    name: str
    kind: str
    unit: str
    labels: tuple[str, ...]
    doc: str
    buckets: tuple[float, ...] = ()
    shared: bool = False
    """Each worker of a node says the same, of what they share: a node's value is the largest, never the sum."""


def _counter(name: str, unit: str, labels: tuple[str, ...], doc: str) -> MetricSpec:
    return MetricSpec(name, "counter", unit, labels, doc)


def _gauge(name: str, unit: str, labels: tuple[str, ...], doc: str, shared: bool = False) -> MetricSpec:
    return MetricSpec(name, "gauge", unit, labels, doc, shared=shared)


def _histogram(name: str, unit: str, labels: tuple[str, ...], doc: str, buckets: tuple[float, ...]) -> MetricSpec:
    return MetricSpec(name, "histogram", unit, labels, doc, buckets)


METRICS: tuple[MetricSpec, ...] = (
    # Label values: door agent|peer|stranger|imap|http|internal; outcome delivered|deferred|failed.
    _counter("aimx.messages.accepted", "{message}", ("door",), "Messages answered 250 (or taken by APPEND)."),
    _counter("aimx.messages.rejected", "{message}", ("code",), "Messages or recipients refused, by enhanced code."),
    _counter("aimx.messages.repeated", "{message}", ("outcome",), "Idempotency keys seen again: replayed or refused."),
    _histogram("aimx.message.size", "By", ("door",), "Size of accepted messages.", _SIZES),
    _histogram("aimx.accept.duration", "s", ("door",), "From the end of the data to the reply.", _LATENCY),
    _counter("aimx.deliveries", "{attempt}", ("transport", "outcome", "error_type"), "Delivery attempts."),
    _histogram("aimx.delivery.duration", "s", ("transport",), "From acceptance to the mailbox or peer.", _DELIVERY),
    _histogram("aimx.delivery.attempts", "{attempt}", ("transport",), "Attempts a finished delivery took.", _STEPS),
    _counter("aimx.bounces", "{message}", ("reason",), "DSNs sent: why given up, or what is reported (delayed, …)."),
    _counter(
        "aimx.destination.circuit.opened", "{time}", ("transport",), "A destination failed and is left alone a while."
    ),
    _gauge(
        "aimx.destination.circuits",
        "{destination}",
        ("state",),
        "Destinations that are left alone or probed.",
        shared=True,
    ),
    # reason: audit, disk, store, queue, memory, failure: ours; agent, address: they send too fast
    _counter("aimx.pressure.refusals", "{refusal}", ("reason",), "Temporary refusals because it was too much."),
    _gauge("aimx.queue.depth", "{delivery}", (), "Deliveries waiting, for whatever transport.", shared=True),
    _gauge("aimx.queue.oldest_age", "s", (), "How long the oldest waiting delivery has been due.", shared=True),
    _gauge("aimx.smtp.sessions", "{session}", (), "Open SMTP sessions."),
    _counter("aimx.smtp.commands", "{command}", ("verb", "reply_class"), "SMTP commands, by class of the reply."),
    _gauge("aimx.imap.sessions", "{session}", ("state",), "Open IMAP sessions."),
    _counter("aimx.imap.commands", "{command}", ("verb", "status"), "IMAP commands."),
    _histogram("aimx.imap.command.duration", "s", ("verb",), "Time an IMAP command took.", _LATENCY),
    _histogram("aimx.pickup.latency", "s", (), "From the mailbox to the first FETCH of the content.", _DELIVERY),
    _histogram("aimx.agent.response.duration", "s", (), "From a message's acceptance to its answer's.", _DELIVERY),
    _counter("aimx.auth.attempts", "{attempt}", ("door", "mechanism", "outcome"), "Authentication attempts."),
    _counter("aimx.context.extracted", "{message}", ("source", "trusted"), "Where messages took their trace from."),
    _histogram("aimx.hops", "{hop}", (), "Route hops of a message.", _STEPS),
    _histogram("aimx.depth", "{message}", (), "Answers in a row, counted when a message is accepted.", _STEPS),
    _counter("aimx.loops.detected", "{message}", ("rule", "verdict"), "Loop guard: warned or refused."),
    _histogram(
        "db.client.operation.duration",
        "s",
        ("db.system.name", "db.operation.name"),
        "One call of the store, waiting for its turn included; operations are the store contract's.",
        _DATABASE,
    ),
    _histogram("aimx.store.commit.duration", "s", (), "One group commit.", _LATENCY),
    _histogram("aimx.store.commit.batch", "{write}", (), "Writes in one group commit.", _STEPS),
    _gauge("aimx.bytes.held", "By", (), "Message bytes in memory, against the node's budget."),
    _counter("aimx.audit.leaves", "{leaf}", ("event",), "Leaves written."),
    _gauge("aimx.audit.size", "{leaf}", (), "Leaves in the tree.", shared=True),
    _gauge("aimx.audit.lag", "s", (), "Age of the oldest event that is not in the tree yet.", shared=True),
    _histogram("aimx.audit.integrate.duration", "s", (), "One batch of the sequencer.", _LATENCY),
    _gauge(
        "aimx.audit.verdict",
        "{verdict}",
        ("verdict",),
        "1 for the last self-check's: consistent, inconsistent, or unknown (it could not be made).",
        shared=True,
    ),
    _counter("aimx.audit.verify.failures", "{failure}", (), "Verifications that found something wrong."),
    _counter("aimx.audit.anchors", "{request}", ("kind", "name", "outcome"), "Outsiders asked to hold a checkpoint."),
    _gauge(
        "aimx.audit.anchor.age", "s", ("kind", "name"), "Since an outsider last confirmed a checkpoint.", shared=True
    ),
    _counter("aimx.audit.witness.answers", "{request}", ("outcome",), "What this node answered as a witness."),
    _counter("aimx.spans.exported", "{span}", (), "Spans the collector took."),
    _counter("aimx.spans.dropped", "{span}", ("reason",), "Spans lost: buffer full, or the collector refused."),
    _counter(
        "aimx.spans.events",
        "{event}",
        ("event", "fate"),
        "Events of messages whose `audit append` span was exported, or unsampled; against `aimx.audit.leaves`.",
    ),
    _histogram(
        "http.server.request.duration",
        "s",
        ("http.request.method", "http.route", "http.response.status_code"),
        "One HTTP request.",
        _HTTP,
    ),
)


def metric_spec(name: str) -> MetricSpec:
    """KeyError for a metric that is not in the catalogue."""
    return _METRICS_BY_NAME[name]


_METRICS_BY_NAME = {spec.name: spec for spec in METRICS}


# ── documentation ────────────────────────────────────────────────────────────────────────────────────────────────────


def tables() -> str:
    """Both catalogues as the Markdown tables of `docs/spans.md`; `python -m aimx.telemetry.catalogue` prints them."""
    lines = ["## Spans", "", "| span | kind | parent → links | says |", "|---|---|---|---|"]
    for spec in SPANS:
        family = _family(spec.parents) + (f" → {_family(spec.links)}" if spec.links else "")
        lines.append(f"| `{spec.name}` | {spec.kind.name} | {family} | {spec.doc} |")
    lines += ["", "## Attributes and events", "", "| span | attributes | events |", "|---|---|---|"]
    lines.append(f"| any that is about one message | {_code(COMMON)} | |")
    for spec in SPANS:
        lines.append(f"| `{spec.name}` | {_code(spec.attributes)} | {_code(spec.events)} |")
    lines += ["", "## Metrics", "", "| metric | kind | unit | labels | says |", "|---|---|---|---|---|"]
    for metric in METRICS:
        lines.append(f"| `{metric.name}` | {metric.kind} | {metric.unit} | {_code(metric.labels)} | {metric.doc} |")
    return "\n".join(lines) + "\n"


def _family(names: tuple[str, ...]) -> str:
    return ", ".join(name if isinstance(name, Relation) else f"`{name}`" for name in names)


def _code(words: tuple[str, ...]) -> str:
    return ", ".join(f"`{word}`" for word in words)


if __name__ == "__main__":
    print(tables(), end="")
