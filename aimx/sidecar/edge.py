"""The outermost layer of the application: HEAD, bounded requests, security headers, and where our own failures end."""

import asyncio
import logging
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aimx.sidecar import problems
from aimx.sidecar.problems import Problem
from aimx.tlog.witness import MAX_REQUEST

log = logging.getLogger("aimx.sidecar")

MAX_BODY = MAX_REQUEST
"""Octets of a request's content; the longest there is goes to a witness."""
BODY_WITHIN = 20.0
"""Seconds for all of it."""

# No Strict-Transport-Security: it binds a host name, and on a laptop that name is localhost, which others use as well.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Edge:
    """ASGI middleware. Knows no path."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        head = scope["method"] == "HEAD"
        if head:
            # RFC 9110 §9.3.2: as GET, without the content.
            scope = {**scope, "method": "GET"}
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                _add(message)
            elif head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self.app(scope, _bounded(receive), answer)
        except Exception:
            # Our failure: whoever runs the node reads about it, the caller learns that it happened.
            log.exception("a request failed", extra={"path": scope["path"]})
            if started:
                raise  # half an answer must not look whole: the connection is cut
            await problems.response("failed")(scope, receive, answer)


def _bounded(receive: Receive) -> Receive:
    """A request is read before it is known who asks: so what it says is short, and comes soon. Raises Problem."""
    until, size, more = asyncio.get_running_loop().time() + BODY_WITHIN, 0, True

    async def part() -> Message:
        nonlocal size, more
        if not more:
            return await receive()  # whether the caller is still there
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            raise Problem("bad-request", "The request did not end in time.") from None
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        if size > MAX_BODY:
            raise Problem("bad-request", f"A request has at most {MAX_BODY} octets of content.")
        return message

    return part


def _add(message: Any) -> None:
    headers = MutableHeaders(scope=message)
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
