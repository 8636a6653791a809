"""Agents and their tokens, and a memory of agents: each message asks for several."""

from collections.abc import Sequence
from typing import Any

from aimx.store.contract import Agent, AlreadyExists, Credential, EventRow, MailboxKey, NotFound
from aimx.store.postgres import mailboxes
from aimx.store.postgres.connection import Db, Pool
from aimx.store.postgres.events import record
from aimx.store.postgres.notify import Notifier
from aimx.store.postgres.text import storable
from aimx.store.postgres.writer import Tx

_COLUMNS = "address, salt, iterations, stored_key, server_key, created_ms, disabled, max_unacked, quota, may_prioritise"
FOLDERS = (
    ("INBOX", None),
    ("Sent", "\\Sent"),
    ("Drafts", "\\Drafts"),
    ("Trash", "\\Trash"),
    ("Archive", "\\Archive"),
)


async def add(tx: Tx, agent: Agent, events: Sequence[EventRow]) -> None:
    owner = await tx.db.fetchval(
        f"INSERT INTO agent ({_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"  # noqa: S608
        " ON CONFLICT (address) DO NOTHING RETURNING id",
        *_row(agent),
    )
    if owner is None:
        raise AlreadyExists(f"there is an agent {agent.address}")
    for name, use in FOLDERS:
        await mailboxes.make(tx, owner, name, use)
    names = [name for name, _ in FOLDERS]
    await tx.db.execute("INSERT INTO subscription (owner, name) SELECT $1, unnest($2::text[])", owner, names)
    await _changed(tx, events)


async def update(tx: Tx, agent: Agent, events: Sequence[EventRow]) -> None:
    done = await tx.db.fetchval(
        "UPDATE agent SET salt = $2, iterations = $3, stored_key = $4, server_key = $5, created_ms = $6,"
        " disabled = $7, max_unacked = $8, quota = $9, may_prioritise = $10 WHERE address = $1 RETURNING id",
        *_row(agent),
    )
    if done is None:
        raise NotFound(f"there is no agent {agent.address}")
    await _changed(tx, events)


async def remove(tx: Tx, address: str, events: Sequence[EventRow]) -> None:
    owner = await number(tx.db, address)
    if owner is None:
        raise NotFound(f"there is no agent {address}")
    await tx.db.execute("SELECT pg_advisory_xact_lock($1, $2::bigint::int)", mailboxes.NAMES, owner)
    boxes = await tx.db.fetch("SELECT id FROM mailbox WHERE owner = $1 ORDER BY id FOR UPDATE", owner)
    await tx.db.execute("DELETE FROM entry WHERE owner = $1", owner)
    await tx.db.execute("DELETE FROM vanished WHERE owner = $1", owner)
    await tx.db.execute("DELETE FROM agent WHERE id = $1", owner)
    tx.topics.update(MailboxKey(address, row[0]) for row in boxes)
    await _changed(tx, events)


async def _changed(tx: Tx, events: Sequence[EventRow]) -> None:
    """Others look at the counter, should the notification not reach them."""
    await record(tx, events)
    await tx.db.execute("UPDATE counter SET value = value + 1 WHERE name = 'agents'")
    tx.topics.add("agents")


async def number(db: Db, address: str) -> int | None:
    """The number under which the address owns mailboxes."""
    found: int | None = await db.fetchval("SELECT id FROM agent WHERE address = $1", storable(address))
    return found


async def one(db: Db, address: str) -> Agent | None:
    row = await db.fetchrow(f"SELECT {_COLUMNS} FROM agent WHERE address = $1", storable(address))  # noqa: S608
    return _agent(row) if row else None


class Known:
    """Agents as they were last read, and addresses that were none. Forgotten when any process changes one."""

    MOST = 10_000

    def __init__(self, notifier: Notifier, pool: Pool) -> None:
        self._notifier = notifier
        self._pool = pool
        self._found: dict[str, Agent | None] = {}
        self._changes = 0
        notifier.subscribe("agents", self._forget)

    def _forget(self) -> None:
        self._changes += 1
        self._found.clear()

    async def agent(self, address: str) -> Agent | None:
        if address in self._found and self._notifier.stands:
            return self._found[address]
        changes = self._changes
        found = await self._pool.read(lambda db: one(db, address))
        if changes == self._changes:  # else what was read may be what stood there before
            if len(self._found) >= self.MOST:
                self._found.clear()
            self._found[address] = found
        return found


async def every(db: Db) -> list[Agent]:
    return [_agent(row) for row in await db.fetch(f"SELECT {_COLUMNS} FROM agent ORDER BY address")]  # noqa: S608


async def add_token(tx: Tx, digest: bytes, address: str, t_ms: int, events: Sequence[EventRow]) -> None:
    owner = await number(tx.db, address)
    if owner is None:
        raise NotFound(f"there is no agent {address}")
    await tx.db.execute("INSERT INTO token (digest, agent, t_ms) VALUES ($1, $2, $3)", digest, owner, t_ms)
    await record(tx, events)


async def token_owner(db: Db, digest: bytes) -> str | None:
    found: str | None = await db.fetchval(
        "SELECT a.address FROM token t JOIN agent a ON a.id = t.agent WHERE t.digest = $1 AND NOT a.disabled", digest
    )
    return found


def _row(agent: Agent) -> tuple[Any, ...]:
    key = agent.credential
    return (
        agent.address,
        key.salt,
        key.iterations,
        key.stored_key,
        key.server_key,
        agent.created_ms,
        agent.disabled,
        agent.max_unacked,
        agent.quota,
        agent.may_prioritise,
    )


def _agent(row: Sequence[Any]) -> Agent:
    address, salt, iterations, stored_key, server_key, created_ms, disabled, max_unacked, quota, may_prioritise = row
    key = Credential(salt, iterations, stored_key, server_key)
    return Agent(address, key, created_ms, disabled, max_unacked, quota, may_prioritise)
