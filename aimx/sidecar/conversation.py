"""A conversation as the store knows it: the messages of a trace or a workflow, and their events."""

import asyncio
from dataclasses import dataclass

from aimx.sidecar.visibility import is_refusal, seen_by, takes_part, visible
from aimx.store.contract import MessageFilter, MessageRecord, NotFound, Store, StoredEvent

MAX_MESSAGES = 1000
"""Of one conversation; the newest are kept and `truncated` says so."""
MAX_TRACES = 100
"""Of one workflow, that are searched for refusals; the newest."""
_PAGE = 200
_AT_ONCE = 16


@dataclass(slots=True)
class Conversation:
    """What the store knows of a trace or a workflow, limited to what the viewer may see."""

    traces: list[bytes]
    records: list[MessageRecord]
    """Oldest first."""
    events: dict[str, list[StoredEvent]]
    """By message."""
    refused: list[StoredEvent]
    """Refusals of messages that were never stored."""
    truncated: bool


async def trace_conversation(store: Store, trace_id: bytes, viewer: str | None = None) -> Conversation:
    """Messages created in the trace, and those that only an event of the trace speaks of. Raises NotFound."""
    records, truncated = await _messages(store, MessageFilter(trace_id=trace_id, viewer=viewer))
    events = await store.events_of_trace(trace_id)
    known = {record.eid for record in records}
    # A late retry, or a FETCH of several messages, has a trace in which no message was created.
    named = dict.fromkeys(eid for event in events for eid in (event.row.ref, *event.row.messages) if eid is not None)
    for eid in [eid for eid in named if eid not in known][: MAX_MESSAGES - len(records)]:
        record = await store.message(eid)
        if record is not None and (viewer is None or takes_part(record, viewer)):
            records.append(record)
    refused = _refusals(events, viewer)
    if not records and not refused:
        raise NotFound(f"nothing is known of trace {trace_id.hex()}")
    records.sort(key=order)
    return await _conversation(store, [trace_id], records, refused, truncated, viewer)


async def workflow_conversation(store: Store, workflow: str, viewer: str | None = None) -> Conversation:
    """All messages of a workflow, whatever their traces. Raises NotFound."""
    records, truncated = await _messages(store, MessageFilter(workflow=workflow, viewer=viewer))
    if not records:
        raise NotFound(f"no message names the workflow {workflow!r}")
    traces = list(dict.fromkeys(record.origin.trace_id for record in records))
    refused: list[StoredEvent] = []
    for trace_id in traces[-MAX_TRACES:]:
        found = _refusals(await store.events_of_trace(trace_id), viewer)
        refused += [event for event in found if event.row.detail.get("workflow", workflow) == workflow]
    truncated = truncated or len(traces) > MAX_TRACES
    return await _conversation(store, traces, records, refused, truncated, viewer)


def _refusals(events: list[StoredEvent], viewer: str | None) -> list[StoredEvent]:
    """An agent sees its own."""
    return [event for event in events if is_refusal(event.row) and (viewer is None or event.row.agent == viewer)]


async def _conversation(
    store: Store,
    traces: list[bytes],
    records: list[MessageRecord],
    refused: list[StoredEvent],
    truncated: bool,
    viewer: str | None,
) -> Conversation:
    events = {record.eid: rows for record, rows in zip(records, await _events(store, records), strict=True)}
    if viewer is not None:
        events = {record.eid: visible(record, events[record.eid], viewer) for record in records}
        records = [seen_by(record, viewer) for record in records]
    return Conversation(traces, records, events, refused, truncated)


async def _messages(store: Store, what: MessageFilter) -> tuple[list[MessageRecord], bool]:
    """Its messages, oldest first, at most MAX_MESSAGES (the newest), and whether there are more."""
    found: list[MessageRecord] = []
    before: str | None = None
    while len(found) <= MAX_MESSAGES:
        page = await store.find(what, _PAGE, before)
        found += page
        if len(page) < _PAGE:
            break
        before = page[-1].eid
    kept = found[:MAX_MESSAGES]
    kept.sort(key=order)
    return kept, len(found) > MAX_MESSAGES


async def _events(store: Store, records: list[MessageRecord]) -> list[list[StoredEvent]]:
    # By message and not by trace: a FETCH of several messages, or a late retry, has a trace of its own.
    gate = asyncio.Semaphore(_AT_ONCE)

    async def of(eid: str) -> list[StoredEvent]:
        async with gate:
            return await store.events_of(eid)

    return await asyncio.gather(*(of(record.eid) for record in records))


def order(record: MessageRecord) -> tuple[int, str]:
    """By time of acceptance; ids break ties in the order in which they were made."""
    return record.t_ms, record.eid
