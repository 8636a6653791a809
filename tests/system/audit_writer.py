"""A store and a sequencer that take in messages as fast as they can, to be killed.

Prints the eid of each message once it is durable. The log's key is rotated after ROTATE_AFTER messages.
"""

import argparse
import asyncio
import time
from hashlib import sha256
from pathlib import Path

from aimx.audit import events, keys
from aimx.audit.sequencer import Sequencer
from aimx.audit.succession import Sharding
from aimx.message.identifier import new_eid
from aimx.store.contract import EventRow, NewMessage, SpanRef, Store
from aimx.store.postgres import PostgresStore
from aimx.store.sqlite import SqliteStore
from aimx.tlog.leaf import new_key

SPAN = SpanRef(b"\x01" * 16, b"\x02" * 8)
ROTATE_AFTER = 15


def message() -> tuple[NewMessage, EventRow]:
    t_ms = time.time_ns() // 1_000_000
    eid = new_eid(t_ms)
    header, body = b"Subject: hi\r\n\r\n", eid.encode() + b"\r\n"
    made = NewMessage(
        eid=eid,
        t_ms=t_ms,
        sender="a@x.example",
        agent="a@x.example",
        recipients=("b@x.example",),
        header=header,
        body=body,
        message_id=f"<{eid}@x.example>",
        in_reply_to=None,
        subject="hi",
        content_type="text/plain",
        workflow=None,
        priority=0,
        origin=SPAN,
        trace_flags=1,
        tracestate="",
        baggage="",
        context_source="new",
        received=SPAN,
        depth=1,
        loop_key="t",
        payload=b"p",
        template=b"t",
    )
    row = events.message_accepted(
        events.Stamp("n1", t_ms, SPAN, "a@x.example"),
        eid=eid,
        key=new_key(),
        data=sha256(header + body).digest(),
        header=sha256(header).digest(),
        body=sha256(body).digest(),
        sender="a@x.example",
        recipients=("b@x.example",),
        size=len(header + body),
    )
    return made, row


def store_of(folder: Path, database: str | None, worker: int = 0, *, guest: bool = False) -> Store:
    if database is None:
        return SqliteStore(folder / "mail.db", "n1", guest=guest)
    return PostgresStore(database, "n1", worker, guest=guest)


def sequencer_of(store: Store, folder: Path, database: str | None, leaves: int | None = None) -> Sequencer:
    return Sequencer(
        store,
        folder,
        keys.load_or_create(folder, "x.example", 1_780_000_000_000),
        node="n1",
        database=database,
        integrate_within=0.01,
        checkpoint_every=0.02,
        sharding=Sharding(leaves=leaves),
    )


async def rotate(store: Store, folder: Path) -> None:
    old, eid = keys.load(folder, 0).log.verifier, new_eid()
    made = keys.make_next(folder, "log", old.name, eid)
    stamp = events.Stamp("n1", time.time_ns() // 1_000_000, events.no_span(), "admin")
    new = made.key.verifier.vkey()
    await store.record([events.key_rotated(stamp, what="log", by="admin", old=old.vkey(), new=new, eid=eid)])


async def main(options: argparse.Namespace) -> None:
    store = store_of(options.folder, options.database, options.worker)
    await store.open()
    sequencer = sequencer_of(store, options.folder, options.database, options.leaves)
    await sequencer.start()
    count = 0
    while True:
        made, row = message()
        await store.accept(made, [], lambda outcomes, row=row: [row])
        print(made.eid, flush=True)
        count += 1
        if options.rotate and count == ROTATE_AFTER:
            await rotate(store, options.folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--database")
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--leaves", type=int)
    parser.add_argument("--rotate", action="store_true")
    asyncio.run(main(parser.parse_args()))
