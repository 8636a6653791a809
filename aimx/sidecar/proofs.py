"""The audit log over HTTP: proofs, and the log's files at the paths C2SP gives them.

Checkpoint and hash tiles are open: leaves commit to everything under keys of 256 bits, so their hashes tell nothing.
Entry bundles show what kind of thing happened when to everybody on the node, so they take the admin's token.
(https://c2sp.org/tlog-tiles)
"""

import asyncio
from functools import partial
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Path, Query
from fastapi.responses import PlainTextResponse, Response

from aimx.audit.events import ACCEPTANCE
from aimx.audit.evidence import event_proofs
from aimx.audit.log import NotCovered, Reader
from aimx.audit.place import read_anchors
from aimx.sidecar import access
from aimx.sidecar.access import Admin, Here, SignedIn
from aimx.sidecar.context import SidecarContext
from aimx.sidecar.describe import content, problems
from aimx.sidecar.messages import MessageName
from aimx.sidecar.models import A_ULID, ULID, MessageProof
from aimx.sidecar.problems import Problem
from aimx.sidecar.visibility import is_sender, visible
from aimx.store.contract import StoredEvent
from aimx.tlog.errors import FormatError
from aimx.tlog.tile import parse_path

router = APIRouter(tags=["audit"])

FOREVER = "public, max-age=31536000, immutable"
"""A tile never changes."""
_NUMBER = r"^(?:x[0-9]{3}/){0,6}[0-9]{3}(?:\.p/[1-9][0-9]{0,2})?$"
_LEVEL = r"^(?:[0-9]|[1-5][0-9]|6[0-3])$"
TilePath = Annotated[
    str,
    Path(pattern=_NUMBER, description="Tile number in groups of three digits, `.p/W` for a part.", examples=["000"]),
]


@router.get(
    "/v1/audit/messages/{id}/proof",
    summary="What proves an event of a message offline",
    description="Of its acceptance, or of another of its events. It is in a checkpoint about a second after the 250.",
    operation_id="proveMessage",
    responses=problems("unauthenticated", "not-found", "not-logged-yet", "invalid-request", "unavailable"),
)
async def prove(
    here: Here,
    caller: SignedIn,
    name: MessageName,
    event: Annotated[
        str | None, Query(pattern=ULID, description="Id of one of the message's events.", examples=[A_ULID])
    ] = None,
) -> MessageProof:
    record = await access.message(here, caller, name)
    events = await here.store.events_of(record.eid)
    if caller.agent is not None:
        seen = {found.seq for found in visible(record, events, caller.agent)}
        events = [found for found in events if found.seq in seen]  # with the openings that `visible` takes away
    said = partial(read_anchors, here.settings.data, here.settings.log_database)
    try:
        (evidence,) = await event_proofs(_Only(_wanted(events, event)), here.log, record.eid, said)
    except NotCovered:
        raise Problem("not-logged-yet") from None
    found = evidence.to_json()
    opening = found["opening"]
    if isinstance(opening, dict) and caller.agent is not None and not is_sender(record, caller.agent):
        found["opening"] = {part: value for part, value in opening.items() if not isinstance(value, list)}
    return MessageProof.model_validate({**found, "verifiers": [key.vkey() for key in here.keys().all]})


class _Only(NamedTuple):
    """The one event to be proved, in the place where `event_proofs` looks."""

    event: StoredEvent

    async def events_of(self, eid: str) -> list[StoredEvent]:
        return [self.event]


def _wanted(events: list[StoredEvent], event: str | None) -> StoredEvent:
    for found in events:
        if found.row.eid == event or (event is None and found.row.ev in ACCEPTANCE):
            return found
    raise Problem("not-found", "The message has no such event that this token may see; it lists them under `events`.")


_CHECKPOINT = {
    200: content("text/plain", "A C2SP checkpoint: a signed note."),
    **problems("not-found", "invalid-request", "unavailable"),
}
_ENTRIES = {
    200: content("application/octet-stream", "Up to 256 leaves, each after two octets of length.", binary=True),
    **problems("unauthenticated", "forbidden", "not-found", "invalid-request", "unavailable"),
}
_TILE = {
    200: content("application/octet-stream", "Up to 256 hashes of 32 octets.", binary=True),
    **problems("not-found", "invalid-request", "unavailable"),
}
Level = Annotated[str, Path(pattern=_LEVEL, description="0 holds the leaves' hashes.", examples=["0"])]
Shard = Annotated[
    str, Path(pattern=r"^[0-9a-z.-]{1,64}$", description="The last part of a log's name.", examples=["2026h2"])
]


