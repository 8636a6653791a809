"""One node: built from settings, run, and stopped. The only place that knows every part.

A node's life is `Node.start → until stopped → Node.stop`; parts start in the order in which they need each other and
stop in the reverse one, so that what came in is delivered, logged, signed and traced before the process ends.
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import resource
import signal
import socket
import sqlite3
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import uvicorn
import uvloop

from aimx import durable
from aimx.audit import events
from aimx.audit.anchoring import Anchoring, outsiders
from aimx.audit.anchors import Anchors
from aimx.audit.keys import KeyUnusable, load_or_create, load_public
from aimx.audit.log import LogError
from aimx.audit.place import open_anchors, open_reader, read_anchors
from aimx.audit.selfcheck import watch
from aimx.audit.sequencer import Sequencer
from aimx.audit.succession import sharding
from aimx.audit.witness import Witness, cosigned_logs, load_key
from aimx.config import Endpoint, SettingError, Settings
from aimx.delivery.destination import Destinations
from aimx.delivery.mailbox import MailboxTransport
from aimx.delivery.outbound import Outbound
from aimx.delivery.outbound import close as close_carriers
from aimx.delivery.queue import Queue
from aimx.delivery.relay import Relay
from aimx.delivery.transport import Carrier, Transport
from aimx.delivery.webhook import Webhooks
from aimx.identity import tokens
from aimx.identity.agents import Directory
from aimx.identity.certificate import Certificates
from aimx.identity.peers import Peers
from aimx.imap import server as imap
from aimx.intake.intake import Intake
from aimx.intake.post import Post, Taken, correspondents
from aimx.intake.report import Reporter
from aimx.listener import bind as bind_listener
from aimx.rate import rate_of_minute
from aimx.routing.table import RoutingTable
from aimx.sidecar.app import create_app
from aimx.sidecar.connection import Door as HttpDoor
from aimx.sidecar.context import SidecarContext
from aimx.smtp import server as smtp
from aimx.smtp.budget import ByteBudget
from aimx.smtp.session import Door
from aimx.store.contract import SpanRef, StoreError
from aimx.store.sqlite import SqliteStore
from aimx.store.timed import timed
from aimx.telemetry import logs, metrics
from aimx.telemetry.context import Door as Trust
from aimx.telemetry.export import TelemetrySettingError, open_metrics, open_tracer
from aimx.telemetry.span import Tracer

log = logging.getLogger("aimx.node")

GRACE = 4.0
"""Seconds that clients' messages in hand have at a stop, in all doors at once. All of a stop stays within ten."""
FLUSH = 2.0
"""Seconds that the last spans have to reach the collector."""
LOOK_EVERY = 1.0
"""Seconds between looks at the configuration file and the certificate."""
MEASURE_EVERY = 5.0
SWEEP_EVERY = 10.0
RECORD_EVERY = 60.0
"""Seconds between records of what strangers were refused."""
DESCRIPTORS = 65_536

MAIL_FILE = "mail.db"
ADMIN_TOKEN = "admin.token"  # noqa: S105 — a file's name
SECRET = "node.secret"  # noqa: S105
READY = "ready.json"


RELOADED = frozenset({"routes", "pools", "lists", "loop", "workflow", "agent", "domain"})
"""Settings that a changed file changes at once; of `domain` only the limits, for names are in too many places."""

Ending = Callable[[], Awaitable[object]]


class CannotStart(Exception):
    """The node cannot start. One line: what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Where a node answers: what `--ready-file` holds as JSON."""

    smtp: str
    smtps: str
    imap: str
    imaps: str
    http: str
    ca: str
    admin_token_file: str
    peer: str | None = None
    mx: str | None = None
    plain: str | None = None


