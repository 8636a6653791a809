"""What the HTTP side answers with, as the OpenAPI document describes it.

Times named `…_ms` are Unix milliseconds, or a length in milliseconds where the description says so. Trace ids are 32,
span ids 16 lowercase hex digits. Message ids are ULIDs.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from aimx.sidecar.timeline import Counts, Participant, Timeline
from aimx.sidecar.visibility import facts
from aimx.store.contract import Hold, Located, MessageRecord, Pending, StoredEvent

ULID = r"^[0-7][0-9A-HJKMNP-TV-Z]{25}$"
MESSAGE = r"^(?:[0-7][0-9A-HJKMNP-TV-Z]{25}|<[!-;=?-~]{1,996}>)$"
"""A message: by its id, or by its Message-ID header with angle brackets."""
TRACE_ID = r"^[0-9a-f]{32}$"
A_ULID = "01KAQ5XV2M8Z7Q4T9H3W6E1R0C"
A_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
A_SPAN = "00f067aa0ba902b7"

TraceId = Annotated[str, Field(pattern=TRACE_ID, examples=[A_TRACE])]
SpanId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$", examples=[A_SPAN])]
Eid = Annotated[str, Field(pattern=ULID, examples=[A_ULID])]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class WrongValue(_Model):
    where: str = Field(examples=["query.limit"])
    detail: str = Field(examples=["Input should be less than or equal to 200"])


class ProblemBody(_Model):
    """An RFC 9457 problem. `type` names the kind, `detail` says what to do."""

    model_config = ConfigDict(frozen=True, title="Problem")

    type: str = Field(examples=["urn:aimx:problem:not-found"])
    title: str = Field(examples=["There is no such thing"])
    status: int = Field(ge=400, le=599, examples=[404])
    detail: str
    errors: list[WrongValue] | None = Field(None, description="With 422: each wrong value.")
    problems: list[str] | None = Field(None, description="With 503 of `/readyz`: what keeps the node from serving.")


class Health(_Model):
    status: Literal["ok"] = "ok"


class Readiness(_Model):
    status: Literal["ready"] = "ready"


class Message(_Model):
    """A message's envelope."""

    id: Eid
    t_ms: int = Field(description="When it was accepted.", examples=[1780000000123])
    sender: str = Field(description="Envelope sender; empty for a failure notice.", examples=["planner@fabric.local"])
    agent: str | None = Field(description="The account that sent it; null for what AIMX itself sends.")
    recipients: list[str] = Field(description="Envelope recipients as given. A recipient is shown only itself.")
    delivered_to: list[str] = Field(description="Final addresses after routing. A recipient is shown only itself.")
    message_id: str = Field(description="The Message-ID header.")
    in_reply_to: str | None
    subject: str
    content_type: str
    workflow: str | None
    priority: int
    trace_id: TraceId
    span_id: SpanId
    context_source: str = Field(
        description="Where the trace context came from: `hop`, `header`, `in_reply_to`, `references` or `new`."
    )
    depth: int = Field(description="Length of the chain of answers that it ends.")
    size: int = Field(description="Octets of the stored message.")

    @classmethod
    def of(cls, record: MessageRecord) -> "Message":
        return cls(
            id=record.eid,
            t_ms=record.t_ms,
            sender=record.sender,
            agent=record.agent,
            recipients=list(record.recipients),
            delivered_to=list(record.delivered_to),
            message_id=record.message_id,
            in_reply_to=record.in_reply_to,
            subject=record.subject,
            content_type=record.content_type,
            workflow=record.workflow,
            priority=record.priority,
            trace_id=record.origin.trace_id.hex(),
            span_id=record.origin.span_id.hex(),
            context_source=record.context_source,
            depth=record.depth,
            size=record.header_size + record.body_size,
        )


class MessagePage(_Model):
    items: list[Message] = Field(description="Newest first.")
    next_cursor: str | None = Field(
        description="Give it as `cursor` for the next page; null on the last. The `Link` header says the same."
    )


