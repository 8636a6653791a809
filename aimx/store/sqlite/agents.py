"""Agents and their tokens. Read anew on each use: another process (the command line) may have changed them."""

import sqlite3
from collections.abc import Sequence
from typing import Any

from aimx.store.contract import Agent, AlreadyExists, Credential, EventRow, MailboxKey, NotFound
from aimx.store.sqlite import mailboxes
from aimx.store.sqlite.events import record
from aimx.store.sqlite.writer import Tx

_COLUMNS = "address, salt, iterations, stored_key, server_key, created_ms, disabled, max_unacked, quota, may_prioritise"
FOLDERS = (
    ("INBOX", None),
    ("Sent", "\\Sent"),
    ("Drafts", "\\Drafts"),
    ("Trash", "\\Trash"),
    ("Archive", "\\Archive"),
)


def add(tx: Tx, agent: Agent, events: Sequence[EventRow]) -> None:
    if number(tx.db, agent.address) is not None:
        raise AlreadyExists(f"there is an agent {agent.address}")
    tx.db.execute(f"INSERT INTO agent ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", _row(agent))  # noqa: S608
    owner = number(tx.db, agent.address)
    assert owner is not None
    for name, use in FOLDERS:
        mailboxes.make(tx, owner, name, use)
        tx.db.execute("INSERT INTO subscription (owner, name) VALUES (?, ?)", (owner, name))
    record(tx, events)
    tx.topics.add("agents")


def update(tx: Tx, agent: Agent, events: Sequence[EventRow]) -> None:
    done = tx.db.execute(
        "UPDATE agent SET salt = ?2, iterations = ?3, stored_key = ?4, server_key = ?5, created_ms = ?6,"
        " disabled = ?7, max_unacked = ?8, quota = ?9, may_prioritise = ?10 WHERE address = ?1",
        _row(agent),
    )
    if not done.rowcount:
        raise NotFound(f"there is no agent {agent.address}")
    record(tx, events)
    tx.topics.add("agents")


def remove(tx: Tx, address: str, events: Sequence[EventRow]) -> None:
    owner = number(tx.db, address)
    if owner is None:
        raise NotFound(f"there is no agent {address}")
    boxes = tx.db.execute("SELECT id FROM mailbox WHERE owner = ?", (owner,)).fetchall()
    tx.topics.update(MailboxKey(address, box) for (box,) in boxes)
    tx.db.execute("DELETE FROM agent WHERE id = ?", (owner,))
    record(tx, events)
    tx.topics.add("agents")


def number(db: sqlite3.Connection, address: str) -> int | None:
    """The number under which the address owns mailboxes."""
    row = db.execute("SELECT id FROM agent WHERE address = ?", (address,)).fetchone()
    return row[0] if row else None


def one(db: sqlite3.Connection, address: str) -> Agent | None:
    row = db.execute(f"SELECT {_COLUMNS} FROM agent WHERE address = ?", (address,)).fetchone()  # noqa: S608
    return _agent(row) if row else None


def every(db: sqlite3.Connection) -> list[Agent]:
    return [_agent(row) for row in db.execute(f"SELECT {_COLUMNS} FROM agent ORDER BY address")]  # noqa: S608


def add_token(tx: Tx, digest: bytes, address: str, t_ms: int, events: Sequence[EventRow]) -> None:
    owner = number(tx.db, address)
    if owner is None:
        raise NotFound(f"there is no agent {address}")
    tx.db.execute("INSERT INTO token (digest, agent, t_ms) VALUES (?, ?, ?)", (digest, owner, t_ms))
    record(tx, events)


def token_owner(db: sqlite3.Connection, digest: bytes) -> str | None:
    sql = "SELECT a.address FROM token t JOIN agent a ON a.id = t.agent WHERE t.digest = ? AND NOT a.disabled"
    row = db.execute(sql, (digest,)).fetchone()
    return row[0] if row else None


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


def _agent(row: tuple[Any, ...]) -> Agent:
    address, salt, iterations, stored_key, server_key, created_ms, disabled, max_unacked, quota, may_prioritise = row
    key = Credential(salt, iterations, stored_key, server_key)
    return Agent(address, key, created_ms, bool(disabled), max_unacked, quota, bool(may_prioritise))
