"""`aimx db backup` and `aimx db restore`, of a node's folder or of the PostgreSQL database its mail is in."""

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aimx.cli.failure import Failed
from aimx.cli.folder import data_option, json_option, settings_of
from aimx.cli.screen import print_json, size_of

if TYPE_CHECKING:
    from aimx.backup.manifest import Manifest
    from aimx.backup.restore import Restored
    from aimx.config import Settings

ALTERED, UNSOUND = 3, 4
"""Exit codes, as those of `aimx audit verify`."""

_database = click.option(
    "--database", metavar="URL", help="The database, as the user who made its tables. [default: the node's]"
)


@click.command(short_help="Copy mail and log, as they are at one moment, into a new folder.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR")
@_database
@click.option("--keys", is_flag=True, help="Also the node's secrets: whoever has them can sign in its name.")
@json_option
@data_option
def backup(folder: Path, database: str | None, keys: bool, as_json: bool, data: Path) -> None:
    """Copy mail and log, as they are at one moment, into DIR, and check the copy. The node may run.

    Everything in DIR is as private as the mail itself. `aimx db restore DIR` puts it back.
    """
    from aimx.backup import manifest, postgres, sqlite

    settings = settings_of(data)
    url = database or settings.database.url
    _with_its_log(settings, url)
    manifest.begin(folder)
    manifest.keep(data, folder, manifest.PUBLIC)  # before the copy, so that the log in it has gone through it
    owned = False
    if url is not None:
        owned = postgres.dump(url, folder)
    elif (data / sqlite.MAIL_DB).exists():
        sqlite.copy(data, folder)
    else:
        raise Failed(f"there is no mail in {str(data)!r} yet; start the node once with `aimx serve --data {data}`")
    if keys:
        manifest.keep(data, folder, manifest.SECRET)
    made = manifest.finish(folder, "sqlite" if url is None else "postgresql", settings.node, owned=owned)
    octets = sum((folder / name).stat().st_size for name in made.files)
    if as_json:
        print_json({"folder": str(folder), "kind": made.kind, "files": dict(made.files), "octets": octets})
        return
    click.echo(f"{len(made.files)} files, {size_of(octets)}, in {folder}")
    if not keys:
        click.echo("without the node's keys; a restore needs them from elsewhere (--keys takes them along)", err=True)


@click.command(short_help="Put a backup back, after checking all of it.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR")
@click.option("--database", metavar="URL", help="The empty database for a backup of one, as a user who may make roles.")
@click.option(
    "--newest",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    multiple=True,
    help="The newest signed checkpoint of the lost log that anybody has: it tells how much is gone.",
)
@json_option
@data_option
def restore(folder: Path, database: str | None, newest: tuple[Path, ...], as_json: bool, data: Path) -> None:
    """Put the backup in DIR back into the data folder, or into an empty database. The node must be stopped.

    Every file is held against its hash, every leaf and event, checkpoint and message against each other; only what is
    whole is put in place. What was there is never overwritten: move it away first.

    Exit codes: 0; 1 it could not be done; 3 the log in it was altered; 4 its data is wrong.
    """
    from aimx.backup import restore as work
    from aimx.cli.db import check
    from aimx.data_folder import CannotStart, lock, prepare

    if database is not None:
        check(database)
    try:
        data = prepare(data)
        descriptor = lock(data)
    except CannotStart as error:
        raise Failed(str(error)) from None
    try:
        found, staged = work.stage(folder, data)
        try:
            if (found.kind == "postgresql") != (database is not None):
                raise Failed(f"this is a backup of a {found.kind} store: {_WAY[found.kind]}")
            roles = _load(database, folder, found) if database is not None else {}
            checked = asyncio.run(_check(staged, data, database, found, [path.read_text() for path in newest]))
            if checked.sound:
                work.settle(staged, data)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    finally:
        os.close(descriptor)
    _tell(checked, roles, data, as_json)
    sys.exit(0 if checked.sound else ALTERED if checked.report.inconsistent else UNSOUND)


_WAY = {"sqlite": "leave --database out", "postgresql": "give --database"}


def _with_its_log(settings: "Settings", url: str | None) -> None:
    """Two databases have no moment in common. Raises Failed."""
    from psycopg.conninfo import conninfo_to_dict

    if settings.audit.database is None:
        return
    places = [conninfo_to_dict(one) if one else {} for one in (settings.audit.database, url)]
    if any(places[0].get(part) != places[1].get(part) for part in ("host", "port", "dbname")):
        raise Failed("the log is in a database of its own; docs/operations.md says how to back up both")


def _load(url: str, folder: Path, found: "Manifest") -> dict[str, str]:
    """The database from its dump; the passwords of roles that were made for it."""
    from aimx.backup import postgres
    from aimx.cli.db import make_log
    from aimx.store.postgres import roles

    postgres.check_empty(url)
    made = asyncio.run(roles.make(url)) if found.owned else {}
    postgres.load(url, folder, owned=found.owned)
    if found.owned:
        asyncio.run(roles.grant(url))
    make_log(url, owned=found.owned)
    return made


async def _check(staged: Path, data: Path, url: str | None, found: "Manifest", newest: list[str]) -> "Restored":
    from aimx.backup.restore import check
    from aimx.store.place import open_store

    store = open_store(staged / "mail.db", url, found.node, guest=True)
    try:
        await store.open()
        return await check(staged, data, url, store, newest)
    finally:
        await store.close()


def _tell(checked: "Restored", made: dict[str, str], data: Path, as_json: bool) -> None:
    from aimx.audit.restored import ADVICE

    if as_json:
        faults = [fault._asdict() for fault in checked.faults]
        told = {"ok": checked.sound, "behind": checked.behind, "faults": faults, "passwords": made}
        print_json({**told, "log": checked.report.to_json()})
        return
    click.echo("\n".join(checked.report.lines()))
    for fault in checked.faults:
        click.secho(f"WRONG {fault.rule}: {fault.wrong} ({fault.n})", fg="red")
    if not checked.sound:
        click.secho("not restored: this backup is not whole; nothing was put in place", fg="red", bold=True)
        return
    click.secho(f"restored into {data}", fg="green", bold=True)
    for role, password in made.items():
        click.echo(f"{role}  {password}")
    if not (data / "keys").exists():
        click.echo("put keys/, tls/, admin.token and node.secret back before the node starts", err=True)
    if checked.behind:
        click.echo(f"the log {checked.behind}; {ADVICE}", err=True)
