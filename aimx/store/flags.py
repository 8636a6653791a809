r"""Flags as a bit set: bits 0 to 4 the system flags, 5 `$AimxDone`, 6 to 62 the owner's keywords in order of first use.

One integer a message makes STORE one UPDATE and a flag search one AND. Names are case-insensitive (RFC 3501 §9); the
spelling first used is kept. Where the owner's keywords are kept is each store's own.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

from aimx.store.contract import DONE, SYSTEM_FLAGS, TooManyKeywords

FIXED = (*SYSTEM_FLAGS, DONE)
FIRST_KEYWORD = len(FIXED)
MAX_KEYWORDS = 57
"""63 bits of a signed integer, less the fixed ones."""

FIXED_BITS = {name.lower(): 1 << bit for bit, name in enumerate(FIXED)}
DELETED = FIXED_BITS["\\deleted"]
SEEN = FIXED_BITS["\\seen"]
ACKED = DELETED | FIXED_BITS[DONE.lower()]
"""Neither of these: unacknowledged."""


@lru_cache(maxsize=65536)
def decode(bits: int, keywords: tuple[str, ...] = ()) -> frozenset[str]:
    """The names of a bit set. `keywords`, by bit from FIRST_KEYWORD on, is needed only where `has_keywords`."""
    names = FIXED if bits < 1 << FIRST_KEYWORD else FIXED + keywords
    return frozenset(name for bit, name in enumerate(names) if bits >> bit & 1)


def has_keywords(bits: int) -> bool:
    return bits >= 1 << FIRST_KEYWORD


def split(names: Iterable[str]) -> tuple[int, list[str]]:
    r"""Bits of the fixed names; keywords. Other `\` names (`\Recent`) are not a client's to set."""
    bits, others = 0, []
    for name in names:
        if (bit := FIXED_BITS.get(name.lower())) is not None:
            bits |= bit
        elif not name.startswith("\\"):
            others.append(name)
    return bits, others


def encode(names: Iterable[str], keywords: Sequence[str]) -> tuple[int, list[str]]:
    """The bit set of the names, as far as the owner's keywords have them, and those it has not, sorted."""
    bits, others = split(names)
    if not others:
        return bits, []
    have = {name.lower(): 1 << bit for bit, name in enumerate(keywords, FIRST_KEYWORD)}
    missing: dict[str, str] = {}
    for other in sorted(others):
        if (bit := have.get(other.lower())) is not None:
            bits |= bit
        else:
            missing.setdefault(other.lower(), other)
    return bits, list(missing.values())


def extend(bits: int, missing: Sequence[str], keywords: Sequence[str]) -> tuple[int, list[tuple[int, str]]]:
    """The bit set with `missing` in it, and the (bit, name) that each of them gets. Raises TooManyKeywords."""
    first = FIRST_KEYWORD + len(keywords)
    if len(keywords) + len(missing) > MAX_KEYWORDS:
        raise TooManyKeywords(f"at most {MAX_KEYWORDS} different keywords")
    made = list(enumerate(missing, first))
    return bits | sum(1 << bit for bit, _ in made), made
