"""How many octets of unfinished messages the whole node may hold in memory."""


class ByteBudget:
    """Shared by every session of one process; used on the event loop only."""

    __slots__ = ("left", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.left = limit

    def take(self, octets: int) -> bool:
        """False: not so much is left, and nothing was taken."""
        if octets > self.left:
            return False
        self.left -= octets
        return True

    def give(self, octets: int) -> None:
        self.left += octets
        assert self.left <= self.limit, "more was given back than taken"
