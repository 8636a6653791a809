"""What a command on messages leaves behind: one SERVER span and one audit event, whatever the number of messages.

One message: the span continues its creation context. Several: a short root with links to their creation contexts, so
that a session never becomes one endless trace. The builders here run inside the store's commit, on another thread.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from aimx.audit import events
from aimx.message.header import HeaderBlock
from aimx.store.contract import DONE, Copied, EventRow, Flagged, FlagMode, MailboxKey, SpanRef, Store
from aimx.telemetry.context import SAMPLED, Context, read
from aimx.telemetry.span import INTERNAL, MAX_LINKS, SERVER, Facts, Span, Tracer

Verb = Literal["fetch", "store", "copy", "move", "expunge", "append"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Who acts, and where it is recorded."""

    tracer: Tracer
    node: str
    agent: str


async def witness_opening(store: Store, origin: Origin, box: tuple[str, str]) -> None:
    """Record that a mailbox (owner, name) was selected, in a trace of its own: it is about no message."""
    said = Facts({"aimx.audit.event": "mailbox.accessed"})
    with origin.tracer.start("audit append", INTERNAL, attributes=said) as span:
        stamp = events.Stamp(
            origin.node, time.time_ns() // 1_000_000, SpanRef(span.trace_id, span.span_id), origin.agent
        )
        admin = origin.agent != box[0]
        await store.record([events.mailbox_accessed(stamp, by=origin.agent, box=box, via="imap", admin=admin)])


class Trail:
    """Of one command. Make it when the command begins, `end` it when the tagged answer is known."""

    __slots__ = ("_origin", "_span", "_start_ns", "box", "verb")

    def __init__(self, origin: Origin, verb: Verb, key: MailboxKey, name: str) -> None:
        self._origin = origin
        self._span: Span | None = None
        self._start_ns = time.time_ns()
        self.verb = verb
        self.box = (key.owner, name)

    def span(self, origins: Sequence[SpanRef], count: int | None = None) -> Span:
        """Begin the span, at the moment the command came; `origins` are the messages' creation contexts."""
        contexts = [Context(ref.trace_id, ref.span_id, SAMPLED) for ref in origins[: MAX_LINKS + 1]]
        alone = contexts[0] if len(origins) == 1 else None
        span = self._origin.tracer.start(
            f"imap {self.verb}",
            SERVER,
            alone,
            links=() if alone else contexts[:MAX_LINKS],
            attributes={"imap.command": self.verb.upper(), "messaging.system": "aimx"},
            start_ns=self._start_ns,
        )
        span.dropped_links = max(len(origins) - MAX_LINKS, 0)
        span.set("messaging.batch.message_count", len(origins) if count is None else count)
        self._span = span
        return span

    def appended(self, octets: bytes) -> Span:
        """Begin the span of APPEND, where the message's own header says which trace it continues."""
        told = read(HeaderBlock.parse(octets)[0])
        if not isinstance(told, Context):
            return self.span((), 1)
        span = self._span = self._origin.tracer.start(
            "imap append",
            SERVER,
            told,
            attributes={"imap.command": "APPEND", "messaging.system": "aimx", "messaging.batch.message_count": 1},
            start_ns=self._start_ns,
        )
        return span

    def end(self, status: str) -> None:
        """`status` is OK, NO or BAD. Does nothing for a command that touched no message."""
        span = self._span
        if span is None:
            return
        span.set("imap.response.status", status)
        if status != "OK":
            span.error(status)
        span.end()

    def _stamp(self, span: Span) -> events.Stamp:
        ref = SpanRef(span.trace_id, span.span_id)
        return events.Stamp(self._origin.node, time.time_ns() // 1_000_000, ref, self._origin.agent)

    def _command(self, eids: Sequence[str]) -> events.Command:
        return events.Command(self._origin.agent, self.box, eids)

    # --- events, one kind of command each ---

    def read(self, span: Span, eids: Sequence[str]) -> EventRow:
        """Content was fetched."""
        return events.message_read(self._stamp(span), self._command(eids), {"mailbox": self.box[1]})

    def flagged(self, mode: FlagMode, flags: frozenset[str]) -> Callable[[Flagged], Sequence[EventRow]]:
        """Witness of STORE: nothing when nothing changed."""

        def witness(done: Flagged) -> Sequence[EventRow]:
            if not done.changed:
                return ()
            span = self.span(done.origins)
            ack = mode != "remove" and DONE in flags
            if ack:
                span.set("aimx.ack", True)
            command = self._command(done.eids)
            facts = {"mailbox": self.box[1], "flags": sorted(flags), "op": mode, "ack": ack}
            return (events.message_flagged(self._stamp(span), command, op=mode, flags=flags, ack=ack, facts=facts),)

        return witness

    def copied(self, to: tuple[str, str], origins: Sequence[SpanRef]) -> Callable[[Copied], Sequence[EventRow]]:
        """Witness of COPY and MOVE; `to` is (owner, mailbox name), `origins` what was known of the messages before."""

        def witness(done: Copied) -> Sequence[EventRow]:
            if not done.eids:
                return ()
            span = self.span(origins, len(done.eids))
            build = events.message_moved if self.verb == "move" else events.message_copied
            return (build(self._stamp(span), self._command(done.eids), to=to),)

        return witness

    def expunged(self, eids: Sequence[str]) -> Sequence[EventRow]:
        """For the witnesses of EXPUNGE and DELETE."""
        if not eids:
            return ()
        span = self.span((), len(eids))
        return (events.message_expunged(self._stamp(span), self._command(eids)),)
