"""A PostgreSQL database's mail and log by `pg_dump` and `pg_restore`: one snapshot of both schemas."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from aimx.audit.postgres import said
from aimx.backup.manifest import DUMP, BackupError, sync
from aimx.store.postgres.migration import OWNER

SCHEMAS = ("aimx", "audit")
_PLACES = "/usr/lib/postgresql"
"""Where Debian keeps each version's programs."""


def dump(url: str, to: Path) -> bool:
    """Write `database.dump` and read it once more. Whether the tables are `aimx_owner`'s. Raises BackupError."""
    major, owner = _server(url)
    file = to / DUMP
    file.touch(mode=0o600)
    schemas = [f"--schema={name}" for name in SCHEMAS]
    _run(url, [_program("pg_dump", major), "--format=custom", *schemas, f"--file={file}"])
    sync(file)
    _run(url, [_program("pg_restore", major), "--file=/dev/null", str(file)], database=False)
    return owner == OWNER


def check_empty(url: str) -> None:
    """Raises BackupError where AIMX already has tables."""
    if _server(url)[1] is not None:
        raise BackupError("this database has AIMX's tables already; restore into an empty one (`createdb`)")


def load(url: str, folder: Path, *, owned: bool) -> None:
    """All of it or nothing, into an empty database. Raises BackupError."""
    major, _ = _server(url)
    options = ["--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction"]
    if owned:
        options.append(f"--role={OWNER}")
    _run(url, [_program("pg_restore", major), *options, str(folder / DUMP)])


def _server(url: str) -> tuple[int, str | None]:
    """Its major version, and whom schema `aimx` belongs to (None: there is none)."""
    try:
        with psycopg.connect(url, connect_timeout=5) as db:
            row = db.execute(
                "SELECT (SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname = 'aimx')"
            ).fetchone()
            return db.info.server_version // 10_000, row[0] if row else None
    except psycopg.Error as error:
        raise BackupError(f"the database cannot be reached: {said(error)}") from None


def _program(name: str, major: int) -> str:
    """A program of the server's version or a later one. Raises BackupError."""
    found = shutil.which(name)
    places = [] if found is None else [found]
    places += sorted(str(path) for path in Path(_PLACES).glob(f"*/bin/{name}"))
    versions = [(_version(place), place) for place in places]
    for version, place in versions:
        if version >= major:
            return place
    have = ", ".join(str(version) for version, _ in versions) or "none"
    raise BackupError(f"{name} of PostgreSQL {major} or newer is needed, as the server is {major}; found: {have}")


def _version(program: str) -> int:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=30).stdout
    number = re.search(r"\) (\d+)", said)
    return int(number[1]) if number else 0


def _run(url: str, command: Sequence[str], *, database: bool = True) -> None:
    """The password goes by the environment: a command line is there for every user of the machine to read."""
    parts = {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
    password = parts.pop("password", None)
    environ = {**os.environ, **({} if password is None else {"PGPASSWORD": password})}
    where = [f"--dbname={make_conninfo(**parts)}"] if database else []
    done = subprocess.run([*command, *where], env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if line.strip()), "it does not say why")
        raise BackupError(f"{Path(command[0]).name}: {said}")
