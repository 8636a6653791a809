"""Who may see what of a message, and of what happened to it.

An agent sees what it sent or received; of what it received, not who else got a copy. A trace id or a workflow id by
itself grants nothing: both are the sender's to choose.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from aimx.store.contract import EventRow, MessageRecord, StoredEvent

_HIDDEN = frozenset({"open", "k"})
"""Keys of an event's detail that are openings of the audit log, not facts of the timeline."""
_OTHERS = _HIDDEN | {"recipients", "route"}
"""What a recipient is not shown: it may name those who got a blind copy."""
_FOR_ALL = frozenset({"message.accepted", "message.erased", "mailbox.accessed"})


def takes_part(record: MessageRecord, viewer: str) -> bool:
    """Whether the agent sent or received it."""
    return is_sender(record, viewer) or viewer in record.delivered_to


def is_sender(record: MessageRecord, viewer: str) -> bool:
    # The authenticated account, where there was one: the envelope sender alone is only a claim.
    return viewer == (record.agent if record.agent is not None else record.sender)


def seen_by(record: MessageRecord, viewer: str) -> MessageRecord:
    """What a recipient may know of the envelope: not who else got a (blind) copy."""
    if is_sender(record, viewer):
        return record
    return replace(
        record,
        recipients=tuple(address for address in record.recipients if address.lower() == viewer),
        delivered_to=tuple(address for address in record.delivered_to if address == viewer),
    )


def visible(record: MessageRecord, events: Iterable[StoredEvent], viewer: str) -> list[StoredEvent]:
    """The events of a message that this agent may see: all of what it sent, else those about its own copy.

    That somebody looked at it who is none of its parties, both sides may see.
    """
    if is_sender(record, viewer):
        return list(events)
    own = [event for event in events if event.row.ev in _FOR_ALL or concerns(event.row) == viewer]
    return [replace(event, row=replace(event.row, detail=_without_others(event.row.detail))) for event in own]


def concerns(row: EventRow) -> str | None:
    """Whose copy the event is about, else who caused it."""
    recipient = row.detail.get("recipient")
    return recipient if isinstance(recipient, str) else row.agent


def _without_others(detail: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in detail.items() if key not in _OTHERS}


def facts(row: EventRow) -> dict[str, Any]:
    """An event's timeline facts: its detail without the audit log's openings."""
    return {clean(key): clean(value) for key, value in row.detail.items() if key not in _HIDDEN}


def clean(value: Any) -> Any:
    """A JSON value without lone surrogates, which an escape in somebody's JSON can hold and UTF-8 cannot."""
    match value:
        case str():
            return value if value.isascii() else value.encode("utf-8", "replace").decode()
        case dict():
            return {clean(key): clean(item) for key, item in value.items()}
        case list() | tuple():
            return [clean(item) for item in value]
        case _:
            return value


def is_refusal(row: EventRow) -> bool:
    """A message that was refused during the dialogue, so that only the event knows of it."""
    return row.ref is None and row.ev in ("loop.refused", "message.rejected")
