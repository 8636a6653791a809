"""Imported by a node before all else, it accepts mail as if there were no audit log: to say what the log costs.

No leaf is made of a message, no event written, no receipt signed; the log itself is opened, kept and signed as ever.
There is no such setting.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

from aimx.audit import events
from aimx.intake.envelope import Reply
from aimx.intake.intake import Intake
from aimx.store.contract import EventRow, SpanRef
from aimx.store.sqlite import acceptance
from aimx.store.sqlite.writer import Tx

_event, _record = events.event, acceptance.record
_NONE = _event(
    "heartbeat",
    events.Stamp("n1", time.time_ns() // 1_000_000, SpanRef(b"\1" * 16, b"\1" * 8)),
    fields={"size": 0},
    values={},
)


def event(ev: str, stamp: events.Stamp, **given: Any) -> EventRow:
    return _NONE if ev.startswith(("message.", "delivery.")) else _event(ev, stamp, **given)


def record(tx: Tx, rows: Iterable[EventRow]) -> None:
    _record(tx, [row for row in rows if row is not _NONE])


def answer(_: Intake, eid: str, _promise: Callable[[str], Any]) -> Reply:
    return Reply(250, "2.0.0", f"<{eid}> queued")


events.event, acceptance.record = event, record
Intake._answer = answer  # type: ignore[method-assign]
