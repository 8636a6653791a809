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
from functools import lru_cache
from hashlib import sha256
from typing import Any, Protocol

from aimx.audit.events import CATALOGUE, commitment, opened
from aimx.audit.integrity import Checked
from aimx.audit.log import Leaf, Reader
from aimx.audit.report import Report
from aimx.store.contract import EventRow, MessageFilter, MessageRecord, StoredEvent
from aimx.tlog.leaf import KEY_SIZE, committer
from aimx.tlog.receipt import PROMISE_SECONDS

PAGE = 4096
"""Rows in memory at a time."""
PIECE = 1 << 18
"""Octets of one body in memory at a time."""
AT_ONCE = 16
"""Messages whose contents are read side by side."""

ACCEPTANCE = frozenset(("message.accepted", "message.appended"))


class Evidence(Protocol):
    """The part of the Store contract that a verification reads."""

    async def events_after(self, seq: int, limit: int) -> list[StoredEvent]: ...
    async def find(self, what: MessageFilter, limit: int, before: str | None = None) -> list[MessageRecord]: ...
    async def message(self, eid: str) -> MessageRecord | None: ...
    async def header(self, eid: str) -> bytes | None: ...
    async def read_body(self, eid: str, start: int, length: int) -> bytes: ...


class Reconciliation:
    """One run over the store, against a log whose own integrity has been checked up to `checked.size`."""

    def __init__(
        self, evidence: Evidence, reader: Reader, checked: Checked, report: Report, *, contents: bool, patience_s: float
    ) -> None:
        self._evidence = evidence
        self._reader = reader
        self._size = checked.size
        self._erased = set(checked.erased)
        self._report = report
        self._contents = contents
        self._patience_s = patience_s
        self._explained = bytearray(checked.size)
        """One octet for each leaf: an event accounts for it."""
        self._waiting: list[StoredEvent] = []
        """Events without a place in the log yet."""
        self._closed: list[tuple[EventRow, int]] = []
        """Events without a key, and their leaves: erased, if a message.erased is found to say so."""
        # A temporary database of its own, which spills to disk: the list of messages may be long.
        self._messages = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._messages.execute("CREATE TABLE seen (eid TEXT PRIMARY KEY, envelope BLOB NOT NULL) WITHOUT ROWID")

    async def run(self) -> None:
        try:
            await self._see_messages()
            await self._see_events()
            await self._see_to_the_waiting()
            self._judge_closed()
            self._judge_unlogged_messages()
            self._judge_unexplained_leaves()
        finally:
            self._messages.close()

    # --- reading ---

    async def _see_messages(self) -> None:
        before: str | None = None
        while page := await self._evidence.find(MessageFilter(), PAGE, before):
            before = page[-1].eid
            self._report.messages += len(page)
            self._messages.execute("BEGIN")
            rows = [(record.eid, _envelope(record.sender, record.recipients)) for record in page]
            self._messages.executemany("INSERT OR IGNORE INTO seen VALUES (?, ?)", rows)
            self._messages.execute("COMMIT")

    async def _see_events(self) -> None:
        page = await self._evidence.events_after(0, PAGE)
        while page:
            # The next page is fetched while this one is hashed: both spend much of their time outside the interpreter.
            following = asyncio.create_task(self._evidence.events_after(page[-1].seq, PAGE))
            try:
                acceptances = await asyncio.to_thread(self._check_page, page)
                await self._check_messages(acceptances)
            finally:
                page = await following

    def _check_page(self, page: Sequence[StoredEvent]) -> list[EventRow]:
        """Hold rows against their leaves. Returns the acceptances among them."""
        leaves = self._leaves_of([stored.index for stored in page if stored.index is not None])
        acceptances: list[EventRow] = []
        for stored in page:
            row, index = stored.row, stored.index
            if row.ev == "message.erased" and row.ref:
                self._erased.add(row.ref)
            if row.ev in ACCEPTANCE:
                acceptances.append(row)
            if index is None:
                self._waiting.append(stored)
            elif index < self._size:
                self._check_event(row, index, leaves.get(index))
        return acceptances

    def _leaves_of(self, indexes: list[int]) -> dict[int, Leaf]:
        """The leaves at `indexes`: one read when they lie together, as they do unless somebody meddled."""
        indexes = [index for index in indexes if 0 <= index < self._size]
        if not indexes:
            return {}
        low, high = min(indexes), max(indexes) + 1
        if high - low <= 4 * PAGE:
            return {leaf.idx: leaf for leaf in self._reader.leaves(low, high)}
        return {leaf.idx: leaf for index in indexes for leaf in self._reader.leaves(index, index + 1)}

    # --- one event ---

    def _check_event(self, row: EventRow, index: int, leaf: Leaf | None) -> None:
        """An event whose row names a place in the log."""
        self._report.events += 1
        if leaf is None or index < 0:
            self._report.add("event-unlogged", f"{row.ev} {row.eid} says it is leaf {index}; it is not", index, row.eid)
        elif leaf.entry != row.leaf:
            text = f"{row.ev} {row.eid} in the store and leaf {index} in the log are not the same"
            self._report.add("event-differs", text, index, row.eid)
        elif self._explained[index]:
            self._report.add("event-differs", f"two events say they are leaf {index}", index, row.eid)
        else:
            self._check_openings(row, index)
        if 0 <= index < self._size:
            self._explained[index] = 1

    def _check_openings(self, row: EventRow, index: int) -> None:
        if row.key is None:
            self._closed.append((row, index))
            return
        wrong = opening_fault(row)
        if wrong is None:
            self._report.openings += 1
        else:
            kind = "opening-missing" if wrong.endswith("missing") else "opening-differs"
            self._report.add(kind, f"{row.ev} {row.eid}: {wrong}", index, row.eid)

    # --- messages ---

    async def _check_messages(self, acceptances: list[EventRow]) -> None:
        missing = self._strike_out(acceptances)
        for row in acceptances:
            # Accepted after the messages were listed, or gone.
            if row.eid in missing and row.eid not in self._erased and await self._evidence.message(row.eid) is None:
                text = f"message {row.eid} was accepted and is gone; no message.erased says so"
                self._report.add("message-missing", text, None, row.eid)
                missing.discard(row.eid)
        if not self._contents:
            return
        whole = [row for row in acceptances if row.key is not None and row.eid not in missing]
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
                text = f"sender or recipients of message {row.eid} are not those that were accepted"
                self._report.add("message-differs", text, None, row.eid)
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
        if row.eid in self._erased:
            return
        self._report.contents += 1
        for part, found in (("header block", sha256(header).hexdigest()), ("body", digest.hexdigest())):
            if opening.get("hdr" if part == "header block" else "body") != found:
                text = f"the {part} of message {row.eid} is not the one that was accepted"
                self._report.add("message-differs", text, None, row.eid)

    # --- the end ---

    async def _see_to_the_waiting(self) -> None:
        """Events without a place: they may be in the log and not marked yet, be on their way, or be held back."""
        deadline = time.monotonic() + self._patience_s
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
        for stored in self._waiting:
            index = self._reader.index_of(stored.row.eid)
            if index is None:
                still.append(stored)
                continue
            found = self._reader.leaves(index, index + 1)
            if index < self._size:
                self._check_event(stored.row, index, found[0] if found else None)
        self._waiting = still

    def _judge_closed(self) -> None:
        for row, index in self._closed:
            if row.ref in self._erased or row.eid in self._erased:
                self._report.erased += 1
            else:
                text = f"{row.ev} {row.eid} cannot be opened any more and no message.erased says why"
                self._report.add("opening-missing", text, index, row.eid)

    def _judge_unlogged_messages(self) -> None:
        for (eid,) in self._messages.execute("SELECT eid FROM seen ORDER BY eid"):
            self._report.add("message-unlogged", f"message {eid} is kept and was never logged as accepted", None, eid)

    def _judge_unexplained_leaves(self) -> None:
        index = -1
        while (index := self._explained.find(0, index + 1)) >= 0:
            found = self._reader.leaves(index, index + 1)
            name = found[0].eid if found else "?"
            self._report.add("leaf-unexplained", f"leaf {index} ({name}) has no event in the store", index, name)