class _Http(uvicorn.Server):
    """uvicorn without its signal handlers: a node stops all its parts in one order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Node:
    """Everything one process runs on one data folder."""

    def __init__(self, settings: Settings, reload: Callable[[], Settings] | None = None) -> None:
        """`reload` reads the settings anew, for the routing rules; without it they stay as they are."""
        self.settings = settings
        self.first_start = False
        self._reload = reload
        self.tracer: Tracer | None = None
        """To be used instead of the one that OTEL_* asks for."""
        self._stack = contextlib.AsyncExitStack()
        self._ticking: list[asyncio.Task[None]] = []
        self._intake: Intake
        self._store: SqliteStore

    async def start(self) -> Ready:
        """Bind everything and serve. Raises CannotStart; what had started by then is stopped again."""
        try:
            return await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Finish what is in hand and let go, within ten seconds."""
        for task in self._ticking:
            task.cancel()
        await asyncio.gather(*self._ticking, return_exceptions=True)
        await self._stack.aclose()

    # ── building ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _start(self) -> Ready:
        settings = self.settings
        folder = prepare(settings.data)
        self._stack.callback(os.close, lock(folder))
        withdraw(folder / READY, settings.ready_file)  # an earlier life's, killed before it could
        self.first_start = not (folder / MAIL_FILE).exists()
        now_ms = time.time_ns() // 1_000_000
        certificates = present(folder / "tls", settings.domains)
        with needed(folder / "keys"):
            keys = load_or_create(
                folder, settings.domains[0], now_ms, signer=settings.audit.signer, length=settings.audit.shard
            )
        with needed(folder / SECRET):
            secret = tokens.node_secret(folder / SECRET)
        with needed(folder / ADMIN_TOKEN):
            admin = tokens.admin_token(folder / ADMIN_TOKEN)

        tracer = self.tracer or self._open_telemetry()
        store = self._store = timed(SqliteStore(folder / MAIL_FILE, settings.node), "sqlite")
        with needed(folder / MAIL_FILE):
            await store.open()
        self._stack.push_async_callback(store.close)
        sequencer = Sequencer(
            store,
            folder,
            keys,
            node=settings.node,
            database=settings.audit.database,
            tracer=tracer,
            integrate_within=settings.audit.integrate_within,
            checkpoint_every=settings.audit.checkpoint_every,
            heartbeat_every=settings.audit.heartbeat_every,
            sharding=sharding(settings.audit),
            remembered=lambda origin: [
                (one.name, one.note) for one in read_anchors(folder, settings.audit.database, origin)
            ],
        )
        await sequencer.start()
        self._stack.push_async_callback(sequencer.stop)

        directory = Directory(store, settings.domains, settings.sign_in, secret=secret)
        self._stack.callback(directory.close)
        reporter = Reporter(settings, store, directory, secret)
        intake = self._intake = Intake(
            settings,
            store,
            directory,
            tracer,
            message_id_key=secret,
            receipts=lambda: sequencer.keys.receipt,
            outbox_age=lambda: sequencer.lag_ms / 1000,
            reports=reporter,
        )
        self._stack.push_async_callback(intake.record_turned_away)
        destinations = Destinations(settings.delivery)
        metrics.observe("aimx.destination.circuits", destinations.circuits)
        carriers: list[Carrier] = [Relay(settings, certificates.peer_credentials()), Webhooks(settings)]
        transports: list[Transport] = [
            MailboxTransport(store, settings.node),
            *(Outbound(each, store, settings.node, destinations, settings.delivery) for each in carriers),
        ]
        self._stack.push_async_callback(close_carriers, carriers)
        queue = Queue(
            settings,
            store,
            {each.name: each for each in transports},
            tracer,
            reporter,
            destinations,
        )
        queue.start()
        self._stack.push_async_callback(queue.stop)

        bound: dict[str, socket.socket] = {}
        for name in type(settings.listen).model_fields:
            endpoint = getattr(settings.listen, name)
            if endpoint is not None:
                bound[name] = bind(name, endpoint)
                self._stack.callback(bound[name].close)
        context = certificates.server_context()
        budget = ByteBudget(settings.smtp.byte_budget, least=settings.imap.max_literal)
        metrics.observe("aimx.bytes.held", lambda: [((), budget.limit - budget.left)])
        pace = rate_of_minute(settings.limits.connections_per_minute)
        smtp_server = smtp.Server(Door(settings.domains, settings.smtp, directory, intake, budget, pace), context)
        imap_server = imap.Server(imap.Door(settings, store, directory, intake, tracer, budget), context)
        reader = open_reader(folder, settings.audit.database)
        self._stack.callback(reader.close)
        anchors, witness = self._open_anchors(folder)
        if anchors is not None:
            asked = outsiders(settings.audit, reader, anchors)
            post = await self._open_post(witness, tracer)
            if post is not None:
                asked += correspondents(settings.audit, reader, post)
            anchoring = Anchoring(asked, reader, anchors, store, node=settings.node, tracer=tracer)
            if post is not None:
                post.confirm = anchoring.confirm
            anchoring.start()
            self._stack.push_async_callback(anchoring.stop)
        sidecar = SidecarContext(
            store=store,
            log=reader,
            keys=lambda: load_public(folder),
            settings=settings,
            is_admin=lambda token: tokens.same(token, admin),
            metrics=metrics.PROCESS.snapshot,
            ready=lambda: self._problems(sequencer),
            tracer=tracer,
            witness=witness,
        )
        doors: list[Ending] = []
        self._stack.push_async_callback(together, doors)
        doors.append(await serve_http(sidecar, context, bound["http"]))
        addresses = {
            "smtp": smtp_server.listen(bound["smtp"], implicit_tls=False),
            "smtps": smtp_server.listen(bound["smtps"], implicit_tls=True),
            "imap": imap_server.listen(bound["imap"], implicit_tls=False),
            "imaps": imap_server.listen(bound["imaps"], implicit_tls=True),
        }
        servers = [smtp_server]
        if "peer" in bound and not settings.peers:
            raise CannotStart("listen.peer: opens a door for peers, and none is named; add [peer.NAME] to aimx.toml")
        if "peer" in bound:
            known = Peers(settings.peers)
            door = Door(settings.domains, settings.smtp, directory, intake, budget, pace, trust=Trust.PEER, peers=known)
            authorities = [peer.ca for peer in settings.peers.values()]
            servers.append(smtp.Server(door, certificates.peer_context(authorities)))
            addresses["peer"] = servers[-1].listen(bound["peer"], implicit_tls=False)
        if "mx" in bound:
            clear = settings.mx.tls == "opportunistic"
            door = Door(
                settings.domains, settings.smtp, directory, intake, budget, pace, trust=Trust.STRANGER, clear=clear
            )
            floor = ssl.TLSVersion.TLSv1_3 if settings.mx.floor == "1.3" else ssl.TLSVersion.TLSv1_2
            servers.append(smtp.Server(door, certificates.public_context(floor)))
            addresses["mx"] = servers[-1].listen(bound["mx"], implicit_tls=False)
        if "plain" in bound:
            networks = tuple(settings.trusted.networks)
            door = Door(settings.domains, settings.smtp, directory, intake, budget, clear=True, networks=networks)
            servers.append(smtp.Server(door, context))
            addresses["plain"] = servers[-1].listen(bound["plain"], implicit_tls=False)
            log.warning(
                "whoever is in %s may send as any agent, in the clear, at listen.plain (%s)",
                ", ".join(map(str, networks)),
                addresses["plain"],
                extra={"event": "door.plain"},
            )
        self._stack.push_async_callback(_stop_doors, *servers, imap_server)
        metrics.observe("aimx.smtp.sessions", lambda: [((), sum(each.open_connections for each in servers))])
        self._ticking = [
            asyncio.create_task(self._look(certificates), name="aimx-reload"),
            asyncio.create_task(_measure(store, intake), name="aimx-measure"),
            asyncio.create_task(_sweep(store), name="aimx-sweep"),
            asyncio.create_task(watch(reader, folder), name="aimx-audit-watch"),
            asyncio.create_task(_record_turned_away(intake), name="aimx-turned-away"),
        ]
        ready = Ready(
            **{name: str(address) for name, address in addresses.items()},
            http=f"https://{_endpoint(bound['http'])}",
            ca=str(certificates.ca.resolve()),
            admin_token_file=str((folder / ADMIN_TOKEN).resolve()),
        )
        announce(ready, folder / READY, settings.ready_file)
        self._stack.callback(withdraw, folder / READY, settings.ready_file)
        return ready

    def _open_telemetry(self) -> Tracer:
        tracer = open_tracer(sdk=self.settings.trace.sdk)
        pump = open_metrics()
        close = getattr(tracer.sink, "close", None)
        closing = [each for each in (close, pump.close if pump is not None else None) if each is not None]
        self._stack.push_async_callback(together, [partial(asyncio.to_thread, each, FLUSH) for each in closing])
        return tracer

    def _open_anchors(self, folder: Path) -> tuple[Anchors | None, Witness | None]:
        """What leaves the house and what comes from others, where the settings ask for any of it."""
        audit = self.settings.audit
        if not (audit.witness or audit.cosign or audit.mail_to or audit.timestamp):
            return None, None
        logs = cosigned_logs(audit)
        anchors = open_anchors(folder, audit.database)
        self._stack.callback(anchors.close)
        if not logs:
            return anchors, None
        with needed(folder / "keys"):
            return anchors, Witness(load_key(folder, self.settings.domains[0]), logs, anchors)

    async def _open_post(self, witness: Witness | None, tracer: Tracer) -> Post | None:
        """The node's own mailbox, where the settings need one."""
        audit, settings = self.settings.audit, self.settings
        if not (audit.cosign or audit.mail_to or any(asked.mail for asked in audit.witness.values())):
            return None
        post = Post(self._store, self._intake, tracer, node=settings.node, domain=settings.domains[0], witness=witness)
        try:
            await post.start()
        except Taken as error:
            raise CannotStart(f"audit: {error}") from None
        self._stack.push_async_callback(post.stop)
        return post

    def _problems(self, sequencer: Sequencer) -> list[str]:
        lag = sequencer.lag_ms / 1000
        if lag > self.settings.audit.max_lag:
            return [f"the audit log is {lag:.0f} s behind; look at free disk space and at the log"]
        return []

    # ── reloading ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _look(self, certificates: Certificates) -> None:
        """Take changed rules and certificates into use. A bad file keeps what was there and says so."""
        path = self.settings.config
        seen = _modified(path)
        while True:
            await asyncio.sleep(LOOK_EVERY)
            certificates.reload()
            now = _modified(path)
            if now == seen:
                continue
            seen = now
            await self.reload_rules()

    async def reload_rules(self) -> None:
        """Read the settings again and take over `RELOADED` of them; the rest stays as it is until a restart."""
        if self._reload is None:
            return
        try:
            found = self._reload()
            settings, waiting = taken_over(self.settings, found)
            table = RoutingTable(settings)
        except SettingError as error:
            log.error("rules not reloaded, the old ones stay: %s", error, extra={"event": "rules.kept"})
            return
        except Exception:
            log.exception("rules not reloaded, the old ones stay", extra={"event": "rules.kept"})
            return
        self._intake.settings, self._intake.table = settings, table
        log.info("rules reloaded: %d rules", len(settings.routes), extra={"event": "rules.reloaded"})
        if waiting:
            log.warning("changed too, but only a restart takes it over: %s", ", ".join(waiting))
        root = os.urandom(24)
        stamp = events.Stamp(self.settings.node, time.time_ns() // 1_000_000, SpanRef(root[:16], root[16:]), "admin")
        changed = events.config_changed(stamp, what="rules.reloaded", by="admin", subject="route")
        try:
            await self._store.record([changed])
        except StoreError:
            log.error("the reload of the rules could not be recorded", extra={"event": "rules.reloaded"})


def serve(
    settings: Settings,
    reload: Callable[[], Settings] | None = None,
    announce: Callable[[Ready, bool], None] | None = None,
) -> int:
    """Run a node until SIGTERM or SIGINT. `announce` is told where it answers and whether this is its first start.

    Returns the exit code: 0 after a stop that was asked for, 1 when it could not start (one line on standard error).
    """
    logs.configure(settings.log_level)
    allow_descriptors()
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # below it, strangers write our log
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, reload, announce))
    except (CannotStart, SettingError, KeyUnusable, LogError, TelemetrySettingError) as error:
        print(f"aimx: {error}", file=sys.stderr)
        return 1
    return 0


