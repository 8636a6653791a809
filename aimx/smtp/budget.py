"""How many octets of unfinished messages the whole node may hold in memory, and how many one agent."""

from collections import Counter

SHARES = 4
"""One agent may have one in so many octets, so that nobody alone keeps all others from sending."""
LEAST = 1 << 20


class ByteBudget:
    """Shared by every session of one process; used on the event loop only."""

    __slots__ = ("_held", "left", "limit", "share")

    def __init__(self, limit: int, least: int = LEAST) -> None:
        """`least`: octets an agent may have in any case."""
        self.limit = limit
        self.left = limit
        self.share = max(limit // SHARES, least)
        self._held: Counter[str] = Counter()

    def take(self, octets: int, owner: str) -> bool:
        """False: not so much is left, or not for this owner, and nothing was taken."""
        if octets > self.left or self._held[owner] + octets > self.share:
            return False
        self.left -= octets
        self._held[owner] += octets
        return True

    def give(self, octets: int, owner: str) -> None:
        self.left += octets
        self._held[owner] -= octets
        assert self.left <= self.limit, "more was given back than taken"
        if not self._held[owner]:
            del self._held[owner]  # owners come and go for ever
