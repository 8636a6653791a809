"""The store over one SQLite file: the default for a laptop, a test, a small team.

Owns `mail.db` and its schema. One thread writes (`writer.py`), a few read (`reader.py`); one file a noun holds its SQL.
Must not know: the log (`audit.db` is the audit package's), protocols, settings.
"""

from aimx.store.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]
