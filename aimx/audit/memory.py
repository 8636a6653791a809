"""What the last verification ended with, so that the next one can go on from there.

It is as good as the file it is kept in: who can write that can make a verification pass over what he changed before it.
So a verification reads everything unless it is asked to go on (`aimx audit verify --new`), and then says so.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from aimx import durable
from aimx.tlog.errors import FormatError
from aimx.tlog.tree import Frontier

FILE = "audit.verified"

SEQ_MARGIN = 10_000
"""Events before the last one seen that are read again: where many processes write, a lower number may come later."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The first `size` leaves of the shard `origin` were checked. `keys`: from which index on which key (vkey) was in
    force; `opened`: its first leaf; `erased`: messages it says were erased, in all shards so far."""

    origin: str
    size: int
    frontier: str
    """Hex of `Frontier.to_bytes`."""
    keys: tuple[tuple[int, str], ...]
    opened: dict[str, Any]
    erased: tuple[str, ...]
    place: int = 0
    """After the last leaf, in the whole series."""
    seq: int = 0
    eid: str = ""
    """The newest message that was held against the log."""
    dropped: int = 0
    """Leaves of shards that were let go, and said to be."""
    floor_ms: int = 0
    """What is logged from here on cannot have happened before."""
    full_ms: int = 0
    """When everything was last read (Unix ms)."""

    def tree(self) -> Frontier:
        return Frontier.from_bytes(bytes.fromhex(self.frontier))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Memory":
        """Raises FormatError."""
        try:
            keys = tuple((int(start), str(vkey)) for start, vkey in data["keys"])
            made = cls(**{**data, "keys": keys, "erased": tuple(data["erased"])})
            made.tree()
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError("not what a verification remembers") from error
        return made


def load(folder: Path) -> Memory | None:
    """None when nothing is remembered, or nothing that can be read: then everything is read again."""
    try:
        return Memory.from_json(json.loads((folder / FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def save(folder: Path, memory: Memory, *, full: bool) -> None:
    kept = replace(memory, full_ms=time.time_ns() // 1_000_000) if full else memory
    durable.replace(folder / FILE, json.dumps(kept.to_json()).encode())
