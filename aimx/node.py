"""One process of a node: built from settings, run, and stopped. The only place that knows every part.

A node's life is `Node.start → until stopped → Node.stop`; parts start in the order in which they need each other and
stop in the reverse one, so that what came in is delivered, logged, signed and traced before the process ends.
"""

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from aimx.audit import events
from aimx.audit.anchoring import Anchoring, outsiders
from aimx.audit.anchors import Anchors
from aimx.audit.keys import Keys, load_or_create, load_public
from aimx.audit.place import open_anchors, open_reader, read_anchors
from aimx.audit.retention import Retention, first_of_all
from aimx.audit.selfcheck import watch
from aimx.audit.sequencer import Sequencer
from aimx.audit.succession import sharding
from aimx.audit.witness import Witness, cosigned_logs, load_key
from aimx.config import Endpoint, SettingError, Settings
from aimx.data_folder import (
    ADMIN_TOKEN,
    MAIL_FILE,
    METRICS_TOKEN,
    READY,
    SECRET,
    CannotStart,
    Ready,
    announce,
    lock,
    needed,
    prepare,
    withdraw,
)
from aimx.delivery.destination import Destinations
from aimx.delivery.lmtp import LmtpStores
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
from aimx.listener import Listener
from aimx.listener import bind as bind_listener
from aimx.membership import Membership, claim_name
from aimx.rate import rate_of_minute
from aimx.routing.table import RoutingTable
from aimx.sidecar.context import SidecarContext
from aimx.sidecar.serving import serve as serve_http
from aimx.smtp import server as smtp
from aimx.smtp.budget import ByteBudget
from aimx.smtp.session import Door
from aimx.store.contract import Store, StoreError
from aimx.store.place import open_store
from aimx.store.timed import timed
from aimx.telemetry import metrics
from aimx.telemetry.context import Door as Trust
from aimx.telemetry.export import open_metrics, open_tracer
from aimx.telemetry.span import Tracer
from aimx.telemetry.workers import PUBLISH_EVERY, Workers

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

RELOADED = frozenset({"routes", "pools", "lists", "loop", "workflow", "agent", "domain"})
"""Settings that a changed file changes at once; of `domain` only the limits, for names are in too many places."""

Ending = Callable[[], Awaitable[object]]


Sockets = Mapping[str, socket.socket]
"""Bound and listening, by the names in `[listen]`."""


