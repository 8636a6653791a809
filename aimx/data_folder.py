"""A node's data folder, as whoever starts a node needs it: who may enter, who holds it, where the node answers."""

import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from aimx import durable
from aimx.store.contract import StoreError

MAIL_FILE = "mail.db"
ADMIN_TOKEN = "admin.token"  # noqa: S105 — a file's name
METRICS_TOKEN = "metrics.token"  # noqa: S105
SECRET = "node.secret"  # noqa: S105
READY = "ready.json"


class CannotStart(Exception):
    """The node cannot start. One line: what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Where a node answers: what `--ready-file` holds as JSON."""

    smtp: str
    smtps: str
    imap: str
    imaps: str
    http: str
    ca: str
    admin_token_file: str
    peer: str | None = None
    mx: str | None = None
    plain: str | None = None


def prepare(folder: Path) -> Path:
    """The data folder, made 0700; one that others may enter is refused."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = folder.stat().st_mode & 0o777
    except OSError as error:
        raise CannotStart(f"data: {str(folder)!r} cannot be used: {error.strerror}; choose another --data") from None
    if mode & 0o077:
        raise CannotStart(f"data: {str(folder)!r} is open to others (mode {mode:o}); run: chmod 700 {folder}")
    return folder.resolve()


def lock(folder: Path) -> int:
    """One node a folder. The lock goes with the process, however it ends."""
    with needed(folder / "lock"):
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise CannotStart(f"data: another node runs on {str(folder)!r}; stop it or choose another --data") from None
    return descriptor


@contextlib.contextmanager
def needed(path: Path) -> Iterator[None]:
    """What goes wrong here with a file of the data folder is one line for whoever starts the node."""
    try:
        yield
    except (OSError, ValueError, StoreError, sqlite3.Error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CannotStart(f"data: {str(path)!r} cannot be used: {why}; mend it or choose another --data") from error


def announce(ready: Ready, *paths: Path | None) -> None:
    """Write the ready file: whole or not at all, for somebody is waiting for it."""
    text = json.dumps({name: value for name, value in asdict(ready).items() if value is not None}, indent=1) + "\n"
    for path in paths:
        if path is None:
            continue
        try:
            durable.replace(path, text.encode())
        except OSError as error:
            raise CannotStart(f"ready_file: {str(path)!r} cannot be written: {error.strerror}") from None


def withdraw(*paths: Path | None) -> None:
    """Take the ready files away: nobody answers any more, or not yet."""
    for path in paths:
        if path is not None and path.is_file():
            with contextlib.suppress(OSError):
                path.unlink()
