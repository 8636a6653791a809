"""Putting a backup back: beside everything that is there, verified whole, and only then in its place."""

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from aimx import durable
from aimx.audit import restored
from aimx.audit.keys import VKEYS, PublicKeys, load_public
from aimx.audit.place import open_reader
from aimx.audit.report import Report
from aimx.audit.sequencer import HIGH_WATER, high_water
from aimx.audit.verify import verify
from aimx.backup import manifest, sqlite
from aimx.backup.manifest import DUMP, BackupError, Manifest
from aimx.store.contract import Fault, Store

_STAGE = ".restoring"
_LATER = frozenset(("event-overdue", "unsigned"))
"""Findings about what the node was about to do when the copy was taken; it does it when it starts."""


class Restored(NamedTuple):
    """What was found in it. `behind`: why the node will not go on from here by itself; None when it will."""

    report: Report
    faults: list[Fault]
    behind: str | None

    @property
    def sound(self) -> bool:
        later = sum(finding.kind in _LATER for finding in self.report.findings)
        return not self.faults and self.report.wrong == later


def stage(backup: Path, data: Path) -> tuple[Manifest, Path]:
    """A whole copy of the backup within the data folder, where nothing uses it yet.

    Raises BackupError: it is damaged, or the folder has mail, or keys that are not the backup's.
    """
    found = manifest.read(backup)
    if there := sqlite.files(data):
        raise BackupError(f"{there[0]} is there already; move it away first, and keep {HIGH_WATER} where it is")
    for name in found.files:
        own = data / name
        if name.startswith("keys/") and own.exists() and manifest.digest(own) != found.files[name]:
            raise BackupError(f"{own} is not the key of the backup; move {own.parent} away, or restore elsewhere")
    staged = data / _STAGE
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(mode=0o700)
    for name in found.files:
        if name != DUMP:
            manifest.keep(backup, staged, [name])
    if not (staged / VKEYS).exists():
        raise BackupError(f"the backup has no {VKEYS}; without keys nothing can be verified")
    return found, staged


async def check(staged: Path, data: Path, database: str | None, store: Store, newest: Sequence[str]) -> Restored:
    """Verify it as `aimx audit verify` and `aimx verify-data` do, each message's octets too.

    By the keys that the data folder has, if it has any, else by the backup's. `newest`: signed checkpoints from
    elsewhere; one that counts more than the restored log says what is lost.
    """
    own = data / VKEYS
    keys = load_public(data if own.exists() else staged)
    report = await verify(store, staged, database=database, keys=keys, patience_s=0)
    faults = await store.faults()
    return Restored(report, faults, _behind(staged, data, database, keys, newest))


def _behind(staged: Path, data: Path, database: str | None, keys: PublicKeys, newest: Sequence[str]) -> str | None:
    """Also puts the newest checkpoint known into the staged folder: by it the node will know, too."""
    texts = [*high_water(staged), *high_water(data), *(("a checkpoint you gave", text) for text in newest)]
    known = restored.heads(texts, keys.logs)
    if not known:
        return None
    head = max(known, key=lambda one: one.checkpoint.size)
    durable.replace(staged / HIGH_WATER, head.note.encode(), 0o644)
    with contextlib.closing(open_reader(staged, database)) as reader:
        return restored.fault(reader, known)


def settle(staged: Path, data: Path) -> None:
    """Move everything to its place. What the folder had of its own (other than the checkpoint) stays."""
    for path in sorted(found for found in staged.rglob("*") if found.is_file()):
        target = data / path.relative_to(staged)
        if target.exists() and target.name != HIGH_WATER:
            continue
        target.parent.mkdir(mode=0o700, exist_ok=True)
        os.replace(path, target)
        manifest.sync(target.parent)
    shutil.rmtree(staged)
    manifest.sync(data)
