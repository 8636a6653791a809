"""backup.json: what a backup holds, and whether it still does."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

from aimx import durable
from aimx.store.contract import StoreError

FILE = "backup.json"
FORMAT = 1
DUMP = "database.dump"
PUBLIC = ("audit.vkeys", "audit.checkpoint")
SECRET = ("keys", "tls", "admin.token", "metrics.token", "node.secret")
"""Whoever has these is the node. Files and folders of the data folder."""

Kind = Literal["sqlite", "postgresql"]


class BackupError(StoreError):
    """The backup cannot be made, or is not what it says. One line for whoever asked."""


class Manifest(NamedTuple):
    """`files`: SHA-256 in hex, by path below the folder. `owned`: the tables belonged to `aimx_owner`."""

    kind: Kind
    made_ms: int
    version: str
    node: str
    files: Mapping[str, str]
    owned: bool = False


def begin(folder: Path) -> None:
    """An empty folder for a backup, for its owner only. Raises BackupError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise BackupError(f"{folder} is not empty; a backup wants a folder of its own")
    folder.chmod(0o700)


def keep(data: Path, folder: Path, names: Iterable[str]) -> None:
    """Copy those of the data folder's files and folders that are there, with their permissions."""
    for name in names:
        for source in _files(data / name):
            target = folder / source.relative_to(data)
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copy(source, target)
            sync(target)


def finish(folder: Path, kind: Kind, node: str, *, owned: bool = False) -> Manifest:
    """Write backup.json over what is in the folder now."""
    files = {str(path.relative_to(folder)): digest(path) for path in _files(folder)}
    made = Manifest(kind, time.time_ns() // 1_000_000, version("aimx-server"), node, files, owned)
    said = {"format": FORMAT, **made._asdict()}
    durable.replace(folder / FILE, json.dumps(said, indent=1).encode())
    return made


def read(folder: Path) -> Manifest:
    """Raises BackupError for what is no backup, and for one whose files are not what they were."""
    try:
        said = json.loads((folder / FILE).read_bytes())
        if said.pop("format") != FORMAT:
            raise BackupError(f"{folder} is a backup of a newer AIMX; upgrade AIMX")
        found = Manifest(**said)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BackupError(f"{folder} is no backup, or one that was not finished: {FILE} cannot be read") from None
    for name, wanted in found.files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file() or digest(path) != wanted:
            raise BackupError(f"{path} is not the file that was backed up; take another backup")
    return found


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """On the disk when it returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(found for found in path.rglob("*") if found.is_file())