def allow_descriptors() -> None:
    """As many open files as the system allows, within reason: many systems begin with 1,024, and it is one a client."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _serve(
    settings: Settings,
    reload: Callable[[], Settings] | None,
    announce: Callable[[Ready, bool], None] | None,
) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    node = Node(settings, reload)
    ready = await node.start()
    try:
        if announce is not None:
            announce(ready, node.first_start)
        await stopped.wait()
        log.info("stopping", extra={"event": "node.stopping"})
    finally:
        await node.stop()


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def prepare(folder: Path) -> Path:
    """The data folder, made 0700; one that others may enter is refused."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = folder.stat().st_mode & 0o777
    except OSError as error:
        raise CannotStart(f"data: {str(folder)!r} cannot be used: {error.strerror}; choose another --data") from None
    if mode & 0o077:
        raise CannotStart(f"data: {str(folder)!r} is open to others (mode {mode:o}); run: chmod 700 {folder}")
    return folder.resolve()


def lock(folder: Path) -> int:
    """One node a folder. The lock goes with the process, however it ends."""
    with needed(folder / "lock"):
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise CannotStart(f"data: another node runs on {str(folder)!r}; stop it or choose another --data") from None
    return descriptor


@contextlib.contextmanager
def needed(path: Path) -> Iterator[None]:
    """What goes wrong here with a file of the data folder is one line for whoever starts the node."""
    try:
        yield
    except (OSError, ValueError, StoreError, sqlite3.Error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CannotStart(f"data: {str(path)!r} cannot be used: {why}; mend it or choose another --data") from error


def present(folder: Path, names: tuple[str, ...]) -> Certificates:
    """The certificates of the folder, made at the first start."""
    certificates = Certificates(folder, names)
    with needed(folder):
        try:
            certificates.ensure()
            certificates.server_context()
        except (ValueError, ssl.SSLError):
            raise CannotStart(
                f"tls: a certificate or key in {str(folder)!r} cannot be read as PEM, or they do not belong together;"
                " put good ones there, or move the folder aside to have new ones made (clients then need its ca.pem)"
            ) from None
    return certificates


def bind(name: str, endpoint: Endpoint) -> socket.socket:
    try:
        return bind_listener(endpoint)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else "it cannot be used"  # socket.create_server says it at length
        raise CannotStart(f"listen.{name}: {endpoint} cannot be bound ({why}); choose another --{name}") from None


def announce(ready: Ready, *paths: Path | None) -> None:
    """Write the ready file: whole or not at all, for somebody is waiting for it."""
    text = json.dumps({name: value for name, value in asdict(ready).items() if value is not None}, indent=1) + "\n"
    for path in paths:
        if path is None:
            continue
        try:
            durable.replace(path, text.encode())
        except OSError as error:
            raise CannotStart(f"ready_file: {str(path)!r} cannot be written: {error.strerror}") from None


def withdraw(*paths: Path | None) -> None:
    """Take the ready files away: nobody answers any more, or not yet."""
    for path in paths:
        if path is not None and path.is_file():
            with contextlib.suppress(OSError):
                path.unlink()


def taken_over(old: Settings, new: Settings) -> tuple[Settings, list[str]]:
    """The settings after a reload, and the names of those that differ but wait for a restart."""
    taken = {name for name in RELOADED if name != "domain" or new.domains == old.domains}
    waiting = [
        field.alias or name
        for name, field in Settings.model_fields.items()
        if name not in taken and getattr(new, name) != getattr(old, name)
    ]
    return old.model_copy(update={name: getattr(new, name) for name in taken}), waiting


async def together(endings: Sequence[Ending]) -> None:
    """End what does not need each other at the same time, so that their times do not add up."""
    for found in await asyncio.gather(*(end() for end in endings), return_exceptions=True):
        if isinstance(found, Exception):
            log.error("a part did not end well", exc_info=found)


async def serve_http(context: SidecarContext, tls: ssl.SSLContext, listener: socket.socket) -> Ending:
    """The sidecar on a bound socket; returns once it answers. What is returned ends it."""
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
        await asyncio.gather(door.stop(1.0), asyncio.wait([serving], timeout=GRACE))

    return stop


async def _stop_doors(*servers: smtp.Server | imap.Server) -> None:
    """All at once: each may need all of the grace."""
    await asyncio.gather(*(server.stop(GRACE) for server in servers))


async def _record_turned_away(intake: Intake) -> None:
    while True:
        await asyncio.sleep(RECORD_EVERY)
        with contextlib.suppress(StoreError):  # they are still counted, and recorded the next time
            await intake.record_turned_away()


async def _sweep(store: SqliteStore) -> None:
    """Drop what has run out."""
    while True:
        await asyncio.sleep(SWEEP_EVERY)
        with contextlib.suppress(StoreError):
            await store.sweep(time.time_ns() // 1_000_000)


async def _measure(store: SqliteStore, intake: Intake) -> None:
    """Queue and outbox, for the gauges: asked for now and then, so that a scrape never waits for the store."""
    depth = metrics.gauge("aimx.queue.depth").labels("mailbox")
    oldest = metrics.gauge("aimx.queue.oldest_age").labels()
    while True:
        with contextlib.suppress(StoreError):
            backlog = await store.backlog()
            depth.set(backlog.queue_depth)
            intake.pressure.queue_depth = backlog.queue_depth
            since = backlog.queue_oldest_ms
            oldest.set(0 if since is None else max(0.0, time.time() - since / 1000))
        await asyncio.sleep(MEASURE_EVERY)


def _modified(path: Path | None) -> int | None:
    try:
        return None if path is None else path.stat().st_mtime_ns
    except OSError:
        return None


def _endpoint(listener: socket.socket) -> Endpoint:
    host, port = listener.getsockname()[:2]
    return Endpoint(host, port)
