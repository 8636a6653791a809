"""Making what a log consists of, without AIMX: RFC 6962 hashes and signed notes (https://c2sp.org/signed-note)."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

TILE = 256


def leaf_hash(entry: bytes) -> bytes:
    return sha256(b"\x00" + entry).digest()


def root(hashes: Sequence[bytes]) -> bytes:
    """RFC 6962 §2.1."""
    if len(hashes) < 2:
        return hashes[0] if hashes else sha256(b"").digest()
    half = 1 << (len(hashes) - 1).bit_length() - 1
    return sha256(b"\x01" + root(hashes[:half]) + root(hashes[half:])).digest()


def peaks(hashes: Sequence[bytes]) -> list[bytes]:
    """The roots of the complete subtrees, largest first."""
    found, at = [], 0
    for bit in reversed(range(len(hashes).bit_length())):
        if len(hashes) >> bit & 1:
            found.append(root(hashes[at : at + (1 << bit)]))
            at += 1 << bit
    return found


def consistency(old: int, hashes: Sequence[bytes]) -> list[bytes]:
    """RFC 6962 §2.1.2: what proves, to somebody who knows the first `old` leaves' root, that the tree begins so."""
    return _subproof(old, hashes, True) if 0 < old < len(hashes) else []


def _subproof(old: int, hashes: Sequence[bytes], whole: bool) -> list[bytes]:
    if old == len(hashes):
        return [] if whole else [root(hashes)]
    half = 1 << (len(hashes) - 1).bit_length() - 1
    if old <= half:
        return [*_subproof(old, hashes[:half], whole), root(hashes[half:])]
    return [*_subproof(old - half, hashes[half:], False), root(hashes[:half])]


@dataclass(frozen=True)
class Key:
    """A signing key as it lies in `keys/`: PRIVATE+KEY+name+id+base64(type ‖ seed)."""

    name: str
    kind: bytes
    seed: bytes

    @classmethod
    def stolen(cls, text: str) -> "Key":
        _, _, name, _, encoded = text.split()[0].split("+", 4)
        data = base64.b64decode(encoded)
        return cls(name, data[:-32], data[-32:])

    @property
    def _private(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    @property
    def id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + self.kind + self._public).digest()[:4]

    @property
    def _public(self) -> bytes:
        return self._private.public_key().public_bytes_raw()

    @property
    def vkey(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(self.kind + self._public).decode()}"

    @property
    def skey(self) -> str:
        return f"PRIVATE+KEY+{self.name}+{self.id.hex()}+{base64.b64encode(self.kind + self.seed).decode()}"

    def line(self, octets: bytes) -> str:
        signed = base64.b64encode(self.id + self._private.sign(octets)).decode()
        return f"\u2014 {self.name} {signed}\n"

    def cosignature(self, text: str, time_s: int) -> str:
        """https://c2sp.org/tlog-cosignature"""
        signed = self._private.sign(f"cosignature/v1\ntime {time_s}\n{text}".encode())
        return f"\u2014 {self.name} {base64.b64encode(self.id + time_s.to_bytes(8, 'big') + signed).decode()}\n"

    def receipt(self, eid: str, leaf: bytes, t_ms: int, octets: bytes, envelope: Sequence[str]) -> str:
        """The text of a 250 that promises this mail, from and to these addresses, to the log."""
        folded = sha256(b"".join(sha256(one.encode()).digest() for one in envelope)).digest()
        parts = (leaf, t_ms, sha256(octets).digest(), folded)
        lines = [part if isinstance(part, int) else base64.b64encode(part).decode() for part in parts]
        text = "".join(f"{line}\n" for line in ("aimx/receipt/v1", self.name, eid, *lines))
        signed = base64.b64encode(self.id + self._private.sign(text.encode())).decode()
        return f"<{eid}> queued aimx-leaf={base64.b64encode(leaf).decode()} t={t_ms} sig={signed}"


def checkpoint(origin: str, hashes: Sequence[bytes], *keys: Key) -> str:
    """A signed checkpoint of the tree over these leaves."""
    text = f"{origin}\n{len(hashes)}\n{base64.b64encode(root(hashes)).decode()}\n"
    return text + "\n" + "".join(key.line(text.encode()) for key in keys)


def request(old: int, hashes: Sequence[bytes], signed: str) -> bytes:
    """The body of `add-checkpoint` (https://c2sp.org/tlog-witness)."""
    proof = "".join(base64.b64encode(part).decode() + "\n" for part in consistency(old, hashes))
    return f"old {old}\n{proof}\n{signed}".encode()


def size_of(signed: str) -> int:
    return int(signed.split("\n")[1])
