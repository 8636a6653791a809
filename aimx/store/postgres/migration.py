"""The schema and its migrations: plain SQL, forward only, each step one transaction."""

import asyncio
from importlib.resources import files

import asyncpg

from aimx.store.contract import StoreError, Unavailable
from aimx.store.postgres.connection import MINIMUM, SCHEMA, Db, connect, is_blocked, refusal

OWNER = "aimx_owner"
"""Whom the schema belongs to where `aimx db init` made the roles."""
_TURN = 0x61696D78
"""Advisory lock: of several processes that start together one migrates, the others wait and find it done."""
WAIT_S = 600.0
"""A migration of much data may take its time; whoever waits for it can."""

Step = tuple[int, str]


def migrations() -> list[Step]:
    """(number, SQL) of every migration there is, ascending."""
    found = [file for file in files(__package__).joinpath("schema").iterdir() if file.name.endswith(".sql")]
    return sorted((int(file.name[:4]), file.read_text(encoding="utf-8")) for file in found)


async def migrate(url: str, steps: list[Step] | None = None) -> int:
    """Bring the schema up to date, if it is not. Returns the number of the last step.

    Raises StoreError for a schema of a newer AIMX, a too old PostgreSQL and missing rights, Unavailable.
    """
    try:
        db = await connect(url, "aimx migrate", statement_timeout="0", lock_timeout="0")
    except Exception as error:
        raise reason(error) from error
    try:
        async with asyncio.timeout(WAIT_S):
            return await _migrate(db, migrations() if steps is None else steps)
    except asyncpg.InsufficientPrivilegeError as error:
        raise StoreError("the role may not change the schema; run `aimx db migrate URL` as one that may") from error
    except Exception as error:
        raise refusal(error) from error
    finally:
        db.terminate()


def reason(error: Exception) -> BaseException:
    """Why there is no connection: what the one who gave the address can mend is said, the rest is Unavailable."""
    match error:
        case asyncpg.InvalidCatalogNameError():
            return StoreError("there is no such database; make it with `createdb`, then run `aimx db init URL`")
        case asyncpg.InvalidAuthorizationSpecificationError():
            return StoreError("the database refuses this user or password")
        case asyncpg.InsufficientPrivilegeError():
            return StoreError("this user may not connect to the database")
        case asyncpg.ClientConfigurationError() | ValueError():
            return StoreError("the address is no PostgreSQL URL")
        case _ if is_blocked(error):
            return Unavailable("the database cannot be reached")
        case _:
            return error


async def _migrate(db: Db, steps: list[Step]) -> int:
    if db.get_server_version()[0] * 10_000 < MINIMUM:
        raise StoreError(f"PostgreSQL {db.get_server_version()[0]} is too old; AIMX needs {MINIMUM // 10_000} or newer")
    known = steps[-1][0]
    if await _version(db) == known:
        return known
    await db.execute("SELECT pg_advisory_lock($1)", _TURN, timeout=WAIT_S)
    if await db.fetchval("SELECT pg_has_role(oid, 'MEMBER') FROM pg_roles WHERE rolname = $1", OWNER):
        await db.execute(f"SET ROLE {OWNER}")
    while (version := await _version(db)) < known:
        number, script = next(step for step in steps if step[0] > version)
        async with db.transaction():
            if not version:
                await _begin(db)
            await db.execute(script, timeout=WAIT_S)
            await db.execute("UPDATE schema_version SET number = $1, t = now()", number)
    if version > known:
        raise StoreError(f"the database has schema {version}, this AIMX knows {known}; upgrade AIMX")
    return known


async def _begin(db: Db) -> None:
    await db.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
    await db.execute("CREATE TABLE schema_version (number integer NOT NULL, t timestamptz NOT NULL)")
    await db.execute("INSERT INTO schema_version VALUES (0, now())")


async def _version(db: Db) -> int:
    """0: there is none yet."""
    if await db.fetchval("SELECT to_regclass($1)", f"{SCHEMA}.schema_version") is None:
        return 0
    try:
        found: int = await db.fetchval(f"SELECT number FROM {SCHEMA}.schema_version")  # noqa: S608
    except asyncpg.InsufficientPrivilegeError:
        raise StoreError("this user has no rights on AIMX's schema; connect as aimx_app") from None
    return found
