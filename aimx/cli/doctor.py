"""`aimx doctor`: everything that is usually wrong, looked at in one go; each finding says what to do."""

import asyncio
import os
import re
import shutil
import socket
import sqlite3
import ssl
import stat
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import click

from aimx.cli.failure import Failed
from aimx.cli.folder import MAIL_DB, Ready, data_option, json_option, opened, ready, settings_of
from aimx.cli.screen import console, print_json, size_of, span_of
from aimx.config import SettingError, Settings
from aimx.sdk.account import READY_FILE
from aimx.sdk.errors import reason
from aimx.store.contract import StoreError

_KEPT = ("admin.token", "audit.db", "audit.vkeys", "keys/log.key", "keys/receipt.key", "node.secret")
"""What a folder with mail in it also has, and what a node that is started again cannot make as it was."""
LOW_DISK = 500_000_000
PATIENCE = 3.0

Verdict = Literal["ok", "note", "wrong"]
_SIGN = {"ok": "[green]✓[/]", "note": "[yellow]![/]", "wrong": "[red]✗[/]"}


class Finding(NamedTuple):
    """One thing looked at. `text` says what is; `fix` what to do, when there is something to do."""

    verdict: Verdict
    what: str
    text: str
    fix: str = ""


@click.command()
@click.option("--ready", "only_ready", is_flag=True, help="Only ask a running node whether it serves.")
@json_option
@data_option
def doctor(only_ready: bool, as_json: bool, data: Path) -> None:
    """Check a node: files, permissions, ports, certificate, store, audit log, disk, tracing. Exit 1 if any is wrong."""
    if only_ready:
        _ask_whether_ready(data)
        return
    found = asyncio.run(_look(data))
    if as_json:
        print_json([finding._asdict() for finding in found])
    else:
        for finding in found:
            console().print(f"{_SIGN[finding.verdict]} [bold]{finding.what:<12}[/]", end=" ")
            console().print(finding.text, markup=False, soft_wrap=True)
            if finding.fix and finding.verdict != "ok":
                console().print(f"               → {finding.fix}", markup=False, style="dim", soft_wrap=True)
    if any(finding.verdict == "wrong" for finding in found):
        sys.exit(1)


def _ask_whether_ready(data: Path) -> None:
    """Raises Failed. What a container's health check runs each few seconds: it loads next to nothing."""
    from http.client import HTTPException, HTTPSConnection

    running = ready(data)
    if running is None:
        raise Failed("the node is not running")
    host, port = _reachable(running.http.removeprefix("https://"))
    try:
        door = HTTPSConnection(host, port, timeout=PATIENCE, context=ssl.create_default_context(cafile=running.ca))
        door.request("GET", "/readyz")
        answer = door.getresponse()
        said = answer.read(4096).decode("utf-8", "replace")
    except (OSError, HTTPException) as error:
        raise Failed(f"the node does not answer: {reason(error, running.ca)}") from None
    if answer.status != 200:
        raise Failed(f"the node does not serve: {said}")
    click.echo("ready")


async def _look(data: Path) -> list[Finding]:
    found = list(_folder(data))
    if not data.is_dir():  # noqa: ASYNC240
        return found
    found += _settings(data)
    found += _disk(data)
    running = ready(data)
    found += [finding async for finding in _doors(data, running)]
    runs = not any(finding.what == "node" for finding in found)
    found += _certificate(data, running)
    found += [finding async for finding in _store(data, runs)]
    found += [finding async for finding in _tracing()]
    if runs and running is not None:
        found += [finding async for finding in _spans(running)]
    return found


def _folder(data: Path) -> Iterator[Finding]:
    if not data.is_dir():
        yield Finding("wrong", "folder", f"{data} is not there", f"start a node: aimx serve --data {data}")
        return
    mode = stat.S_IMODE(data.stat().st_mode)
    if mode & 0o077:
        yield Finding("wrong", "folder", f"{data} is open to others (mode {mode:o})", f"chmod 700 {data}")
    else:
        yield Finding("ok", "folder", f"{data}, mode {mode:o}")
    names = ("admin.token", "metrics.token", "node.secret")
    secrets = [*(data / name for name in names), *data.glob("keys/*.key"), *data.glob("tls/*.key")]
    loose = [path for path in secrets if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077]
    for path in loose:
        yield Finding("wrong", "secrets", f"{path} can be read by others", f"chmod 600 {path}")
    foreign = [path for path in secrets if path.exists() and not os.access(path, os.R_OK)]
    for path in foreign:
        yield Finding("wrong", "secrets", f"{path} cannot be read by this user", "run this as the node's user")
    lost = [name for name in _KEPT if not (data / name).exists()] if (data / MAIL_DB).exists() else []
    for name in lost:
        yield Finding("wrong", "files", f"{data / name} is not there", "bring it back from a backup of the folder")
    if not loose and not foreign:
        yield Finding("ok", "secrets", f"{sum(path.exists() for path in secrets)} files, readable by their owner only")


