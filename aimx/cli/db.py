"""`aimx db …`: the PostgreSQL database that nodes share."""

import asyncio
from urllib.parse import quote, urlsplit, urlunsplit

import click

from aimx.cli.db_backup import backup, restore
from aimx.cli.failure import Failed
from aimx.cli.folder import json_option
from aimx.cli.screen import print_json


@click.group()
def db() -> None:
    """Backups, and the PostgreSQL database that nodes share."""


for command in (backup, restore):
    db.add_command(command)

_url = click.argument("url", envvar="AIMX_DATABASE__URL")


@db.command()
@_url
@json_option
def init(url: str, as_json: bool) -> None:
    """Make roles and schemas in an empty database; again is harmless.

    URL is postgresql://USER:PASSWORD@HOST/NAME, of a user who may make roles and owns the database. Prints the address
    that each new role signs in with, once: aimx_app serves mail, aimx_seq writes the audit log, aimx_api answers HTTP.
    """
    from aimx.store.postgres import roles

    check(url)
    made = asyncio.run(roles.prepare(url))
    make_log(url, owned=True)
    addresses = {role: _as_user(url, role, password) for role, password in made.items()}
    if as_json:
        print_json(addresses)
        return
    click.echo("the database is ready")
    for role, address in addresses.items():
        click.echo(f"{role}  {address}")


@db.command()
@_url
def migrate(url: str) -> None:
    """Bring the schemas up to date, as the user who made them."""
    from aimx.store.postgres import migration, roles

    check(url)
    number = asyncio.run(migration.migrate(url))
    make_log(url, owned=asyncio.run(roles.grant(url)))
    click.echo(f"the database has schema {number}")


def check(url: str) -> None:
    """Before anything is made with it. Raises Failed."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        host = str(conninfo_to_dict(url).get("host", ""))
        known = "@" not in host and urlsplit(url).scheme in ("postgresql", "postgres")
    except (ProgrammingError, ValueError):  # their texts may hold the password
        known = False
    if not known:
        raise Failed("a database is given by its URL, postgresql://USER:PASSWORD@HOST/NAME, percent-encoded")


def make_log(url: str, *, owned: bool) -> None:
    """The audit log's own schema, of the same owner."""
    from psycopg.conninfo import make_conninfo

    from aimx.audit import anchors_postgres, postgres
    from aimx.store.postgres.migration import OWNER

    place = make_conninfo(url, options=f"-c role={OWNER}") if owned else url
    postgres.install(place)
    anchors_postgres.install(place)


def _as_user(url: str, user: str, password: str) -> str:
    """The address of the same database for another user."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}"))
