"""The owner's keywords in PostgreSQL. What a bit set means: aimx/store/flags.py."""

from collections.abc import Collection

from aimx.store.flags import encode, extend
from aimx.store.postgres.connection import Db

_KEYWORDS = "SELECT ARRAY(SELECT name FROM keyword WHERE owner = $1 ORDER BY bit)"


async def keywords(db: Db, owner: int) -> tuple[str, ...]:
    """The owner's keywords, by bit from FIRST_KEYWORD on without a gap. None ever goes or changes its bit."""
    return tuple(await db.fetchval(_KEYWORDS, owner))


async def known(db: Db, owner: int, names: Collection[str]) -> int:
    """The bit set of those names that the owner has."""
    bits, missing = encode(names)
    return encode(names, await keywords(db, owner))[0] if missing else bits


async def allot(db: Db, owner: int, names: Collection[str]) -> int:
    """The bit set of the names; new keywords get their bit. Raises TooManyKeywords.

    For new ones the agent's row is locked until the commit: after mailbox rows, never before.
    """
    bits, missing = encode(names)
    if missing:
        bits, missing = encode(names, await keywords(db, owner))
    if missing:
        await db.execute("SELECT 1 FROM agent WHERE id = $1 FOR NO KEY UPDATE", owner)
        have = await keywords(db, owner)
        bits, missing = encode(names, have)
        bits, made = extend(bits, missing, have)
        await db.execute(
            "INSERT INTO keyword (owner, bit, name) SELECT $1, * FROM unnest($2::smallint[], $3::text[])",
            owner,
            [bit for bit, _ in made],
            [name for _, name in made],
        )
    return bits
