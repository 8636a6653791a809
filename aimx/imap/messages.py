"""Commands on the messages of the selected mailbox: FETCH, STORE, SEARCH, COPY, MOVE, EXPUNGE (RFC 3501 §6.4).

Store calls are set-based: one question for a whole set, however many messages it names. Each function writes its
untagged responses to the desk and returns the response code of the tagged OK, empty where there is none.
"""

import asyncio
import time
from dataclasses import dataclass
from functools import cache, partial
from typing import Protocol

from aimx.imap import fetch as fetching
from aimx.imap import mime, response
from aimx.imap import search as searching
from aimx.imap.command import Expunge, Fetch, Search, Store, Transfer
from aimx.imap.errors import No
from aimx.imap.mailboxes import find
from aimx.imap.trace import Origin, Trail, Verb
from aimx.imap.view import View, flags_response
from aimx.message.header import HeaderBlock
from aimx.store import contract
from aimx.store.contract import Marked, Row, SpanRef
from aimx.store.search import Ranges
from aimx.telemetry import metrics
from aimx.telemetry.span import MAX_LINKS

PICKUP = metrics.histogram("aimx.pickup.latency").labels()

SEARCHED = 256 * 1024
"""Octets of a body that SEARCH BODY decodes; of larger ones the rest is searched as it stands."""
SENT_AT_ONCE = 64 * 1024
"""Octets written before the peer is given time to take them."""
HELD = 2 * 1024 * 1024
"""Octets of rows held at a time: the peer may take its time."""
FEW = 8
"""So many rows are within `HELD`, whatever they hold."""
A_TURN = 0.005
"""Seconds of work on the event loop before others have theirs."""


class Out(Protocol):
    """Where responses go. `drain` waits while the peer does not take what was written."""

    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...


