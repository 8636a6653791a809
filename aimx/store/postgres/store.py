"""PostgresStore: the Store contract over one database. Each call goes to the writer or the pool; the nouns do it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TypeVar

from aimx.store.contract import (
    Agent,
    Backlog,
    Changes,
    Copied,
    Due,
    EventRow,
    Expunged,
    Fault,
    Flagged,
    FlagMode,
    Hold,
    Lineage,
    Located,
    Mailbox,
    MailboxKey,
    MessageFilter,
    MessageRecord,
    NewMessage,
    NodeRecord,
    Once,
    Outcome,
    Pending,
    ReadOnly,
    Row,
    Snapshot,
    SpanRef,
    Staged,
    Status,
    StoredEvent,
    StoreError,
    Target,
    Topic,
    Tried,
    worker_name,
)
from aimx.store.postgres import (
    agents,
    bodies,
    content,
    entries,
    erasure,
    events,
    lookup,
    mailboxes,
    nodes,
    queue,
    schemas,
    search,
    soundness,
)
from aimx.store.postgres import once as keys
from aimx.store.postgres.acceptance import Acceptance, Acceptor
from aimx.store.postgres.connection import Db, Pool, refusal
from aimx.store.postgres.groups import Groups
from aimx.store.postgres.migration import migrate
from aimx.store.postgres.notify import Notifier
from aimx.store.postgres.writer import Tx, Writer
from aimx.store.recent import Claims
from aimx.store.search import Ranges, SearchKey

T = TypeVar("T")
POOL = 10
"""Connections of one process, beside one that commits acceptances and one for notifications."""
SWEPT, SWEEPS = 1_000, 50
"""Idempotency keys dropped by one call of `sweep`."""
TEND_S = 1.0
r"""How often the table learns which messages are not \Recent any more."""

log = logging.getLogger(__name__)


class PostgresStore:
    """One database, any number of processes. `node` and `worker` say which one this is; no two alive are the same.

    A guest (the command line) leaves alone what that worker has under way: leases and staged bodies.
    """

    def __init__(
        self,
        url: str,
        node: str,
        worker: int = 0,
        *,
        guest: bool = False,
        pool: int = POOL,
        replica: str | None = None,
    ) -> None:
        """`replica`: the address of a standby to read from, for whoever can wait for what it has not got yet."""
        self._url = url
        self._replica = replica
        self._owner = worker_name(node, worker)
        self._guest = guest
        self._size = pool
        self._claims = Claims()
        self._pasts = lookup.Pasts()
        self._tending: asyncio.Task[None] | None = None
        self._acceptances: Groups[Acceptance]

    async def open(self) -> None:
        await migrate(self._url)
        name = f"aimx {self._owner}"
        self._notifier = Notifier(self._url, name)
        self._pool, self._own = Pool(self._url, name, self._size), Pool(self._url, name, 1)
        self._reads = Pool(self._replica, name, self._size) if self._replica else self._pool
        self._agents = agents.Known(self._notifier, self._pool)
        self._writer = Writer(self._pool, self._notifier.changed)
        self._number = await self._own_number()
        self._acceptances = Groups(
            Writer(self._own, self._notifier.changed), Acceptor(self._number), weigh=lambda one: one.octets
        )
        await self._notifier.start()
        if not self._guest:
            await self._write(lambda tx: queue.free_leases(tx, self._owner))
            for body in await self._pool.read(lambda db: bodies.unused(db, self._number)):
                await self._drop_body(body)
        self._tending = asyncio.create_task(self._tend(), name="aimx-store-tend")

    async def _own_number(self) -> int:
        try:
            return await self._write(lambda tx: nodes.number(tx, self._owner + " guest" * self._guest))
        except ReadOnly:
            if not self._guest:
                raise
            return 0  # nobody's: what would be written under it is refused as well

    async def close(self) -> None:
        """Also of a store that could not be opened."""
        if self._tending is None:
            return
        self._tending.cancel()
        await self._acceptances.close()
        await self._save_claims()
        await self._writer.close()
        await self._notifier.close()
        await self._own.close()
        if self._reads is not self._pool:
            await self._reads.close()
        await self._pool.close()

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(TEND_S)
            await self._save_claims()

    async def _save_claims(self) -> None:
        if not self._claims:
            return
        try:
            await self._write(lambda tx: mailboxes.save_claims(tx, self._claims))
        except StoreError:
            log.debug("store: claims of recent messages not saved")

    def subscribe(self, topic: Topic, callback: Callable[[], None]) -> Callable[[], None]:
        return self._notifier.subscribe(topic, callback)

    # agents
    async def add_agent(self, agent: Agent, events: Sequence[EventRow]) -> None:
        await self._write(lambda tx: agents.add(tx, agent, events))

    async def update_agent(self, agent: Agent, events: Sequence[EventRow]) -> None:
        await self._write(lambda tx: agents.update(tx, agent, events))

    async def remove_agent(self, address: str, events: Sequence[EventRow]) -> None:
        await self._write(lambda tx: agents.remove(tx, address, events))

    async def agent(self, address: str) -> Agent | None:
        return await self._agents.agent(address)

    async def agents(self) -> list[Agent]:
        return await self._reads.read(agents.every)

    async def add_token(self, digest: bytes, address: str, t_ms: int, events: Sequence[EventRow]) -> None:
        await self._write(lambda tx: agents.add_token(tx, digest, address, t_ms, events))

    async def token_owner(self, digest: bytes) -> str | None:
        return await self._reads.read(lambda db: agents.token_owner(db, digest))

    # coming in
    async def lineage(
        self,
        sender: str,
        in_reply_to: str | None,
        references: Sequence[str],
        trace_id: bytes | None,
        workflow: str | None,
        window: int = 128,
    ) -> Lineage:
        return await self._reads.read(
            lambda db: lookup.lineage(db, self._pasts, sender, in_reply_to, references, trace_id, workflow, window)
        )

    async def stage(self, staged: Staged | None, chunk: bytes) -> Staged:
        for piece in bodies.pieces(chunk):
            staged = await self._stage(staged, piece)
        assert staged is not None
        return staged

    async def _stage(self, staged: Staged | None, piece: bytes) -> Staged:
        return await self._write(lambda tx: bodies.add(tx, self._number, staged, piece))

    async def unstage(self, staged: Staged) -> None:
        await self._drop_body(staged.id)

    async def _drop_body(self, body: int) -> None:
        while not await self._write(lambda tx: bodies.drop(tx, body)):
            pass

    async def accept(
        self,
        message: NewMessage,
        targets: Sequence[Target],
        witness: Callable[[Sequence[Outcome]], Sequence[EventRow]],
        settles: int | None = None,
        once: Once | None = None,
    ) -> list[Outcome]:
        outcomes: list[Outcome] = await self._acceptances.submit(Acceptance(message, targets, witness, settles, once))
        return outcomes

    async def repeated(self, once: Once, now_ms: int) -> str | None:
        return await self._reads.read(lambda db: keys.repeated(db, once, now_ms))

    # the queue
    async def claim(
        self,
        now_ms: int,
        limit: int,
        owner: str,
        lease_ms: int,
        delay_ms: Callable[[int], int],
        closed: Collection[str] = (),
    ) -> list[Due]:
        return await self._write(lambda tx: queue.claim(tx, now_ms, limit, owner, lease_ms, delay_ms, closed))

    async def next_due(self, closed: Collection[str] = ()) -> int | None:
        return await self._reads.read(lambda db: queue.next_due(db, closed))

    async def renew(self, due: Due, until_ms: int) -> None:
        await self._write(lambda tx: queue.renew(tx, due, until_ms))

    async def place(
        self, due: Due, span: SpanRef, now_ms: int, witness: Callable[[Tried], Sequence[EventRow]]
    ) -> Tried:
        return await self._write(lambda tx: queue.place(tx, due, span, now_ms, witness))

    async def defer(self, due: Due, span: SpanRef, now_ms: int, reason: str, events: Sequence[EventRow]) -> None:
        await self._write(lambda tx: queue.defer(tx, due, span, now_ms, reason, events))

    async def settle(self, due: Due, events: Sequence[EventRow]) -> None:
        await self._write(lambda tx: queue.settle(tx, due, events))

    async def pending(
        self, eid: str | None = None, limit: int = 1000, after: int = 0, destination: str | None = None
    ) -> list[Pending]:
        return await self._reads.read(lambda db: queue.pending(db, eid, limit, after, destination))

    async def hasten(
        self, ids: Sequence[int], now_ms: int, witness: Callable[[list[Pending]], Sequence[EventRow]]
    ) -> list[Pending]:
        return await self._write(lambda tx: queue.hasten(tx, ids, now_ms, witness))

    async def suspend(
        self, ids: Sequence[int], held: bool, witness: Callable[[list[Pending]], Sequence[EventRow]]
    ) -> list[Pending]:
        return await self._write(lambda tx: queue.suspend(tx, ids, held, witness))

    async def drop(self, ids: Sequence[int], witness: Callable[[list[Pending]], Sequence[EventRow]]) -> list[Pending]:
        return await self._write(lambda tx: queue.drop(tx, ids, witness))

    async def backlog(self) -> Backlog:
        return await self._reads.snapshot(queue.backlog)

    # mailboxes
    async def mailboxes(self, owner: str) -> list[Mailbox]:
        return await self._reads.read(lambda db: mailboxes.listed(db, owner))

    async def mailbox(self, owner: str, name: str) -> Mailbox | None:
        return await self._reads.read(lambda db: mailboxes.named(db, owner, name))

    async def create_mailbox(self, owner: str, name: str, special_use: str | None = None) -> None:
        await self._write(lambda tx: mailboxes.create(tx, owner, name, special_use))

    async def delete_mailbox(self, key: MailboxKey, witness: Callable[[list[str]], Sequence[EventRow]]) -> None:
        await self._write(lambda tx: mailboxes.delete(tx, key, witness))

    async def rename_mailbox(self, owner: str, old: str, new: str) -> None:
        await self._write(lambda tx: mailboxes.rename(tx, owner, old, new))

    async def subscribe_mailbox(self, owner: str, name: str, on: bool) -> None:
        await self._write(lambda tx: mailboxes.set_subscribed(tx, owner, name, on))

    async def subscriptions(self, owner: str) -> list[str]:
        return await self._reads.read(lambda db: mailboxes.subscribed(db, owner))

    async def status(self, keys: Sequence[MailboxKey]) -> dict[MailboxKey, Status]:
        return await self._reads.read(lambda db: mailboxes.status(db, self._claims, keys))

    async def select(self, key: MailboxKey, claim_recent: bool) -> Snapshot:
        return await self._reads.read(lambda db: mailboxes.select(db, self._claims, key, claim_recent))

    async def changes(self, key: MailboxKey, since_modseq: int, claim_recent: bool = False) -> Changes:
        return await self._reads.read(lambda db: entries.changes(db, self._claims, key, since_modseq, claim_recent))

    async def fetch(self, key: MailboxKey, uids: Ranges, *, header: bool = False, body: int = 0) -> list[Row]:
        return await self._reads.read(lambda db: entries.fetch(db, key, uids, header, body))

    async def read_body(self, eid: str, start: int, length: int) -> bytes:
        return await self._reads.read(lambda db: content.read(db, eid, start, length))

    async def search(self, key: MailboxKey, criteria: SearchKey) -> tuple[list[int], bool]:
        return await self._reads.read(lambda db: search.search(db, key, criteria))

    async def mark(
        self,
        key: MailboxKey,
        uids: Ranges,
        mode: FlagMode,
        flags: frozenset[str],
        witness: Callable[[Flagged], Sequence[EventRow]],
    ) -> Flagged:
        return await self._write(lambda tx: entries.mark(tx, key, uids, mode, flags, witness))

    async def expunge(
        self, key: MailboxKey, uids: Ranges | None, witness: Callable[[Expunged], Sequence[EventRow]]
    ) -> Expunged:
        return await self._write(lambda tx: entries.expunge(tx, key, uids, witness))

    async def copy(
        self, key: MailboxKey, uids: Ranges, to: MailboxKey, witness: Callable[[Copied], Sequence[EventRow]]
    ) -> Copied:
        return await self._write(lambda tx: entries.copy(tx, key, uids, to, witness))

    async def move(
        self, key: MailboxKey, uids: Ranges, to: MailboxKey, witness: Callable[[Copied], Sequence[EventRow]]
    ) -> Copied:
        return await self._write(lambda tx: entries.move(tx, key, uids, to, witness))

    async def usage(self, owner: str) -> int:
        return await self._reads.read(lambda db: mailboxes.usage(db, owner))

    # events and the outbox
    async def record(self, events_: Sequence[EventRow]) -> None:
        await self._write(lambda tx: events.record(tx, events_))

    async def unsequenced(self, limit: int) -> list[tuple[int, str, bytes]]:
        return await self._reads.read(lambda db: events.unsequenced(db, limit))

    async def mark_sequenced(self, placed: Sequence[tuple[int, int]]) -> None:
        await self._write(lambda tx: events.mark_sequenced(tx, placed))

    async def events_after(self, seq: int, limit: int) -> list[StoredEvent]:
        return await self._reads.read(lambda db: events.after(db, seq, limit))

    async def events_of(self, eid: str) -> list[StoredEvent]:
        return await self._reads.read(lambda db: events.of_message(db, eid))

    async def events_of_trace(self, trace_id: bytes, limit: int = 10_000) -> list[StoredEvent]:
        return await self._reads.read(lambda db: events.of_trace(db, trace_id, limit))

    # look-up
    async def find(self, what: MessageFilter, limit: int, before: str | None = None) -> list[MessageRecord]:
        return await self._reads.read(lambda db: lookup.find(db, what, limit, before))

    async def older(self, before_ms: int, after: str | None, limit: int) -> list[MessageRecord]:
        return await self._reads.read(lambda db: lookup.older(db, before_ms, after, limit))

    async def message(self, eid: str) -> MessageRecord | None:
        return await self._reads.read(lambda db: lookup.one(db, eid))

    async def header(self, eid: str) -> bytes | None:
        return await self._reads.read(lambda db: content.header(db, eid))

    async def located(self, eid: str) -> list[Located]:
        return await self._reads.read(lambda db: lookup.located(db, eid))

    async def traces_of(self, eid: str) -> list[bytes]:
        return await self._reads.read(lambda db: events.traces_of(db, eid))

    # erasure and legal hold
    async def erase(self, eid: str, events: Sequence[EventRow]) -> None:
        body = await self._write(lambda tx: erasure.erase(tx, eid, events))
        self._pasts = lookup.Pasts()
        if body is not None:
            await self._drop_body(body)

    async def scrub(self) -> str | None:
        return "the PostgreSQL server: dead rows until VACUUM has run, its WAL, WAL archives and replicas"

    async def hold(self, hold: Hold, events: Sequence[EventRow]) -> None:
        await self._write(lambda tx: erasure.hold(tx, hold, events))

    async def release(self, kind: str, subject: str, events: Sequence[EventRow]) -> None:
        await self._write(lambda tx: erasure.release(tx, kind, subject, events))

    async def holds(self) -> list[Hold]:
        return await self._reads.read(erasure.holds)

    # housekeeping and nodes
    async def sweep(self, now_ms: int) -> None:
        for _ in range(SWEEPS):
            if not await self._write(lambda tx: keys.sweep(tx, now_ms, SWEPT)):
                break
        await self._write(lambda tx: nodes.sweep(tx, now_ms))

    async def beat(self, record: NodeRecord) -> bool:
        return await self._write(lambda tx: nodes.beat(tx, record))

    async def part(self, node: str, worker: int) -> None:
        await self._write(lambda tx: nodes.part(tx, node, worker))

    async def nodes(self) -> list[NodeRecord]:
        return await self._reads.read(nodes.every)

    async def faults(self) -> list[Fault]:
        db = await self._over_everything()
        try:
            return await soundness.faults(db)
        except Exception as error:
            raise refusal(error) from error
        finally:
            db.terminate()

    async def mend(self, witness: Callable[[Fault], Sequence[EventRow]]) -> list[Fault]:
        db = await self._over_everything()
        tx = Tx(db)
        try:
            async with db.transaction():
                mended = await soundness.mend(tx, witness)
        except Exception as error:
            raise refusal(error) from error
        finally:
            db.terminate()
        self._notifier.changed(tx.topics)
        return mended

    async def _over_everything(self) -> Db:
        try:
            return await soundness.over_everything(self._url)
        except Exception as error:
            raise refusal(error) from error

    async def drain(self, node: str, on: bool) -> None:
        await self._write(lambda tx: nodes.drain(tx, node, on))

    # payload schemas
    async def add_schema(self, name: str, descriptor_set: bytes, t_ms: int, events: Sequence[EventRow]) -> None:
        await self._write(lambda tx: schemas.add(tx, name, descriptor_set, t_ms, events))

    async def schemas(self) -> list[tuple[str, bytes]]:
        return await self._reads.read(schemas.every)

    async def _write(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        return await self._writer.run(work)
