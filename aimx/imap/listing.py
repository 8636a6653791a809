"""LIST and LSUB: which names match a pattern, and the superior levels that exist only through their inferiors.

`*` matches anything, `%` anything but the hierarchy delimiter (RFC 3501 §6.3.8). The match runs all alternatives at
once as bits of an integer, so no pattern can make it back up.
"""

from collections.abc import Iterable

DELIMITER = "/"
MAX_PATTERN = 1024
"""Characters. A longer pattern can match no name we would store."""


class Pattern:
    """A compiled LIST pattern; `matches(name)` takes one step per character of the name."""

    __slots__ = ("_accept", "_percent", "_places", "_star", "_wild")

    def __init__(self, pattern: str) -> None:
        self._places: dict[str, int] = {}
        self._star = self._percent = 0
        position = 0
        for char in _collapse(pattern):
            bit = 1 << position
            if char == "*":
                self._star |= bit
            elif char == "%":
                self._percent |= bit
            else:
                self._places[char] = self._places.get(char, 0) | bit
            position += 1
        self._wild = self._star | self._percent
        self._accept = 1 << position

    def matches(self, name: str) -> bool:
        """Whether the whole name is matched."""
        states = self._close(1)
        for char in name:
            stay = self._wild if char != DELIMITER else self._star
            states = self._close(((states & self._places.get(char, 0)) << 1) | (states & stay))
            if not states:
                return False
        return bool(states & self._accept)

    def _close(self, states: int) -> int:
        # A wildcard may match nothing; no two of them are neighbours, so one step is enough.
        return states | ((states & self._wild) << 1)


def _collapse(pattern: str) -> str:
    """Runs of wildcards become one: `*` swallows `%`."""
    out: list[str] = []
    for char in pattern:
        if char in "*%" and out and out[-1] in "*%":
            if char == "*":
                out[-1] = "*"
        else:
            out.append(char)
    return "".join(out)


def canonical(name: str) -> str:
    """INBOX in any case is `INBOX` (RFC 3501 §5.1), also as the first level of a longer name; others stay."""
    first, delimiter, rest = name.partition(DELIMITER)
    return "INBOX" + delimiter + rest if first.upper() == "INBOX" else name


def superiors(names: Iterable[str]) -> set[str]:
    """Every proper superior level of the names, whether or not it exists itself."""
    found: set[str] = set()
    for name in names:
        end = name.rfind(DELIMITER)
        while end > 0 and name[:end] not in found:
            found.add(name[:end])
            end = name.rfind(DELIMITER, 0, end)
    return found
