"""`/v1/messages`: what was sent, what it says, what became of it."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from aimx.sidecar import access
from aimx.sidecar.access import Caller, Here, SignedIn
from aimx.sidecar.answer import answer
from aimx.sidecar.describe import content, problems
from aimx.sidecar.models import (
    A_TRACE,
    A_ULID,
    MESSAGE,
    TRACE_ID,
    ULID,
    Event,
    Location,
    Message,
    MessageDetail,
    MessagePage,
    Waiting,
)
from aimx.sidecar.payload import read_payload
from aimx.sidecar.problems import Problem
from aimx.sidecar.visibility import is_sender, seen_by, visible
from aimx.store.contract import MessageFilter, MessageRecord, Store

PART = 256 * 1024
"""Octets of a raw message in memory at a time: the store's own part size."""

router = APIRouter(tags=["messages"])

MessageName = Annotated[
    str,
    Path(
        alias="id",
        pattern=MESSAGE,
        description="The message's id (the ULID in the 250), or its Message-ID header with angle brackets.",
        examples=[A_ULID],
    ),
]


class Filters(BaseModel):
    """All that are given must hold. An unknown parameter is an error: a misspelt filter must not list everything."""

    model_config = ConfigDict(extra="forbid")

    trace_id: str | None = Field(None, pattern=TRACE_ID, description="Trace it was created in.", examples=[A_TRACE])
    workflow: str | None = Field(None, min_length=1, max_length=998, description="X-Workflow-ID, exactly.")
    agent: str | None = Field(
        None, min_length=1, max_length=320, description="Sender or final recipient.", examples=["critic@fabric.local"]
    )
    message_id: str | None = Field(
        None, min_length=1, max_length=998, description="The Message-ID header, with or without angle brackets."
    )
    limit: int = Field(50, ge=1, le=200, description="How many at most.")
    cursor: str | None = Field(None, pattern=ULID, description="`next_cursor` of the page before.", examples=[A_ULID])


@router.get(
    "/v1/messages",
    summary="List messages, newest first",
    operation_id="listMessages",
    response_model=MessagePage,
    responses=problems("unauthenticated", "invalid-request", "unavailable"),
)
async def list_messages(
    request: Request, here: Here, caller: SignedIn, wanted: Annotated[Filters, Query()]
) -> Response:
    what = MessageFilter(
        trace_id=bytes.fromhex(wanted.trace_id) if wanted.trace_id else None,
        workflow=wanted.workflow,
        agent=wanted.agent.lower() if wanted.agent else None,
        message_id=_bracketed(wanted.message_id) if wanted.message_id else None,
        viewer=caller.agent,
    )
    found = await here.store.find(what, wanted.limit + 1, wanted.cursor)
    shown = found[: wanted.limit]
    cursor = shown[-1].eid if len(found) > len(shown) else None
    headers: dict[str, str] = {}
    if cursor is not None:
        # RFC 8288; a relative reference, since only the caller knows under which name it reached us.
        following = request.url.include_query_params(cursor=cursor)
        headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
    shown = [_view(record, caller) for record in shown]
    return await answer(
        lambda: MessagePage(items=[Message.of(record) for record in shown], next_cursor=cursor), headers
    )


@router.get(
    "/v1/messages/{id}",
    summary="One message: envelope, payload as JSON, events, copies, traces",
    operation_id="getMessage",
    response_model=MessageDetail,
    responses=problems("unauthenticated", "not-found", "invalid-request", "unavailable"),
)
async def get_message(here: Here, caller: SignedIn, name: MessageName) -> Response:
    record = await access.message(here, caller, name)
    eid = record.eid
    payload = None
    if not record.erased:
        await access.witness(here, caller, record)
        payload = await read_payload(here.store, record)
    events = await here.store.events_of(eid)
    copies = await here.store.located(eid)
    waiting = await here.store.pending(eid)
    traces = await here.store.traces_of(eid)
    if caller.agent is not None:
        # Where others keep it is theirs to know, also when they have it from the caller.
        copies = [copy for copy in copies if copy.owner == caller.agent]
    if caller.agent is not None and not is_sender(record, caller.agent):
        events = visible(record, events, caller.agent)
        waiting = [delivery for delivery in waiting if delivery.address == caller.agent]
        traces = list(dict.fromkeys([record.origin.trace_id, *(event.row.trace_id for event in events)]))
    return await answer(
        lambda: MessageDetail(
            message=Message.of(_view(record, caller)),
            erased=record.erased,
            payload=payload,
            events=[Event.of(event) for event in events],
            copies=[Location.of(copy) for copy in copies],
            waiting=[Waiting.of(delivery) for delivery in waiting],
            trace_ids=[trace_id.hex() for trace_id in traces],
        )
    )


@router.get(
    "/v1/messages/{id}/raw",
    summary="The message as it is stored, octet for octet",
    operation_id="getRawMessage",
    response_class=StreamingResponse,
    responses={
        200: content("message/rfc822", "Header and body (RFC 5322).", binary=True),
        **problems("unauthenticated", "not-found", "erased", "invalid-request", "unavailable"),
    },
)
async def get_raw(here: Here, caller: SignedIn, name: MessageName) -> StreamingResponse:
    record = await access.message(here, caller, name)
    eid = record.eid
    header = await here.store.header(eid)
    if record.erased or not header:
        raise Problem("erased")
    await access.witness(here, caller, record)
    headers = {
        "Content-Length": str(len(header) + record.body_size),
        "Content-Disposition": f'attachment; filename="{eid}.eml"',
    }
    octets = _octets(here.store, eid, header, record.body_size)
    return StreamingResponse(octets, media_type="message/rfc822", headers=headers)


async def _octets(store: Store, eid: str, header: bytes, size: int) -> AsyncIterator[bytes]:
    yield header
    for start in range(0, size, PART):
        yield await store.read_body(eid, start, min(PART, size - start))


def _view(record: MessageRecord, caller: Caller) -> MessageRecord:
    return record if caller.agent is None else seen_by(record, caller.agent)


def _bracketed(message_id: str) -> str:
    return message_id if message_id.startswith("<") else f"<{message_id}>"
