"""Problems: every answer that is not the one asked for, as RFC 9457 has it.

PROBLEMS is the catalogue; the OpenAPI document, `docs/http-api.md` and the handlers read it. `detail` says what to do
about it. No exception's text ever reaches the caller: what failed here goes to the log.
"""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from aimx.store.contract import NotFound, ReadOnly, StoreError, Unavailable

log = logging.getLogger("aimx.sidecar")

MEDIA_TYPE = "application/problem+json"
TYPE = "urn:aimx:problem:"
MAX_ERRORS = 20


class Kind(NamedTuple):
    status: int
    title: str
    detail: str
    headers: Mapping[str, str] = {}


CHALLENGE = 'Bearer realm="aimx"'

PROBLEMS: Mapping[str, Kind] = {
    "unauthenticated": Kind(
        401,
        "A token is needed",
        "Send `Authorization: Bearer TOKEN` with the admin's token (the file `admin_token` names in the node's ready "
        "file) or an agent's own (`aimx agent token NAME`).",
        # RFC 9110 §11.6.1: a 401 carries at least one challenge.
        {"WWW-Authenticate": CHALLENGE},
    ),
    "forbidden": Kind(
        403,
        "This token may not do that",
        "An agent's token sees its own messages, their workflows, traces and proofs. Use the admin's token for this.",
    ),
    "read-only": Kind(
        403,
        "This process may only read",
        "It signed in to the database as somebody who may not record or change this. Ask a node that serves mail.",
    ),
    "not-found": Kind(
        404,
        "There is no such thing",
        "Nothing lies at this address, or this token may not see it. `GET /v1/messages` lists what it may see.",
    ),
    "method-not-allowed": Kind(
        405, "This address does not have that method", "`Allow` says which it has.", {"Allow": "GET, HEAD"}
    ),
    "not-logged-yet": Kind(
        409,
        "Not in a checkpoint yet",
        "The event waits to be written to the audit log; that takes about a second. Ask again.",
        {"Retry-After": "1"},
    ),
    "held": Kind(
        409, "A legal hold forbids it", "`GET /v1/audit/holds` lists the holds; once it is released, ask again."
    ),
    "already-held": Kind(
        409, "There is such a hold", "A hold of this kind on this subject is in force; `GET /v1/audit/holds` shows it."
    ),
    "erased": Kind(
        410,
        "The content was erased",
        "The message was erased on request. What happened to it and the proof that it existed remain.",
    ),
    "invalid-request": Kind(422, "The request has a wrong value", "See `errors` for each value and what it should be."),
    "inconsistent": Kind(
        422,
        "Not a continuation",
        "The log has signed something that does not begin with what this witness has cosigned before.",
    ),
    "busy": Kind(
        429,
        "Too much is being asked at once",
        "One verification runs at a time, and an account waits for at most four conversations. Ask again soon.",
        {"Retry-After": "5"},
    ),
    "failed": Kind(
        500, "The server failed", "This is a fault of the server; its log has the cause. Asking again may help."
    ),
    "unavailable": Kind(
        503,
        "Not available now",
        "The server cannot answer this now. Ask again in a moment.",
        {"Retry-After": "1"},
    ),
    "not-ready": Kind(503, "The node is not ready", "See `problems` for what keeps it from serving."),
    "bad-request": Kind(400, "The request cannot be read", "Check the request's form against the OpenAPI document."),
}
_BY_STATUS = {400: "bad-request", 401: "unauthenticated", 403: "forbidden", 404: "not-found", 405: "method-not-allowed"}


class Problem(Exception):
    """Ends a request with the problem of that name. `extra` are further members; they must hold no secret."""

    def __init__(self, name: str, detail: str | None = None, **extra: Any) -> None:
        super().__init__(name)
        self.name = name
        self.detail = detail
        self.extra = extra


def response(name: str, detail: str | None = None, **extra: Any) -> JSONResponse:
    kind = PROBLEMS[name]
    body = {"type": TYPE + name, "title": kind.title, "status": kind.status, "detail": detail or kind.detail, **extra}
    return JSONResponse(body, kind.status, headers=dict(kind.headers), media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Every error leaves as a problem; the one place where that happens, but for crashes (`edge`)."""
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(StoreError, _store)


async def _problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Problem)
    return response(error.name, error.detail, **error.extra)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        answer = response("method-not-allowed")
        answer.headers["Allow"] = ", ".join(sorted(_methods(request)))
        return answer
    return response(_BY_STATUS.get(error.status_code, "bad-request" if error.status_code < 500 else "failed"))


def _methods(request: Request) -> set[str]:
    """What the address has, over all its routes; HEAD wherever there is GET (`edge`)."""
    found: set[str] = set()
    for route in request.app.state.routes:
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return found | ({"HEAD"} if "GET" in found else set())


async def _store(request: Request, error: Exception) -> JSONResponse:
    match error:
        case Unavailable():
            log.warning("the store cannot serve now", extra={"path": request.url.path})
            return response("unavailable")
        case NotFound():
            return response("not-found")
        case ReadOnly():
            return response("read-only")
        case _:
            log.error("the store refused a read", exc_info=error)
            return response("failed")


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # The validator's messages speak of the caller's own value; the value itself is not sent back.
    errors = [
        {"where": ".".join(str(part) for part in one["loc"]), "detail": str(one["msg"])}
        for one in error.errors()[:MAX_ERRORS]
    ]
    return response("invalid-request", errors=errors)


async def unreadable_log(request: Request, error: Exception) -> JSONResponse:
    """The audit log cannot be read: ours to mend, and perhaps only for the moment."""
    log.error("the audit log cannot be read", exc_info=error)
    return response("unavailable")
