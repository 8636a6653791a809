"""Tiles: how a tree is cut into files that never change (https://c2sp.org/tlog-tiles).

Tile (L, N) holds the hashes of the nodes at tree level 8·L with indexes 256·N and up; 256 of them when it is full. An
*entry bundle* holds the entries themselves, each after two octets of length. A partial tile of width W is the front of
the full one, so nothing has to be stored for it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from aimx.tlog.errors import FormatError
from aimx.tlog.tree import HASH_SIZE, NodeReader, fold

HEIGHT = 8
WIDTH = 1 << HEIGHT
MAX_LEVEL = 63 // HEIGHT
MAX_ENTRY = 65_535

_PATH = re.compile(r"tile/(entries|[0-9]|[1-5][0-9]|6[0-3])/((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile: level None for an entry bundle; `width` hashes or entries, 256 for a full one."""

    level: int | None
    index: int
    width: int = WIDTH

    def path(self) -> str:
        """`tile/0/x001/x234/067`, or `tile/entries/000.p/3`, without a leading slash."""
        level = "entries" if self.level is None else str(self.level)
        partial = "" if self.width == WIDTH else f".p/{self.width}"
        return f"tile/{level}/{_number(self.index)}{partial}"


def _number(index: int) -> str:
    groups = [f"{index % 1000:03d}"]
    while index := index // 1000:
        groups.append(f"x{index % 1000:03d}")
    return "/".join(reversed(groups))


def parse_path(path: str) -> Tile:
    """The tile a path names. Raises FormatError, also for a spelling other than the one `Tile.path` gives."""
    match = _PATH.fullmatch(path)
    if match is None:
        raise FormatError("not the path of a tile")
    level, number, partial = match.groups()
    index = int(number.replace("x", "").replace("/", ""))
    tile = Tile(None if level == "entries" else int(level), index, int(partial) if partial else WIDTH)
    if tile.path() != path or tile.width > WIDTH - bool(partial):
        raise FormatError("not the path of a tile")
    return tile


def exists(tile: Tile, size: int) -> bool:
    """Whether a log of `size` leaves has this tile, or had it when it was smaller."""
    nodes = size >> HEIGHT * (tile.level or 0)
    return 0 < tile.width <= WIDTH and tile.index * WIDTH + tile.width <= nodes


def tiles(size: int) -> Iterator[Tile]:
    """Every tile that a log of `size` leaves consists of, entry bundles first; partial ones only where it ends."""
    for level in (None, *range(MAX_LEVEL + 1)):
        nodes = size >> HEIGHT * (level or 0)
        for index in range(nodes // WIDTH):
            yield Tile(level, index)
        if nodes % WIDTH:
            yield Tile(level, nodes // WIDTH, nodes % WIDTH)


def encode_bundle(entries: Iterable[bytes]) -> bytes:
    """An entry bundle: each entry after its length in two octets. Raises FormatError for one over 65,535 octets."""
    parts: list[bytes] = []
    for entry in entries:
        if len(entry) > MAX_ENTRY:
            raise FormatError("an entry is at most 65,535 octets")
        parts += (len(entry).to_bytes(2, "big"), entry)
    return b"".join(parts)


def decode_bundle(data: bytes) -> list[bytes]:
    """The entries of a bundle. Raises FormatError when it ends inside one."""
    entries: list[bytes] = []
    at = 0
    while at < len(data):
        start = at + 2
        at = start + int.from_bytes(data[at:start], "big")
        if start > len(data) or at > len(data):
            raise FormatError("an entry bundle ends inside an entry")
        entries.append(data[start:at])
    return entries


def hashes(data: bytes) -> list[bytes]:
    """A tile's octets as hashes. Raises FormatError unless they are 1 to 256 whole ones."""
    if not data or len(data) % HASH_SIZE or len(data) > WIDTH * HASH_SIZE:
        raise FormatError("a tile is 1 to 256 hashes of 32 octets")
    return [data[at : at + HASH_SIZE] for at in range(0, len(data), HASH_SIZE)]


def node_reader(read: Callable[[int, int], Sequence[bytes]]) -> NodeReader:
    """A reader of single nodes over `read(level, index)`, which gives the hashes of one tile, as many as there are.

    Tiles are kept while the reader lives: make one for each proof or burst of proofs and let it go.
    """
    kept: dict[tuple[int, int], Sequence[bytes]] = {}

    def node(level: int, index: int) -> bytes:
        tile_level, rise = divmod(level, HEIGHT)
        first = index << rise
        where = (tile_level, first // WIDTH)
        if where not in kept:
            kept[where] = read(*where)
        at = first % WIDTH
        return fold(kept[where][at : at + (1 << rise)])

    return node