def _settings(data: Path) -> Iterator[Finding]:
    try:
        settings = settings_of(data)
    except SettingError as error:
        yield Finding("wrong", "settings", str(error), "mend it; the running node keeps its old rules until then")
        return
    where = str(settings.config) if settings.config else "defaults"
    yield Finding("ok", "settings", f"{where}; domains {', '.join(settings.domains)}")


def _disk(data: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(data).free
    if free < LOW_DISK:
        yield Finding("wrong", "disk", f"{size_of(free)} free", "make room: mail is refused (452) when it is full")
    else:
        yield Finding("ok", "disk", f"{size_of(free)} free")


async def _doors(data: Path, running: Ready | None) -> AsyncIterator[Finding]:
    if running is None:
        yield Finding("note", "node", "not running", f"aimx serve --data {data}")
        return
    if not any([await _open(where) for where in (running.smtp, running.smtps, running.imap, running.imaps)]):
        text = f"not running, although {READY_FILE} says so: it did not end in good order"
        yield Finding("wrong", "node", text, f"aimx serve --data {data}; nothing that was accepted is lost")
        return
    context = ssl.create_default_context(cafile=running.ca) if os.path.exists(running.ca) else None  # noqa: ASYNC240
    for name, where, speaks_first in (
        ("smtp", running.smtp, True),
        ("smtps", running.smtps, True),
        ("imap", running.imap, True),
        ("imaps", running.imaps, True),
        ("http", running.http.removeprefix("https://"), False),
    ):
        tls = context if name in ("smtps", "imaps", "http") else None
        began = time.monotonic()
        try:
            said = await asyncio.wait_for(_knock(where, tls, speaks_first), PATIENCE)
        except (OSError, TimeoutError, ssl.SSLError, ValueError) as error:
            yield Finding("wrong", name, f"{where}: {reason(error, running.ca)}", "see the node's log")
            continue
        took = span_of((time.monotonic() - began) * 1000)
        yield Finding("ok", name, f"{where} answers in {took}: {said[:60]}" if said else f"{where} answers in {took}")


async def _open(where: str) -> bool:
    """Whether anybody listens there."""
    try:
        async with asyncio.timeout(PATIENCE):
            await _knock(where, None, speaks_first=False)
    except ConnectionRefusedError:
        return False
    except (OSError, TimeoutError, ValueError):
        return True  # somebody does; what is wrong there is told door by door
    return True


async def _knock(where: str, tls: ssl.SSLContext | None, speaks_first: bool) -> str:
    host, port = _reachable(where)
    reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    try:
        return (await reader.readline()).decode("utf-8", "replace").strip() if speaks_first else ""
    finally:
        writer.close()


def _reachable(where: str) -> tuple[str, int]:
    """Where to knock for what listens there, which may be everywhere."""
    host, _, port = where.rpartition(":")
    host = host.strip("[]")
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), int(port)  # noqa: S104 — read, not bound


def _certificate(data: Path, running: Ready | None) -> Iterator[Finding]:
    from cryptography import x509

    path = data / "tls" / "server.pem"
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        yield Finding(
            "wrong",
            "certificate",
            f"{path} cannot be read",
            "remove server.pem and server.key there: a node makes its own",
        )
        return
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    listed = ", ".join(str(name.value) for name in names)
    if left.days < 0:
        yield Finding("wrong", "certificate", f"ended {-left.days} days ago", "restart the node: it renews its own")
    elif left.days < 14:
        yield Finding("note", "certificate", f"ends in {left.days} days", "restart the node: it renews its own")
    else:
        yield Finding("ok", "certificate", f"for {listed}; {left.days} days left")


