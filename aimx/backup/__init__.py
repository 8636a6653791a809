"""Backups: a copy of mail and log from one moment, that says itself whether it is whole. It knows nothing of doors.

A backup is a folder:

    backup.json        what it is and the SHA-256 of every other file; written last: without it, it is no backup
    mail.db audit.db … of a node on SQLite, or
    database.dump      of a PostgreSQL database (`pg_dump`, custom format)
    audit.vkeys        the public keys, and
    audit.checkpoint   the newest signed checkpoint before the copy: the log in it must have gone through it
    keys/ tls/ …       only when asked for: the node's secrets
"""
