"""`python -m bench.lookup`: how long it takes to find one thing among a million messages.

Fills a database with made-up mail (COPY into PostgreSQL, one transaction into SQLite), then asks the store what the
sidecar, the trace and IMAP ask, one question at a time, each about something else. Prints a table of milliseconds.

    python -m bench.lookup --database postgresql://user@host/empty    # what is there is used again, if it is as large
    python -m bench.lookup --folder DIR                               # SQLite, in DIR/mail.db
"""

import argparse
import asyncio
import hashlib
import json
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg

from aimx.store.contract import Agent, Credential, MailboxKey, MessageFilter, Store
from aimx.store.postgres import PostgresStore
from aimx.store.search import HasFlag, Not
from aimx.store.sqlite import SqliteStore

T0 = 1_760_000_000_000
AGENTS = 1_000
A_TRACE, A_WORKFLOW = 5, 50
"""Messages of one; every tenth message belongs to the large workflow and lies in the large mailbox instead."""
LARGE = "wf-large"
READER = "reader@fabric.local"
BATCH = 20_000
PAGE = 50
GOAL_MS = 20.0
ASKED = 300
ASKED_LARGE = 10
"""Of questions whose answer is a whole mailbox."""

COLUMNS = {
    "message": "id eid t_ms sender agent recipients delivered_to message_id in_reply_to subject content_type workflow"
    " priority origin_trace origin_span trace_flags tracestate baggage context_source received_trace received_span"
    " depth loop_key header_size body_size",
    "content": "message header data",
    "party": "address message role trace",
    "chain": "loop_key message n first_ms t_ms sender recipients payload template depth",
    "entry": "owner mailbox uid message flags modseq internal_ms saved_ms size",
    "event": "seq eid ev t_ms trace_id span_id leaf ref agent key detail",
    "event_message": "message_eid seq n",
}
HEADER = b"Subject: hello\r\n" + b"X-Filler: %s\r\n\r\n" % (b"x" * 100)
BODY = b'{"k": "v"}\r\n' * 20
SIZE = len(HEADER) + len(BODY)
LEAF = b'{"ev":"message.accepted","filler":"%s"}' % (b"x" * 200)


# ── what there is ────────────────────────────────────────────────────────────────────────────────────────────────────


def eid(n: int) -> str:
    return f"01{n:024d}"


