"""Erasing messages and placing legal holds, each with its event: for the command line, the HTTP side and retention.

The store destroys content, envelope, key and openings in one commit with `message.erased`; the tree keeps the leaves,
which say nothing any more. A hold forbids it.
"""

import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aimx.audit import events
from aimx.audit.events import ACCEPTANCE, Stamp
from aimx.store.contract import Held, Hold, MessageFilter, MessageRecord, NotFound, SpanRef, Store

PAGE = 200

SURVIVORS = (
    "backups and copies of the database",
    "blocks that the file system or the disk has not overwritten",
    "copies that mail clients, agents and collectors of traces have made",
    "what was relayed, posted or delivered to other systems",
    "exports with openings, and proofs that were handed out",
)
"""Where copies are beyond our reach, in words for whoever asked for the erasure."""


@dataclass(slots=True)
class Erased:
    """What became of one request."""

    eids: list[str] = field(default_factory=list)
    held: dict[str, str] = field(default_factory=dict)
    """Messages that a legal hold protects, and which."""
    left: str | None = None
    """Where in the database itself something may be left."""

    @property
    def survivors(self) -> list[str]:
        """Where copies may be."""
        return [*([self.left] if self.left else []), *SURVIVORS]


async def erase(store: Store, record: MessageRecord, *, node: str, by: str, why: str) -> None:
    """One message. Raises NotFound, Held. The event joins the message's trace, so that its parties find it there."""
    leaf = next((one.index for one in await store.events_of(record.eid) if one.row.ev in ACCEPTANCE), None)
    stamp = Stamp(node, _now(), SpanRef(record.origin.trace_id, os.urandom(8)), by)
    await store.erase(record.eid, [events.message_erased(stamp, message=record.eid, by=by, why=why, leaf=leaf)])


async def erase_all(store: Store, records: AsyncIterator[MessageRecord], *, node: str, by: str, why: str) -> Erased:
    """Each of them that no hold protects; those erased already are passed over."""
    done = Erased()
    async for record in records:
        if record.erased:
            continue
        try:
            await erase(store, record, node=node, by=by, why=why)
        except Held as error:
            done.held[record.eid] = str(error)
        except NotFound:
            continue
        else:
            done.eids.append(record.eid)
    if done.eids:
        done.left = await store.scrub()
    return done


async def found(store: Store, what: MessageFilter) -> AsyncIterator[MessageRecord]:
    """All that match, newest first, as long as they are there."""
    before: str | None = None
    while page := await store.find(what, PAGE, before):
        for record in page:
            yield record
        before = page[-1].eid


async def place_hold(store: Store, hold: Hold, *, node: str) -> None:
    """Raises AlreadyExists."""
    await store.hold(hold, [events.hold_placed(_stamp(node, hold), hold=hold)])


async def release_hold(store: Store, hold: Hold, *, node: str, by: str) -> None:
    """Raises NotFound."""
    stamp = Stamp(node, _now(), events.no_span(), by)
    await store.release(hold.kind, hold.subject, [events.hold_released(stamp, hold=hold, by=by)])


async def covering(store: Store, kind: str, subject: str) -> Hold:
    """The hold of that kind and subject. Raises NotFound."""
    for one in await store.holds():
        if (one.kind, one.subject) == (kind, subject):
            return one
    raise NotFound(f"there is no hold on the {kind} {subject}")


def _stamp(node: str, hold: Hold) -> Stamp:
    return Stamp(node, hold.t_ms, events.no_span(), hold.by)


def _now() -> int:
    return time.time_ns() // 1_000_000
