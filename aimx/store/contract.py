"""The Store contract: what every database behind AIMX can be asked, and what one commit holds.

Rules every store keeps, and the contract suite (`tests/store`) checks:

- A call that writes is one commit, durable when it returns. Commits of concurrent calls may be grouped; a call that
  fails inside a group fails alone.
- A call that reads is one consistent snapshot, and its cost does not grow with what else is stored.
- UIDs and MODSEQs come from the mailbox row inside the commit: they rise and become visible in that order.
- Events go in with what they witness, in the same commit. What is only known inside the commit (a UID, whether a
  mailbox was busy) is handed to the caller's *witness*, a pure function that returns the event rows. It may run on
  another thread and must not block. It may be asked twice, where a group had to be taken apart: the last answer counts.
- Addresses are lower-case. Times are Unix milliseconds. Trace ids are 16 bytes, span ids 8.
- Subscribers are called on the event loop's thread, after the commit, and must not block.
"""

from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from aimx.store.search import Ranges, SearchKey

DONE = "$AimxDone"
r"""The keyword that acknowledges a message. Unacknowledged: in INBOX, without it and without `\Deleted`."""

SYSTEM_FLAGS = ("\\Answered", "\\Deleted", "\\Draft", "\\Flagged", "\\Seen")
INBOX = "INBOX"


# ── errors: what a caller may ask for and not get ────────────────────────────────────────────────────────────────────


class StoreError(Exception):
    """A request the store understood and refuses. Everything else it raises is the store's own failure."""


class NotFound(StoreError):
    """No such agent, mailbox, message or delivery (any more)."""


class AlreadyExists(StoreError):
    """The name or address is taken."""


class OverQuota(StoreError):
    """The mailbox's owner has no room left."""


class TooManyKeywords(StoreError):
    """The owner already uses as many different keywords as a mailbox can hold."""


class Unavailable(StoreError):
    """The store cannot commit now (disk full, locked, gone). Nothing was written; the same call may succeed later."""


class ReadOnly(StoreError):
    """This process signed in as somebody who may not write that."""


class Full(Unavailable):
    """There is no room where the store writes: a disk, a tablespace, a role's limit."""


class Busy(Unavailable):
    """It has more to do than it can: no connection was free in time, another process holds the file."""


class Held(StoreError):
    """A legal hold forbids it. The text names the hold."""


class Repeated(StoreError):
    """The sender's idempotency key was used for the same message before: `eid` is that one. Nothing was written."""

    def __init__(self, eid: str) -> None:
        super().__init__(f"already accepted as {eid}")
        self.eid = eid


class KeyReused(StoreError):
    """The sender's idempotency key was used for another message. Nothing was written."""


# ── identity ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Credential:
    """What SCRAM-SHA-256 stores (RFC 5802 §3): never the password."""

    salt: bytes
    iterations: int
    stored_key: bytes
    server_key: bytes


@dataclass(frozen=True, slots=True)
class Agent:
    address: str
    credential: Credential
    created_ms: int
    disabled: bool = False
    max_unacked: int | None = None
    """Busy while it has this many unacknowledged messages. None: never."""
    quota: int | None = None
    """Octets its mailboxes may hold. None: no limit."""
    may_prioritise: bool = False
    """May ask for a priority above normal."""


# ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class EventRow:
    """One event: outbox entry, opening and timeline in one row. `leaf` is final; `key` and `detail` can be erased."""

    eid: str
    ev: str
    t_ms: int
    trace_id: bytes
    span_id: bytes
    leaf: bytes
    """Canonical JSON as it will stand in the log."""
    ref: str | None = None
    """The message's eid, where the event is about exactly one."""
    messages: tuple[str, ...] = ()
    """The messages' eids, where it is about several (one IMAP command). `events_of` finds it by each of them."""
    agent: str | None = None
    """Who caused it: an agent, `admin`, or `aimx` for what the node does of itself."""
    key: bytes | None = None
    """The 32 bytes that open the leaf's commitments."""
    detail: dict[str, Any] = field(default_factory=dict)
    """Openings (`open`) and timeline facts, JSON-able."""


