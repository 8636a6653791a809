"""A node's data folder as the command line sees it: its settings, its store, whether a node runs in it.

`aimx serve` leaves two small files there: `started.json` says with which configuration (so that `aimx agent add` knows
the domains although only serve was given `--config`), `ready.json` where the running node listens.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from aimx import durable
from aimx.cli.failure import Failed
from aimx.config import Domain, SettingError, Settings, load
from aimx.sdk.account import READY_FILE, STARTED_FILE
from aimx.store.contract import Store

MAIL_DB = "mail.db"

Command = TypeVar("Command", bound=Callable[..., Any])


def data_option(command: Command) -> Command:
    """`--data DIR`, else AIMX_DATA, else ./aimx-data."""
    return click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="AIMX_DATA",
        default=Path("./aimx-data"),
        show_default=True,
        help="The node's folder (or AIMX_DATA).",
    )(command)


def json_option(command: Command) -> Command:
    """`--json`: the same facts for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


class Ready(NamedTuple):
    """What a running node says about itself."""

    smtp: str
    smtps: str
    imap: str
    imaps: str
    http: str
    ca: str
    admin_token_file: str


def remember(settings: Settings) -> None:
    """Leave word of what the node was started with."""
    config = str(settings.config.resolve()) if settings.config else None
    started = {
        "config": config,
        "database": {"url": settings.database.url},
        "domains": list(settings.domains),
        "node": settings.node,
    }
    durable.replace(settings.data / STARTED_FILE, json.dumps(started).encode())


def settings_of(data: Path) -> Settings:
    """The settings of the node that lives in `data`, as it was last started. Raises Failed, SettingError."""
    if not data.is_dir():
        raise Failed(f"there is no node in {str(data)!r}; start one with `aimx serve --data {data}`, or give --data")
    try:
        started = json.loads((data / STARTED_FILE).read_bytes())
    except (OSError, ValueError):
        started = {}
    try:
        settings = load({"data": data, "config": started.get("config"), "database": started.get("database")})
    except SettingError:
        # Its file is gone or broken now; what the folder needs most is known all the same.
        settings = load({"data": data}, environ={})
    domains = started.get("domains") or list(settings.domains)
    changes: dict[str, Any] = {"node": started.get("node") or settings.node}
    if list(settings.domains) != domains:
        changes["domain"] = {name: settings.domain.get(name, Domain()) for name in domains}
    return settings.model_copy(update=changes)


def ready(data: Path) -> Ready | None:
    """Where the node listens, or None when none runs (or it was started with another ready file)."""
    try:
        found = json.loads((data / READY_FILE).read_bytes())
        return Ready(**{name: found[name] for name in Ready._fields})
    except (OSError, ValueError, KeyError, TypeError):
        return None


@asynccontextmanager
async def opened(data: Path) -> AsyncIterator[tuple[Settings, Store]]:
    """The folder's settings and its store, opened beside a node that may be running."""
    from aimx.store.place import open_store

    settings = settings_of(data)
    database = settings.database.url
    if database is None and not (data / MAIL_DB).exists():
        raise Failed(f"there is no mail in {str(data)!r} yet; start the node once with `aimx serve --data {data}`")
    store = open_store(data / MAIL_DB, database, settings.node, guest=True)
    await store.open()
    try:
        yield settings, store
    finally:
        await store.close()
