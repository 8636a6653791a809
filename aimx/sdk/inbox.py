r"""Taking mail: new and unacknowledged messages, each once, awaited in IDLE; replies to those who wait for them.

One task watches the mailbox as long as somebody wants something from it. A lost connection is opened again; only the
very first one, and a refused sign-in, are errors of the caller. Unacknowledged means: without `$AimxDone` and without
`\Deleted`.
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from aimx.message.dsn import ACTION_FIELD
from aimx.message.header import HeaderBlock
from aimx.message.identifier import message_ids
from aimx.sdk import imap
from aimx.sdk.account import Account
from aimx.sdk.errors import Unreachable
from aimx.sdk.imap import Data
from aimx.sdk.link import Link
from aimx.sdk.message import Message

DONE = "$AimxDone"
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
PATIENCE = 5.0
"""Seconds `close` gives what is still to be acknowledged."""
AT_ONCE = 4
"""So few new messages are fetched without asking first which they are."""
SMALL = 1 << 16
"""Octets of a message that comes with the first look at it."""
TRIES = 8
"""Connections tried for one command before its caller hears of it: about ten seconds."""
HEADERS_AT_ONCE = 200


class Inbox:
    """One agent's INBOX. `made` turns octets and UID into the message that is handed out."""

    def __init__(self, account: Account, made: Callable[[bytes, int], Message]) -> None:
        self._account = account
        self._made = made
        self._link: Link | None = None
        self._opening = asyncio.Lock()
        self._uidvalidity = 0
        self._next_uid = 1
        self._ready: deque[int] = deque()
        self._early: dict[int, Message] = {}
        """Messages of `_ready` that were fetched for a reader who was waiting already."""
        self._idle = 0
        """Readers who wait for a message."""
        self._in_hand: set[int] = set()
        self._wanted: dict[str, asyncio.Future[Message]] = {}
        self._readers = 0
        self._grown = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._failed: Exception | None = None
        self._begun = self._finished = 0
        """Looks at the mailbox, counted: whoever comes during one cannot know what it has missed."""
        self._sure = False
        """The last look was finished, so that what is known to be there has been seen."""
        self._settling: set[asyncio.Task[None]] = set()

    async def messages(self, *, follow: bool = True) -> AsyncGenerator[Message, None]:
        """Every message not yet acknowledged, oldest first; then each new one as it comes, for ever, or the end.

        Several iterators of one client share the mail: each message goes to one of them.
        """
        mine: set[int] = set()
        if not self._readers:
            self._ready.clear()
            self._early.clear()
            self._next_uid = 1
        self._readers += 1
        try:
            last = None if follow else self._begun + 1
            self._watch()
            while (uid := await self._take(last)) is not None:
                self._in_hand.add(uid)
                mine.add(uid)
                message = self._early.pop(uid, None) or await self._fetch(uid)
                if message is not None:
                    yield message
                if message is None or message.acknowledged:
                    mine.discard(uid)
                    self._in_hand.discard(uid)
        finally:
            self._readers -= 1
            self._in_hand -= mine
            self._rest()

    @asynccontextmanager
    async def reply_to(self, message_id: str) -> AsyncIterator[asyncio.Future[Message]]:
        """A future for the first message that answers `message_id`. It is kept from the iterators."""
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._wanted[message_id] = future
        try:
            self._watch()
            yield future
        finally:
            del self._wanted[message_id]
            if future.done() and not future.cancelled():
                future.exception()  # it was told to nobody, on purpose
            self._rest()

    async def done(self, uid: int) -> None:
        await self._command(f"UID STORE {uid} +FLAGS.SILENT ({DONE} \\Seen)")
        self._in_hand.discard(uid)

    def settle(self, work: Coroutine[Any, Any, None]) -> None:
        """Let a small thing be done that nobody needs to wait for before `close`."""
        task = asyncio.create_task(work)
        self._settling.add(task)
        task.add_done_callback(self._settled)

    def _settled(self, task: "asyncio.Task[None]") -> None:
        self._settling.discard(task)
        if not task.cancelled():
            task.exception()  # what could not be acknowledged is handed out again; nobody needs to hear of it here

    async def close(self) -> None:
        if self._settling:
            _, late = await asyncio.wait(self._settling, timeout=PATIENCE)
            for task in late:
                task.cancel()
        self._readers = 0
        self._wanted.clear()
        watching = self._watching
        self._rest()
        if watching is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        if self._link is not None:
            await self._link.close()
            self._link = None

    # ── the connection ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _connected(self) -> Link:
        async with self._opening:
            if self._link is not None and self._link.usable:
                return self._link
            if self._link is not None:
                await self._link.close()
                self._link = None
            link = await Link.open(self._account)
            if link.uidvalidity != self._uidvalidity:
                self._uidvalidity = link.uidvalidity
                self._ready.clear()
                self._early.clear()
                self._in_hand.clear()
                self._next_uid = 1
            self._link = link
            return link

    async def _command(self, text: str) -> list[Data]:
        """Run a command that does no harm twice, over a new connection if the old one is lost."""
        pause = FIRST_PAUSE
        first = self._link is None
        for attempt in range(TRIES):
            try:
                return await (await self._connected()).command(text)
            except Unreachable:
                if first or attempt == TRIES - 1:
                    raise
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 — spreads load, guards nothing
            pause = min(2 * pause, LONGEST_PAUSE)
        raise AssertionError("unreachable")

    # ── watching ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _watch(self) -> None:
        if self._watching is None or self._watching.done():
            self._failed = None
            self._watching = asyncio.create_task(self._watch_mailbox(), name="aimx inbox")
        elif self._link is not None:
            self._link.wake()

    def _rest(self) -> None:
        if self._watching is not None and not self._readers and not self._wanted:
            self._watching.cancel()
            self._watching = None

    async def _watch_mailbox(self) -> None:
        pause = FIRST_PAUSE
        ever = self._link is not None
        while True:
            try:
                link = await self._connected()
                ever = True
                number = self._begun = self._begun + 1
                await self._look(link)
                self._finished = number
                self._grown.set()
                pause = FIRST_PAUSE
                await link.news()
                continue
            except Unreachable as error:
                if not ever:
                    self._fail(error)
                    return
            except Exception as error:
                self._fail(error)
                return
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
            pause = min(2 * pause, LONGEST_PAUSE)

    def _fail(self, error: Exception) -> None:
        self._failed = error
        self._grown.set()
        for future in self._wanted.values():
            if not future.done():
                future.set_exception(error)

    async def _look(self, link: Link) -> None:
        """Find what is new since the last look: replies for those who wait, the rest for the iterators."""
        since = self._next_uid
        fresh = link.fresh()
        # A look that was broken off has taken note of messages it never came to: the next one must ask for all.
        sure, self._sure = self._sure, False
        if sure and since > 1 and 0 < len(fresh) <= AT_ONCE and (self._idle or self._wanted):
            await self._look_at(link, fresh, since)
        else:
            await self._look_from(link, since)
        self._sure = True

    async def _look_from(self, link: Link, since: int) -> None:
        if since == 1:
            # A search is about the messages this session has been told of; NOOP makes the node tell (RFC 3501 §6.1.2).
            await link.command("NOOP")
        found: list[int] = []
        for data in await link.command(f"UID SEARCH UID {since}:* UNKEYWORD {DONE} UNDELETED"):
            if data.name == "SEARCH":
                found += [int(str(value)) for value in data.values]
        # `n:*` always holds the last message, also when it is older than n (RFC 3501 §6.4.8).
        found = sorted(uid for uid in set(found) if uid >= since)
        last = max([since - 1, *found] if since > 1 else [link.uidnext - 1, *found])
        known = await self._claim(link, found) | self._in_hand | set(self._ready)
        self._ready += [uid for uid in found if uid not in known]
        self._next_uid = last + 1 if self._next_uid == since else self._next_uid
        self._grown.set()

    async def _look_at(self, link: Link, fresh: range, since: int) -> None:
        """The same for a few messages and somebody who waits for them: fetched at once.

        Only whose turn it is may count as read, so what is wanted by nobody but a waiting request is looked at first.
        """
        whole = self._idle >= len(fresh)
        what = f"BODY.PEEK[]<0.{SMALL}>" if whole else _FIELDS
        answers: list[int] = []

        def hear(data: Data) -> None:
            for uid, values in _fetched([data]):
                if uid < since or uid in self._in_hand or _is_done(values):
                    continue
                octets = next((v for k, v in values.items() if k.startswith("BODY[") and isinstance(v, bytes)), b"")
                complete = whole and values.get("RFC822.SIZE") == str(len(octets))
                if self._next_uid >= since:  # else everything is to be looked at again
                    self._next_uid = max(self._next_uid, uid + 1)
                future = self._waiting_for(octets)
                if future is None:
                    if complete:
                        self._early[uid] = self._made(octets, uid)
                    self._ready.append(uid)
                    self._grown.set()
                    continue
                self._in_hand.add(uid)
                if complete:
                    future.set_result(self._made(octets, uid))
                else:
                    answers.append(uid)

        span = f"{fresh[0]}:{fresh[-1]}"
        await link.command(f"FETCH {span} (UID FLAGS RFC822.SIZE {what})", hear)
        try:
            for uid in answers:
                await self._answer(link, uid)
        except BaseException:
            self._in_hand.difference_update(answers)
            self._next_uid = min(self._next_uid, *answers)
            raise

    async def _answer(self, link: Link, uid: int) -> None:
        """Read a reply and hand it to who waits for it, as soon as it is here."""

        def hear(data: Data) -> None:
            message = self._one(uid, [data])
            future = self._waiting_for(message.raw) if message is not None else None
            if message is not None and future is not None:
                future.set_result(message)

        await link.command(_whole(uid), hear)

    async def _claim(self, link: Link, uids: list[int]) -> set[int]:
        """Hand replies to those who wait for them; the UIDs of these."""
        claimed: set[int] = set()
        for start in range(0, len(uids) if self._wanted else 0, HEADERS_AT_ONCE):
            some = ",".join(map(str, uids[start : start + HEADERS_AT_ONCE]))
            for uid, values in _fetched(await link.command(f"UID FETCH {some} (UID {_FIELDS})")):
                header = next((v for k, v in values.items() if k.startswith("BODY[") and isinstance(v, bytes)), b"")
                future = self._waiting_for(header)
                if future is None:
                    continue
                claimed.add(uid)
                self._in_hand.add(uid)
                await self._answer(link, uid)
        return claimed

    def _waiting_for(self, header: bytes) -> asyncio.Future[Message] | None:
        block, _ = HeaderBlock.parse(header)
        if (block.get(ACTION_FIELD) or "failed") != "failed":
            return None  # a report that it still waits, or has arrived, is no answer
        # The direct answer first, then a longer way back, newest first.
        names = message_ids(block.get("In-Reply-To")) + message_ids(block.get("References"))[::-1]
        for name in names:
            future = self._wanted.get(name)
            if future is not None and not future.done():
                return future
        return None

    async def _take(self, last: int | None) -> int | None:
        """The next message; None when nothing is left after the look with the number `last`."""
        while not self._ready:
            if self._failed is not None:
                raise self._failed
            if last is not None and self._finished >= last:
                return None
            self._grown.clear()
            self._idle += 1
            try:
                await self._grown.wait()
            finally:
                self._idle -= 1
        return self._ready.popleft()

    async def _fetch(self, uid: int) -> Message | None:
        return self._one(uid, await self._command(_whole(uid)))

    def _one(self, uid: int, data: list[Data]) -> Message | None:
        """The message, unless it is gone or was done with meanwhile (by another session of this agent)."""
        for found, values in _fetched(data):
            raw = values.get("BODY[]")
            if found == uid and isinstance(raw, bytes) and not _is_done(values):
                return self._made(raw, uid)
        return None


_FIELDS = "BODY.PEEK[HEADER.FIELDS (IN-REPLY-TO REFERENCES AIMX-ACTION)]"


def _is_done(values: dict[str, imap.Value]) -> bool:
    flags = values.get("FLAGS")
    names = {str(flag).lower() for flag in flags} if isinstance(flags, list) else set()
    return bool(names & {DONE.lower(), "\\deleted"})


def _whole(uid: int) -> str:
    return f"UID FETCH {uid} (UID FLAGS BODY.PEEK[])"


def _fetched(data: list[Data]) -> list[tuple[int, dict[str, imap.Value]]]:
    rows = [imap.items(one) for one in data if one.name == "FETCH"]
    return [(int(str(row["UID"])), row) for row in rows if "UID" in row]
