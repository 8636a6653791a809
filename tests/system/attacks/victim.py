"""A node's folder and databases as its administrator has them in hand: everything may be read and written."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from tests.system.attacks import forgery
from tests.system.attacks.forgery import TILE, Key, leaf_hash

Leaf = tuple[str, bytes]
"""An event's id and its octets in the log."""
Run = Callable[..., list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Hand:
    """Every right over one database: a file of SQLite's, or a schema of a PostgreSQL."""

    file: Path
    url: str | None
    schema: str

    @contextmanager
    def reach(self) -> Iterator[Run]:
        """`run(sql, *values)` with `?` for the values, in one transaction. Triggers are taken out of the way first."""
        if self.url is None:
            with closing(sqlite3.connect(self.file, timeout=10)) as db, db:
                for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                    db.execute(f"DROP TRIGGER {name}")
                yield lambda sql, *values: db.execute(sql, values).fetchall()
            return
        with psycopg.connect(self.url) as session:
            session.execute(f"SET search_path = {self.schema}".encode())
            found = session.execute(_TRIGGERS, (self.schema,)).fetchall()
            for name, table in found:
                session.execute(f"DROP TRIGGER {name} ON {table}".encode())

            def run(sql: str, *values: object) -> list[tuple[Any, ...]]:
                done = session.execute(sql.replace("?", "%s").encode(), values or None)
                return done.fetchall() if done.description else []

            yield run

    def run(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with self.reach() as run:
            return run(sql, *values)

    def look(self, sql: str) -> list[tuple[Any, ...]]:
        """Read, beside a node that runs, and leave everything as it is."""
        if self.url is None:
            with closing(sqlite3.connect(f"file:{self.file}?mode=ro", uri=True, timeout=10)) as db:
                return db.execute(sql).fetchall()
        with psycopg.connect(self.url) as session:
            session.execute(f"SET search_path = {self.schema}".encode())
            return session.execute(sql.encode()).fetchall()


_TRIGGERS = """SELECT t.tgname, t.tgrelid::regclass::text FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND NOT t.tgisinternal AND t.tgparentid = 0"""


@dataclass
class Victim:
    """A copy of the node as it was when it was stopped. `log`, `mail`: its databases."""

    folder: Path
    """With `data` and aimx.toml in it."""
    url: str | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Hand:
        return Hand(self.data / "audit.db", self.url, "audit")

    @property
    def mail(self) -> Hand:
        return Hand(self.data / "mail.db", self.url, "aimx")

    @property
    def anchors(self) -> Hand:
        return Hand(self.data / "anchors.db", self.url, "audit")

    def key(self, what: str = "log") -> Key:
        return Key.stolen((self.data / "keys" / f"{what}.key").read_text())

    @property
    def origin(self) -> str:
        return self.signed.split("\n")[0]

    @property
    def signed(self) -> str:
        return (self.data / "audit.checkpoint").read_text()

    def leaves(self) -> list[Leaf]:
        return [(eid, bytes(entry)) for eid, entry in self.log.look("SELECT eid, entry FROM leaf ORDER BY idx")]

    def hashes(self) -> list[bytes]:
        return [leaf_hash(entry) for _, entry in self.leaves()]

    def rewrite(self, leaves: Sequence[Leaf], *, notes: Sequence[str] | None = None) -> None:
        """Write the whole log anew, all hashes right. `notes`: the checkpoints kept in it, the newest last; without
        them those that are there stay, which only who has the key could make anew."""
        hashes = [leaf_hash(entry) for _, entry in leaves]
        with self.log.reach() as run:
            shard, one = ("", "") if self.url is None else ("shard, ", "1, ")
            run("DELETE FROM leaf")
            run("DELETE FROM node")
            rows = [
                (at, eid, digest, entry) for at, ((eid, entry), digest) in enumerate(zip(leaves, hashes, strict=True))
            ]
            for row in rows:
                run(f"INSERT INTO leaf ({shard}idx, eid, hash, entry) VALUES ({one}?, ?, ?, ?)", *row)
            for at in range(len(hashes) // TILE):
                place = f"INSERT INTO node ({shard}level, idx, hash) VALUES ({one}1, ?, ?)"
                run(place, at, forgery.root(hashes[at * TILE : (at + 1) * TILE]))
            edge = len(hashes).to_bytes(8, "big") + b"".join(forgery.peaks(hashes))
            run("UPDATE state SET size = ?, root = ?, frontier = ?", len(hashes), forgery.root(hashes), edge)
            if notes is None:
                return
            run("DELETE FROM checkpoint")
            run("UPDATE state SET signed = ?", notes[-1] if notes else None)
            for note in notes[:-1]:
                keep = f"INSERT INTO checkpoint ({shard}size, t_ms, note) VALUES ({one}?, 0, ?)"
                run(keep, forgery.size_of(note), note)
        if notes:
            (self.data / "audit.checkpoint").write_text(notes[-1])
        else:
            (self.data / "audit.checkpoint").unlink()

    def forget_outsiders(self) -> None:
        """What they said, and what an earlier verification remembers."""
        self.anchors.run("DELETE FROM anchor")
        (self.data / "audit.verified").unlink(missing_ok=True)

    def change_event(self, eid: str, old: bytes, new: bytes) -> list[Leaf]:
        """Tell one event otherwise in the store. Returns the leaves as they would have to be."""
        ((entry,),) = self.mail.run("SELECT leaf FROM event WHERE eid = ?", eid)
        changed = bytes(entry).replace(old, new)
        assert changed != entry
        self.mail.run("UPDATE event SET leaf = ? WHERE eid = ?", changed, eid)
        return [(name, changed if name == eid else leaf) for name, leaf in self.leaves()]

    def forget_after(self, size: int) -> list[Leaf]:
        """Take everything that was logged at `size` and later out of the store too. Returns what is left of the log."""
        leaves = self.leaves()
        with self.mail.reach() as run:
            run("PRAGMA foreign_keys = OFF") if self.url is None else None
            for eid, _ in leaves[size:]:
                run("DELETE FROM event_message WHERE seq = (SELECT seq FROM event WHERE eid = ?)", eid)
                run("DELETE FROM event WHERE eid = ?", eid)
                _forget(run, eid)
            run("DELETE FROM sequenced WHERE log_index >= ?", size)
            last = "last - first + log_index"
            run(f"UPDATE sequenced SET last = first + ? - 1 - log_index WHERE {last} >= ?", size, size)
        return leaves[:size]

    def forget_message(self, eid: str) -> None:
        """A message, but nothing that was said of it."""
        with self.mail.reach() as run:
            _forget(run, eid)


def _forget(run: Run, eid: str) -> None:
    for table in ("content", "party", "chain", "entry", "delivery"):
        run(f"DELETE FROM {table} WHERE message = (SELECT id FROM message WHERE eid = ?)", eid)
    run("DELETE FROM message WHERE eid = ?", eid)


def copied(original: Victim, folder: Path, database: Callable[[str], str]) -> Victim:
    """Another of its kind; the copy's settings speak of the copy. `database` copies one."""
    shutil.copytree(original.folder, folder, symlinks=True)
    url = None if original.url is None else database(original.url)
    for file in (folder / "aimx.toml", folder / "data" / "started.json"):
        text = file.read_text().replace(str(original.folder), str(folder))
        file.write_text(text if url is None else text.replace(str(original.url), url))
    return Victim(folder, url)