@dataclass(slots=True)
class StoredEvent:
    seq: int
    """Number in this store; within a call they rise. Where many processes write, a lower one may become visible
    later."""
    row: EventRow
    index: int | None
    """Place in the log; None while it waits in the outbox."""


# ── messages and where they go ───────────────────────────────────────────────────────────────────────────────────────


class SpanRef(NamedTuple):
    trace_id: bytes
    span_id: bytes


@dataclass(slots=True)
class NewMessage:
    """A message as it will be kept: stamped header block, untouched body, and what was learned on the way in."""

    eid: str
    t_ms: int
    sender: str
    """Envelope sender; empty for a DSN."""
    agent: str | None
    """The authenticated account; None for what AIMX itself sends."""
    recipients: tuple[str, ...]
    """Envelope recipients as given, before routing."""
    header: bytes
    """Header block with the empty line that ends it."""
    body: "bytes | Staged"
    message_id: str
    """With angle brackets."""
    in_reply_to: str | None
    subject: str
    content_type: str
    workflow: str | None
    priority: int
    origin: SpanRef
    """The creation context: what `traceparent` in the stored header says."""
    trace_flags: int
    tracestate: str
    baggage: str
    context_source: str
    received: SpanRef
    """The span of the transaction that accepted it."""
    depth: int
    loop_key: str
    """Workflow, or trace in hex: what the loop guard counts by."""
    payload: bytes
    """Hash of the payload, for the loop guard."""
    template: bytes
    """Hash of the payload without numbers, times and ids."""


@dataclass(frozen=True, slots=True)
class Staged:
    """A large body whose parts are already in the store."""

    id: int
    size: int


@dataclass(frozen=True, slots=True)
class Once:
    """A sender's promise that messages under one key are one message, kept until a moment."""

    agent: str
    """The authenticated account; keys of different accounts never meet."""
    key: str
    digest: bytes
    """Of what makes it the same message: recipients, subject, content type, decoded payload."""
    until_ms: int
    """From then on the key counts as never used."""


@dataclass(frozen=True, slots=True)
class Target:
    """One final recipient, after routing."""

    address: str
    original: str
    """The envelope recipient that led here."""
    span: SpanRef
    """The enqueue span, parent of every later attempt."""
    attempt: SpanRef
    """The span of attempt 1, which is made in the accepting commit: `Due.previous` of the second one."""
    queue: str = "mailbox"
    """Low-cardinality label: `mailbox`, or the pool's or list's name."""
    transport: str = "mailbox"
    priority: int = 0
    next_ms: int = 0
    """First retry, if it must be buffered."""
    deadline_ms: int = 0
    folder: str = INBOX
    flags: frozenset[str] = frozenset()
    internal_ms: int | None = None
    """Internal date; None: the message's `t_ms`."""
    queueable: bool = True
    """False (APPEND): raise NotFound or OverQuota instead of buffering; the limit on unacknowledged does not apply."""
    destination: str = ""
    """What the queue limits and breaks by, where the transport leaves the node: a relayed recipient's domain, a
    webhook's name. Empty for mailboxes."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the transport must know later, JSON-able and small: DSN parameters (RFC 3461), …"""


class MailboxKey(NamedTuple):
    owner: str
    id: int


@dataclass(frozen=True, slots=True)
class Placed:
    """The target's mailbox has it."""

    target: Target
    mailbox: MailboxKey
    uid: int
    uidvalidity: int


BusyReason = Literal["unacknowledged", "quota", "no-mailbox"]


@dataclass(frozen=True, slots=True)
class Buffered:
    """It waits in the queue: the agent is over its limit of unacknowledged messages or over quota, or is gone."""

    target: Target
    delivery: int
    reason: BusyReason


@dataclass(frozen=True, slots=True)
class Queued:
    """It goes out by a transport that leaves the node: the queue makes attempt 1 as soon as it can."""

    target: Target
    delivery: int


