"""The owner's keywords in SQLite. What a bit set means: aimx/store/flags.py."""

import sqlite3
from collections.abc import Collection

from aimx.store.flags import (
    ACKED,
    DELETED,
    FIRST_KEYWORD,
    FIXED_BITS,
    MAX_KEYWORDS,
    SEEN,
    decode,
    encode,
    extend,
    has_keywords,
)

__all__ = [
    "ACKED",
    "DELETED",
    "FIRST_KEYWORD",
    "FIXED_BITS",
    "MAX_KEYWORDS",
    "SEEN",
    "allot",
    "decode",
    "has_keywords",
    "keywords",
    "known",
]


def keywords(db: sqlite3.Connection, owner: int) -> tuple[str, ...]:
    """The owner's keywords, by bit from FIRST_KEYWORD on without a gap."""
    return tuple(name for (name,) in db.execute("SELECT name FROM keyword WHERE owner = ? ORDER BY bit", (owner,)))


def known(db: sqlite3.Connection, owner: int, names: Collection[str]) -> int:
    """The bit set of those names that the owner has."""
    bits, missing = encode(names)
    return encode(names, keywords(db, owner))[0] if missing else bits


def allot(db: sqlite3.Connection, owner: int, names: Collection[str]) -> int:
    """The bit set of the names; new keywords get their bit. Raises TooManyKeywords."""
    bits, missing = encode(names)
    if missing:
        have = keywords(db, owner)
        bits, missing = encode(names, have)
        bits, made = extend(bits, missing, have)
        db.executemany("INSERT INTO keyword (owner, bit, name) VALUES (?, ?, ?)", [(owner, *pair) for pair in made])
    return bits
