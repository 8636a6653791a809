"""For whoever runs the node: is it alive, is it ready, how is it doing, and what can be asked of it."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from aimx.sidecar.access import Here, Scraper, SignedIn
from aimx.sidecar.describe import problems
from aimx.sidecar.models import Health, Readiness
from aimx.sidecar.problems import Problem
from aimx.store.contract import Unavailable
from aimx.telemetry.exposition import CONTENT_TYPES, negotiate, render

STORE_PATIENCE = 2.0
"""Seconds a healthy store needs at most for a count."""

router = APIRouter(tags=["node"])


@router.get("/healthz", summary="Is the process alive?", operation_id="getHealth", responses=problems())
async def healthz() -> Health:
    return Health()


@router.get(
    "/readyz",
    summary="Does the node serve?",
    operation_id="getReadiness",
    responses=problems("not-ready"),
)
async def readyz(here: Here) -> Readiness:
    found = list(here.ready())
    try:
        async with asyncio.timeout(STORE_PATIENCE):
            await here.store.backlog()
    except (Unavailable, TimeoutError):
        found.append("the store does not answer")
    if found:
        raise Problem("not-ready", problems=found)
    return Readiness()


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    operation_id="getMetrics",
    response_class=PlainTextResponse,
    responses={
        200: {
            "description": "Prometheus text format 0.0.4; OpenMetrics 1.0, with exemplars, where Accept names it.",
            "content": {kind.partition(";")[0]: {"schema": {"type": "string"}} for kind in CONTENT_TYPES.values()},
        },
        **problems("unauthenticated", "forbidden"),
    },
)
async def metrics(request: Request, here: Here, caller: Scraper) -> Response:
    form = negotiate(request.headers.get("accept", ""))
    return Response(render(here.metrics(), form), headers={"content-type": CONTENT_TYPES[form], "vary": "accept"})


@router.get(
    "/openapi.json",
    summary="This document",
    operation_id="getOpenApi",
    response_class=JSONResponse,
    responses={
        200: {"description": "OpenAPI 3.1.", "content": {"application/json": {"schema": {"type": "object"}}}},
        **problems("unauthenticated", "unavailable"),
    },
)
async def document(request: Request, caller: SignedIn) -> JSONResponse:
    found: dict[str, Any] = request.app.openapi()
    return JSONResponse(found)
