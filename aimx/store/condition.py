"""SEARCH keys as a condition in SQL on the columns of `entry`, the same text for every database.

What SQL cannot tell counts as "may hold", whichever way it is asked, so that the result is never too small; the session
then looks at the candidates itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from aimx.store import flags
from aimx.store.search import (
    And,
    Everything,
    HasFlag,
    Header,
    Internal,
    Not,
    Or,
    Ranges,
    Recent,
    SearchKey,
    Sent,
    Size,
    Text,
    Uids,
)

MAX_DEPTH = 100
"""Of keys in keys. SQLite allows expressions 1,000 deep; what is deeper here is left to the session."""

_TRUE, _FALSE = "1 = 1", "1 = 0"


def condition(criteria: SearchKey, keywords: Sequence[str]) -> tuple[str, bool]:
    """The condition, and whether it is exact. `keywords`: the owner's, by bit."""
    compiler = _Compiler({name.lower(): 1 << bit for bit, name in enumerate(keywords, flags.FIRST_KEYWORD)})
    return compiler.compile(criteria), compiler.exact


@dataclass
class _Compiler:
    """Writes numbers only, never text of a client, into the SQL: nothing to quote, nothing to count."""

    keywords: dict[str, int]
    exact: bool = field(default=True)

    def compile(self, key: SearchKey, positive: bool = True, depth: int = 0) -> str:
        """A condition that holds wherever the key (not `positive`: its opposite) may hold."""
        if depth > MAX_DEPTH:
            return self._unknown()
        match key:
            case Not(inner):
                return self.compile(inner, not positive, depth + 1)
            case And(keys):
                return _joined([self.compile(k, positive, depth + 1) for k in keys], every=positive)
            case Or(keys):
                return _joined([self.compile(k, positive, depth + 1) for k in keys], every=not positive)
            case Header() | Text() | Sent():
                return self._unknown()
            case _:
                leaf = self._leaf(key)
                return leaf if positive else f"NOT ({leaf})"

    def _leaf(self, key: Everything | Uids | HasFlag | Recent | Internal | Size) -> str:
        match key:
            case Everything():
                return _TRUE
            case Uids(ranges):
                return _in_ranges(ranges)
            case HasFlag(flag):
                bit = flags.FIXED_BITS.get(flag.lower()) or self.keywords.get(flag.lower())
                return f"flags & {bit} != 0" if bit else _FALSE
            case Recent(since_uid):
                return f"uid >= {since_uid:d}"
            case Internal(low, high):
                bounds = [f"internal_ms >= {low:d}"] if low is not None else []
                bounds += [f"internal_ms < {high:d}"] if high is not None else []
                return _joined(bounds, every=True)
            case Size(op, octets):
                return f"size {'>' if op == '>' else '<'} {min(octets, 2**62):d}"

    def _unknown(self) -> str:
        self.exact = False
        return _TRUE


def _joined(conditions: list[str], *, every: bool) -> str:
    """As a balanced tree: SQLite would hang a long chain one under the other and find it too deep."""
    if not conditions:
        return _TRUE if every else _FALSE
    if len(conditions) == 1:
        return conditions[0]
    middle = len(conditions) // 2
    word = "AND" if every else "OR"
    return f"({_joined(conditions[:middle], every=every)} {word} {_joined(conditions[middle:], every=every)})"


def _in_ranges(ranges: Ranges) -> str:
    """A search tree of CASEs: thousands of ranges cost a dozen comparisons an entry."""
    if not ranges:
        return _FALSE
    if len(ranges) == 1:
        low, high = ranges[0]
        return f"uid BETWEEN {low:d} AND {high:d}"
    middle = len(ranges) // 2
    left, right = _in_ranges(ranges[:middle]), _in_ranges(ranges[middle:])
    return f"CASE WHEN uid < {ranges[middle][0]:d} THEN {left} ELSE {right} END"
