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


def encode(names: Iterable[str], keywords: Sequence[str] = ()) -> tuple[int, list[str]]:
    r"""The bit set of the names, and the keywords that the owner has not, sorted.

    Other `\` names than the fixed ones (`\Recent`) are not a client's to set: left out.
    """
    bits = 0
    missing: dict[str, str] = {}
    have = {name.lower(): 1 << bit for bit, name in enumerate(keywords, FIRST_KEYWORD)} | FIXED_BITS
    for name in sorted(names):
        folded = name.lower()
        if (bit := have.get(folded)) is not None:
            bits |= bit
        elif not name.startswith("\\"):
            missing.setdefault(folded, name)
    return bits, list(missing.values())


def extend(bits: int, missing: Sequence[str], keywords: Sequence[str]) -> tuple[int, list[tuple[int, str]]]:
    """The bit set with `missing` in it, and the (bit, name) that each of them gets. Raises TooManyKeywords."""
    if len(keywords) + len(missing) > MAX_KEYWORDS:
        raise TooManyKeywords(f"at most {MAX_KEYWORDS} different keywords")
    made = list(enumerate(missing, FIRST_KEYWORD + len(keywords)))
    return bits | sum(1 << bit for bit, _ in made), made
