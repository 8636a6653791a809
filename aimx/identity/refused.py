"""Log-ins that were refused, counted for the audit log in bulk: nobody outside may drive it.

However many attempts there are, what is kept of them is bounded, and what is recorded is one event a minute and door
(`take`, called by whoever records).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Via = Literal["smtp", "imap", "http"]

MAX_NAMES = 1_000
"""Different addresses, and different accounts, of one door that are remembered until the next record."""
MAX_NAME = 320
"""Octets of an account's name: whoever tries may send any length."""


@dataclass(slots=True)
class Refusals:
    """Of one door since `since_ms`. Beyond MAX_NAMES attempts are counted and not named."""

    since_ms: int
    n: int = 0
    sources: set[str] = field(default_factory=set)
    accounts: set[str] = field(default_factory=set)

    def add(self, n: int, sources: set[str], accounts: set[str]) -> None:
        self.n += n
        for mine, theirs in ((self.sources, sources), (self.accounts, accounts)):
            mine.update(sorted(theirs)[: MAX_NAMES - len(mine)])


class RefusedLogins:
    """All doors. Belongs to the event loop's thread."""

    def __init__(self, clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._clock_ms = clock_ms
        self._doors: dict[Via, Refusals] = {}

    def add(self, via: Via, source: str, account: str | None) -> None:
        """`account`: None where a token alone was given."""
        door = self._doors.setdefault(via, Refusals(self._clock_ms()))
        named = account.encode("utf-8", "replace")[:MAX_NAME].decode("utf-8", "replace") if account else None
        door.add(1, {source}, {named} if named else set())

    def take(self) -> dict[Via, Refusals]:
        """What there is, which is then forgotten here."""
        taken, self._doors = self._doors, {}
        return taken

    def give_back(self, taken: dict[Via, Refusals]) -> None:
        """It could not be recorded: it counts with what has come since."""
        for via, older in taken.items():
            newer = self._doors.get(via)
            if newer is not None:
                older.add(newer.n, newer.sources, newer.accounts)
            self._doors[via] = older
