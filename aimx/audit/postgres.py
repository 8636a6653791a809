"""The log on PostgreSQL: schema `audit`, one partition a shard, written by the role `aimx_seq` where there is one.

Any number of processes may hold a writer. Each append locks the newest shard's state row, compares it with what this
writer knows, and swaps it; whoever comes second is fenced off.
"""

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from aimx.audit.log import (
    KEEP_EVERY_MS,
    Appended,
    Fenced,
    Growth,
    Leaf,
    LogError,
    Reader,
    State,
    grown,
    signed,
)
from aimx.tlog.note import SigningKey
from aimx.tlog.tree import EMPTY_ROOT, Frontier

Row = tuple[Any, ...]
Connection = psycopg.Connection[Row]

CONNECT_S = 5
PATIENCE = "-c lock_timeout=10s -c statement_timeout=60s -c idle_in_transaction_session_timeout=60s"
"""Nothing here takes long; what does is stuck, and a leader that is stuck must let the next one on."""

_INSTALL_LOCK = 0x41494D58
"""For pg_advisory_xact_lock: two processes that start at once make the schema once."""


def install(url: str) -> None:
    """Make the schema, or complete it. The connecting role owns it. Raises LogError."""
    with _connected(url) as db:
        _install(db)


def _install(db: Connection) -> None:
    schema = resources.files("aimx.audit").joinpath("schema")
    with db.transaction():
        db.execute("SELECT pg_advisory_xact_lock(%s)", (_INSTALL_LOCK,))
        for name in ("postgres.sql", "anchors.sql"):
            db.execute(schema.joinpath(name).read_text())


_FIRST_SHARD = 7302
"""The advisory lock under which a log is begun."""