@router.get(
    "/checkpoint",
    summary="The log's newest signed checkpoint",
    operation_id="getCheckpoint",
    response_class=PlainTextResponse,
    responses={key: value for key, value in _CHECKPOINT.items() if key != 422},
)
async def checkpoint(here: Here) -> Response:
    return await _checkpoint(here.log)


@router.get(
    "/tile/entries/{path:path}",
    summary="An entry bundle: the leaves themselves",
    operation_id="getEntries",
    response_class=Response,
    responses=_ENTRIES,
)
async def entries(here: Here, caller: Admin, path: TilePath) -> Response:
    return Response(await _tile(here.log, f"tile/entries/{path}"), media_type="application/octet-stream")


@router.get(
    "/tile/{level}/{path:path}",
    summary="A tile: hashes of the tree",
    operation_id="getTile",
    response_class=Response,
    responses=_TILE,
)
async def hashes(here: Here, level: Level, path: TilePath) -> Response:
    octets = await _tile(here.log, f"tile/{level}/{path}")
    return Response(octets, media_type="application/octet-stream", headers={"Cache-Control": FOREVER})


@router.get(
    "/log/shards",
    summary="The logs that the log consists of",
    description="One a line, oldest first: name, place of the first leaf, leaves. `/checkpoint` and `/tile` are of the"
    " last one. Where the first does not begin at 0, older ones were dropped.",
    operation_id="getShards",
    response_class=PlainTextResponse,
    responses={200: content("text/plain", "Name, start and size, with spaces between."), **problems("unavailable")},
)
async def shards(here: Here) -> Response:
    found = await asyncio.to_thread(here.log.shards)
    listed = "".join(f"{shard.origin} {shard.start} {shard.size}\n" for shard in found)
    return PlainTextResponse(listed, headers={"Cache-Control": "no-cache"})


@router.get(
    "/log/{shard}/checkpoint",
    summary="A shard's newest signed checkpoint",
    operation_id="getShardCheckpoint",
    response_class=PlainTextResponse,
    responses=_CHECKPOINT,
)
async def shard_checkpoint(here: Here, shard: Shard) -> Response:
    return await _checkpoint(await _named(here, shard))


@router.get(
    "/log/{shard}/tile/entries/{path:path}",
    summary="An entry bundle of a shard",
    operation_id="getShardEntries",
    response_class=Response,
    responses=_ENTRIES,
)
async def shard_entries(here: Here, caller: Admin, shard: Shard, path: TilePath) -> Response:
    octets = await _tile(await _named(here, shard), f"tile/entries/{path}")
    return Response(octets, media_type="application/octet-stream")


@router.get(
    "/log/{shard}/tile/{level}/{path:path}",
    summary="A tile of a shard",
    operation_id="getShardTile",
    response_class=Response,
    responses=_TILE,
)
async def shard_hashes(here: Here, shard: Shard, level: Level, path: TilePath) -> Response:
    octets = await _tile(await _named(here, shard), f"tile/{level}/{path}")
    return Response(octets, media_type="application/octet-stream", headers={"Cache-Control": FOREVER})


async def _named(here: SidecarContext, shard: str) -> Reader:
    found = await asyncio.to_thread(here.log.named, shard)
    if found is None:
        raise Problem("not-found", "There is no such shard. `/log/shards` lists those there are.")
    return found


async def _checkpoint(log: Reader) -> Response:
    signed = await asyncio.to_thread(log.checkpoint)
    if signed is None:
        raise Problem("not-found", "The log has no checkpoint yet; it signs the first within seconds.")
    return PlainTextResponse(signed, headers={"Cache-Control": "no-cache"})


async def _tile(log: Reader, path: str) -> bytes:
    try:
        octets = await asyncio.to_thread(log.tile, parse_path(path))
    except FormatError:
        octets = None
    if octets is None:
        raise Problem("not-found", "The log has no such tile. `/checkpoint` says how many leaves it has.")
    return octets
