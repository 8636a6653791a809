"""Is a leaf in a log, asked from outside: with nothing but its hash and the log's public files (c2sp.org/tlog-tiles).

The answer "no" is as strong as the answer "yes": it is given only when all leaf hashes that were looked through add up
to the root that the log has signed.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple

from aimx.tlog import checkpoint, tile, tree
from aimx.tlog.checkpoint import Opened
from aimx.tlog.errors import ProofError
from aimx.tlog.note import Verifier
from aimx.tlog.tile import WIDTH, Tile

Fetch = Callable[[str], Awaitable[bytes]]
"""`await fetch("tile/0/000.p/3")`: the octets of one of the log's files."""


class Found(NamedTuple):
    """What was found under the log's newest checkpoint. `place` is None when the leaf is not there."""

    place: int | None
    checkpoint: Opened


async def find(fetch: Fetch, leaf: bytes, logs: Sequence[Verifier]) -> Found:
    """Look for a leaf's hash, from the newest leaf backwards.

    Raises FormatError and ProofError when the files are not those of a log that one of `logs` signs.
    """
    opened = checkpoint.open_any(await fetch("checkpoint"), logs)
    size, root = opened.checkpoint.size, opened.checkpoint.root
    seen: list[list[bytes]] = []
    async for number, hashes in _backwards(fetch, size):
        seen.append(hashes)
        if leaf in hashes:
            index = number * WIDTH + hashes.index(leaf)
            await _prove(fetch, index, leaf, opened)
            return Found(index, opened)
    frontier = tree.Frontier()
    for part in reversed(seen):
        frontier.extend(part)
    if frontier.root() != root:
        raise ProofError("the leaf hashes that the log shows do not add up to the root it has signed")
    return Found(None, opened)


async def _backwards(fetch: Fetch, size: int) -> AsyncIterator[tuple[int, list[bytes]]]:
    for number in reversed(range(-(-size // WIDTH))):
        yield number, await _hashes(fetch, 0, number, size)


async def _hashes(fetch: Fetch, level: int, number: int, size: int) -> list[bytes]:
    width = min(WIDTH, (size >> tile.HEIGHT * level) - number * WIDTH)
    hashes = tile.hashes(await fetch(Tile(level, number, width).path()))
    if len(hashes) != width:
        raise ProofError("a tile has fewer hashes than its name says")
    return hashes


async def _prove(fetch: Fetch, index: int, leaf: bytes, opened: Opened) -> None:
    """Walk from the leaf to the signed root."""
    size, root = opened.checkpoint.size, opened.checkpoint.root
    needed: set[tuple[int, int]] = set()

    def note_down(level: int, number: int) -> Sequence[bytes]:
        needed.add((level, number))
        return [bytes(tree.HASH_SIZE)] * WIDTH

    tree.inclusion_proof(index, size, tile.node_reader(note_down))
    held = {where: await _hashes(fetch, *where, size) for where in sorted(needed)}
    nodes = tile.node_reader(lambda level, number: held[level, number])
    tree.verify_inclusion(index, size, leaf, tree.inclusion_proof(index, size, nodes), root)
