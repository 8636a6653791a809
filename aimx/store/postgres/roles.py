"""The roles AIMX uses in PostgreSQL, each with no more rights than its work takes (grants.sql)."""

import base64
import hashlib
import hmac
import os
import secrets
from importlib.resources import files

import asyncpg

from aimx.store.contract import StoreError
from aimx.store.postgres.connection import Db, connect
from aimx.store.postgres.migration import OWNER, migrate, reason

LOGINS = ("aimx_app", "aimx_seq", "aimx_api")
"""Serves mail; writes the audit log; answers HTTP."""
_ITERATIONS = 4096
"""Of SCRAM; PostgreSQL's own number. The passwords have 192 random bits, so that more would buy nothing."""


async def prepare(url: str) -> dict[str, str]:
    """Roles, schema and grants in the database of `url`, whose user may make roles. Once more is harmless.

    Returns the passwords of the roles that were made now, by name. Raises StoreError.
    """
    made = await make(url)
    await migrate(url)
    await grant(url)
    return made


async def make(url: str) -> dict[str, str]:
    """The roles alone; the passwords of those made now. Raises StoreError."""
    db = await _connected(url)
    try:
        return await _roles(db)
    except asyncpg.InsufficientPrivilegeError as error:
        raise StoreError("this user may not make roles or is not the database's owner") from error
    finally:
        db.terminate()


async def grant(url: str) -> bool:
    """Give the roles their rights, after a migration; False where `aimx db init` made none. Raises StoreError."""
    db = await _connected(url)
    try:
        if not await db.fetchval("SELECT pg_has_role(oid, 'MEMBER') FROM pg_roles WHERE rolname = $1", OWNER):
            return False
        async with db.transaction():
            await db.execute(f"SET LOCAL ROLE {OWNER}")
            await db.execute(files(__package__).joinpath("grants.sql").read_text(encoding="utf-8"))
        return True
    except asyncpg.InsufficientPrivilegeError as error:
        raise StoreError(f"the schema belongs to another role than {OWNER}") from error
    finally:
        db.terminate()


async def _connected(url: str) -> Db:
    try:
        return await connect(url, "aimx db")
    except Exception as error:
        raise reason(error) from error


async def _roles(db: Db) -> dict[str, str]:
    made = {}
    async with db.transaction():
        there = {row[0] for row in await db.fetch("SELECT rolname::text FROM pg_roles WHERE rolname ~ '^aimx_'")}
        if OWNER not in there:
            await db.execute(f"CREATE ROLE {OWNER} NOLOGIN")
        for role in LOGINS:
            if role not in there:
                made[role] = secrets.token_urlsafe(24)
                await db.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{verifier(made[role])}'")
        database = await db.fetchval("SELECT quote_ident(current_database())")
        await db.execute(f"GRANT {OWNER} TO CURRENT_USER")
        await db.execute(f"GRANT CREATE, CONNECT ON DATABASE {database} TO {OWNER}")
        await db.execute(f"GRANT CONNECT ON DATABASE {database} TO {', '.join(LOGINS)}")
    return made


def verifier(password: str) -> str:
    """What PostgreSQL keeps of a password (SCRAM-SHA-256, RFC 5803 §3): so its log cannot hold the password."""
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt64, stored64, server64 = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return f"SCRAM-SHA-256${_ITERATIONS}:{salt64}${stored64}:{server64}"
