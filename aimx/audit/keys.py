"""The node's signing keys: one for the log's checkpoints, one for receipts.

    <data>/keys/log.key          the log's key in force, or where it is kept (`aimx.audit.signer`); 0600
    <data>/keys/receipt.key      the receipt key; every process that says 250 holds it
    <data>/keys/next.WHAT.key    a key made and not in force yet, and the event that will put it in force
    <data>/keys/log.ID.key       a key that was in force and signs beside the new one until its overlap is over
    <data>/audit.vkeys           verifier keys, one a line: the log's and the receipt key in force, then all earlier
                                 ones. Hand it to whoever is to check the log

The log's name (its *origin*) is `<domain>/audit/<period>`, fixed when a shard is opened. The receipt key keeps the name
it was made under.
"""

import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from aimx import durable
from aimx.audit import signer as signers
from aimx.tlog.errors import FormatError
from aimx.tlog.note import ED25519, RECEIPT, Signer, SigningKey, Verifier

VKEYS = "audit.vkeys"

What = Literal["log", "receipt"]
Period = Literal["off", "1mo", "3mo", "6mo", "1y"]

_KINDS: dict[What, bytes] = {"log": ED25519, "receipt": RECEIPT}


class KeyUnusable(Exception):
    """A key file is there and cannot be used. The text names the file and the fix."""


class Keys(NamedTuple):
    """Types keep checkpoints and receipts apart. `retiring` log keys sign beside `log` until their overlap is over."""

    log: SigningKey
    receipt: Signer
    retiring: tuple[SigningKey, ...] = ()

    @property
    def origin(self) -> str:
        return self.log.verifier.name

    @property
    def signing(self) -> list[SigningKey]:
        """Those that sign a checkpoint now, the one in force first. Keys of an earlier shard have had their time."""
        return [self.log, *(key for key in self.retiring if key.verifier.name == self.origin)]

    def public(self) -> "PublicKeys":
        return PublicKeys(self.log.verifier, self.receipt.verifier, tuple(key.verifier for key in self.retiring))


class PublicKeys(NamedTuple):
    """What a verifier needs; anybody may have it. `earlier` are those that were in force before, of either kind."""

    log: Verifier
    receipt: Verifier
    earlier: tuple[Verifier, ...] = ()

    @property
    def all(self) -> tuple[Verifier, ...]:
        return (self.log, self.receipt, *self.earlier)

    @property
    def logs(self) -> tuple[Verifier, ...]:
        """Every log key known, of any shard."""
        return tuple(key for key in self.all if key.kind == ED25519)

    @property
    def receipts(self) -> tuple[Verifier, ...]:
        return tuple(key for key in self.all if key.kind == RECEIPT)


class Waiting(NamedTuple):
    """A key that is not in force yet, and the id of the event that will put it in force."""

    key: SigningKey
    eid: str


def period(t_ms: int, length: Period) -> str:
    """The part of time that `t_ms` (Unix ms) falls in: `2026-11`, `2026q4`, `2026h2` or `2026`."""
    now = datetime.fromtimestamp(t_ms / 1000, UTC)
    match length:
        case "1mo":
            return f"{now.year}-{now.month:02}"
        case "3mo":
            return f"{now.year}q{(now.month + 2) // 3}"
        case "1y":
            return str(now.year)
        case "6mo" | "off":
            return f"{now.year}h{1 if now.month <= 6 else 2}"


def origin(domain: str, t_ms: int, length: Period = "off", suffix: str = "") -> str:
    """The name of a log opened at `t_ms` (Unix ms): `fabric.local/audit/2026h2`."""
    return f"{domain}/audit/{period(t_ms, length)}{suffix}"


def load_or_create(data: Path, domain: str, t_ms: int, *, signer: str = "file", length: Period = "off") -> Keys:
    """The keys in the data folder, made at the first start as `signer` says. Raises KeyUnusable, SignerAway."""
    folder = data / "keys"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = origin(domain, t_ms, length)
    if not (folder / "log.key").exists():
        durable.create(folder / "log.key", _text(_new("log", name, signer)))
    log = _load(folder / "log.key", "log")
    if not (folder / "receipt.key").exists():
        durable.create(folder / "receipt.key", _text(_new("receipt", log.verifier.name, "file")))
    return load(data, t_ms)


def load(data: Path, t_ms: int) -> Keys:
    """The keys as they are now; what has outlived its overlap at `t_ms` is thrown away. Raises KeyUnusable."""
    folder = data / "keys"
    log, receipt = _load(folder / "log.key", "log"), _load(folder / "receipt.key", "receipt")
    assert isinstance(receipt, Signer)
    retiring: list[SigningKey] = []
    for path in sorted(folder.glob("log.*.key")):
        if int(_said(path).get("until", "0")) <= t_ms:
            path.unlink(missing_ok=True)
        elif (key := _load(path, "log")).verifier != log.verifier:  # else killed while it was being put out of force
            retiring.append(key)
    keys = Keys(log, receipt, tuple(retiring))
    _publish(data, keys)
    return keys