Tried = Placed | Buffered
"""An attempt was made."""
Outcome = Tried | Queued


# ── the queue ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Due:
    """A delivery taken under lease; its next attempt is already stored."""

    id: int
    eid: str
    sender: str
    target: Target
    attempt: int
    """Number of this attempt; the accepting commit's was number 1."""
    created_ms: int
    due_ms: int
    """When this attempt was to be made."""
    next_ms: int
    """When the next one will be, if this one fails."""
    origin: SpanRef
    trace_flags: int
    """Of the creation context."""
    key: bytes | None
    """What the message's events are committed under; None once it is erased."""
    previous: SpanRef | None
    last_ms: int
    """When the previous attempt was made."""
    workflow: str | None


@dataclass(frozen=True, slots=True)
class Pending:
    """A queued delivery, for those who look at the queue."""

    id: int
    eid: str
    address: str
    original: str
    queue: str
    transport: str
    priority: int
    attempt: int
    created_ms: int
    next_ms: int
    deadline_ms: int
    reason: str
    destination: str
    held: bool
    """Stays where it is until somebody lets it go on; its deadline goes on running."""
    leased_by: str | None


@dataclass(frozen=True, slots=True)
class Backlog:
    """Depth and oldest `created_ms` (None when empty) of queue and audit outbox."""

    queue_depth: int
    queue_oldest_ms: int | None
    outbox_depth: int
    outbox_oldest_ms: int | None


# ── lineage: what the trace and the loop guard must know before a message is accepted ────────────────────────────────


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A stored message that the sender sent or received."""

    eid: str
    message_id: str
    origin: SpanRef
    trace_flags: int
    tracestate: str
    baggage: str
    depth: int
    workflow: str | None
    loop_key: str


@dataclass(frozen=True, slots=True)
class Past:
    sender: str
    recipients: tuple[str, ...]
    """Final addresses, sorted."""
    payload: bytes
    template: bytes
    depth: int
    t_ms: int


@dataclass(frozen=True, slots=True)
class Lineage:
    replied: Ancestor | None
    """The message In-Reply-To names, if the sender sent or received it."""
    referenced: Ancestor | None
    """The newest of References that the sender sent or received."""
    traced: Ancestor | None
    """The newest message of the same trace that was delivered to the sender."""
    loop_key: str | None
    """`workflow`, else the loop key of replied, referenced or traced, else the trace in hex, else None."""
    past: tuple[Past, ...]
    """The newest messages of the loop key, newest first, at most `window`. Filed ones (APPEND) do not count."""
    count: int
    """All messages of the loop key, but for filed ones."""
    first_ms: int | None


# ── mailboxes ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Mailbox:
    key: MailboxKey
    name: str
    r"""Unicode, `/` between levels; INBOX always upper case."""
    uidvalidity: int
    special_use: str | None
    r"""`\Sent`, `\Drafts`, `\Trash`, … (RFC 6154)."""
    subscribed: bool
    has_children: bool


@dataclass(frozen=True, slots=True)
class Status:
    """STATUS of one mailbox (RFC 3501 §6.3.10, RFC 8438)."""

    messages: int
    recent: int
    uidnext: int
    uidvalidity: int
    unseen: int
    deleted: int
    size: int
    modseq: int


@dataclass(slots=True)
class Snapshot:
    """A mailbox at SELECT."""

    mailbox: Mailbox
    uids: "array[int]"
    """Ascending, typecode 'I' (or 'L')."""
    recent_from: int
    r"""UIDs from here on are \Recent for this session."""
    first_unseen: int | None
    """UID."""
    uidnext: int
    modseq: int
    keywords: tuple[str, ...]
    """In use or once used by the owner."""


class Marked(NamedTuple):
    uid: int
    flags: frozenset[str]
    modseq: int


@dataclass(slots=True)
class Changes:
    """What happened in a mailbox after a MODSEQ."""

    modseq: int
    uidnext: int
    marked: list[Marked]
    """New and changed entries that still exist, by UID. New ones are those at or above the old uidnext."""
    vanished: list[int]
    """UIDs expunged since, ascending."""
    recent_from: int
    gone: bool = False
    """The mailbox itself was deleted."""


@dataclass(slots=True)
class Row:
    """One entry as FETCH needs it. `header` and `body` only when asked for."""

    uid: int
    eid: str
    flags: frozenset[str]
    modseq: int
    internal_ms: int
    saved_ms: int
    header_size: int
    body_size: int
    t_ms: int
    origin: SpanRef
    header: bytes | None = None
    body: bytes | None = None
    """None also when larger than the asked limit: read it in pieces with `read_body`."""


class Copied(NamedTuple):
    uidvalidity: int
    pairs: list[tuple[int, int]]
    """(source UID, new UID), ascending."""
    eids: list[str]


@dataclass(frozen=True, slots=True)
class Expunged:
    uids: list[int]
    eids: list[str]
    modseq: int


@dataclass(frozen=True, slots=True)
class Flagged:
    marked: list[Marked]
    """The entries whose flags are now as asked, changed or not, by UID."""
    eids: list[str]
    """Of those that changed, in the same order as `changed`."""
    changed: list[int]
    origins: list[SpanRef]
    """Creation contexts of the changed ones."""


# ── legal hold, nodes ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Hold:
    """While it stands, what it covers can be neither erased nor dropped by age."""

    kind: Literal["message", "workflow", "agent"]
    """`agent`: everything an address sent or received."""
    subject: str
    """An eid, a workflow id, an address."""
    reason: str
    by: str
    t_ms: int


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One worker process as the database knows it."""

    node: str
    worker: int
    host: str
    pid: int
    started_ms: int
    seen_ms: int
    """Its last sign of life."""
    version: str
    draining: bool = False
    """Asked to take nothing new, finish what it has, and end."""