async def _store(data: Path, runs: bool) -> AsyncIterator[Finding]:
    database = _database(data)
    if database is not None:
        from aimx.cli.doctor_database import database as looked_at

        async for finding in looked_at(database):
            yield finding
    elif not (data / MAIL_DB).exists():
        yield Finding("note", "store", "no mail yet", f"start the node once: aimx serve --data {data}")
        return
    try:
        async with opened(data) as (settings, store):
            agents = await store.agents()
            backlog = await store.backlog()
    except (sqlite3.Error, StoreError, OSError) as error:
        if database is None:
            text, fix = f"{data / MAIL_DB} cannot be read: {error}", "bring the folder back from a backup"
            yield Finding("wrong", "store", text, fix)
        return
    now = time.time_ns() // 1_000_000
    where = "PostgreSQL" if database else f"{MAIL_DB} {size_of((data / MAIL_DB).stat().st_size)}"
    yield Finding("ok", "store", f"{where}, {len(agents)} agent{'' if len(agents) == 1 else 's'}")
    if backlog.queue_depth and backlog.queue_oldest_ms is not None:
        age = span_of(now - backlog.queue_oldest_ms)
        text = f"{backlog.queue_depth} deliveries wait, the oldest for {age}"
        yield Finding("note", "queue", text, "`aimx agent list` shows limits; the receivers are busy or over quota")
    else:
        yield Finding("ok", "queue", "nothing waits")
    if backlog.outbox_oldest_ms is None:
        yield Finding("ok", "audit", "every event is in the log")
        return
    age_ms = now - backlog.outbox_oldest_ms
    late = age_ms > settings.audit.max_lag * 1000
    text = f"{backlog.outbox_depth} events not yet in the log, the oldest for {span_of(age_ms)}"
    fix = "the node should take them in within a second; see its log" if runs else "the node does it when it runs again"
    yield Finding("ok" if not late else "wrong" if runs else "note", "audit", text, fix)


def _database(data: Path) -> Settings | None:
    """The settings, if they say that the mail is in PostgreSQL."""
    try:
        settings = settings_of(data)
    except SettingError:
        return None
    return settings if settings.database.url else None


async def _tracing() -> AsyncIterator[Finding]:
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not endpoint:
        yield Finding(
            "ok", "tracing", "no collector in this environment (OTEL_EXPORTER_OTLP_ENDPOINT); nothing exported"
        )
        return
    fix = "start the collector or correct OTEL_EXPORTER_OTLP_ENDPOINT; mail goes on without it"
    try:
        parts = urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}")
        host, port = parts.hostname or "localhost", parts.port or (443 if parts.scheme == "https" else 4317)
    except ValueError:
        yield Finding("note", "tracing", f"{endpoint!r} is no URL", fix)
        return
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), PATIENCE)
        writer.close()
        yield Finding("ok", "tracing", f"a collector answers at {host}:{port}")
    except (OSError, TimeoutError, socket.gaierror):
        yield Finding("note", "tracing", f"nobody answers at {host}:{port}", fix)


_SPANS = re.compile(r'^aimx_spans_(exported|dropped)_total(?:\{reason="(\w+)"\})? (\d+)$', re.MULTILINE)


async def _spans(running: Ready) -> AsyncIterator[Finding]:
    """What the running node says became of its spans since it started."""
    import httpx

    try:
        token = Path(running.admin_token_file).read_text().strip()  # noqa: ASYNC240
        tls = ssl.create_default_context(cafile=running.ca)
        async with httpx.AsyncClient(verify=tls, timeout=PATIENCE) as client:
            answer = await client.get(f"{running.http}/metrics", headers={"Authorization": f"Bearer {token}"})
        answer.raise_for_status()
    except (OSError, httpx.HTTPError):
        return  # the doors and the files were looked at above
    counts = {reason or what: int(count) for what, reason, count in _SPANS.findall(answer.text)}
    sent = counts.pop("exported", 0)
    lost = {reason: count for reason, count in counts.items() if count}
    if lost:
        told = ", ".join(f"{reason} {count:,}" for reason, count in lost.items())
        text = f"{sum(lost.values()):,} spans dropped since the node started ({told}), {sent:,} sent"
        fix = (
            "full: the collector is away or too slow; refused: it does not take them; its log says why. No mail is lost"
        )
        yield Finding("note", "spans", text, fix)
    elif sent:
        yield Finding("ok", "spans", f"{sent:,} sent since the node started, none dropped")
