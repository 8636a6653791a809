"""Mail that has had its time is erased, or taken out of mailboxes, as `[retention]` says.

One worker of all that share a database does it, in small commits with pauses between them. A walk goes through the old
messages in order of acceptance and remembers how far it came, so that a pass costs only what has come of age since the
last; once a day it walks from the beginning, for what a legal hold had protected or was moved meanwhile. Two that walk
at once do no harm: erasing once more is no error.

The log itself is never shortened by this: events stay, an erasure is one more (`aimx.audit.erasure`).
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from aimx.audit import erasure, events
from aimx.audit.events import Command, Stamp
from aimx.config import Keep
from aimx.store.contract import EventRow, Expunged, Held, Hold, MailboxKey, MessageRecord, NotFound, Store, StoreError

log = logging.getLogger("aimx.retention")

PAGE = 200
"""Messages looked at by one read."""
PAUSE_S = 0.02
"""Between pages, and between erasures: mail comes first."""
AGAIN_S = 86_400.0
"""How often a walk begins anew."""
BY = "aimx"

Clock = Callable[[], float]


@dataclass(slots=True)
class Tally:
    """What one pass did."""

    erased: int = 0
    removed: int = 0
    """Entries taken out of mailboxes."""
    held: int = 0


@dataclass(slots=True)
class _Walk:
    """How far one rule has come: the last message looked at."""

    after: str | None = None
    began: float = float("-inf")


class Retention:
    """Belongs to the node; `run` until cancelled."""

    def __init__(
        self,
        store: Store,
        rules: Mapping[str, Keep],
        *,
        node: str,
        every: float,
        leads: Callable[[], Awaitable[bool]],
        clock: Clock = time.time,
    ) -> None:
        """`leads`: whether this worker is the one to do it now. `every`: seconds between passes."""
        self._store = store
        self._rules = rules
        self._node = node
        self._every = every
        self._leads = leads
        self._clock = clock
        self._walks = {name: _Walk() for name in rules}

    async def run(self) -> None:
        while True:
            try:
                if await self._leads():
                    await self.once()
            except StoreError as error:
                log.warning("retention waits for the store: %s", error, extra={"event": "retention"})
            await asyncio.sleep(self._every)

    async def once(self) -> Tally:
        """One pass over all rules. Raises StoreError; what was done by then is done."""
        tally = Tally()
        try:
            for name, rule in self._rules.items():
                await self._walk(name, rule, tally)
        finally:
            if tally.erased:
                await self._store.scrub()
        if tally != Tally():
            text = f"{tally.erased} messages erased, {tally.removed} taken out of mailboxes, {tally.held} held"
            log.info("retention: %s", text, extra={"event": "retention"})
        return tally

    async def _walk(self, name: str, rule: Keep, tally: Tally) -> None:
        walk, now = self._walks[name], self._clock()
        if now - walk.began >= AGAIN_S:
            walk.after, walk.began = None, now
        while page := await self._store.older(int((now - rule.keep) * 1000), walk.after, PAGE):
            holds = await self._store.holds()  # for each page: a walk may be long, and a hold counts at once
            for record in page:
                if not record.erased and matches(rule, record):
                    await self._end(name, rule, record, holds, tally)
                walk.after = record.eid
            await asyncio.sleep(PAUSE_S)

    async def _end(self, name: str, rule: Keep, record: MessageRecord, holds: Sequence[Hold], tally: Tally) -> None:
        if rule.mailbox is not None:
            if any(covers(hold, record) for hold in holds):
                tally.held += 1
            else:
                tally.removed += await self._take_out(rule.mailbox, rule.agent, record)
            return
        try:
            await erasure.erase(self._store, record, node=self._node, by=BY, why=f"retention {name}")
        except Held:
            tally.held += 1
        except NotFound:
            return
        else:
            tally.erased += 1
            await asyncio.sleep(PAUSE_S)

    async def _take_out(self, mailbox: str, agent: str | None, record: MessageRecord) -> int:
        """Out of every mailbox that is meant; sessions see it go. The message stays look-up-able."""
        found: dict[tuple[str, str], list[int]] = {}
        for copy in await self._store.located(record.eid):
            if _like(copy.folder, mailbox) and (agent is None or _like(copy.owner, agent)):
                found.setdefault((copy.owner, copy.folder), []).append(copy.uid)
        for box, uids in found.items():
            key = await self._store.mailbox(*box)
            if key is not None:
                await self._expunge(key.key, box, uids)
        return sum(map(len, found.values()))

    async def _expunge(self, key: MailboxKey, box: tuple[str, str], uids: list[int]) -> None:
        ranges = tuple((uid, uid) for uid in uids)

        def witness(gone: Expunged) -> list[EventRow]:
            stamp = Stamp(self._node, int(self._clock() * 1000), events.no_span(), BY)
            return [events.message_expunged(stamp, Command(BY, box, gone.eids))] if gone.eids else []

        await self._store.mark(key, ranges, "add", frozenset({"\\Deleted"}), lambda _: [])
        await self._store.expunge(key, ranges, witness)


def matches(rule: Keep, record: MessageRecord) -> bool:
    """Whether a rule is about this message, by all of its conditions but the mailbox."""
    if rule.workflow is not None and not _like(record.workflow or "", rule.workflow):
        return False
    if rule.agent is None:
        return True
    return any(_like(person, rule.agent) for person in people(record))


def people(record: MessageRecord) -> set[str]:
    """Who sent or received it."""
    return {record.sender, record.agent or record.sender, *record.recipients, *record.delivered_to}


def covers(hold: Hold, record: MessageRecord) -> bool:
    """Whether a legal hold is about this message."""
    match hold.kind:
        case "message":
            return hold.subject == record.eid
        case "workflow":
            return hold.subject == record.workflow
        case "agent":
            return hold.subject in people(record)


def _like(value: str, pattern: str) -> bool:
    return fnmatchcase(value.lower(), pattern.lower())


async def first_of_all(store: Store, node: str, worker: int) -> bool:
    """Whether this worker is the longest-running one of those that share the store (or the only one)."""
    alive = [one for one in await store.nodes() if not one.draining]
    first = min(alive, key=lambda one: (one.started_ms, one.node, one.worker), default=None)
    return first is None or (first.node, first.worker) == (node, worker)