def trace(n: int) -> bytes:
    return hashlib.blake2b(b"%d" % (n // A_TRACE), digest_size=16).digest()


def workflow(n: int) -> str:
    return LARGE if n % 10 == 0 else f"wf-{n // A_WORKFLOW}"


def sender(n: int) -> str:
    return f"a{n % AGENTS}@fabric.local"


def recipient(n: int) -> str:
    return READER if n % 10 == 0 else f"a{(n * 7 + 1) % AGENTS}@fabric.local"


class Mail:
    """Made-up messages, numbered from 1, as rows of every table."""

    def __init__(self, inboxes: dict[str, tuple[int, int]]) -> None:
        self._inboxes = inboxes
        """(owner, mailbox) by address."""
        self.uids = dict.fromkeys(inboxes, 0)
        self._links: dict[str, int] = {}

    def rows(self, numbers: range) -> dict[str, list[tuple[Any, ...]]]:
        made: dict[str, list[tuple[Any, ...]]] = {table: [] for table in COLUMNS}
        for n in numbers:
            self._message(made, n)
        return made

    def _message(self, made: dict[str, list[tuple[Any, ...]]], n: int) -> None:
        frm, to, of, flow, span = sender(n), recipient(n), trace(n), workflow(n), n.to_bytes(8, "big")
        t_ms, one = T0 + n, json.dumps([to])
        answered = f"<{n - 1}@bench>" if n % A_TRACE else None
        known = (n, eid(n), t_ms, frm, frm, one, one, f"<{n}@bench>", answered, "hello", "application/json", flow, 0)
        context = (of, span, 1, "", "", "header", of, span, n % A_TRACE, flow, len(HEADER), len(BODY))
        made["message"].append(known + context)
        made["content"].append((n, HEADER, BODY))
        made["party"] += [(frm, n, 0, of)] if frm == to else [(frm, n, 0, of), (to, n, 3, of)]
        self._links[flow] = self._links.get(flow, 0) + 1
        made["chain"].append((flow, n, self._links[flow], T0, t_ms, frm, one, b"p" * 32, b"t" * 32, n % A_TRACE))
        self.uids[to] = uid = self.uids[to] + 1
        made["entry"].append((*self._inboxes[to], uid, n, 16 * (n % 3 == 0), uid + 1, t_ms, t_ms, SIZE))
        for at, ev in ((2 * n - 1, "message.accepted"), (2 * n, "delivery.mailbox")):
            made["event"].append((at, f"e{at:025d}", ev, t_ms, of, span, LEAF, eid(n), frm, b"k" * 32, "{}"))
        if n % 7 == 0:
            made["event_message"].append((eid(n), 2 * n, 0))


async def fill(store: Store, count: int, load: Callable[[str, str, list[tuple[Any, ...]]], Awaitable[object]]) -> Mail:
    inboxes: dict[str, tuple[int, int]] = {}
    nobody = Credential(b"", 1, b"", b"")
    for number, address in enumerate([*(f"a{n}@fabric.local" for n in range(AGENTS)), READER], 1):
        await store.add_agent(Agent(address, nobody, T0), [])
        box = await store.mailbox(address, "INBOX")
        assert box is not None
        inboxes[address] = (number, box.key.id)
    mail = Mail(inboxes)
    for first in range(1, count + 1, BATCH):
        for table, rows in mail.rows(range(first, min(first + BATCH, count + 1))).items():
            await load(table, COLUMNS[table], rows)
        print(f"\r{min(first + BATCH - 1, count):,} messages", end="", flush=True)
    print()
    return mail


def counts(mail: Mail) -> list[tuple[int, int, int, int]]:
    """(mailbox, uidnext, messages, octets)."""
    return [(mail._inboxes[who][1], uid + 1, uid, uid * SIZE) for who, uid in mail.uids.items()]


COUNTS = "uidnext = {0}, modseq = {0}, messages = {1}, recent = {1}, unseen = {1}, unacked = {1}, octets = {2}"


async def postgres(url: str, count: int) -> PostgresStore:
    store = PostgresStore(url, "bench")
    await store.open()
    db = await asyncpg.connect(url, server_settings={"search_path": "aimx", "synchronous_commit": "off"})
    if (there := await db.fetchval("SELECT coalesce(max(id), 0) FROM message")) < count:
        assert not there, f"there are {there:,} messages already; give an empty database"

        async def load(table: str, columns: str, rows: list[tuple[Any, ...]]) -> None:
            names = columns.split()
            if table == "chain":
                names, rows = [*names, "writer"], [(*row, 1) for row in rows]
            await db.copy_records_to_table(table, records=rows, columns=names)

        mail = await fill(store, count, load)
        await db.executemany(
            f"UPDATE mailbox SET {COUNTS.format('$2::bigint', '$3::bigint', '$4::bigint')} WHERE id = $1", counts(mail)
        )
        await db.execute(f"SELECT setval('message_id', {count}), setval('event_seq', {2 * count})")
        await db.execute("INSERT INTO sequenced VALUES (1, $1, 0)", 2 * count)
        await db.execute("VACUUM ANALYZE")
        await db.execute("CHECKPOINT")
    await db.close()
    return store


async def sqlite(folder: Path, count: int) -> SqliteStore:
    store = SqliteStore(folder / "mail.db", "bench")
    await store.open()
    db = sqlite3.connect(folder / "mail.db", isolation_level=None, timeout=30)
    (there,) = db.execute("SELECT coalesce(max(id), 0) FROM message").fetchone()
    if there < count:
        assert not there, f"there are {there:,} messages already; give an empty folder"

        async def load(table: str, columns: str, rows: Iterable[tuple[Any, ...]]) -> None:
            marks = ", ".join("?" * len(columns.split()))
            db.execute("BEGIN IMMEDIATE")
            db.executemany(f"INSERT INTO {table} ({', '.join(columns.split())}) VALUES ({marks})", rows)
            db.execute("COMMIT")

        db.execute("PRAGMA synchronous = OFF")
        mail = await fill(store, count, load)
        db.executemany(f"UPDATE mailbox SET {COUNTS.format('?2', '?3', '?4')} WHERE id = ?1", counts(mail))
        db.execute("INSERT INTO sequenced VALUES (1, ?, 0)", (2 * count,))
    db.close()
    return store


# ── what is asked ────────────────────────────────────────────────────────────────────────────────────────────────────


async def questions(store: Store, count: int, dice: random.Random) -> dict[str, Callable[[], Awaitable[object]]]:
    box = await store.mailbox(READER, "INBOX")
    assert box is not None
    inbox: MailboxKey = box.key
    held = count // 10
    place = eid(count)

    def any_one() -> int:
        return dice.randrange(1, count + 1)

    def filtered(limit: int = PAGE, before: str | None = None, **what: Any) -> Awaitable[object]:
        return store.find(MessageFilter(**what), limit, before)

    async def next_page(**what: Any) -> None:
        """A walk through all of them: the thousandth page costs what the first did."""
        nonlocal place
        found = await store.find(MessageFilter(**what), PAGE, place)
        place = found[-1].eid if found else eid(count)

    return {
        "message by id": lambda: store.message(eid(any_one())),
        "by Message-ID": lambda: filtered(message_id=f"<{any_one()}@bench>"),
        "by trace": lambda: filtered(trace_id=trace(any_one())),
        "by workflow of 45": lambda: filtered(workflow=f"wf-{any_one() // A_WORKFLOW}"),
        f"by workflow of {held:,}": lambda: filtered(workflow=LARGE),
        "the same, from anywhere": lambda: filtered(workflow=LARGE, before=eid(any_one())),
        "by agent": lambda: filtered(agent=sender(any_one())),
        "by agent, from anywhere": lambda: filtered(agent=READER, before=eid(any_one())),
        "by workflow, seen by a party": lambda: filtered(workflow=LARGE, viewer=READER),
        "by workflow, seen by few": lambda: filtered(workflow=LARGE, viewer="a10@fabric.local"),
        "by workflow, seen by none of it": lambda: filtered(workflow=LARGE, viewer="a11@fabric.local"),
        "by agent, seen by another": lambda: filtered(agent=READER, viewer="a10@fabric.local"),
        "newest": lambda: filtered(),
        "page after page": lambda: next_page(),
        "events of a message": lambda: store.events_of(eid(any_one())),
        "events of a trace": lambda: store.events_of_trace(trace(any_one())),
        "traces of a message": lambda: store.traces_of(eid(any_one())),
        "where copies lie": lambda: store.located(eid(any_one())),
        "header block": lambda: store.header(eid(any_one())),
        "lineage of an answer": lambda: store.lineage(
            recipient(n := any_one()), f"<{n}@bench>", [f"<{n}@bench>"], trace(n), None
        ),
        f"lineage in a workflow of {held:,}": lambda: store.lineage(sender(7), None, [], trace(any_one()), LARGE),
        f"FETCH 1 of {held:,}": lambda: store.fetch(
            inbox, ((n := dice.randrange(1, held), n),), header=True, body=4096
        ),
        "CHANGES since the last 10": lambda: store.changes(inbox, held - 9),
        f"SELECT of {held:,}": lambda: store.select(inbox, False),
        f"FETCH 1:{held} (FLAGS)": lambda: store.fetch(inbox, ((1, held),)),
        f"SEARCH UNSEEN in {held:,}": lambda: store.search(inbox, Not(HasFlag("\\Seen"))),
    }


async def ask(question: Callable[[], Awaitable[object]], times: int) -> list[float]:
    """Milliseconds of each, ascending, after as many to warm up as connections may need."""
    for _ in range(min(times, 20)):
        await question()
    took = []
    for _ in range(times):
        begun = time.perf_counter()
        await question()
        took.append((time.perf_counter() - begun) * 1000)
    return sorted(took)


async def report(store: Store, count: int) -> None:
    print(f"{'ms':34}{'p50':>9}{'p99':>9}{'most':>9}")
    for name, question in (await questions(store, count, random.Random(1))).items():
        large = name.startswith(("SELECT", "FETCH 1:", "SEARCH"))
        took = await ask(question, ASKED_LARGE if large else ASKED)
        p99 = took[int(len(took) * 0.99)]
        slow = "  over the goal" if p99 > GOAL_MS and not large else ""
        print(f"{name:34}{took[len(took) // 2]:9.2f}{p99:9.2f}{took[-1]:9.2f}{slow}", flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--database", help="an empty PostgreSQL database, or one this has filled")
    parser.add_argument("--folder", type=Path, help="where mail.db is made, or is")
    given = parser.parse_args()
    with TemporaryDirectory() as temporary:
        store: Store
        if given.database:
            store = await postgres(given.database, given.messages)
        else:
            store = await sqlite(given.folder or Path(temporary), given.messages)
        try:
            await report(store, given.messages)
        finally:
            await store.close()


if __name__ == "__main__":
    asyncio.run(main())
