"""Whose word counts for `aimx audit …`: keys, policies and roots from what the user gives, else from the node."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from aimx.audit import bundle
from aimx.audit.anchoring import trust_of
from aimx.audit.keys import load_public
from aimx.audit.log import Reader
from aimx.audit.place import open_reader, read_anchors
from aimx.audit.standing import Trust
from aimx.cli.failure import Failed
from aimx.cli.folder import settings_of
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
    trust = trust_of(settings.audit, load_public(data).log)
    if policy is not None or roots is not None:
        own = given(policy, roots)
        trust = Trust(trust.policy if policy is None else own.policy, own.roots or trust.roots)
    return trust


async def export(folder: Path, settings: Settings, data: Path) -> bundle.Exported:
    """The log of a node, written to `folder`. Raises LogError."""
    public = load_public(data)
    trust = of_node(settings, data)
    database = settings.log_database
    reader = open_reader(data, database)
    try:
        return await asyncio.to_thread(
            bundle.export,
            folder,
            reader,
            public.all,
            lambda origin: read_anchors(data, database, origin),
            trust.policy,
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


def logs(export: Path | None, data: Path) -> Callable[[str], Reader | None]:
    """The log of an origin: a shard of the export if one is given, else of the node's log."""
    if export is not None:
        shards = {reader.described().origin: reader for reader in bundle.shards(export)}
        return shards.get
    return open_reader(data, settings_of(data).log_database).named