class Node:
    """Everything one process runs on one data folder."""

    def __init__(
        self,
        settings: Settings,
        reload: Callable[[], Settings] | None = None,
        *,
        sockets: Sockets | None = None,
        worker: int = 0,
    ) -> None:
        """`reload` reads the settings anew, for the routing rules; without it they stay as they are.

        `sockets` are given by the parent of several workers, which then holds the folder and says where they answer.
        """
        self.settings = settings
        self._sockets = sockets
        self._worker = worker
        self.first_start = False
        self._reload = reload
        self.tracer: Tracer | None = None
        """To be used instead of the one that OTEL_* asks for."""
        self._stack = contextlib.AsyncExitStack()
        self._ticking: list[asyncio.Task[None]] = []
        self._intake: Intake
        self._store: Store
        self._queue: Queue
        self._doors: list[Listener[Any]] = []
        self._membership: Membership | None = None

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
        if self._sockets is None:
            self._stack.callback(os.close, lock(folder))
            withdraw(folder / READY, settings.ready_file)  # an earlier life's, killed before it could
            if settings.database.url is not None:
                await claim_name(settings, folder)
        self.first_start = not (folder / MAIL_FILE).exists()
        certificates, keys, secret, admin, scraper = furnish(folder, settings)
        tracer = self.tracer or self._open_telemetry()
        store = self._store = await self._open_store(folder)
        if settings.database.url is not None:
            self._membership = Membership(store, settings.node, self._worker, self._drain)
            self._stack.push_async_callback(self._membership.leave)
        sequencer = Sequencer(
            await self._open_outbox(folder, store),
            folder,
            keys,
            node=settings.node,
            database=settings.log_database,
            tracer=tracer,
            integrate_within=settings.audit.integrate_within,
            checkpoint_every=settings.audit.checkpoint_every,
            heartbeat_every=settings.audit.heartbeat_every,
            sharding=sharding(settings.audit),
            remembered=lambda origin: [
                (one.name, one.note) for one in read_anchors(folder, settings.log_database, origin)
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
        carriers: list[Carrier] = [
            Relay(settings, certificates.peer_credentials()),
            LmtpStores(settings),
            Webhooks(settings),
        ]
        transports: list[Transport] = [
            MailboxTransport(store, settings.node),
            *(Outbound(each, store, settings.node, destinations, settings.delivery) for each in carriers),
        ]
        self._stack.push_async_callback(close_carriers, carriers)
        queue = self._queue = Queue(
            settings,
            store,
            {each.name: each for each in transports},
            tracer,
            reporter,
            destinations,
            self._worker,
        )
        queue.start()
        self._stack.push_async_callback(queue.stop)

        bound = self._sockets or bind(settings)
        for listening in bound.values():
            self._stack.callback(listening.close)
        context = certificates.server_context()
        budget = ByteBudget(settings.smtp.byte_budget // settings.workers, least=settings.imap.max_literal)
        metrics.observe("aimx.bytes.held", lambda: [((), budget.limit - budget.left)])
        pace = rate_of_minute(settings.limits.connections_per_minute)
        smtp_server = smtp.Server(Door(settings.domains, settings.smtp, directory, intake, budget, pace), context)
        imap_server = imap.Server(imap.Door(settings, store, directory, intake, tracer, budget), context)
        reader = open_reader(folder, settings.log_database)
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
            is_scraper=lambda token: tokens.same(token, scraper),
            metrics=self._count(folder),
            ready=lambda: self._problems(sequencer),
            tracer=tracer,
            login_refused=lambda peer: directory.refused.add("http", peer, None),
            witness=witness,
        )
        doors: list[Ending] = []
        self._stack.push_async_callback(together, doors)
        stop_http = await serve_http(sidecar, context, bound["http"], GRACE)
        doors.append(stop_http)
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
        self._doors = [*servers, imap_server]  # the HTTP side goes on: it has to say that the node drains
        metrics.observe("aimx.smtp.sessions", lambda: [((), sum(each.open_connections for each in servers))])
        self._ticking += [
            asyncio.create_task(self._look(certificates), name="aimx-reload"),
            asyncio.create_task(_measure(store, intake), name="aimx-measure"),
            asyncio.create_task(_sweep(store), name="aimx-sweep"),
            asyncio.create_task(watch(reader, folder), name="aimx-audit-watch"),
            asyncio.create_task(_record_turned_away(intake), name="aimx-turned-away"),
        ]
        if self._membership is not None:
            await self._membership.join()
        if settings.retention.rules:
            self._ticking.append(asyncio.create_task(self._retain(), name="aimx-retention"))
        ready = Ready(
            **{name: str(address) for name, address in addresses.items()},
            http=f"https://{_endpoint(bound['http'])}",
            ca=str(certificates.ca.resolve()),
            admin_token_file=str((folder / ADMIN_TOKEN).resolve()),
        )
        if self._sockets is None:
            announce(ready, folder / READY, settings.ready_file)
            self._stack.callback(withdraw, folder / READY, settings.ready_file)
        return ready

    async def _open_store(self, folder: Path) -> Store:
        database = self.settings.database.url
        store = open_store(folder / MAIL_FILE, database, self.settings.node, self._worker)
        await self._open(store, "database.url" if database else str(folder / MAIL_FILE))
        return timed(store, "postgresql" if database else "sqlite")

    async def _open_outbox(self, folder: Path, store: Store) -> Store:
        """What the sequencer reads and marks: the store, or the same database in the log's own role."""
        mail, audit = self.settings.database.url, self.settings.audit.database
        if mail is None or audit is None or audit == mail:
            return store
        outbox = open_store(folder / MAIL_FILE, audit, self.settings.node, self._worker, guest=True)
        await self._open(outbox, "audit.database")
        return outbox

    async def _open(self, store: Store, what: str) -> None:
        with needed(Path(what)) if self.settings.database.url is None else reachable(what):
            await store.open()
        self._stack.push_async_callback(store.close)

    def _open_telemetry(self) -> Tracer:
        tracer = open_tracer(sdk=self.settings.trace.sdk)
        pump = open_metrics()
        close = getattr(tracer.sink, "close", None)
        closing = [each for each in (close, pump.close if pump is not None else None) if each is not None]
        self._stack.push_async_callback(together, [partial(asyncio.to_thread, each, FLUSH) for each in closing])
        return tracer

    def _count(self, folder: Path) -> Callable[[], metrics.Snapshot]:
        """What a scrape is told: of this process, or of all the node's workers."""
        if self._sockets is None:
            return metrics.PROCESS.snapshot
        workers = Workers(folder, self._worker)
        self._ticking.append(asyncio.create_task(_publish(workers), name="aimx-publish"))
        self._stack.callback(workers.publish)
        return workers.snapshot

    def _open_anchors(self, folder: Path) -> tuple[Anchors | None, Witness | None]:
        """What leaves the house and what comes from others, where the settings ask for any of it."""
        audit = self.settings.audit
        if not (audit.witness or audit.cosign or audit.mail_to or audit.timestamp):
            return None, None
        logs = cosigned_logs(audit)
        anchors = open_anchors(folder, self.settings.log_database)
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

    # ── one of several ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _retain(self) -> None:
        settings, store = self.settings, self._store
        retention = Retention(
            store,
            settings.retention.rules,
            node=settings.node,
            every=settings.retention.every,
            leads=lambda: first_of_all(store, settings.node, self._worker),
        )
        await retention.run()

    async def _drain(self, on: bool) -> None:
        """Take nothing new and finish what is in hand; or be a node like any other again."""
        self._queue.drain(on)
        for door in self._doors:
            await door.drain(on)
        log.info("draining" if on else "no longer draining", extra={"event": "node.draining"})

    def _problems(self, sequencer: Sequencer) -> list[str]:
        if self._membership is not None and self._membership.draining:
            return ["this node is draining; undo it with: aimx node undrain"]
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
        stamp = events.Stamp(self.settings.node, time.time_ns() // 1_000_000, events.no_span(), "admin")
        changed = events.config_changed(stamp, what="rules.reloaded", by="admin", subject="route")
        try:
            await self._store.record([changed])
        except StoreError:
            log.error("the reload of the rules could not be recorded", extra={"event": "rules.reloaded"})


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def reachable(setting: str) -> Iterator[None]:
    """What goes wrong with the database is one line for whoever starts the node, without its password."""
    try:
        yield
    except StoreError as error:
        raise CannotStart(f"{setting}: {error}") from error


def bind(settings: Settings, *, shared: bool = False) -> dict[str, socket.socket]:
    """All listening sockets of the settings; `shared`: others may be bound to the same addresses beside them."""
    bound: dict[str, socket.socket] = {}
    try:
        for name in type(settings.listen).model_fields:
            endpoint: Endpoint | None = getattr(settings.listen, name)
            if endpoint is None:
                continue
            try:
                bound[name] = bind_listener(endpoint, shared=shared)
            except OSError as error:
                # socket.create_server says it at length
                why = os.strerror(error.errno) if error.errno else "it cannot be used"
                text = f"listen.{name}: {endpoint} cannot be bound ({why}); choose another --{name}"
                raise CannotStart(text) from None
    except BaseException:
        for listening in bound.values():
            listening.close()
        raise
    return bound


class Furniture(NamedTuple):
    """What every process of a node needs from its folder."""

    certificates: Certificates
    keys: Keys
    secret: bytes
    admin: str
    scraper: str


def furnish(folder: Path, settings: Settings) -> Furniture:
    """The folder's certificates, keys and secrets, made at the first start. Raises CannotStart, KeyUnusable."""
    certificates = present(folder / "tls", settings.domains)
    with needed(folder / "keys"):
        keys = load_or_create(
            folder,
            settings.domains[0],
            time.time_ns() // 1_000_000,
            signer=settings.audit.signer,
            length=settings.audit.shard,
        )
    with needed(folder / SECRET):
        secret = tokens.node_secret(folder / SECRET)
    with needed(folder / ADMIN_TOKEN):
        admin = tokens.kept_token(folder / ADMIN_TOKEN)
    with needed(folder / METRICS_TOKEN):
        scraper = tokens.kept_token(folder / METRICS_TOKEN)
    return Furniture(certificates, keys, secret, admin, scraper)


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


async def _stop_doors(*servers: smtp.Server | imap.Server) -> None:
    """All at once: each may need all of the grace."""
    await asyncio.gather(*(server.stop(GRACE) for server in servers))


async def _record_turned_away(intake: Intake) -> None:
    while True:
        await asyncio.sleep(RECORD_EVERY)
        with contextlib.suppress(StoreError):  # they are still counted, and recorded the next time
            await intake.record_turned_away()


async def _sweep(store: Store) -> None:
    """Drop what has run out."""
    while True:
        await asyncio.sleep(SWEEP_EVERY)
        with contextlib.suppress(StoreError):
            await store.sweep(time.time_ns() // 1_000_000)


async def _publish(workers: Workers) -> None:
    while True:
        await asyncio.sleep(PUBLISH_EVERY)
        workers.publish()


async def _measure(store: Store, intake: Intake) -> None:
    """Queue and outbox, for the gauges: asked for now and then, so that a scrape never waits for the store."""
    depth = metrics.gauge("aimx.queue.depth").labels()
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