def _envelope(sender: str, recipients: Sequence[str]) -> bytes:
    return sha256("\n".join((sender, *recipients)).encode()).digest()


def opening_fault(row: EventRow) -> str | None:
    """What is wrong between a row that still has its key and its own leaf; None when every commitment opens.

    The leaf is not parsed unless something is wrong: canonical JSON has one spelling, so the commitments made anew must
    stand in it octet for octet, and so must the event's name, id, time and message.
    """
    if row.key is None or len(row.key) != KEY_SIZE:
        return "its key is missing"
    parts = _PARTS.get(row.ev)
    if parts is None:
        return "its name is in no catalogue"
    opening: dict[str, Any] = row.detail.get("open", {})
    if not opening.keys() >= CATALOGUE[row.ev].commits.keys():
        return f"the opening of {min(CATALOGUE[row.ev].commits.keys() - opening.keys())} is missing"
    leaf = row.leaf
    if f'"eid":"{row.eid}","ev":"{row.ev}"'.encode() not in leaf or b'"t":%d,' % row.t_ms not in leaf:
        return "its name, id or time is not the leaf's"
    if row.ev in ACCEPTANCE:
        named = row.ref == row.eid
    else:
        named = b'"ref":' not in leaf if row.ref is None else f'"ref":"{row.ref}"'.encode() in leaf
    if not named:
        return "it names another message than its leaf"
    if row.messages and set(row.messages) != set(str(opening["msgs"]).split("\n")):
        return "it names other messages than its leaf commits to"
    commit = _committer(row.key)
    made: dict[str, object] = {"trace": commit("trace", row.trace_id), "span": commit("span", row.span_id)}
    try:
        for part in CATALOGUE[row.ev].commits:
            made[part] = commitment(commit, part, opened(part, opening[part]))
    except (TypeError, ValueError, AttributeError):
        return "its openings are malformed"
    if f'"c":{{{",".join([_pair(part, made[part]) for part in parts])}}}'.encode() in leaf:
        return None
    return _differing(leaf, made)


def _pair(part: str, committed: object) -> str:
    if isinstance(committed, list):
        members = '","'.join(committed)
        return f'"{part}":["{members}"]' if committed else f'"{part}":[]'
    return f'"{part}":"{committed}"'


def _differing(leaf: bytes, made: dict[str, object]) -> str:
    """Name the commitments that do not open; only for a leaf that is wrong, so it may be anything."""
    try:
        commits = dict(json.loads(leaf)["c"])
    except (KeyError, TypeError, ValueError):
        return "its leaf commits to nothing"
    wrong = sorted(part for part in made.keys() | commits.keys() if commits.get(part) != made.get(part))
    return f"its {' and '.join(wrong)} differs from what the leaf commits to"


_PARTS = {ev: tuple(sorted({"trace", "span", *kind.commits})) for ev, kind in CATALOGUE.items()}
_committer = lru_cache(64)(committer)
"""One message's events stand together and share their key."""