SILENT_MS = 600_000
"""A worker not heard of for so long is gone: `sweep` drops its record."""


def worker_name(node: str, worker: int) -> str:
    """The `owner` under which that worker claims deliveries."""
    return f"{node}/{worker}"


# ── look-up ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class MessageFilter:
    """All that are given must hold. `viewer` limits to what that agent sent or received."""

    trace_id: bytes | None = None
    workflow: str | None = None
    agent: str | None = None
    """Sender or final recipient."""
    message_id: str | None = None
    viewer: str | None = None


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """A stored message's envelope."""

    eid: str
    t_ms: int
    sender: str
    agent: str | None
    recipients: tuple[str, ...]
    delivered_to: tuple[str, ...]
    """Final addresses after routing."""
    message_id: str
    in_reply_to: str | None
    subject: str
    content_type: str
    workflow: str | None
    priority: int
    origin: SpanRef
    received: SpanRef
    context_source: str
    depth: int
    header_size: int
    body_size: int
    erased: bool = False
    """Header, body and envelope are gone; the sizes are those that were."""


@dataclass(frozen=True, slots=True)
class Located:
    """Where a copy of a message lies now."""

    owner: str
    folder: str
    uid: int
    flags: frozenset[str]


Topic = MailboxKey | Literal["queue", "events", "agents"]
"""`queue`: a delivery was queued. `events`: the outbox grew. `agents`: an agent was added or changed."""

FlagMode = Literal["add", "remove", "replace"]


class Fault(NamedTuple):
    """One rule that is broken: how often, and the first few places. `mendable`: by `mend`, without losing mail."""

    rule: str
    wrong: str
    n: int
    where: tuple[str, ...]
    mendable: bool


