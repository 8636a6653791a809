"""The application: what the node serves over HTTPS."""

import asyncio
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI

from aimx.audit.log import LogError
from aimx.sidecar import (
    consistency,
    describe,
    erasure,
    messages,
    node,
    problems,
    proofs,
    traces,
    verifications,
    verifier,
    witness,
)
from aimx.sidecar.answer import Turns
from aimx.sidecar.context import SidecarContext
from aimx.sidecar.edge import Edge
from aimx.sidecar.trace import Traced


def create_app(context: SidecarContext) -> FastAPI:
    """All paths of `docs/http-api.md` over what the node hands in. Holds nothing that needs closing."""
    # Documentation pages of FastAPI load scripts from elsewhere; the document itself is behind a token like the rest.
    app = FastAPI(
        title="AIMX",
        version=_version(),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    app.state.context = context
    app.state.verifier = verifications.Verifier()
    app.state.turns = Turns()
    app.state.witness_turn = asyncio.Lock()
    app.state.witnessing = asyncio.Semaphore(witness.MAX_WAITING)
    problems.install(app)
    app.add_exception_handler(LogError, problems.unreadable_log)
    parts = (messages, erasure, traces, proofs, consistency, verifications, verifier, node, witness)
    for part in parts:
        app.include_router(part.router)
    app.state.routes = [route for part in parts for route in part.router.routes]
    app.add_middleware(Traced)
    app.add_middleware(Edge)
    app.openapi = describe.openapi(app)  # type: ignore[method-assign]
    return app


def _version() -> str:
    try:
        return version("aimx-server")
    except PackageNotFoundError:
        return "0"
