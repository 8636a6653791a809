"""A log's shards as they were at one moment, read by place."""

from typing import Literal, NamedTuple

from aimx.audit.log import Leaf, Reader, Shard


class Gap(NamedTuple):
    """Places that no shard at hand has: those of dropped shards, or those lost when an old copy was put back."""

    start: int
    end: int
    why: Literal["dropped", "lost"]


class Series:
    """Leaves by place. Shards that begin after this was made are not in it."""

    def __init__(self, reader: Reader) -> None:
        """Raises LogError."""
        self.shards: list[Shard] = reader.shards()
        self._readers = {shard.number: reader.shard(shard.number) for shard in self.shards}

    def readers(self) -> list[Reader]:
        """Of each shard, oldest first."""
        return [self._readers[shard.number] for shard in self.shards]

    @property
    def size(self) -> int:
        """The place after the last leaf."""
        return self.shards[-1].end

    def gaps(self) -> list[Gap]:
        found, place = list[Gap](), 0
        for shard in self.shards:
            if shard.start > place:
                found.append(Gap(place, shard.start, "lost" if place else "dropped"))
            place = shard.end
        return found

    def leaves(self, start: int, end: int) -> list[Leaf]:
        """The leaves at places start … end-1, as many as there are; each `idx` is the place."""
        found: list[Leaf] = []
        for shard in self.shards:
            low, high = max(start, shard.start), min(end, shard.end)
            if low < high:
                rows = self._readers[shard.number].leaves(low - shard.start, high - shard.start)
                found += rows if not shard.start else [row._replace(idx=row.idx + shard.start) for row in rows]
        return found

    def place_of(self, eid: str) -> int | None:
        """Where an event stands; None while it does not."""
        for shard in reversed(self.shards):
            index = self._readers[shard.number].index_of(eid)
            if index is not None:
                return shard.start + index
        return None
