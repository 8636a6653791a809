"""Erasure and legal holds over HTTP. The admin's alone: an agent may ask for nothing here."""

from typing import Annotated

from fastapi import APIRouter, Query

from aimx.audit import erasure
from aimx.sidecar import access
from aimx.sidecar.access import Admin, Here
from aimx.sidecar.context import SidecarContext
from aimx.sidecar.describe import problems
from aimx.sidecar.messages import MessageName
from aimx.sidecar.models import SUBJECT, EraseRequest, Erasure, HoldKind, HoldRequest, Holds, LegalHold
from aimx.sidecar.problems import Problem
from aimx.store.contract import AlreadyExists, Held, Hold

router = APIRouter(tags=["audit"])


@router.post(
    "/v1/messages/{id}/erasure",
    summary="Destroy a message: content, addresses, keys",
    description="Its history and the proof that it existed remain. Once more is no error and does nothing.",
    operation_id="eraseMessage",
    responses=problems(
        "bad-request", "unauthenticated", "forbidden", "not-found", "held", "invalid-request", "unavailable"
    ),
)
async def erase(here: Here, caller: Admin, name: MessageName, asked: EraseRequest) -> Erasure:
    record = await access.message(here, caller, name)
    left = None
    if not record.erased:
        try:
            await erasure.erase(here.store, record, node=here.settings.node, by="admin", why=asked.reason)
        except Held as error:
            raise Problem("held", f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
        left = await here.store.scrub()
    return Erasure(eid=record.eid, survivors=erasure.Erased([record.eid], left=left).survivors)


@router.get(
    "/v1/audit/holds",
    summary="The legal holds, oldest first",
    operation_id="listHolds",
    responses=problems("unauthenticated", "forbidden", "unavailable"),
)
async def list_holds(here: Here, caller: Admin) -> Holds:
    return Holds(items=[LegalHold.of(one) for one in await here.store.holds()])


@router.post(
    "/v1/audit/holds",
    status_code=201,
    summary="Place a legal hold",
    description="Until it is released nothing that it covers can be erased.",
    operation_id="placeHold",
    responses=problems(
        "bad-request", "unauthenticated", "forbidden", "not-found", "already-held", "invalid-request", "unavailable"
    ),
)
async def place(here: Here, caller: Admin, asked: HoldRequest) -> LegalHold:
    subject = _subject(here, asked.kind, asked.subject)
    if asked.kind == "message":  # a hold on what is not there would protect nothing, and look as if it did
        subject = (await access.message(here, caller, subject)).eid
    made = Hold(asked.kind, subject, asked.reason, "admin", here.now_ms())
    try:
        await erasure.place_hold(here.store, made, node=here.settings.node)
    except AlreadyExists:
        raise Problem("already-held") from None
    return LegalHold.of(made)


@router.delete(
    "/v1/audit/holds",
    summary="End a legal hold",
    operation_id="releaseHold",
    responses=problems("unauthenticated", "forbidden", "not-found", "invalid-request", "unavailable"),
)
async def release(
    here: Here,
    caller: Admin,
    kind: Annotated[HoldKind, Query(description="What it covers.")],
    subject: Annotated[
        str, Query(pattern=SUBJECT, max_length=320, description="A message's id, a workflow, an address.")
    ],
) -> LegalHold:
    found = await erasure.covering(here.store, kind, _subject(here, kind, subject))
    await erasure.release_hold(here.store, found, node=here.settings.node, by="admin")
    return LegalHold.of(found)


def _subject(here: SidecarContext, kind: str, subject: str) -> str:
    """As the store has it; an agent's name alone is one of the node's first domain."""
    if kind != "agent":
        return subject.strip()
    name = subject.strip().lower()
    return name if "@" in name else f"{name}@{here.settings.domains[0]}"