class PostgresLog:
    """The writer. One thread at a time; other processes may write too and are fenced off."""

    def __init__(self, url: str) -> None:
        """Connect; make the schema where there is none and this role may. Raises LogError."""
        self._url = url
        self._held: Connection | None = None
        self.state = self.reload()

    def close(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None

    def reload(self) -> State:
        newest = "SELECT shard, size, root, frontier, signed FROM audit.state ORDER BY shard DESC LIMIT 1"
        with self._transaction() as db:
            row = db.execute(newest).fetchone()
            if row is None:  # several processes may start on an empty database at once
                db.execute("SELECT pg_advisory_xact_lock(%s)", (_FIRST_SHARD,))
                row = db.execute(newest).fetchone()
            if row is None:
                db.execute("SELECT audit.begin_shard(1, %s, %s)", (EMPTY_ROOT, Frontier().to_bytes()))
                row = (1, 0, EMPTY_ROOT, Frontier().to_bytes(), None)
        self.state = _state(row)
        return self.state

    def append(self, leaves: Sequence[tuple[str, bytes]]) -> Appended:
        known = self.state
        with self._transaction() as db:
            _compare(db, known)
            found = db.execute(
                "SELECT eid, idx FROM audit.leaf WHERE shard = %s AND eid = ANY(%s)",
                (known.shard, [eid for eid, _ in leaves]),
            )
            growth = grown(known, leaves, dict(found))
            if growth.rows:
                _write(db, known.shard, growth)
        self.state = growth.after
        return Appended(known.size, self.state.size, self.state.root, growth.indexes)

    def sign(self, signers: Sequence[SigningKey], t_ms: int) -> str:
        with self._transaction() as db:
            _compare(db, self.state)
            text = _sign(db, self.state, signers, t_ms)
        self.state = self.state._replace(signed=text)
        return text

    def begin(self, first: tuple[str, bytes], signers: Sequence[SigningKey], t_ms: int) -> None:
        known = self.state
        empty = State(0, EMPTY_ROOT, Frontier(), None, known.shard + 1)
        growth = grown(empty, [first], {})
        try:
            with self._transaction() as db:
                _compare(db, known)
                db.execute("SELECT audit.begin_shard(%s, %s, %s)", (empty.shard, EMPTY_ROOT, Frontier().to_bytes()))
                _write(db, empty.shard, growth)
                text = _sign(db, growth.after, signers, t_ms)
        except LogError as error:
            if isinstance(error.__cause__, psycopg.errors.UniqueViolation):
                raise Fenced(f"shard {empty.shard} was begun by another sequencer") from error
            raise
        self.state = growth.after._replace(signed=text)

    def drop(self, number: int) -> None:
        with self._transaction(own=True) as db:
            db.execute("SELECT audit.drop_shard(%s)", (number,))

    def lead(self, name: str, seconds: float) -> bool:
        with self._transaction() as db:
            # Nothing is lost when a power cut undoes it, so it need not wait for the disk.
            db.execute("SET LOCAL synchronous_commit = off")
            taken = db.execute(
                "UPDATE audit.leader SET name = %s, expires = clock_timestamp() + make_interval(secs => %s)"
                " WHERE name = %s OR expires < clock_timestamp()",
                (name, seconds, name),
            )
            return taken.rowcount == 1

    @contextmanager
    def _transaction(self, *, own: bool = False) -> Iterator[Connection]:
        """One transaction, durable at its end. `own`: as the role that connected, not as the sequencer's.

        After any failure the connection is given up and the next call makes a new one: whether a lost COMMIT came
        through is seen by reading the state again.
        """
        try:
            db = self._held = self._held or self._connect()
            with db.transaction():
                if own:
                    db.execute("SET LOCAL ROLE NONE")
                yield db
        except psycopg.Error as error:
            self._give_up()
            raise LogError(f"the audit log's database cannot be used: {said(error)}") from error
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            with suppress(psycopg.Error):
                held.close()

    def _connect(self) -> Connection:
        db = _connect(self._url)
        try:
            if db.execute("SELECT to_regclass('audit.leader')").fetchone() == (None,):
                _install(db)
            if db.execute(
                "SELECT FROM pg_roles WHERE rolname = 'aimx_seq' AND pg_has_role(current_user, oid, 'MEMBER')"
            ).fetchone():
                db.execute("SET ROLE aimx_seq")
            db.execute("SET synchronous_commit = on")
        except BaseException:
            db.close()
            raise
        return db


def _compare(db: Connection, known: State) -> None:
    row = db.execute("SELECT size, root FROM audit.state WHERE shard = %s FOR UPDATE", (known.shard,)).fetchone()
    if row != (known.size, known.root):
        raise Fenced("the audit log was appended to by another sequencer")


def _write(db: Connection, shard: int, growth: Growth) -> None:
    with db.cursor() as cursor:
        with cursor.copy("COPY audit.leaf (shard, idx, eid, hash, entry) FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["int4", "int8", "text", "bytea", "bytea"])
            for leaf in growth.rows:
                copy.write_row((shard, *leaf))
        if growth.nodes:
            with cursor.copy("COPY audit.node (shard, level, idx, hash) FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(["int4", "int4", "int8", "bytea"])
                for node in growth.nodes:
                    copy.write_row((shard, *node))
        after = growth.after
        cursor.execute(
            "UPDATE audit.state SET size = %s, root = %s, frontier = %s WHERE shard = %s",
            (after.size, after.root, after.frontier.to_bytes(), shard),
        )


def _sign(db: Connection, state: State, signers: Sequence[SigningKey], t_ms: int) -> str:
    text = signed(state, signers)
    db.execute("UPDATE audit.state SET signed = %s WHERE shard = %s", (text, state.shard))
    db.execute(
        "INSERT INTO audit.checkpoint SELECT %(shard)s, %(size)s, %(t_ms)s, %(note)s WHERE NOT EXISTS"
        " (SELECT FROM audit.checkpoint WHERE shard = %(shard)s AND (size >= %(size)s OR t_ms > %(t_ms)s - %(keep)s))",
        {"shard": state.shard, "size": state.size, "t_ms": t_ms, "note": text, "keep": KEEP_EVERY_MS},
    )
    return text


class PostgresReader(Reader):
    """Reads over one connection that threads take in turn; it is made at the first call, and again when it breaks."""

    def __init__(self, url: str, number: int | None = None, line: "_Line | None" = None) -> None:
        """Without a `number` it follows the newest shard."""
        self._number = number
        self._line = line or _Line(url)

    def close(self) -> None:
        self._line.close()

    def state(self) -> State:
        rows = self._query("SELECT shard, size, root, frontier, signed FROM audit.state WHERE shard = {shard}")
        if not rows:
            raise LogError("the audit log has no such shard")
        return _state(rows[0])

    def index_of(self, eid: str) -> int | None:
        rows = self._query("SELECT idx FROM audit.leaf WHERE shard = {shard} AND eid = %s", eid)
        return rows[0][0] if rows else None

    def leaves(self, start: int, end: int) -> list[Leaf]:
        query = (
            "SELECT idx, eid, hash, entry FROM audit.leaf WHERE shard = {shard} AND idx >= %s AND idx < %s ORDER BY idx"
        )
        return [Leaf._make(row) for row in self._query(query, start, end)]

    def nodes(self, level: int, start: int, end: int) -> list[bytes]:
        table = "audit.node WHERE level = %s AND" if level else "audit.leaf WHERE %s = 0 AND"
        query = f"SELECT hash FROM {table} shard = {{shard}} AND idx >= %s AND idx < %s ORDER BY idx"  # noqa: S608
        return [digest for (digest,) in self._query(query, level, start, end)]

    def checkpoints(self) -> list[tuple[int, int, str]]:
        rows = self._query("SELECT size, t_ms, note FROM audit.checkpoint WHERE shard = {shard} ORDER BY size")
        return [(size, t_ms, note) for size, t_ms, note in rows]

    def numbers(self) -> list[int]:
        return [number for (number,) in self._query("SELECT shard FROM audit.state ORDER BY shard")]

    def shard(self, number: int) -> Reader:
        return self if number == self._number else PostgresReader("", number, self._line)

    def _query(self, query: str, *parameters: object) -> list[Row]:
        newest = "(SELECT max(shard) FROM audit.state)"
        return self._line.query(query.format(shard=newest if self._number is None else self._number), parameters)


class _Line:
    """The connection that a reader and those that stay with a shard share."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._held: Connection | None = None

    def close(self) -> None:
        with self._lock:
            self._give_up()

    def query(self, query: str, parameters: Sequence[object]) -> list[Row]:
        with self._lock:
            fresh = self._held is None
            try:
                return self._ask(query, parameters)
            except psycopg.OperationalError as error:
                self._give_up()
                if fresh:
                    raise _unreadable(error) from error
            except psycopg.Error as error:
                raise _unreadable(error) from error
            try:  # a connection that had lain idle was gone; whether the database is, a new one tells
                return self._ask(query, parameters)
            except psycopg.Error as error:
                self._give_up()
                raise _unreadable(error) from error

    def _ask(self, query: str, parameters: Sequence[object]) -> list[Row]:
        if self._held is None:
            self._held = _connect(self._url)
            self._held.execute("SET default_transaction_read_only = on")
        return self._held.execute(query, parameters, binary=True).fetchall()

    def _give_up(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.close()


def _unreadable(error: psycopg.Error) -> LogError:
    return LogError(f"the audit log's database cannot be read: {said(error)}")


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    try:
        with _connect(url) as db:
            yield db
    except psycopg.Error as error:
        raise LogError(f"the audit log's database cannot be used: {said(error)}") from error


def _connect(url: str) -> Connection:
    options = f"{conninfo_to_dict(url).get('options') or ''} {PATIENCE}"
    db = psycopg.connect(make_conninfo(url, connect_timeout=CONNECT_S, options=options), autocommit=True)
    db.execute("SET client_min_messages = warning")
    return db


def said(error: psycopg.Error) -> str:
    """One line, and never the password: libpq says host, user and reason; of an address that it cannot read, all."""
    unread = isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None
    if unread or re.search(r"host '[^']*@", str(error)):  # a password's "@" makes its rest a part of the host
        return "its address is no PostgreSQL URL; is what is special in the password percent-encoded?"
    return " ".join(str(error).split()) or type(error).__name__


def _state(row: Row) -> State:
    return State(row[1], bytes(row[2]), Frontier.from_bytes(bytes(row[3])), row[4], row[0])