class Event(_Model):
    """One event of the audit log, with what the timeline knows of it."""

    id: Eid
    event: str = Field(description="Name in the event catalogue.", examples=["delivery.mailbox"])
    t_ms: int
    agent: str | None = Field(description="Who caused it: an address, `admin`, or null for AIMX itself.")
    message: str | None = Field(description="The message's id, where the event is about exactly one.")
    trace_id: TraceId
    span_id: SpanId
    audit_index: int | None = Field(description="Place in the audit log; null while it waits to be logged.")
    detail: dict[str, Any] = Field(description="Facts that differ from event to event; see the timeline.")

    @classmethod
    def of(cls, event: StoredEvent) -> "Event":
        row = event.row
        return cls(
            id=row.eid,
            event=row.ev,
            t_ms=row.t_ms,
            agent=row.agent,
            message=row.ref,
            trace_id=row.trace_id.hex(),
            span_id=row.span_id.hex(),
            audit_index=event.index,
            detail=facts(row),
        )


class Location(_Model):
    """Where a copy of a message lies now."""

    owner: str
    folder: str = Field(examples=["INBOX"])
    uid: int
    flags: list[str] = Field(examples=[["\\Seen", "$AimxDone"]])

    @classmethod
    def of(cls, located: Located) -> "Location":
        return cls(owner=located.owner, folder=located.folder, uid=located.uid, flags=sorted(located.flags))


class Waiting(_Model):
    """A delivery that waits in the queue."""

    address: str
    queue: str
    transport: str
    priority: int
    attempt: int = Field(description="How many attempts were made.")
    reason: str
    created_ms: int
    next_ms: int = Field(description="When the next attempt is due.")
    deadline_ms: int = Field(description="When it is given up and the sender told.")

    @classmethod
    def of(cls, pending: Pending) -> "Waiting":
        return cls(
            address=pending.address,
            queue=pending.queue,
            transport=pending.transport,
            priority=pending.priority,
            attempt=pending.attempt,
            reason=pending.reason,
            created_ms=pending.created_ms,
            next_ms=pending.next_ms,
            deadline_ms=pending.deadline_ms,
        )


class Payload(_Model):
    """What the message says, as JSON, whatever it was written in."""

    content_type: str = Field(description="Of the part that holds the payload.")
    size: int = Field(description="Octets, decoded.")
    value: Any = Field(description="Null when there is none or it cannot be read; `note` says so.")
    note: str | None = Field(
        description="What to know about `value`: it was cut, or Protocol Buffers were read without a descriptor."
    )


class MessageDetail(_Model):
    message: Message
    erased: bool = Field(description="Its content was erased; what happened to it remains.")
    payload: Payload | None = Field(description="Null when erased. An admin's look at it is itself an event.")
    events: list[Event] = Field(description="Everything that happened to it, in order.")
    copies: list[Location]
    waiting: list[Waiting]
    trace_ids: list[TraceId] = Field(description="All traces that its events carry, first seen first.")


class TraceView(_Model):
    trace_id: TraceId
    messages: list[Message] = Field(description="Oldest first.")
    events: list[Event] = Field(description="All events that carry this trace, in order; at most 10,000.")
    tree: Timeline = Field(description="Who answered whom, and what happened to each message.")


class WorkflowWarning(_Model):
    """Something in a workflow that a person should look at."""

    kind: Literal["loop", "refused", "bounced", "waiting", "deep", "truncated"]
    message: str | None = Field(description="Id of the message, or of the event where the message was refused.")
    text: str


class WorkflowView(_Model):
    workflow: str
    trace_ids: list[TraceId]
    started_ms: int
    duration_ms: int = Field(description="Length, from its first event to its last so far.")
    depth: int = Field(description="Of its deepest message.")
    outcome: str
    counts: Counts
    agents: list[Participant] = Field(description="In order of appearance.")
    warnings: list[WorkflowWarning]
    messages: list[Message] = Field(description="In order. At most the newest 1,000.")


