"""Do the store and the log tell the same story? Every event row against its leaf, every opening against its
commitment, every message against its acceptance.

The order of reading makes it honest while the node runs: messages first, then events. A message's event is committed
with it, so whatever message was seen must have an event that is seen later.
"""

import asyncio
import json
import sqlite3
import time
from collections.abc import Sequence
from hashlib import sha256
from typing import Protocol

from aimx.audit.events import ACCEPTANCE
from aimx.audit.integrity import Progress
from aimx.audit.log import Leaf
from aimx.audit.memory import SEQ_MARGIN, Memory
from aimx.audit.report import Report
from aimx.audit.series import Series
from aimx.audit.worker import Openings
from aimx.store.contract import EventRow, MessageFilter, MessageRecord, StoredEvent
from aimx.tlog.receipt import PROMISE_SECONDS

PAGE = 4096
"""Rows in memory at a time."""
PIECE = 1 << 18
"""Octets of one body in memory at a time."""
AT_ONCE = 16
"""Messages whose contents are read side by side."""

__all__ = ["ACCEPTANCE", "Evidence", "Reconciliation"]


class Evidence(Protocol):
    """The part of the Store contract that a verification reads."""

    async def events_after(self, seq: int, limit: int) -> list[StoredEvent]: ...
    async def find(self, what: MessageFilter, limit: int, before: str | None = None) -> list[MessageRecord]: ...
    async def message(self, eid: str) -> MessageRecord | None: ...
    async def header(self, eid: str) -> bytes | None: ...
    async def read_body(self, eid: str, start: int, length: int) -> bytes: ...


