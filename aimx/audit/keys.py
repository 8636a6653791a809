"""The node's signing keys: one for the log's checkpoints, one for receipts, kept as files only their owner can read.

    <data>/keys/log.key        PRIVATE+KEY+… (0600)
    <data>/keys/receipt.key    PRIVATE+KEY+… (0600)
    <data>/audit.vkeys         both verifier keys, one a line: hand this to whoever is to check the log

The log's name (its *origin*) is `<domain>/audit/<year>h<1|2>`, fixed when the keys are made.
"""

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from aimx import durable
from aimx.tlog.errors import FormatError
from aimx.tlog.note import ED25519, RECEIPT, Signer, Verifier

VKEYS = "audit.vkeys"


class KeyUnusable(Exception):
    """A key file is there and cannot be used. The text names the file and the fix."""


class Keys(NamedTuple):
    """Both keys sign under the log's origin; their types keep them apart."""

    log: Signer
    receipt: Signer

    @property
    def origin(self) -> str:
        return self.log.verifier.name


class PublicKeys(NamedTuple):
    """What a verifier needs; anybody may have it."""

    log: Verifier
    receipt: Verifier


def origin(domain: str, t_ms: int) -> str:
    """The name of a log opened at `t_ms` (Unix ms): `fabric.local/audit/2026h2`."""
    opened = datetime.fromtimestamp(t_ms / 1000, UTC)
    return f"{domain}/audit/{opened.year}h{1 if opened.month <= 6 else 2}"


def load_or_create(data: Path, domain: str, t_ms: int) -> Keys:
    """The keys in the data folder, made at the first start. Raises KeyUnusable."""
    folder = data / "keys"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = origin(domain, t_ms)
    log = load_or_create_key(folder / "log.key", name, ED25519)
    keys = Keys(log, load_or_create_key(folder / "receipt.key", log.verifier.name, RECEIPT))
    public = "".join(signer.verifier.vkey() + "\n" for signer in keys)
    path = data / VKEYS
    if not path.exists() or path.read_text() != public:
        durable.replace(path, public.encode(), 0o644)
    return keys


def load_public(data: Path) -> PublicKeys:
    """The verifier keys of a data folder. Raises KeyUnusable."""
    path = data / VKEYS
    try:
        log, receipt = (Verifier.parse(line) for line in path.read_text().split())
    except OSError as error:
        raise KeyUnusable(
            f"{path} cannot be read ({error.strerror}); point at a data folder that a node has used"
        ) from None
    except ValueError:
        raise KeyUnusable(
            f"{path} does not hold the two verifier keys; start the node once to write it again"
        ) from None
    if log.kind != ED25519 or receipt.kind != RECEIPT:
        raise KeyUnusable(f"{path} does not hold the log's key and then the receipt key")
    return PublicKeys(log, receipt)


def load_or_create_key(path: Path, name: str, kind: bytes) -> Signer:
    """One signing key in a file of its own, made when there is none. Raises KeyUnusable."""
    if not path.exists():
        durable.create(path, Signer(name, secrets.token_bytes(32), kind).skey().encode() + b"\n")
    try:
        signer = Signer.parse(path.read_text())
    except FormatError:
        raise KeyUnusable(
            f"{path} is not a signing key; restore it from a backup, a new one would be another log"
        ) from None
    except OSError as error:
        raise KeyUnusable(f"{path} cannot be read ({error.strerror}); it must belong to the node's user") from None
    if signer.verifier.kind != kind:
        raise KeyUnusable(f"{path} holds a key of another type; log.key and receipt.key may have been swapped")
    return signer
