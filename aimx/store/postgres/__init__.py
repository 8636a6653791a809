"""The Store contract on PostgreSQL, for many processes on many machines.

Owns the schema `aimx` and its migrations, the transactions, and what the processes tell each other. It must not know
who calls it; the audit log's own schema is `aimx.audit`'s.
"""

from aimx.store.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
