"""What a log is, wherever it is kept: the writer's calls, the reader's, and what both do alike.

A log is a series of *shards*, each a transparency log of its own: its own origin and key, indexes from 0. A shard's
first leaf is `log.opened`, which says where in the series it begins and what came before; a closed one's last leaf is
`log.closed`. An event's *place* counts through the whole series; its *index* counts within its shard.

`aimx.audit.sqlite` and `aimx.audit.postgres` keep logs, `aimx.audit.place` opens the right one. Both are synchronous:
the writer is called from the sequencer's thread, a reader from any thread. What they keep in memory does not grow with
the log.

An append is one transaction that compares the stored (size, root) with the one it started from, so two sequencers at
once cannot fork the log: the later one fails (`Fenced`), reads again, and finds the first one's leaves by their eids.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from aimx.tlog import checkpoint, proof, tile, tree
from aimx.tlog.checkpoint import Checkpoint
from aimx.tlog.note import SigningKey
from aimx.tlog.proof import Proof
from aimx.tlog.tile import Tile
from aimx.tlog.tree import Frontier, NodeReader, leaf_hash

FILE = "audit.db"

KEEP_EVERY_MS = 60_000
"""Checkpoints are signed each second while the log grows; one a minute is kept for good, the newest always."""


class LogError(Exception):
    """The log cannot be used as it is. The text says what is wrong with which file or database."""


class Fenced(LogError):
    """Another sequencer has appended since this one read the state. Read it again and go on."""


class NotCovered(LogError):
    """No signed checkpoint covers this leaf yet; within a second or two one will."""


class State(NamedTuple):
    """How long a shard is and what it adds up to. `signed` is the newest signed checkpoint's text."""

    size: int
    root: bytes
    frontier: Frontier
    signed: str | None
    shard: int = 1


class Shard(NamedTuple):
    """One log of the series: its number from 1, its origin, the place of its first leaf, and how many it holds."""

    number: int
    origin: str
    start: int
    size: int

    @property
    def end(self) -> int:
        """The place after its last leaf."""
        return self.start + self.size


class Leaf(NamedTuple):
    idx: int
    eid: str
    hash: bytes
    entry: bytes


class Appended(NamedTuple):
    """One append: the sizes before and after, the new root, and each given leaf's index, in the order given."""

    before: int
    size: int
    root: bytes
    indexes: list[int]


class Log(Protocol):
    """The writer, at the end of the newest shard. One thread at a time; other processes may write too and are fenced.

    Every call raises LogError when nothing was written and the same may succeed later (disk full, database gone).
    """

    state: State

    def reload(self) -> State:
        """Read the state again, after `Fenced` or a failure; also whether a new shard has begun."""

    def append(self, leaves: Sequence[tuple[str, bytes]]) -> Appended:
        """Append (eid, entry) pairs, durable when it returns; one that is in the log already keeps its place.

        Raises Fenced.
        """

    def sign(self, signers: Sequence[SigningKey], t_ms: int) -> str:
        """Sign the stored state and keep the checkpoint. Returns the signed note's text. Raises Fenced.

        What is signed is what this transaction reads, so no two signed checkpoints can contradict each other.
        """

    def begin(self, first: tuple[str, bytes], signers: Sequence[SigningKey], t_ms: int) -> None:
        """Begin the next shard with its first leaf and a signed checkpoint, all or nothing. Raises Fenced."""

    def drop(self, number: int) -> None:
        """Let go of the oldest shard, whole. Raises LogError for any other."""

    def lead(self, name: str, seconds: float) -> bool:
        """Whether `name` is the one that works on this log for the next `seconds`; 0 lets go.

        Only saves work: what keeps two at once from forking the log is the comparison in every transaction.
        """

    def close(self) -> None: ...


