"""The HTTP side on a socket: uvicorn behind the same accepting loop as SMTP and IMAP."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator

import uvicorn

from aimx.data_folder import CannotStart
from aimx.sidecar.app import create_app
from aimx.sidecar.connection import Door as HttpDoor
from aimx.sidecar.context import SidecarContext


async def serve(
    context: SidecarContext, tls: ssl.SSLContext, listener: socket.socket, grace: float
) -> Callable[[], Awaitable[object]]:
    """Serve a bound, listening socket. Returns, once it answers, what ends it within about `grace` seconds."""
    config = uvicorn.Config(
        create_app(context),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody stands before us who may say who the client is
        timeout_graceful_shutdown=1,
    )
    http = _Http(config)
    serving = asyncio.create_task(http.serve(sockets=[]), name="aimx-http")
    while not http.started:
        if serving.done():
            raise CannotStart("listen.http: the HTTP side did not start; see the log")
        await asyncio.sleep(0.01)
    door = HttpDoor(tls, http)
    door.listen(listener, implicit_tls=True)

    async def stop() -> None:
        http.should_exit = True
        await asyncio.gather(door.stop(1.0), asyncio.wait([serving], timeout=grace))

    return stop


class _Http(uvicorn.Server):
    """uvicorn without its signal handlers: a node stops all its parts in one order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