class _Turns:
    """Lets others have their turn while one command works through many messages."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    async def share(self) -> None:
        if time.monotonic() - self._since > A_TURN:
            await asyncio.sleep(0)
            self._since = time.monotonic()


@dataclass(slots=True)
class Desk:
    """What a command on messages works with."""

    store: contract.Store
    out: Out
    origin: Origin
    structures: fetching.Structures
    view: View

    def trail(self, verb: Verb) -> Trail:
        box = self.view.mailbox
        return Trail(self.origin, verb, box.key, box.name)

    def may_write(self) -> None:
        if self.view.read_only:
            raise No("the mailbox was opened read-only", "READ-ONLY")


def is_witnessed(command: Fetch | Store | Search | Transfer | Expunge) -> bool:
    """Whether it leaves an event in the log."""
    match command:
        case Fetch():
            return fetching.plan(command.items).content
        case Search():
            return False
        case _:
            return True


# --- FETCH -----------------------------------------------------------------------------------------------------------


async def fetch(desk: Desk, command: Fetch) -> str:
    view = desk.view
    plan = fetching.plan(command.items)
    ranges = view.ranges(command.by_uid, command.messages)
    trail = desk.trail("fetch")
    asked = found = 0
    read: list[Row] = []
    try:
        for part in view.slices(ranges, plan.batch):
            asked += _count(view, part)
            for held in await _holdable(desk, plan, part):
                rows = await desk.store.fetch(
                    view.mailbox.key, held, header=plan.header, body=fetching.INLINE if plan.body else 0
                )
                found += len(rows)
                await _send_rows(desk, plan, rows, read)
    finally:
        # Also when the peer left in the middle: what was sent was read.
        if read:
            await _witness_read(desk, plan, trail, read, command.by_uid)
    # Some were expunged by others and this client cannot be told yet (RFC 2180 §4.1.2, RFC 5530).
    return "EXPUNGEISSUED" if found < asked else ""


async def _holdable(desk: Desk, plan: fetching.Plan, part: Ranges) -> list[Ranges]:
    """The messages of `part` in portions of at most `HELD` octets: 256 headers may be 64 MiB."""
    view = desk.view
    if not plan.header or _count(view, part) <= FEW:
        return [part]
    portions: list[list[int]] = [[]]
    held = 0
    for row in await desk.store.fetch(view.mailbox.key, part):
        held += plan.size(row)
        if held > HELD and portions[-1]:
            portions.append([])
            held = plan.size(row)
        portions[-1].append(row.uid)
    return [part] if len(portions) == 1 else [response.ranges(portion) for portion in portions]


def _count(view: View, ranges: Ranges) -> int:
    low, high = view.number(ranges[0][0]), view.number(ranges[-1][1])
    if len(ranges) == 1 and low is not None and high is not None:
        return high - low + 1
    return sum((view.number(high) or 0) - (view.number(low) or 0) + 1 for low, high in ranges)


async def _send_rows(desk: Desk, plan: fetching.Plan, rows: list[Row], read: list[Row]) -> None:
    """Those whose content is sent are added to `read`, without their octets."""
    view, turns = desk.view, _Turns()
    written = 0
    for row in rows:
        await turns.share()
        number = view.number(row.uid)
        if number is None:
            continue
        if plan.content:
            read.append(row)
        flags = view.flags(row.uid, row.flags)
        async for piece in fetching.respond(plan, number, row, flags, desk.store, desk.structures):
            if isinstance(piece, fetching.Slice):
                async for octets in fetching.read_slice(desk.store, piece):
                    desk.out.write(octets)
                    await desk.out.drain()
                continue
            desk.out.write(piece)
            written += len(piece)
            if written >= SENT_AT_ONCE:
                written = 0
                await desk.out.drain()
                await turns.share()
        row.header = row.body = None
    await desk.out.drain()


async def _witness_read(desk: Desk, plan: fetching.Plan, trail: Trail, rows: list[Row], by_uid: bool) -> None:
    r"""Record who read what, and set \Seen: one commit, durable before the tagged OK says so."""
    span = trail.span([row.origin for row in rows])
    unseen = [row for row in rows if "\\Seen" not in row.flags]
    now_ms = time.time_ns() // 1_000_000
    for row in unseen:
        PICKUP.record(max(now_ms - row.saved_ms, 0) / 1000, span)
    if unseen:
        span.set("aimx.pickup.latency", max(now_ms - min(row.saved_ms for row in unseen), 0) / 1000)
    event = trail.read(span, [row.eid for row in rows])
    try:
        if not (plan.sees and unseen and not desk.view.read_only):
            await desk.store.record([event])
        else:
            uids = response.ranges(row.uid for row in unseen)
            done = await desk.store.mark(
                desk.view.mailbox.key, uids, "add", frozenset({"\\Seen"}), lambda flagged: (event,)
            )
            _send_flags(desk, done.marked, by_uid)
    except BaseException:
        trail.end("NO")
        raise
    trail.end("OK")


# --- STORE -----------------------------------------------------------------------------------------------------------


async def store(desk: Desk, command: Store) -> str:
    desk.may_write()
    view = desk.view
    ranges = view.ranges(command.by_uid, command.messages)
    if not ranges:
        return ""
    trail = desk.trail("store")
    before = view.modseq
    try:
        done = await desk.store.mark(
            view.mailbox.key, ranges, command.mode, command.flags, trail.flagged(command.mode, command.flags)
        )
    except BaseException:
        trail.end("NO")
        raise
    trail.end("OK")
    if not command.silent:
        _send_flags(desk, done.marked, command.by_uid)
        await desk.out.drain()
    elif all(entry.modseq <= before + 1 for entry in done.marked):
        # Nobody came between what the client knows and its own change: it knows the outcome.
        view.tell(done.marked)
    return ""


def _send_flags(desk: Desk, marked: list[Marked], by_uid: bool) -> None:
    view = desk.view
    lines: list[bytes] = []
    for entry in marked:
        number = view.number(entry.uid)
        if number is not None:
            flags = view.flags(entry.uid, entry.flags)
            lines.append(flags_response(number, entry.uid if by_uid else None, flags))
    view.tell(marked)
    desk.out.write(b"".join(lines))


# --- COPY, MOVE, EXPUNGE ---------------------------------------------------------------------------------------------


async def transfer(desk: Desk, command: Transfer) -> str:
    """COPY and MOVE, all or nothing (RFC 3501 §6.4.7, RFC 6851 §3.3); the response code is COPYUID (RFC 4315 §3)."""
    view = desk.view
    if command.move:
        desk.may_write()
    ranges = view.ranges(command.by_uid, command.messages)
    to = await find(desk.store, view.mailbox.key.owner, command.mailbox, "TRYCREATE")
    if not ranges:
        return ""
    trail = desk.trail("move" if command.move else "copy")
    witness = trail.copied((to.key.owner, to.name), await _origins(desk, ranges))
    act = desk.store.move if command.move else desk.store.copy
    try:
        done = await act(view.mailbox.key, ranges, to.key, witness)
    except contract.NotFound as error:
        raise No("there is no such mailbox", "TRYCREATE") from error
    except BaseException:
        trail.end("NO")
        raise
    trail.end("OK")
    if not done.pairs:
        return ""
    sources = response.uid_set(source for source, _ in done.pairs).decode("ascii")
    targets = response.uid_set(target for _, target in done.pairs).decode("ascii")
    code = f"COPYUID {done.uidvalidity} {sources} {targets}"
    if not command.move:
        return code
    # MOVE sends it untagged, before the EXPUNGEs (RFC 6851 §4.3).
    desk.out.write(f"* OK [{code}] moved\r\n".encode("ascii"))
    return ""


async def _origins(desk: Desk, ranges: Ranges) -> list[SpanRef]:
    """Creation contexts for the span: of the one message, or to link to."""
    first = next(desk.view.slices(ranges, MAX_LINKS + 1), ())
    return [row.origin for row in await desk.store.fetch(desk.view.mailbox.key, first)]


async def expunge(desk: Desk, command: Expunge) -> str:
    desk.may_write()
    ranges = None if command.uids is None else desk.view.ranges(True, command.uids)
    if ranges == ():
        return ""
    trail = desk.trail("expunge")
    try:
        await desk.store.expunge(desk.view.mailbox.key, ranges, lambda done: trail.expunged(done.eids))
    except BaseException:
        trail.end("NO")
        raise
    trail.end("OK")
    return ""


# --- SEARCH ----------------------------------------------------------------------------------------------------------


async def search(desk: Desk, command: Search) -> str:
    view = desk.view
    criteria = searching.numbered(command.criteria, view.ranges, tuple(view.recent))
    uids, exact = await desk.store.search(view.mailbox.key, searching.tree(criteria))
    uids = list(view.known(uids))
    if not exact:
        uids = await _decide(desk, criteria, uids)
    numbers = uids if command.by_uid else [number for number in map(view.number, uids) if number is not None]
    desk.out.write(b"* SEARCH" + b"".join(b" %d" % number for number in numbers) + b"\r\n")
    return ""


async def _decide(desk: Desk, criteria: searching.Criteria, uids: list[int]) -> list[int]:
    """Evaluate on the candidates what the store could not."""
    needs = searching.needs(criteria)
    held: list[int] = []
    turns = _Turns()
    batch = 16 if needs.body else 100
    for place in range(0, len(uids), batch):
        part = response.ranges(uids[place : place + batch])
        rows = await desk.store.fetch(
            desk.view.mailbox.key, part, header=needs.header, body=SEARCHED if needs.body else 0
        )
        for row in rows:
            beyond = await _beyond(desk, criteria, row) if needs.body and row.body is None else b""
            size = len(row.header or b"") + len(row.body or beyond)
            if size < fetching.APART:
                holds = searching.holds(criteria, _candidate(row, beyond))
            else:
                holds = await asyncio.to_thread(lambda: searching.holds(criteria, _candidate(row, beyond)))  # noqa: B023
            if holds:
                held.append(row.uid)
            await turns.share()
    return held


def _candidate(row: Row, beyond: bytes) -> searching.Candidate:
    header = row.header or b""
    block = HeaderBlock.parse(header)[0]
    body = row.body if row.body is not None else beyond
    return searching.Candidate(
        row.uid,
        row.flags,
        row.internal_ms,
        row.header_size + row.body_size,
        block,
        cache(lambda name: [value.casefold() for value in block.get_all(name)]),
        cache(partial(searching.header_text, header, block)),
        cache(partial(mime.text_of, header, body)),
    )


async def _beyond(desk: Desk, criteria: searching.Criteria, row: Row) -> bytes:
    """A large body as far as it is decoded, with every searched text that was found in the rest put behind it."""
    octets = await desk.store.read_body(row.eid, 0, SEARCHED)
    missing = {text for text in searching.texts(criteria) if text}
    overlap = max(map(len, missing), default=1) - 1
    tail, start = octets[-overlap:] if overlap else b"", len(octets)
    found: list[bytes] = []
    while missing and start < row.body_size:
        part = await desk.store.read_body(row.eid, start, fetching.PART)
        if not part:
            break
        window = (tail + part).lower()
        here = {text for text in missing if text in window}
        found += here
        missing -= here
        tail, start = window[-overlap:] if overlap else b"", start + len(part)
    return b"\r\n".join([octets, *found])


# --- closing ---------------------------------------------------------------------------------------------------------


async def close(desk: Desk) -> None:
    """CLOSE expunges without a word (RFC 3501 §6.4.2)."""
    if not desk.view.read_only:
        await expunge(desk, Expunge(None))
