"""The part of the Store contract that the audit log reads, in memory: rows that a test can tamper with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from aimx.audit import events
from aimx.message.identifier import new_eid
from aimx.store.contract import Backlog, EventRow, MessageFilter, MessageRecord, SpanRef, StoredEvent, Unavailable
from aimx.tlog.leaf import new_key

T0 = 1_780_000_000_000


@dataclass
class MemoryStore:
    rows: list[StoredEvent] = field(default_factory=list)
    mail: dict[str, tuple[MessageRecord, bytes, bytes]] = field(default_factory=dict)
    failures: int = 0
    """How many calls from now on fail as a full disk makes them fail."""
    marks: int = 0
    callbacks: list[Callable[[], None]] = field(default_factory=list)

    def subscribe(self, topic: str, callback: Callable[[], None]) -> Callable[[], None]:
        assert topic == "events"
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)

    def _maybe_fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise Unavailable("disk full")

    async def record(self, rows: Sequence[EventRow]) -> None:
        self._maybe_fail()
        self.put(*rows)

    def put(self, *rows: EventRow) -> None:
        for row in rows:
            self.rows.append(StoredEvent(self.rows[-1].seq + 1 if self.rows else 1, row, None))
        for callback in self.callbacks:
            callback()

    async def unsequenced(self, limit: int) -> list[tuple[int, str, bytes]]:
        self._maybe_fail()
        return [(s.seq, s.row.eid, s.row.leaf) for s in self.rows if s.index is None][:limit]

    async def mark_sequenced(self, placed: Sequence[tuple[int, int]]) -> None:
        self._maybe_fail()
        self.marks += 1
        places = dict(placed)
        for stored in self.rows:
            if stored.seq in places and stored.index is None:
                stored.index = places[stored.seq]

    async def backlog(self) -> Backlog:
        self._maybe_fail()
        waiting = [stored.row.t_ms for stored in self.rows if stored.index is None]
        return Backlog(0, None, len(waiting), min(waiting, default=None))

    async def events_after(self, seq: int, limit: int) -> list[StoredEvent]:
        return [stored for stored in self.rows if stored.seq > seq][:limit]

    async def events_of(self, eid: str) -> list[StoredEvent]:
        return [stored for stored in self.rows if stored.row.ref == eid or eid in stored.row.messages]

    async def find(self, what: MessageFilter, limit: int, before: str | None = None) -> list[MessageRecord]:
        assert what == MessageFilter()
        newest = sorted((eid for eid in self.mail if before is None or eid < before), reverse=True)
        return [self.mail[eid][0] for eid in newest[:limit]]

    async def message(self, eid: str) -> MessageRecord | None:
        return self.mail[eid][0] if eid in self.mail else None

    async def header(self, eid: str) -> bytes | None:
        return self.mail[eid][1] if eid in self.mail else None

    async def read_body(self, eid: str, start: int, length: int) -> bytes:
        return self.mail[eid][2][start : start + length]

    # --- what a node would do ---

    def accept(self, sender: str = "a@x.example", recipient: str = "b@x.example", t_ms: int | None = None) -> str:
        """A message comes in and is delivered: two events."""
        eid = new_eid(t_ms)
        t_ms = events_time() if t_ms is None else t_ms
        key, span = new_key(), SpanRef(b"\x01" * 16, b"\x02" * 8)
        header, body = b"Subject: hi\r\n\r\n", eid.encode() + b"\r\n"
        self.mail[eid] = (record_of(eid, t_ms, sender, recipient, span, header, body), header, body)
        stamp = events.Stamp("n1", t_ms, span, sender)
        accepted = events.message_accepted(
            stamp,
            eid=eid,
            key=key,
            data=sha256(header + body).digest(),
            header=sha256(header).digest(),
            body=sha256(body).digest(),
            sender=sender,
            recipients=(recipient,),
            size=len(header + body),
        )
        placed = events.delivery_mailbox(
            stamp, message=eid, key=key, recipient=recipient, box=(recipient, "INBOX"), uid=1
        )
        self.put(accepted, placed)
        return eid


def events_time() -> int:
    import time

    return time.time_ns() // 1_000_000


def record_of(
    eid: str, t_ms: int, sender: str, recipient: str, span: SpanRef, header: bytes, body: bytes
) -> MessageRecord:
    return MessageRecord(
        eid=eid,
        t_ms=t_ms,
        sender=sender,
        agent=sender,
        recipients=(recipient,),
        delivered_to=(recipient,),
        message_id=f"<{eid}@x.example>",
        in_reply_to=None,
        subject="hi",
        content_type="text/plain",
        workflow=None,
        priority=0,
        origin=span,
        received=span,
        context_source="new",
        depth=1,
        header_size=len(header),
        body_size=len(body),
    )
