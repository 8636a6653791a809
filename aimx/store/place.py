"""Where a node's mail is kept: a file in its data folder, or a PostgreSQL database that many nodes share."""

from pathlib import Path

from aimx.store.contract import Store


def open_store(
    file: Path, database: str | None, node: str, worker: int = 0, *, guest: bool = False, replica: str | None = None
) -> Store:
    """A store that is yet to be opened. `database` is a postgresql:// URL; without it the mail is in `file`.

    A guest leaves alone what a serving node has under way. `replica`: a standby of that database to read from.
    """
    if database is None:
        from aimx.store.sqlite import SqliteStore

        return SqliteStore(file, node, guest=guest)
    from aimx.store.postgres import PostgresStore

    return PostgresStore(database, node, worker, guest=guest, replica=replica)
