"""The HTTP side in a process of its own: messages, traces and proofs, while the nodes carry mail.

It reads the database that the nodes share, or a standby of it, and writes only what being shown a message must leave in
the log. What its database user may not write it refuses. It makes no keys: it verifies, and never signs.
"""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator

from aimx.audit.keys import VKEYS, load_public
from aimx.audit.place import open_reader
from aimx.config import Settings
from aimx.data_folder import ADMIN_TOKEN, MAIL_FILE, METRICS_TOKEN, CannotStart, needed, prepare
from aimx.identity import tokens
from aimx.listener import bind
from aimx.node import present, reachable
from aimx.sidecar.context import SidecarContext
from aimx.sidecar.serving import serve
from aimx.store.place import open_store
from aimx.telemetry import metrics
from aimx.telemetry.export import open_tracer

log = logging.getLogger("aimx.sidecar")

GRACE = 4.0
FLUSH = 2.0
"""Seconds for answers in hand, and for the last spans, at a stop."""


async def run(settings: Settings, replica: str | None) -> None:
    """Until SIGTERM or SIGINT. Raises CannotStart, KeyUnusable."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with serving(settings, replica) as where:
        log.info("the HTTP side answers at %s", where, extra={"event": "sidecar.ready"})
        print(f"ready: http {where}", flush=True)
        await stopped.wait()


@contextlib.asynccontextmanager
async def serving(settings: Settings, replica: str | None) -> AsyncIterator[str]:
    """Yields its URL once it answers."""
    folder = prepare(settings.data)
    certificates = present(folder / "tls", settings.domains)
    with needed(folder / VKEYS):
        load_public(folder)
    with needed(folder / ADMIN_TOKEN):
        admin = (folder / ADMIN_TOKEN).read_text().strip()
    with needed(folder / METRICS_TOKEN):
        scraper = tokens.kept_token(folder / METRICS_TOKEN)
    async with contextlib.AsyncExitStack() as stack:
        tracer = open_tracer(sdk=settings.trace.sdk)
        if (close := getattr(tracer.sink, "close", None)) is not None:
            stack.push_async_callback(asyncio.to_thread, close, FLUSH)
        url = settings.database.url
        store = open_store(folder / MAIL_FILE, url, settings.node, guest=True, replica=replica)
        with reachable("database.url"):
            await store.open()
        stack.push_async_callback(store.close)
        reader = open_reader(folder, replica or settings.log_database)
        stack.callback(reader.close)
        context = SidecarContext(
            store=store,
            log=reader,
            keys=lambda: load_public(folder),
            settings=settings,
            is_admin=lambda token: tokens.same(token, admin),
            is_scraper=lambda token: tokens.same(token, scraper),
            metrics=metrics.PROCESS.snapshot,
            ready=list,
            tracer=tracer,
        )
        listener = _listen(settings)
        stack.callback(listener.close)
        stack.push_async_callback(await serve(context, certificates.server_context(), listener, GRACE))
        host, port = listener.getsockname()[:2]
        yield f"https://{host}:{port}"


def _listen(settings: Settings) -> socket.socket:
    try:
        return bind(settings.listen.http)
    except OSError as error:
        raise CannotStart(f"listen.http: {settings.listen.http} cannot be bound ({error.strerror})") from None