class MessageProof(_Model):
    """All that is needed to check one event of a message offline."""

    eid: Eid = Field(description="The event's id; of an acceptance it is the message's.")
    event: str = Field(description="The event's name in the catalogue.", examples=["message.accepted"])
    index: int = Field(description="Place in the log.")
    leaf: str = Field(description="The leaf's octets, which are canonical JSON in UTF-8.")
    proof: str = Field(description="A C2SP tlog-proof: place, path and signed checkpoint.")
    opening: dict[str, Any] | None = Field(
        description="The key that opens the leaf's commitments and the committed values by part, octets in hex. "
        "Null when erased. A recipient is not given the list of recipients."
    )
    verifiers: list[str] = Field(description="The log's and the receipts' verifier keys (C2SP vkey).")


class Finding(_Model):
    kind: str = Field(examples=["leaf-edited"])
    text: str
    leaf: int | None
    eid: str | None


class Witnessed(_Model):
    by: int = Field(description="How many of the policy's witnesses have cosigned one state of the log.")
    of: int
    size: int = Field(description="Leaves in that state.")
    quorum: bool = Field(description="They are enough, by the policy.")


class VerifyReport(_Model):
    """What `aimx audit verify --json` says."""

    model_config = ConfigDict(frozen=True, extra="allow")

    ok: bool = Field(description="Nothing is wrong.")
    consistent: Literal["CONSISTENT", "INCONSISTENT"]
    complete: Literal["COMPLETE", "PENDING", "UNRECONCILED"] | None
    anchored: Literal["ANCHORED", "NOT ANCHORED"]
    anchored_s: float | None = Field(description="Seconds since somebody outside confirmed a state of the log.")
    witnessed: Witnessed | None = Field(description="Null where no witness is known.")
    words: list[str] = Field(description="The verdicts as `aimx audit verify` prints them.")
    origin: str
    size: int = Field(description="Leaves in the log.")
    root: str
    checked: dict[str, int]
    since: int = Field(description="Leaves before this one were not read again.")
    erased: int
    pending: int
    wrong: int
    first: Finding | None
    findings: list[Finding]
    seconds: float


class Verification(_Model):
    """One verification of the whole log, as a job."""

    id: Eid = Field(description="The job's id.")
    state: Literal["running", "done", "failed"] = Field(description="`failed`: it could not be carried out.")
    started_ms: int
    ended_ms: int | None
    done: int = Field(description="How many leaves and events were looked at.")
    total: int = Field(description="Of how many; 0 while that is not known.")
    report: VerifyReport | None = Field(description="What was found, once it is done.")


class Verifications(_Model):
    items: list[Verification]


class Consistency(_Model):
    """That a tree begins with an earlier one (RFC 6962 §2.1.2). Hashes are base64."""

    origin: str
    old: int = Field(alias="from")
    new: int = Field(alias="to")
    old_root: str = Field(alias="from_root")
    new_root: str = Field(alias="to_root")
    proof: list[str] = Field(description="Empty where `from` is 0 or equal to `to`.")

    model_config = ConfigDict(frozen=True, populate_by_name=True)


HoldKind = Literal["message", "workflow", "agent"]
SUBJECT = r"^[^\x00-\x1f\x7f]+$"


class EraseRequest(_Model):
    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str = Field(
        "request",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$",
        description="A word or two, kept in the log for good and in the clear: no name of anybody.",
    )


class Erasure(_Model):
    eid: Eid
    survivors: list[str] = Field(description="Where copies may survive that the node cannot reach.")


class HoldRequest(_Model):
    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: HoldKind
    subject: str = Field(pattern=SUBJECT, max_length=320, description="A message's id, a workflow, an address.")
    reason: str = Field(pattern=SUBJECT, max_length=500)


class LegalHold(_Model):
    kind: HoldKind
    subject: str
    reason: str
    by: str
    since_ms: int

    @classmethod
    def of(cls, hold: Hold) -> "LegalHold":
        return cls(kind=hold.kind, subject=hold.subject, reason=hold.reason, by=hold.by, since_ms=hold.t_ms)


class Holds(_Model):
    items: list[LegalHold]
