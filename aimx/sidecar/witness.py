"""This node as a witness of other logs, over HTTP, at the paths of https://c2sp.org/tlog-witness.

Open to everybody, as the specification has it: what authenticates a request is the log's own signature in it. Only logs
of `[audit.cosign]` are heard, one request at a time, and none that is longer than a request can be.
"""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import PlainTextResponse, Response

from aimx.sidecar.access import Here
from aimx.sidecar.describe import content, problems
from aimx.sidecar.problems import Problem

router = APIRouter(tags=["witness"])

MAX_WAITING = 32
"""Requests that may wait for their turn: each costs at most one commit."""
_NOT_KNOWN = "This node is no witness of that log. Its operator names logs under `[audit.cosign]`."


@router.post(
    "/add-checkpoint",
    summary="Cosign a checkpoint of another log",
    description="The old size, a consistency proof from it, an empty line, the signed checkpoint.",
    operation_id="addCheckpoint",
    response_class=PlainTextResponse,
    openapi_extra={"requestBody": {"required": True, "content": {"text/plain": {"schema": {"type": "string"}}}}},
    responses={
        200: content("text/plain", "Cosignature lines of a signed note."),
        409: {
            **content("text/x.tlog.size", "The size this witness knows; prove from there."),
        },
        **problems("bad-request", "forbidden", "not-found", "inconsistent", "busy", "unavailable"),
    },
)
async def add_checkpoint(request: Request, here: Here) -> Response:
    if here.witness is None:
        raise Problem("not-found", _NOT_KNOWN)
    body = await request.body()
    waiting: asyncio.Semaphore = request.app.state.witnessing
    if waiting.locked():
        raise Problem("busy")
    async with waiting, request.app.state.witness_turn:  # one thread of the few there are
        answer = await asyncio.to_thread(here.witness.add_checkpoint, body)
    match answer.outcome:
        case "cosigned":
            return PlainTextResponse(answer.text)
        case "conflict":
            return Response(answer.text, 409, {"Content-Type": "text/x.tlog.size"})
        case "unknown":
            raise Problem("not-found", _NOT_KNOWN)
        case "unsigned":
            raise Problem("forbidden", f"The checkpoint does not bear the log's signature: {answer.text}.")
        case "inconsistent":
            raise Problem("inconsistent", f"{answer.text[:1].upper()}{answer.text[1:]}.")
        case "malformed":
            raise Problem("bad-request", f"Not an add-checkpoint request: {answer.text}.")


@router.get(
    "/witness/{origin_hash}/checkpoint",
    summary="The last checkpoint of a log that this node has cosigned",
    operation_id="getWitnessed",
    response_class=PlainTextResponse,
    responses={
        200: content("text/plain", "A checkpoint with the log's signature and this witness's."),
        **problems("not-found", "invalid-request", "unavailable"),
    },
)
async def witnessed(
    here: Here,
    origin_hash: Annotated[
        str, Path(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the log's origin, in hex.", examples=["00" * 32])
    ],
) -> Response:
    found = None if here.witness is None else await asyncio.to_thread(here.witness.checkpoint, origin_hash)
    if found is None:
        raise Problem("not-found", _NOT_KNOWN)
    return PlainTextResponse(found, headers={"Cache-Control": "no-cache"})
