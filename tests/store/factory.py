"""Small makers of what a store takes in. What a test does not name has a value that is valid and unlike the last."""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from aimx.store.contract import INBOX, Agent, Credential, EventRow, NewMessage, SpanRef, Target

_next = count(1)
T0 = 1_760_000_000_000
"""Unix milliseconds at which these tests take place."""


def unique() -> int:
    return next(_next)


def eid() -> str:
    """26 characters, rising, as ULIDs do."""
    return f"01{unique():024d}"


def span() -> SpanRef:
    n = unique()
    return SpanRef(n.to_bytes(16, "big"), n.to_bytes(8, "big"))


def new_agent(address: str = "bob@fabric.local", **fields: Any) -> Agent:
    return Agent(address, Credential(b"salt", 4096, b"stored", b"server"), T0, **fields)


def new_event(ev: str = "heartbeat", **fields: Any) -> EventRow:
    n = unique()
    given: dict[str, Any] = {
        "eid": eid(),
        "ev": ev,
        "t_ms": T0 + n,
        "trace_id": n.to_bytes(16, "big"),
        "span_id": n.to_bytes(8, "big"),
        "leaf": b'{"ev":"%s","n":%d}' % (ev.encode(), n),
    }
    return EventRow(**given | fields)


def new_message(**fields: Any) -> NewMessage:
    n = unique()
    origin = fields.get("origin", SpanRef(n.to_bytes(16, "big"), n.to_bytes(8, "big")))
    given: dict[str, Any] = {
        "eid": eid(),
        "t_ms": T0 + n,
        "sender": "alice@fabric.local",
        "agent": "alice@fabric.local",
        "recipients": ("bob@fabric.local",),
        "header": b"Subject: hello\r\n\r\n",
        "body": b"body\r\n",
        "message_id": f"<{n}@fabric.local>",
        "in_reply_to": None,
        "subject": "hello",
        "content_type": "text/plain",
        "workflow": None,
        "priority": 0,
        "origin": origin,
        "trace_flags": 1,
        "tracestate": "",
        "baggage": "",
        "context_source": "new",
        "received": origin,
        "depth": 0,
        "loop_key": fields.get("workflow") or origin.trace_id.hex(),
        "payload": b"p" * 32,
        "template": b"t" * 32,
    }
    return NewMessage(**given | fields)


def new_target(address: str = "bob@fabric.local", **fields: Any) -> Target:
    given: dict[str, Any] = {"address": address, "original": address, "span": span(), "attempt": span()}
    return Target(**given | fields)


def filed(address: str = "bob@fabric.local", folder: str = INBOX, **fields: Any) -> Target:
    """What APPEND makes: into the mailbox or not at all."""
    return new_target(address, folder=folder, queueable=False, **fields)


def nothing(_seen: object) -> tuple[EventRow, ...]:
    """A witness that has nothing to tell."""
    return ()


def telling(ev: str, **fields: Any) -> Callable[[object], Sequence[EventRow]]:
    """A witness that records one event."""
    event = new_event(ev, **fields)
    return lambda _seen: [event]