class Store(Protocol):
    """See the module's docstring for the rules. All calls raise `Unavailable` when the database cannot serve now."""

    async def open(self) -> None:
        """Create or migrate the schema, drop bodies staged but never used, free leases of this node's earlier life."""

    async def close(self) -> None:
        """Finish the commits in hand and let go."""

    def subscribe(self, topic: Topic, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after each commit that changed `topic`. Returns the call that ends it."""

    # agents
    async def add_agent(self, agent: Agent, events: Sequence[EventRow]) -> None:
        """With INBOX, Sent, Drafts, Trash, Archive. Raises AlreadyExists."""

    async def update_agent(self, agent: Agent, events: Sequence[EventRow]) -> None:
        """All fields of `agent` as given. Raises NotFound."""

    async def remove_agent(self, address: str, events: Sequence[EventRow]) -> None:
        """Its mailboxes and tokens go with it; messages and events stay. Raises NotFound."""

    async def agent(self, address: str) -> Agent | None: ...
    async def agents(self) -> list[Agent]: ...
    async def add_token(self, digest: bytes, address: str, t_ms: int, events: Sequence[EventRow]) -> None:
        """SHA-256 of an HTTP token for one agent's own view. Raises NotFound."""

    async def token_owner(self, digest: bytes) -> str | None:
        """The agent's address, if the token is known and the agent is not disabled."""

    # coming in
    async def lineage(
        self,
        sender: str,
        in_reply_to: str | None,
        references: Sequence[str],
        trace_id: bytes | None,
        workflow: str | None,
        window: int = 128,
    ) -> Lineage:
        """One read for everything trace and loop guard ask. `references` oldest first, as in the header."""

    async def stage(self, staged: Staged | None, chunk: bytes) -> Staged:
        """Put the next part of a large body aside (None begins one). Own short commit."""

    async def unstage(self, staged: Staged) -> None:
        """Drop a body that will not be used."""

    async def accept(
        self,
        message: NewMessage,
        targets: Sequence[Target],
        witness: Callable[[Sequence[Outcome]], Sequence[EventRow]],
        settles: int | None = None,
        once: Once | None = None,
    ) -> list[Outcome]:
        """Message, entries, queued deliveries and events in one commit.

        A target whose transport is not `mailbox` is queued with no attempt made, due at once: `claim` makes number 1.
        Raises Repeated or KeyReused where `once` says so, also when both are in one group commit; the message's `t_ms`
        is the time by which an earlier key has run out. A staged body is then still the caller's to drop.

        A mailbox that can take its copy has it at once, the others' copies are queued (attempt 1 made). `settles` is a
        delivery that this message (its DSN) ends in the same commit; NotFound if it is already settled. With no targets
        only the events are written and the message is kept.
        """

    async def repeated(self, once: Once, now_ms: int) -> str | None:
        """The eid of the message that was accepted under this promise. None also when it was another message."""

    # the queue
    async def claim(
        self,
        now_ms: int,
        limit: int,
        owner: str,
        lease_ms: int,
        delay_ms: Callable[[int], int],
        closed: Collection[str] = (),
    ) -> list[Due]:
        """Take due deliveries, highest priority first, then longest due, for `lease_ms`. `owner`: see `worker_name`.

        The next attempt is stored before this one is made: attempt + 1 at `now_ms + delay_ms(attempt)`. Held ones and
        those of `closed` destinations stay; the cost does not grow with how many of them wait.
        """

    async def next_due(self, closed: Collection[str] = ()) -> int | None:
        """When the earliest delivery can be claimed: when it is due; a leased one not before its lease ends."""

    async def renew(self, due: Due, until_ms: int) -> None:
        """Keep the lease of a long attempt. NotFound when somebody else has it by now."""

    async def place(
        self, due: Due, span: SpanRef, now_ms: int, witness: Callable[[Tried], Sequence[EventRow]]
    ) -> Tried:
        """Try the mailbox again. Placed: the delivery is over. Buffered: lease released, `span` kept as previous."""

    async def defer(self, due: Due, span: SpanRef, now_ms: int, reason: str, events: Sequence[EventRow]) -> None:
        """This attempt failed for now."""

    async def settle(self, due: Due, events: Sequence[EventRow]) -> None:
        """The delivery is over without a message of its own (done elsewhere, or nobody to tell)."""

    async def pending(
        self, eid: str | None = None, limit: int = 1000, after: int = 0, destination: str | None = None
    ) -> list[Pending]:
        """By id, from the one above `after` on."""

    async def hasten(
        self, ids: Sequence[int], now_ms: int, witness: Callable[[list[Pending]], Sequence[EventRow]]
    ) -> list[Pending]:
        """Make these due now, held or not (they are let go); leased ones are left alone. Returns those it did, as they
        were before, by id."""

    async def suspend(
        self, ids: Sequence[int], held: bool, witness: Callable[[list[Pending]], Sequence[EventRow]]
    ) -> list[Pending]:
        """Hold these deliveries, or let them go on. Returns those it changed, as they were before, by id."""

    async def drop(self, ids: Sequence[int], witness: Callable[[list[Pending]], Sequence[EventRow]]) -> list[Pending]:
        """End these deliveries undelivered and untold. Leased ones too: their attempt finds nothing to settle.

        Returns those that were there, by id.
        """

    async def backlog(self) -> Backlog: ...

    # mailboxes
    async def mailboxes(self, owner: str) -> list[Mailbox]: ...
    async def mailbox(self, owner: str, name: str) -> Mailbox | None: ...
    async def create_mailbox(self, owner: str, name: str, special_use: str | None = None) -> None:
        """And its missing superiors (RFC 3501 §6.3.3). Raises AlreadyExists, OverQuota. A new UIDVALIDITY each time."""

    async def delete_mailbox(self, key: MailboxKey, witness: Callable[[list[str]], Sequence[EventRow]]) -> None:
        """Its entries go with it (the witness gets their eids). Raises NotFound."""

    async def rename_mailbox(self, owner: str, old: str, new: str) -> None:
        """With inferiors; INBOX's messages move and INBOX stays (RFC 3501 §6.3.5). Raises NotFound, AlreadyExists."""

    async def subscribe_mailbox(self, owner: str, name: str, on: bool) -> None:
        """Raises OverQuota."""

    async def subscriptions(self, owner: str) -> list[str]:
        """Also names that no longer exist (RFC 3501 §6.3.9)."""

    async def status(self, keys: Sequence[MailboxKey]) -> dict[MailboxKey, Status]: ...
    async def select(self, key: MailboxKey, claim_recent: bool) -> Snapshot:
        r"""Raises NotFound. `claim_recent` (SELECT, not EXAMINE): new ones are not \Recent for later sessions."""

    async def changes(self, key: MailboxKey, since_modseq: int, claim_recent: bool = False) -> Changes: ...
    async def fetch(self, key: MailboxKey, uids: Ranges, *, header: bool = False, body: int = 0) -> list[Row]:
        """Entries in `uids`, ascending. `body`: include bodies up to that many octets."""

    async def read_body(self, eid: str, start: int, length: int) -> bytes:
        """A piece of a body."""

    async def search(self, key: MailboxKey, criteria: SearchKey) -> tuple[list[int], bool]:
        """Candidate UIDs, ascending, and whether they are exact."""

    async def mark(
        self,
        key: MailboxKey,
        uids: Ranges,
        mode: FlagMode,
        flags: frozenset[str],
        witness: Callable[[Flagged], Sequence[EventRow]],
    ) -> Flagged:
        """STORE, set-based. Raises TooManyKeywords."""

    async def expunge(
        self, key: MailboxKey, uids: Ranges | None, witness: Callable[[Expunged], Sequence[EventRow]]
    ) -> Expunged:
        r"""Remove entries with `\Deleted` (in `uids`, if given). A message nobody keeps stays look-up-able."""

    async def copy(
        self, key: MailboxKey, uids: Ranges, to: MailboxKey, witness: Callable[[Copied], Sequence[EventRow]]
    ) -> Copied:
        """All or nothing. Raises NotFound, OverQuota."""

    async def move(
        self, key: MailboxKey, uids: Ranges, to: MailboxKey, witness: Callable[[Copied], Sequence[EventRow]]
    ) -> Copied:
        """RFC 6851, atomically."""

    async def usage(self, owner: str) -> int:
        """Octets in all its mailboxes."""

    # events and the outbox
    async def record(self, events: Sequence[EventRow]) -> None:
        """Events that witness no other write."""

    async def unsequenced(self, limit: int) -> list[tuple[int, str, bytes]]:
        """(seq, eid, leaf) not yet in the log, in order of commit."""

    async def mark_sequenced(self, placed: Sequence[tuple[int, int]]) -> None:
        """(seq, log index); an event already marked keeps its index."""

    async def events_after(self, seq: int, limit: int) -> list[StoredEvent]: ...
    async def events_of(self, eid: str) -> list[StoredEvent]:
        """Of one message (as `ref` or among `messages`), in order."""

    async def events_of_trace(self, trace_id: bytes, limit: int = 10_000) -> list[StoredEvent]: ...

    # look-up
    async def find(self, what: MessageFilter, limit: int, before: str | None = None) -> list[MessageRecord]:
        """Newest first; `before` is the eid the last page ended with."""

    async def older(self, before_ms: int, after: str | None, limit: int) -> list[MessageRecord]:
        """In order of acceptance from the eid `after` on (None: from the first), up to the first one that was accepted
        at `before_ms` or later. Erased ones are among them. Costs what it returns.
        """

    async def message(self, eid: str) -> MessageRecord | None: ...
    async def header(self, eid: str) -> bytes | None: ...
    async def located(self, eid: str) -> list[Located]: ...
    async def traces_of(self, eid: str) -> list[bytes]:
        """All trace ids that events of this message carry, first seen first."""

    # erasure and legal hold
    async def erase(self, eid: str, events: Sequence[EventRow]) -> None:
        """Destroy a message: its content, envelope, keys and openings, mailbox entries (they vanish for sessions) and
        queued deliveries. Its record stays with eid, times, sizes and trace ids, so the log can say `ERASED`; its
        leaves stay. `events` are recorded in the same commit and keep their own openings. An event about several
        messages keeps its openings too: they name the messages only by eid. Once more is no error.

        Raises NotFound, Held.
        """

    async def scrub(self) -> str | None:
        """Empty what the database's own journal still holds of erased messages. Returns, in words, where something
        may be left in the database itself; None: nowhere.
        """

    async def hold(self, hold: Hold, events: Sequence[EventRow]) -> None:
        """Raises AlreadyExists for one of the same kind and subject."""

    async def release(self, kind: str, subject: str, events: Sequence[EventRow]) -> None:
        """End a hold. Raises NotFound."""

    async def holds(self) -> list[Hold]: ...

    # housekeeping and nodes
    async def sweep(self, now_ms: int) -> None:
        """Drop what has run out (idempotency keys, silent nodes' records), a bounded number a call, in short commits.

        Costs one small read when nothing has.
        """

    async def beat(self, record: NodeRecord) -> bool:
        """A worker's sign of life. Returns whether its node was asked to drain; `record.draining` is not stored.

        A worker that begins (another `started_ms`) drains only if another one of its node was asked to.
        """

    async def part(self, node: str, worker: int) -> None:
        """A worker's end: its record goes, its leases are free."""

    async def nodes(self) -> list[NodeRecord]: ...
    async def faults(self) -> list[Fault]:
        """Read everything and say where rows contradict each other. Nodes may run meanwhile."""

    async def mend(self, witness: Callable[[Fault], Sequence[EventRow]]) -> list[Fault]:
        """Put right, in one commit, what `faults` calls mendable. Returns what was. No node may run meanwhile."""

    async def drain(self, node: str, on: bool) -> None:
        """Ask a node to drain (or not). Raises NotFound."""

    # payload schemas
    async def add_schema(self, name: str, descriptor_set: bytes, t_ms: int, events: Sequence[EventRow]) -> None:
        """A serialised FileDescriptorSet; the same name again replaces it."""

    async def schemas(self) -> list[tuple[str, bytes]]: ...
