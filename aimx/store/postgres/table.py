"""Many rows into a table in one step."""

from collections.abc import Sequence
from typing import Any

from aimx.store.postgres.connection import Db

MANY = 8
"""From so many rows on COPY is cheaper on both ends than INSERT, though it takes one trip more."""


class Table:
    """What is written to one table: `Table("outbox", seq="bigint", t_ms="bigint")`."""

    def __init__(self, name: str, **columns: str) -> None:
        """Columns with the names of their types."""
        self._name = name
        self._columns = tuple(columns)
        arrays = ", ".join(f"${n}::{kind}[]" for n, kind in enumerate(columns.values(), 1))
        self._insert = f"INSERT INTO {name} ({', '.join(columns)}) SELECT * FROM unnest({arrays})"  # noqa: S608

    async def add(self, db: Db, rows: Sequence[Sequence[Any]]) -> None:
        """Values in the order of the columns."""
        if len(rows) >= MANY:
            await db.copy_records_to_table(self._name, records=rows, columns=self._columns)
        elif rows:
            await db.execute(self._insert, *zip(*rows, strict=True))
