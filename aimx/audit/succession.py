"""How one shard follows another: when it is time, what the next is called, and how an ended one is told.

A shard ends with `log.closed`, which names the next one and its key, and goes through the outbox like every leaf:
whoever carries it into the log then begins the next shard. Killed at any point between, the next start goes on.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from aimx.audit.keys import Period, origin, period
from aimx.audit.log import Reader, Shard
from aimx.config import Audit

Why = Literal["period", "size"]


@dataclass(frozen=True, slots=True)
class Sharding:
    """`[audit]` settings on shards and keys. `period` off and `leaves` None: one shard for good."""

    period: Period = "off"
    leaves: int | None = None
    signer: str = "file"
    overlap_ms: int = 7 * 86_400_000


def sharding(settings: Audit) -> Sharding:
    """As `[audit]` asks for it."""
    return Sharding(settings.shard, settings.shard_leaves, settings.signer, int(settings.key_overlap * 1000))


class Closing(NamedTuple):
    """What the last leaf of a closed shard says."""

    eid: str
    next: str
    log: str


def due(shard: Shard, sharding: Sharding, t_ms: int) -> Why | None:
    """Why `shard` is to be closed now, if it is. One that holds no event yet waits for one."""
    if shard.size < 2:
        return None
    if sharding.leaves is not None and shard.size >= sharding.leaves:
        return "size"
    name = shard.origin.rpartition("/")[2].split(".")[0]
    if sharding.period != "off" and name != period(t_ms, sharding.period):
        return "period"
    return None


def next_origin(domain: str, shards: Sequence[Shard], sharding: Sharding, t_ms: int, mark: str = "") -> str:
    """A name that no shard of the series has: `x.example/audit/2027h1`, then `…/2027h1.2`; `.MARK1` where marked."""
    taken = {shard.origin for shard in shards}
    number = 1
    while True:
        suffix = f".{mark}{number}" if mark or number > 1 else ""
        name = origin(domain, t_ms, sharding.period, suffix)
        if name not in taken:
            return name
        number += 1


def closing(entry: bytes, name: str) -> Closing | None:
    """What a leaf says if it closes the shard called `name`."""
    if b'"ev":"log.closed"' not in entry:
        return None
    leaf = json.loads(entry)
    return Closing(leaf["eid"], leaf["next"], leaf["log"]) if leaf["origin"] == name else None


def ended(reader: Reader) -> Closing | None:
    """How the newest shard was closed, if the next one has yet to begin."""
    shard = reader.described()
    entry = reader.shard(shard.number).entry(shard.size - 1) if shard.size else None
    return None if entry is None else closing(entry, shard.origin)
