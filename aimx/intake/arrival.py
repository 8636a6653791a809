"""One message on its way in, and the span of its transaction."""

from dataclasses import dataclass
from functools import lru_cache

from aimx.intake.envelope import Envelope, Octets, Reply
from aimx.intake.told import Told
from aimx.store.contract import Lineage, SpanRef
from aimx.telemetry import metrics
from aimx.telemetry.context import Choice, Context, Door, Source
from aimx.telemetry.span import SERVER, Attributes, Facts, Span, Tracer

REJECTED = metrics.counter("aimx.messages.rejected")  # by enhanced code
CONTEXTS = metrics.counter("aimx.context.extracted")


@dataclass(slots=True)
class Arrival:
    """What is known of a message once it was read."""

    eid: str
    now_ms: int
    octets: Octets
    told: Told
    lineage: Lineage
    choice: Choice
    span: Span
    said: bytes
    """The payload, its transfer encoding undone."""
    payload: bytes
    """Its hash, or that of the whole body where it is long."""
    depth: int
    hops_before: int = 0
    """How many a peer reports."""
    template: bytes = b""
    """The payload's hash but for numbers, times and ids; empty where it cannot matter (see `guard`)."""

    @property
    def own_context(self) -> Context | None:
        """What the message itself says, where that may stand: the creation context is never changed."""
        context = self.told.context
        believed = self.choice.source in (Source.HEADER, Source.HOP)
        return context if believed and isinstance(context, Context) else None

    @property
    def creation(self) -> Context:
        """The sender's own context where it may stand, else the one this node stamps: its receiving span."""
        return self.own_context or self.span.context

    @property
    def loop_key(self) -> str:
        return self.lineage.loop_key or self.told.workflow or self.creation.trace_id.hex()


def ref(context: Context) -> SpanRef:
    return SpanRef(context.trace_id, context.span_id)


def receive(tracer: Tracer, envelope: Envelope, choice: Choice | None = None, told: Told | None = None) -> Span:
    """`smtp receive`, begun when MAIL came. Without `told`: nothing of the message was read."""
    trusted = envelope.door is not Door.STRANGER
    span = tracer.start(
        "smtp receive",
        SERVER,
        choice.context if choice else None,
        links=choice.links if choice else (),
        attributes=_sender(envelope.agent, trusted),
        start_ns=envelope.started_ns,
    )
    if choice is not None:
        span.set("aimx.context.source", choice.source.value)
        CONTEXTS.labels(choice.source.value, "true" if trusted else "false").add()
    if told is None:
        return span
    if not isinstance(told.context, Context) and told.context.reason != "absent":
        span.set("aimx.context.invalid", told.context.reason)
    if told.message_id is not None:
        span.set("messaging.message.id", told.message_id)
    if told.workflow is not None:
        span.say(_conversation(told.workflow))
    return span


def replied(span: Span, envelope: Envelope, reply: Reply) -> None:
    """The transaction is over: what the door saw, and what it answers."""
    for name, t_ns, attributes in envelope.events:
        span.event(name, attributes, max(t_ns, span.start_ns))  # who signed in did so before MAIL
    span.set("messaging.message.envelope.size", envelope.upload.size)
    span.say(_outcome(envelope.tls, len(envelope.recipients), reply.code, reply.enhanced))
    if not reply.accepted:
        span.error(reply.enhanced)
        REJECTED.labels(reply.enhanced).add()
    span.end()


@lru_cache(1024)
def _sender(agent: str | None, trusted: bool) -> Facts:
    known: Attributes = {"messaging.system": "aimx", "aimx.context.trusted": trusted}
    if agent is not None:
        name = agent.partition("@")[0]  # never the address
        known |= {"gen_ai.agent.id": name, "aimx.agent.id": name}
    return Facts(known)


@lru_cache(1024)
def _conversation(workflow: str) -> Facts:
    names = ("messaging.message.conversation_id", "gen_ai.conversation.id", "aimx.workflow.id")
    return Facts(dict.fromkeys(names, workflow))


@lru_cache(1024)
def _outcome(tls: str, recipients: int, code: int, enhanced: str) -> Facts:
    return Facts(
        {
            **({"tls.protocol.version": tls} if tls else {}),
            "messaging.batch.message_count": recipients,
            "smtp.response.status_code": code,
            "smtp.response.enhanced_code": enhanced,
        }
    )