class Reconciliation:
    """One run over the store, against a log as it was at one moment. `read` it all, then `judge`, then `close`."""

    def __init__(
        self,
        evidence: Evidence,
        series: Series,
        report: Report,
        openings: Openings,
        *,
        contents: bool,
        memory: Memory | None = None,
        progress: Progress = lambda events: None,
    ) -> None:
        """`memory`: what was held against each other before and is not read again."""
        self._evidence = evidence
        self._series = series
        self._size = size = series.size
        self._report = report
        self._openings = openings
        self._contents = contents
        self._explained = bytearray(size)
        """One octet for each place: an event accounts for it, or no shard at hand has it."""
        self._from = 0 if memory is None else min(memory.place, size)
        self._explained[: self._from] = b"\x01" * self._from
        self._progress = progress
        self.seq = 0 if memory is None else memory.seq
        """Of the last event seen that has its place in the log, as have all before it."""
        self.eid = "" if memory is None else memory.eid
        """The newest message whose acceptance was seen."""
        self._eid_before = self.eid
        self._gaps = series.gaps()
        for gap in self._gaps:
            self._explained[gap.start : gap.end] = b"\x01" * (gap.end - gap.start)
        self._submitted: list[tuple[EventRow, int]] = []
        """Rows whose openings are being checked, and their leaves."""
        self._waiting: list[StoredEvent] = []
        """Events without a place in the log yet."""
        # Three suspicions that a message.erased, read later, may explain.
        self._closed: list[tuple[EventRow, int]] = []
        """Events without a key, and their leaves."""
        self._gone: list[str] = []
        """Accepted messages that are not there."""
        self._unlike: list[tuple[str, str]] = []
        """Messages that are not what was accepted: eid, what differs."""
        self._erased: set[str] = set()
        self.dropped: set[str] = set()
        """Origins of shards that were let go, also where the leaf that says so is on its way."""
        # A temporary database of its own, which spills to disk: the list of messages may be long.
        self._messages = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._messages.execute("CREATE TABLE seen (eid TEXT PRIMARY KEY, envelope BLOB NOT NULL) WITHOUT ROWID")

    async def read(self, patience_s: float) -> None:
        """Go through the store; events that have no place in the log yet are given `patience_s` to get one."""
        await self._see_messages()
        await self._see_events()
        await self._see_to_the_waiting(patience_s)

    def judge(self, erased: frozenset[str]) -> None:
        """What only the whole shows. `erased`: the messages of which a leaf says that they were erased."""
        self._erased |= erased
        self._judge_closed()
        self._judge_messages()
        self._judge_unexplained_leaves()

    def close(self) -> None:
        self._messages.close()
        self._openings.close()

    # --- reading ---

    async def _see_messages(self) -> None:
        before: str | None = None
        while page := await self._evidence.find(MessageFilter(), PAGE, before):
            before = page[-1].eid
            page = [record for record in page if record.eid > self._eid_before]
            if not page:
                break
            self._report.messages += len(page)
            self._messages.execute("BEGIN")
            rows = [(record.eid, _envelope(record.sender, record.recipients)) for record in page]
            self._messages.executemany("INSERT OR IGNORE INTO seen VALUES (?, ?)", rows)
            self._messages.execute("COMMIT")

    async def _see_events(self) -> None:
        # One thread at a time, on purpose: SQLite lets go of the interpreter at every row, and would wait for another
        # busy thread at every row to get it back. What runs beside this is the worker that checks the openings.
        seq = max(0, self.seq - SEQ_MARGIN)
        while page := await self._evidence.events_after(seq, PAGE):
            seq = page[-1].seq
            page = [stored for stored in page if stored.index is None or stored.index >= self._from]
            self._progress(len(page))
            acceptances = await asyncio.to_thread(self._check_page, page)
            await self._check_messages(acceptances)
        await asyncio.to_thread(self._collect)

    def _check_page(self, page: Sequence[StoredEvent]) -> list[EventRow]:
        """Hold rows against their leaves. Returns the acceptances among them."""
        leaves = self._leaves_of([stored.index for stored in page if stored.index is not None])
        acceptances: list[EventRow] = []
        sound: list[tuple[EventRow, int]] = []
        for stored in page:
            row, index = stored.row, stored.index
            if row.ev == "message.erased" and row.ref:
                self._erased.add(row.ref)
            if row.ev == "log.dropped":
                self.dropped.add(str(json.loads(row.leaf).get("origin")))
            if row.ev in ACCEPTANCE:
                acceptances.append(row)
                self.eid = max(self.eid, row.eid)
            if index is None:
                self._waiting.append(stored)
            elif not self._waiting:
                self.seq = max(self.seq, stored.seq)
            if index is None:
                continue
            if index < self._size and self._agrees(row, index, leaves.get(index)):
                sound.append((row, index))
        self._open(sound)
        return acceptances

    def _leaves_of(self, indexes: list[int]) -> dict[int, Leaf]:
        """The leaves at `indexes`: one read when they lie together, as they do unless somebody meddled."""
        indexes = [index for index in indexes if 0 <= index < self._size]
        if not indexes:
            return {}
        low, high = min(indexes), max(indexes) + 1
        if high - low <= 4 * PAGE:
            return {leaf.idx: leaf for leaf in self._series.leaves(low, high)}
        return {leaf.idx: leaf for index in indexes for leaf in self._series.leaves(index, index + 1)}

    # --- one event ---

    def _agrees(self, row: EventRow, index: int, leaf: Leaf | None) -> bool:
        """Whether an event whose row names a place in the log stands there."""
        self._report.events += 1
        if self._gaps and any(gap.start <= index < gap.end for gap in self._gaps):
            return False  # its leaf went with a shard, or with a copy that was put back; the report says how many
        fault: tuple[str, str] | None = None
        if leaf is None or index < 0:
            fault = "event-unlogged", f"{row.ev} {row.eid} says it is leaf {index}; it is not"
        elif leaf.entry != row.leaf:
            fault = "event-differs", f"{row.ev} {row.eid} in the store and leaf {index} in the log are not the same"
        elif self._explained[index]:
            fault = "event-differs", f"two events say they are leaf {index}"
        if 0 <= index < self._size:
            self._explained[index] = 1
        if fault is not None:
            self._report.add(*fault, index, row.eid)
        return fault is None

    def _open(self, rows: list[tuple[EventRow, int]]) -> None:
        """Have the openings checked while the next rows are read."""
        self._collect()
        self._closed += [(row, index) for row, index in rows if row.key is None]
        self._submitted = [(row, index) for row, index in rows if row.key is not None]
        if self._submitted:
            self._openings.submit([row for row, _ in self._submitted])

    def _collect(self) -> None:
        submitted, self._submitted = self._submitted, []
        if not submitted:
            return
        faults = self._openings.collect()
        self._report.openings += len(submitted) - len(faults)
        for place, fault in faults:
            row, index = submitted[place]
            kind = "opening-missing" if fault.endswith("missing") else "opening-differs"
            self._report.add(kind, f"{row.ev} {row.eid}: {fault}", index, row.eid)

    # --- messages ---

    async def _check_messages(self, acceptances: list[EventRow]) -> None:
        missing = self._strike_out(acceptances)
        # Not on the list: accepted after the messages were listed, or gone.
        gone = [eid for eid in missing if await self._evidence.message(eid) is None]
        self._gone += gone
        if not self._contents:
            return
        whole = [row for row in acceptances if row.key is not None and row.eid not in gone]
        for start in range(0, len(whole), AT_ONCE):
            await asyncio.gather(*(self._check_contents(row) for row in whole[start : start + AT_ONCE]))

    def _strike_out(self, acceptances: Sequence[EventRow]) -> set[str]:
        """Cross off the messages that have their acceptance; returns the eids that were not on the list."""
        missing: set[str] = set()
        self._messages.execute("BEGIN")
        for row in acceptances:
            found = self._messages.execute("DELETE FROM seen WHERE eid = ? RETURNING envelope", (row.eid,)).fetchone()
            opening = row.detail.get("open")
            if found is None:
                missing.add(row.eid)
            elif row.ev != "message.accepted" or row.key is None or not opening:
                continue
            elif found[0] != _envelope(str(opening.get("from")), opening.get("rcpt") or ()):
                self._unlike.append((row.eid, "the envelope"))
        self._messages.execute("COMMIT")
        return missing

    async def _check_contents(self, row: EventRow) -> None:
        opening = row.detail.get("open", {})
        header = await self._evidence.header(row.eid)
        if header is None:
            return
        digest, start = sha256(), 0
        while piece := await self._evidence.read_body(row.eid, start, PIECE):
            digest.update(piece)
            start += len(piece)
            if len(piece) < PIECE:
                break
        self._report.contents += 1
        for part, found in (("header block", sha256(header).hexdigest()), ("body", digest.hexdigest())):
            if opening.get("hdr" if part == "header block" else "body") != found:
                self._unlike.append((row.eid, f"the {part}"))

    # --- the end ---

    async def _see_to_the_waiting(self, patience_s: float) -> None:
        """Events without a place: they may be in the log and not marked yet, be on their way, or be held back."""
        deadline = time.monotonic() + patience_s
        while True:
            await asyncio.to_thread(self._place_the_waiting)
            if not self._waiting or time.monotonic() >= deadline:
                break
            await asyncio.sleep(0.1)
        now_ms = time.time_ns() // 1_000_000
        for stored in self._waiting:
            self._report.pending += 1
            age_s = (now_ms - stored.row.t_ms) / 1000
            if age_s > PROMISE_SECONDS:
                text = f"{stored.row.ev} {stored.row.eid} has waited {age_s:.0f} s for the log; is the node running?"
                self._report.add("event-overdue", text, None, stored.row.eid)

    def _place_the_waiting(self) -> None:
        still: list[StoredEvent] = []
        sound: list[tuple[EventRow, int]] = []
        for stored in self._waiting:
            index = self._series.place_of(stored.row.eid)
            if index is None:
                still.append(stored)
                continue
            found = self._series.leaves(index, index + 1)
            if index < self._size and self._agrees(stored.row, index, found[0] if found else None):
                sound.append((stored.row, index))
        self._waiting = still
        self._open(sound)
        self._collect()

    def _judge_closed(self) -> None:
        for row, index in self._closed:
            if row.ref in self._erased or row.eid in self._erased:
                self._report.erased += 1
            else:
                text = f"{row.ev} {row.eid} cannot be opened any more and no message.erased says why"
                self._report.add("opening-missing", text, index, row.eid)

    def _judge_messages(self) -> None:
        for eid in self._gone:
            if eid not in self._erased:
                text = f"message {eid} was accepted and is gone; no message.erased says so"
                self._report.add("message-missing", text, None, eid)
        for eid, what in self._unlike:
            if eid not in self._erased:
                self._report.add("message-differs", f"{what} of message {eid} is not as it was accepted", None, eid)
        for (eid,) in self._messages.execute("SELECT eid FROM seen ORDER BY eid"):
            self._report.add("message-unlogged", f"message {eid} is kept and was never logged as accepted", None, eid)

    def _judge_unexplained_leaves(self) -> None:
        index = -1
        while (index := self._explained.find(0, index + 1)) >= 0:
            found = self._series.leaves(index, index + 1)
            name = found[0].eid if found else "?"
            self._report.add("leaf-unexplained", f"leaf {index} ({name}) has no event in the store", index, name)


def _envelope(sender: str, recipients: Sequence[str]) -> bytes:
    return sha256("\n".join((sender, *recipients)).encode()).digest()
