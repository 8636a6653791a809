"""What `aimx doctor` looks at in the PostgreSQL that nodes share."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import asyncpg

from aimx.cli.doctor import Finding
from aimx.cli.screen import span_of
from aimx.config import Settings
from aimx.store.contract import NodeRecord
from aimx.store.postgres.connection import Db
from aimx.store.postgres.store import POOL

PATIENCE = 10.0
SKEW_MS = 1000
"""Clocks that differ by less do no harm: leases and retries are longer."""
SILENT_MS = 10_000
EACH = POOL + 6
"""Connections a worker may hold: the store's, one for acceptances, one for notifications, and the log's."""
_MAIL = (("message", "INSERT"), ("entry", "INSERT"), ("delivery", "DELETE"), ("outbox", "INSERT"), ("node", "UPDATE"))


async def database(settings: Settings) -> AsyncIterator[Finding]:
    """Durability, rights, clocks, nodes, connections."""
    url, log_url = settings.database.url, settings.log_database
    assert url is not None
    assert log_url is not None
    try:
        async with asyncio.timeout(PATIENCE):
            db = await _connect(url)
            try:
                async for finding in _looked_at(db, url == log_url):
                    yield finding
            finally:
                await db.close()
            if log_url != url:
                db = await _connect(log_url)
                try:
                    yield await _log_rights(db)
                finally:
                    await db.close()
    except asyncpg.InsufficientPrivilegeError:
        yield Finding("wrong", "rights", "the user may not look into schema aimx", "sign in as aimx_app (aimx db init)")
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        text = f"PostgreSQL cannot be asked ({type(error).__name__})"
        yield Finding("wrong", "database", text, "see that it runs, and the URL's host, user and password")


async def _connect(url: str) -> Db:
    """A plain session: a node's own sets what is to be looked at."""
    db: Db = await asyncpg.connect(url, timeout=PATIENCE, server_settings={"application_name": "aimx doctor"})
    return db


async def _looked_at(db: Db, with_log: bool) -> AsyncIterator[Finding]:
    said = {name: await db.fetchval("SELECT current_setting($1)", name) for name in _SETTINGS}
    version = db.get_server_version()
    if version.major < 15:
        yield Finding("wrong", "database", f"PostgreSQL {version.major}", "15 is the oldest that is supported")
    else:
        yield Finding("ok", "database", f"PostgreSQL {version.major}.{version.minor}")
    for finding in _durability(said):
        yield finding
    yield await _mail_rights(db)
    if with_log:
        yield await _log_rights(db)
    async for finding in _clocks_and_nodes(db, int(said["max_connections"])):
        yield finding


_SETTINGS = ("fsync", "full_page_writes", "synchronous_commit", "max_connections")


def _durability(said: dict[str, str]) -> Iterator[Finding]:
    broken = [name for name in ("fsync", "full_page_writes") if said[name] == "off"]
    for name in broken:
        text = f"{name} = off: a power cut loses mail that was accepted, or all of the database"
        yield Finding("wrong", "durability", text, f"set {name} = on in postgresql.conf and restart PostgreSQL")
    if said["synchronous_commit"] not in ("on", "remote_apply"):
        text = f"synchronous_commit = {said['synchronous_commit']} is the server's default; nodes set it to on"
        yield Finding("note", "durability", text, "set it to on, so that other programs' changes are kept too")
    elif not broken:
        yield Finding("ok", "durability", "fsync, full_page_writes and synchronous_commit are on")


async def _mail_rights(db: Db) -> Finding:
    if await db.fetchval("SELECT to_regclass('aimx.message') IS NULL"):
        return Finding("wrong", "rights", "there are no tables of AIMX", "as the database's owner: aimx db init URL")
    user = await db.fetchval("SELECT current_user::text")
    missing = [
        f"{right} on {table}"
        for table, right in _MAIL
        if not await db.fetchval("SELECT has_table_privilege(format('aimx.%I', $1::text), $2::text)", table, right)
    ]
    if missing:
        return Finding("wrong", "rights", f"{user} may not: {', '.join(missing)}", "sign in as aimx_app (aimx db init)")
    if await db.fetchval("SELECT has_table_privilege('aimx.event', 'DELETE')"):
        text = f"{user} may also change and delete events"
        return Finding("note", "rights", text, "serve mail as aimx_app and write the log as aimx_seq (aimx db init)")
    return Finding("ok", "rights", f"{user} may serve mail, and cannot change what was recorded")


async def _log_rights(db: Db) -> Finding:
    user = await db.fetchval("SELECT current_user::text")
    if await db.fetchval("SELECT to_regclass('audit.state') IS NULL"):
        return Finding("wrong", "log rights", "there are no tables of the log", "as the owner: aimx db init URL")
    if await db.fetchval(
        "SELECT has_table_privilege('audit.state', 'UPDATE') OR EXISTS"
        " (SELECT FROM pg_roles WHERE rolname = 'aimx_seq' AND pg_has_role(current_user, oid, 'MEMBER'))"
    ):
        return Finding("ok", "log rights", f"{user} may write the audit log")
    fix = 'in aimx.toml: [audit] database = "postgresql://aimx_seq:…" (aimx db init printed it)'
    return Finding("wrong", "log rights", f"{user} may not write the audit log", fix)


async def _clocks_and_nodes(db: Db, most: int) -> AsyncIterator[Finding]:
    began = time.time_ns()
    theirs_ms = int(await db.fetchval("SELECT extract(epoch FROM clock_timestamp()) * 1000"))
    here_ms = (began + time.time_ns()) // 2_000_000
    rows = await db.fetch("SELECT node, worker, host, pid, started_ms, seen_ms, version, draining FROM aimx.node")
    found = [NodeRecord(*row) for row in rows]
    skew = [("this machine", here_ms - theirs_ms)] if abs(here_ms - theirs_ms) > SKEW_MS else []
    # A sign of life is up to two seconds old, so that only a clock that is ahead shows for sure.
    skew += sorted({(one.node, one.seen_ms - theirs_ms) for one in found if one.seen_ms - theirs_ms > SKEW_MS})
    for who, ms in skew:
        text = f"{who} is {span_of(abs(ms))} {'ahead of' if ms > 0 else 'behind'} the database"
        yield Finding("wrong", "clock", text, "set the clocks by NTP: retries, leases and the log's times depend on it")
    if not skew:
        yield Finding("ok", "clock", "this machine, the nodes and the database agree")
    silent = sorted({f"{one.node}/{one.worker}" for one in found if theirs_ms - one.seen_ms > SILENT_MS})
    alive = [one for one in found if theirs_ms - one.seen_ms <= SILENT_MS]
    if silent:
        text = f"no sign of life from {', '.join(silent)}"
        yield Finding("note", "nodes", text, "they were killed; others have what waited there. They may start again")
    elif alive:
        count = len({one.node for one in alive})
        workers = f"{len(alive)} worker{'' if len(alive) == 1 else 's'}"
        yield Finding("ok", "nodes", f"{count} node{'' if count == 1 else 's'}, {workers}; aimx node list")
    if len(alive) * EACH > most:
        text = f"{len(alive)} workers may hold {len(alive) * EACH} connections; max_connections is {most}"
        yield Finding("note", "connections", text, "raise max_connections, or run fewer workers")
