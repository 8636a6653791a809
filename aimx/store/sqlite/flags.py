r"""Flags as a bit set: bits 0 to 4 the system flags, 5 `$AimxDone`, 6 to 62 the owner's keywords in order of first use.

One integer a message makes STORE one UPDATE and a flag search one AND. Names are case-insensitive (RFC 3501 §9); the
spelling first used is kept.
"""

import sqlite3
from collections.abc import Iterable
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
    """The names of a bit set. `keywords` is needed only where `has_keywords`."""
    names = FIXED if bits < 1 << FIRST_KEYWORD else FIXED + keywords
    return frozenset(name for bit, name in enumerate(names) if bits >> bit & 1)


def has_keywords(bits: int) -> bool:
    return bits >= 1 << FIRST_KEYWORD


def keywords(db: sqlite3.Connection, owner: int) -> tuple[str, ...]:
    """The owner's keywords, by bit from FIRST_KEYWORD on without a gap."""
    return tuple(name for (name,) in db.execute("SELECT name FROM keyword WHERE owner = ? ORDER BY bit", (owner,)))


def known(db: sqlite3.Connection, owner: int, names: Iterable[str]) -> int:
    """The bit set of those names that the owner has."""
    bits, others = _split(names)
    if others:
        have = {name.lower(): bit for bit, name in enumerate(keywords(db, owner), FIRST_KEYWORD)}
        for other in others:
            if (at := have.get(other.lower())) is not None:
                bits |= 1 << at
    return bits


def allot(db: sqlite3.Connection, owner: int, names: Iterable[str]) -> int:
    """The bit set of the names; new keywords get their bit. Raises TooManyKeywords."""
    bits, others = _split(names)
    if others:
        have = {name.lower(): bit for bit, name in enumerate(keywords(db, owner), FIRST_KEYWORD)}
        for other in sorted(others):
            at = have.get(other.lower())
            if at is None:
                at = FIRST_KEYWORD + len(have)
                if len(have) >= MAX_KEYWORDS:
                    raise TooManyKeywords(f"at most {MAX_KEYWORDS} different keywords")
                db.execute("INSERT INTO keyword (owner, bit, name) VALUES (?, ?, ?)", (owner, at, other))
                have[other.lower()] = at
            bits |= 1 << at
    return bits


def _split(names: Iterable[str]) -> tuple[int, list[str]]:
    r"""Bits of the fixed names; keywords. Other `\` names (`\Recent`) are not a client's to set."""
    bits, others = 0, []
    for name in names:
        if (bit := FIXED_BITS.get(name.lower())) is not None:
            bits |= bit
        elif not name.startswith("\\"):
            others.append(name)
    return bits, others
