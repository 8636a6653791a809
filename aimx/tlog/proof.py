"""A proof file: one entry's place in a signed checkpoint, checkable by anybody offline (https://c2sp.org/tlog-proof)."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from aimx.tlog import checkpoint, note
from aimx.tlog.errors import FormatError
from aimx.tlog.note import Verifier
from aimx.tlog.tree import HASH_SIZE, leaf_hash, verify_inclusion

HEADER = "c2sp.org/tlog-proof@v1"
MAX_HASHES = 63


@dataclass(frozen=True, slots=True)
class Proof:
    """Where the entry stands, the path to the root, the signed checkpoint as text, and optional application octets."""

    index: int
    path: tuple[bytes, ...]
    checkpoint: str
    extra: bytes | None = None

    def text(self) -> str:
        lines = [HEADER]
        if self.extra is not None:
            lines.append("extra " + base64.b64encode(self.extra).decode())
        lines.append(f"index {self.index}")
        lines += (base64.b64encode(part).decode() for part in self.path)
        return "\n".join(lines) + "\n\n" + self.checkpoint


def parse(text: str) -> Proof:
    """Read a proof file. Raises FormatError; proves nothing yet."""
    head, blank, signed = text.partition("\n\n")
    lines = head.split("\n")
    if not blank or lines.pop(0) != HEADER:
        raise FormatError("not a tlog-proof")
    extra = note.decode64(lines.pop(0).removeprefix("extra ")) if lines and lines[0].startswith("extra ") else None
    if not lines or not lines[0].startswith("index "):
        raise FormatError("a tlog-proof names an index")
    index = checkpoint.parse_size(lines.pop(0).removeprefix("index "))
    path = tuple(note.decode64(line) for line in lines)
    if len(path) > MAX_HASHES or any(len(part) != HASH_SIZE for part in path):
        raise FormatError("a tlog-proof holds at most 63 hashes of 32 octets")
    return Proof(index, path, signed, extra)


def verify(
    proof: Proof, entry: bytes, log: Verifier | Sequence[Verifier], cosigners: Sequence[Verifier] = ()
) -> checkpoint.Opened:
    """The checkpoint that proves `entry`, its signatures checked; one of the keys `log` must have signed it.

    Raises FormatError or ProofError.
    """
    opened = checkpoint.open_any(proof.checkpoint, [log] if isinstance(log, Verifier) else log, cosigners)
    found = opened.checkpoint
    verify_inclusion(proof.index, found.size, leaf_hash(entry), proof.path, found.root)
    return opened