class Reader(ABC):
    """Reads a log, also while it is being written, also from several threads, and never changes it.

    It follows the newest shard; `shard` gives a reader that stays with one. Every call raises LogError when the log
    is missing or damaged.
    """

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def state(self) -> State: ...

    @abstractmethod
    def index_of(self, eid: str) -> int | None:
        """Where an event stands in this shard; None while it does not."""

    @abstractmethod
    def leaves(self, start: int, end: int) -> list[Leaf]:
        """Leaves start … end-1 of this shard, as many as there are, in order."""

    @abstractmethod
    def nodes(self, level: int, start: int, end: int) -> list[bytes]:
        """Hashes start … end-1 at a tile level (0: the leaves'), as many as there are."""

    @abstractmethod
    def checkpoints(self) -> list[tuple[int, int, str]]:
        """The kept checkpoints: (size, Unix ms, signed note), ascending."""

    @abstractmethod
    def numbers(self) -> list[int]:
        """The shards that are there, oldest first."""

    @abstractmethod
    def shard(self, number: int) -> "Reader":
        """A reader of that shard alone. It ends with this one."""

    # --- what follows from these ---

    def shards(self) -> list[Shard]:
        """The series, oldest first."""
        return [self.shard(number).described() for number in self.numbers()]

    def described(self) -> Shard:
        """What this shard says of itself in its first leaf."""
        state = self.state()
        return described(state, self.shard(state.shard).entry(0))

    def named(self, origin: str) -> "Reader | None":
        """The shard of that origin, or whose origin ends with `/origin`."""
        for found in reversed(self.shards()):
            if origin in (found.origin, found.origin.rpartition("/")[2]):
                return self.shard(found.number)
        return None

    def place_of(self, eid: str) -> int | None:
        """Where an event stands in the series; None while it does not."""
        for number in reversed(self.numbers()):
            one = self.shard(number)
            index = one.index_of(eid)
            if index is not None:
                return one.described().start + index
        return None

    def at(self, place: int) -> tuple["Reader", int]:
        """The shard that holds a place, and the index there. Raises NotCovered for a place that no shard has."""
        for number in reversed(self.numbers()):
            found = self.shard(number).described()
            if found.start <= place < found.end:
                return self.shard(number), place - found.start
        raise NotCovered(f"leaf {place} is not in the log")

    def entry(self, index: int) -> bytes | None:
        found = self.leaves(index, index + 1)
        return found[0].entry if found else None

    def checkpoint(self) -> str | None:
        """The newest signed checkpoint: the body of `/checkpoint`. None before the first."""
        return self.state().signed

    def tile(self, wanted: Tile) -> bytes | None:
        """The octets of a tile or an entry bundle, partial ones included; None for one the log does not have."""
        state = self.state()
        if not tile.exists(wanted, state.size):
            return None
        one, start = self.shard(state.shard), wanted.index * tile.WIDTH
        if wanted.level is None:
            return tile.encode_bundle(leaf.entry for leaf in one.leaves(start, start + wanted.width))
        return b"".join(one.nodes(wanted.level, start, start + wanted.width))

    def node_reader(self) -> NodeReader:
        """A reader of single nodes for proofs; it keeps the tiles it has read, so use it for one burst of proofs."""
        one = self.shard(self.state().shard)
        return tile.node_reader(lambda level, index: one.nodes(level, index * tile.WIDTH, (index + 1) * tile.WIDTH))

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """The path of leaf `index` in the tree of `size` leaves."""
        return tree.inclusion_proof(index, size, self.node_reader())

    def consistency(self, old: int, new: int) -> list[bytes]:
        """That the tree of `new` leaves begins with the tree of `old`."""
        return tree.consistency_proof(old, new, self.node_reader())

    def prove(self, index: int, extra: bytes | None = None) -> Proof:
        """A proof file for one leaf against the newest signed checkpoint. Raises NotCovered."""
        state = self.state()
        if state.signed is None or (size := checkpoint.parse(state.signed.partition("\n\n")[0] + "\n").size) <= index:
            raise NotCovered(f"leaf {index} is not under a signed checkpoint yet")
        return proof.Proof(index, tuple(self.shard(state.shard).inclusion(index, size)), state.signed, extra)


# --- what every writer does alike ---


class Growth(NamedTuple):
    """What an append writes: new leaves, complete nodes (tile level, index, hash), the state after, and all indexes."""

    rows: list[Leaf]
    nodes: list[tuple[int, int, bytes]]
    after: State
    indexes: list[int]


def grown(known: State, leaves: Sequence[tuple[str, bytes]], places: Mapping[str, int]) -> Growth:
    """What appending `leaves` to `known` comes to, where `places` says which of them are in the log already."""
    at = dict(places)
    rows: list[Leaf] = []
    for eid, entry in leaves:
        if eid not in at:
            at[eid] = known.size + len(rows)
            rows.append(Leaf(at[eid], eid, leaf_hash(entry), entry))
    frontier = known.frontier.copy()
    nodes = frontier.extend((row.hash for row in rows), tile.HEIGHT)
    after = known._replace(size=frontier.size, root=frontier.root(), frontier=frontier)
    levels = [(level // tile.HEIGHT, index, node) for level, index, node in nodes]
    return Growth(rows, levels, after, [at[eid] for eid, _ in leaves])


def signed(state: State, signers: Sequence[SigningKey]) -> str:
    """A checkpoint of `state` under the name that the first of `signers` signs by; all of them sign."""
    found = Checkpoint(signers[0].verifier.name, state.size, state.root)
    return str(checkpoint.sign(found, signers))


def described(state: State, first: bytes | None) -> Shard:
    """A shard by its state and its first leaf."""
    try:
        said = json.loads(first or b"{}")
        return Shard(state.shard, str(said.get("origin", "")), int(said.get("start", 0)), state.size)
    except (ValueError, TypeError, AttributeError):
        return Shard(state.shard, "", 0, state.size)
