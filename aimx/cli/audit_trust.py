"""Whose word counts for `aimx audit …`: keys, policies and roots from what the user gives, else from the node."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from aimx.audit import bundle
from aimx.audit.anchoring import witness_key
from aimx.audit.keys import load_public
from aimx.audit.place import open_reader, read_anchors
from aimx.audit.standing import Trust
from aimx.cli.failure import Failed
from aimx.config import Settings
from aimx.store.contract import Store, StoredEvent
from aimx.tlog import policy as policies
from aimx.tlog.errors import FormatError
from aimx.tlog.note import Verifier
from aimx.tlog.policy import Policy

PAGE = 4096


def keys(path: Path | None) -> list[Verifier]:
    """The verifier keys of a file, one a line; none without a file. Raises LogError."""
    return [] if path is None else bundle.vkeys(path)


def given(policy: Path | None, roots: Path | None) -> Trust:
    """What the user has said, and nothing else. Raises Failed."""
    return Trust(Policy() if policy is None else _read(policy), b"" if roots is None else roots.read_bytes())


def of_node(settings: Settings, data: Path, policy: Path | None = None, roots: Path | None = None) -> Trust:
    """What the user has said, else what the node's settings say. Raises Failed, SettingError, KeyUnusable."""
    audit = settings.audit
    policy = policy or audit.policy
    if policy is not None:
        found = _read(policy)
    else:
        witnesses = {name: witness_key(name, asked.vkey) for name, asked in audit.witness.items()}
        found = policies.of_witnesses(load_public(data).log, witnesses)
    roots = roots or (audit.timestamp.ca if audit.timestamp is not None else None)
    try:
        return Trust(found, b"" if roots is None else roots.read_bytes())
    except OSError as error:
        raise Failed(f"{roots}: {error.strerror}") from None


async def export(folder: Path, settings: Settings, data: Path) -> bundle.Exported:
    """The log of a node, written to `folder`. Raises LogError."""
    public = load_public(data)
    trust = of_node(settings, data)
    database = settings.audit.database
    reader = open_reader(data, database)
    try:
        return await asyncio.to_thread(
            bundle.export, folder, reader, public.all, lambda origin: read_anchors(data, database, origin), trust.policy
        )
    finally:
        reader.close()


async def events(store: Store) -> AsyncIterator[StoredEvent]:
    """Everything that happened, in order."""
    seq = 0
    while page := await store.events_after(seq, PAGE):
        seq = page[-1].seq
        for stored in page:
            yield stored


def _read(path: Path) -> Policy:
    try:
        return policies.parse(path.read_bytes())
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    except FormatError as error:
        raise Failed(f"{path}: {error}") from None