def make_next(data: Path, what: What, name: str, eid: str, *, signer: str = "file") -> Waiting:
    """Make a key that event `eid` is to put in force. One that waited before is forgotten. Raises SignerAway."""
    key = _new(what, name, signer if what == "log" else "file")
    durable.replace(_next(data, what), _text(key, f"event {eid}"))
    return Waiting(key, eid)


def forget_next(data: Path, what: What) -> None:
    """The key that waits will not be wanted."""
    _next(data, what).unlink(missing_ok=True)


def waiting(data: Path, what: What) -> Waiting | None:
    """The key that waits to be put in force. Raises KeyUnusable."""
    path = _next(data, what)
    if not path.exists():
        return None
    return Waiting(_load(path, what), _said(path).get("event", ""))


def put_in_force(data: Path, what: What, t_ms: int, overlap_ms: int) -> Keys:
    """Let the key that waits take over; the one before it signs on for `overlap_ms` if it is the log's.

    Killed at any point it can be done again.
    """
    folder, path = data / "keys", _next(data, what)
    new = _load(path, what)
    old = _load(folder / f"{what}.key", what)
    _publish(data, load(data, t_ms))  # so that the old one stays known whatever comes
    if old.verifier != new.verifier:
        if what == "log" and overlap_ms:
            retired = folder / f"log.{old.verifier.key_id.hex()}.key"
            durable.replace(retired, _text(old, f"until {t_ms + overlap_ms}"))
        durable.replace(folder / f"{what}.key", _text(new))
    path.unlink()
    return load(data, t_ms)


def load_public(data: Path) -> PublicKeys:
    """The verifier keys of a data folder. Raises KeyUnusable."""
    path = data / VKEYS
    try:
        return parse_public(path.read_text())
    except OSError as error:
        raise KeyUnusable(
            f"{path} cannot be read ({error.strerror}); point at a data folder that a node has used"
        ) from None
    except ValueError as error:
        raise KeyUnusable(
            f"{path} does not hold the verifier keys ({error}); start the node once to write it again"
        ) from None


def parse_public(text: str) -> PublicKeys:
    """The lines of an `audit.vkeys`. Raises FormatError."""
    found = [Verifier.parse(line) for line in text.split()]
    if len(found) < 2 or found[0].kind != ED25519 or found[1].kind != RECEIPT:
        raise FormatError("the log's key comes first, then the receipt key")
    return PublicKeys(found[0], found[1], tuple(found[2:]))


def _publish(data: Path, keys: Keys) -> None:
    """Write audit.vkeys. A key that was ever in it stays."""
    path = data / VKEYS
    before: tuple[Verifier, ...] = ()
    text = path.read_text() if path.exists() else ""
    try:
        before = parse_public(text).all
    except FormatError:
        before = ()
    now = keys.public()
    lines = _unique([now.log, now.receipt, *now.earlier, *before])
    public = "".join(key.vkey() + "\n" for key in lines)
    if text != public:
        durable.replace(path, public.encode(), 0o644)


def load_or_create_key(path: Path, name: str, kind: bytes) -> Signer:
    """One signing key in a file of its own, made when there is none. Raises KeyUnusable."""
    if not path.exists():
        durable.create(path, _text(Signer(name, secrets.token_bytes(32), kind)))
    key = _read(path, kind)
    assert isinstance(key, Signer)
    return key


def _unique(keys: Iterable[Verifier]) -> list[Verifier]:
    return list(dict.fromkeys(keys))


def _next(data: Path, what: What) -> Path:
    return data / "keys" / f"next.{what}.key"


def _new(what: What, name: str, signer: str) -> SigningKey:
    if signer == "file":
        return Signer(name, secrets.token_bytes(32), _KINDS[what])
    return signers.outside(signer, name)


def _text(key: SigningKey, *notes: str) -> bytes:
    first = key.skey() if isinstance(key, Signer) else signers.written(key)
    return "".join(line + "\n" for line in (first, *notes)).encode()


def _load(path: Path, what: What) -> SigningKey:
    return _read(path, _KINDS[what])


def _read(path: Path, kind: bytes) -> SigningKey:
    key: SigningKey
    try:
        first = path.read_text().partition("\n")[0]
        key = Signer.parse(first) if first.startswith("PRIVATE+KEY+") else signers.read(first)
    except (FormatError, UnicodeDecodeError):
        raise KeyUnusable(
            f"{path} is not a signing key; restore it from a backup, a new one would be another log"
        ) from None
    except OSError as error:
        raise KeyUnusable(f"{path} cannot be read ({error.strerror}); it must belong to the node's user") from None
    if key.verifier.kind != kind:
        raise KeyUnusable(f"{path} holds a key of another type; log.key and receipt.key may have been swapped")
    return key


def _said(path: Path) -> dict[str, str]:
    """What a key file says besides its key: `event EID`, `until MS`."""
    return dict(line.split(" ", 1) for line in path.read_text().splitlines()[1:] if " " in line)
