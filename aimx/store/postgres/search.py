"""SEARCH in PostgreSQL. What the keys mean in SQL: aimx/store/condition.py."""

from aimx.store.condition import condition
from aimx.store.contract import MailboxKey, NotFound
from aimx.store.postgres.connection import Db
from aimx.store.search import SearchKey


async def search(db: Db, key: MailboxKey, criteria: SearchKey) -> tuple[list[int], bool]:
    row = await db.fetchrow(
        "SELECT b.owner, ARRAY(SELECT k.name FROM keyword k WHERE k.owner = b.owner ORDER BY k.bit)"
        " FROM mailbox b JOIN agent a ON a.id = b.owner WHERE b.id = $1 AND a.address = $2",
        key.id,
        key.owner,
    )
    if row is None:
        raise NotFound("there is no such mailbox (any more)")
    owner, keywords = row
    where, exact = condition(criteria, keywords)
    # Each search is another text: not one of those that the connection keeps prepared.
    sql = f"SELECT ARRAY(SELECT uid FROM entry WHERE owner = $1 AND mailbox = $2 AND {where} ORDER BY uid)"  # noqa: S608
    statement = await db.prepare(sql, name="")
    uids: list[int] = await statement.fetchval(owner, key.id)
    return uids, exact
