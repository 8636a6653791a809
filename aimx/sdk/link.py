"""One IMAP connection: signs in, selects INBOX, runs commands one after the other, idles in between.

The link knows no messages. A lost connection ends it: whoever holds it opens another.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from aimx.sdk import imap
from aimx.sdk.account import Account
from aimx.sdk.errors import AimxError, SignInFailed, Unreachable, reason
from aimx.sdk.imap import Completed, Conversation, Data, ProtocolError

IDLE_FOR = 25 * 60.0
"""Seconds after which IDLE is begun anew: servers may drop a client after 30 minutes (RFC 2177)."""
CONNECT_TIMEOUT = 30.0
COMMAND_TIMEOUT = 120.0


class CommandRefused(AimxError):
    """NO or BAD to a command that should have worked."""


class Link:
    """Open with `Link.open(account)`. One task reads; any task may call."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._talk = Conversation()
        self._turn = asyncio.Lock()
        self._answers: dict[str, asyncio.Future[Completed]] = {}
        self._greeted: asyncio.Future[imap.Greeted] = asyncio.get_running_loop().create_future()
        self._continued = asyncio.Event()
        self._news = asyncio.Event()
        self._stirred = asyncio.Event()
        """Set when a waiting task should look again: news, an IDLE that ended, or the end of the link."""
        self._failure: BaseException | None = None
        self._hear: dict[str, Callable[[Data], None]] = {}
        self._exists = 0
        self._known = 0
        """Of the messages in the mailbox, how many `fresh` has told of."""
        self._reading = asyncio.create_task(self._read(), name="aimx imap")
        self.uidvalidity = 0
        self.uidnext = 1
        """What the mailbox's next UID was when it was opened."""

    @classmethod
    async def open(cls, account: Account) -> "Link":
        """Connect over TLS, sign in, select INBOX. Raises Unreachable, SignInFailed."""
        host, port = account.imap
        tls = account.tls()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                reader, writer = await asyncio.open_connection(host, port, ssl=tls, limit=1 << 20)
        except (OSError, TimeoutError) as error:
            raise Unreachable(f"no IMAP at {host}:{port}: {reason(error, account.ca)}") from None
        raw = writer.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        link = cls(reader, writer)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await link._sign_in(account)
                await link._select()
        except BaseException as error:
            await link.close()
            if isinstance(error, TimeoutError):
                raise Unreachable(f"IMAP at {host}:{port} does not answer") from None
            raise
        return link

    async def command(self, text: str, hears: Callable[[Data], None] | None = None) -> list[Data]:
        """Run one command; what came for it. Raises Unreachable, CommandRefused.

        `hears` is told of each FETCH response when it comes: the answer to the command waits for a commit of the node.
        """
        done = await self._ask(text, hears=hears)
        if done.status != "OK":
            raise CommandRefused(f"{done.status} {done.text}")
        return done.data

    async def news(self) -> None:
        """Return when the mailbox has grown since the last call. Idles meanwhile. Raises Unreachable."""
        while not self._news.is_set():
            async with self._turn:
                self._check()
                if self._news.is_set():  # it came while somebody else had the turn
                    break
                self._stirred.clear()
                if not self._talk.idling:
                    self._begin_idle()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_FOR):
                    await self._stirred.wait()
                    continue
            await self._ask("NOOP")  # ends IDLE, proves that the other side is alive; the loop idles again
        self._check()
        self._news.clear()

    def fresh(self) -> range:
        """The sequence numbers of messages that came since the last call, or since the mailbox was opened."""
        fresh = range(self._known + 1, self._exists + 1)
        self._known = self._exists
        return fresh

    def wake(self) -> None:
        """Let `news` return although nothing came."""
        self._news.set()
        self._stirred.set()

    @property
    def usable(self) -> bool:
        return self._failure is None

    async def close(self) -> None:
        """Say goodbye if there is anybody to say it to."""
        if self._failure is None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1):
                    await self._ask("LOGOUT")
        self._reading.cancel()
        self._fail(Unreachable("the connection was closed"))
        self._writer.close()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(1):
                await self._writer.wait_closed()

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _sign_in(self, account: Account) -> None:
        greeting = await self._greeted
        if greeting.status == "BYE":
            raise Unreachable(f"IMAP says: {greeting.text}")
        secret = imap.plain(account.address, account.password)
        capabilities = {
            str(v).upper()
            for data in await self.command("CAPABILITY")
            if data.name == "CAPABILITY"
            for v in data.values
        }
        if "SASL-IR" in capabilities:
            done = await self._ask(f"AUTHENTICATE PLAIN {secret}")
        else:
            done = await self._ask("AUTHENTICATE PLAIN", secret)
        if done.status != "OK":
            raise SignInFailed(f"{account.address} may not sign in: {done.text or done.status}")

    async def _select(self) -> None:
        for data in await self.command("SELECT INBOX"):
            if data.name == "UIDVALIDITY":
                self.uidvalidity = int(str(data.values[0]))
            elif data.name == "UIDNEXT":
                self.uidnext = int(str(data.values[0]))

    async def _ask(
        self, text: str, continuation: str | None = None, hears: Callable[[Data], None] | None = None
    ) -> Completed:
        async with self._turn:
            self._check()
            self._continued.clear()
            tag, octets = self._talk.command(text)
            answer: asyncio.Future[Completed] = asyncio.get_running_loop().create_future()
            self._answers[tag] = answer
            if hears is not None:
                self._hear[tag] = hears
            self._writer.write(octets)
            try:
                async with asyncio.timeout(COMMAND_TIMEOUT):
                    if continuation is not None:
                        await self._first(self._continued.wait(), answer)
                        if not answer.done():
                            self._writer.write(continuation.encode() + b"\r\n")
                    return await answer
            except TimeoutError:
                self._fail(Unreachable("IMAP does not answer"))
                raise Unreachable("IMAP does not answer") from None
            finally:
                # Cancelled: the answer still comes, for nobody. The conversation keeps count; the next may follow.
                self._answers.pop(tag, None)
                self._hear.pop(tag, None)
                self._stirred.set()  # whoever idled was interrupted

    @staticmethod
    async def _first(waiting: Coroutine[Any, Any, object], answer: asyncio.Future[Completed]) -> None:
        task = asyncio.ensure_future(waiting)
        try:
            either: list[asyncio.Future[Any]] = [task, answer]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()

    def _begin_idle(self) -> None:
        tag, octets = self._talk.idle()
        self._answers[tag] = asyncio.get_running_loop().create_future()
        self._answers[tag].add_done_callback(lambda done: self._idle_ended(tag, done))
        self._writer.write(octets)

    def _idle_ended(self, tag: str, done: asyncio.Future[Completed]) -> None:
        self._answers.pop(tag, None)
        if not done.cancelled() and done.exception() is None and done.result().status != "OK":
            self._fail(Unreachable(f"IMAP refuses IDLE: {done.result().text}"))

    async def _read(self) -> None:
        try:
            while octets := await self._reader.read(1 << 16):
                for event in self._talk.feed(octets):
                    self._receive(event)
            raise Unreachable("the node closed the IMAP connection")
        except asyncio.CancelledError:
            raise
        except Unreachable as error:
            self._fail(error)
        except (OSError, ProtocolError) as error:
            self._fail(Unreachable(f"the IMAP connection broke: {error}"))

    def _receive(self, event: imap.Event) -> None:
        match event:
            case Completed(tag=tag):
                answer = self._answers.get(tag)
                if answer is not None and not answer.done():
                    answer.set_result(event)
            case imap.Arrived(exists=exists):
                self._exists = exists
                self._news.set()
                self._stirred.set()
            case imap.Expunged(number=number):
                self._exists -= 1
                self._known -= number <= self._known
            case imap.Fetched(tag=tag, data=data):
                self._heard(tag, data)
            case imap.Greeted():
                if not self._greeted.done():
                    self._greeted.set_result(event)
            case imap.Continued():
                self._continued.set()
            case imap.Bye():
                pass  # the connection ends next; that is what counts

    def _heard(self, tag: str, data: Data) -> None:
        try:
            if tag in self._hear:
                self._hear[tag](data)
        except Exception as error:  # whoever gave the command has to know, and the next response must still be read
            answer = self._answers.get(tag)
            if answer is not None and not answer.done():
                answer.set_exception(error)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: BaseException) -> None:
        """The link is over: everybody who waits for something hears it."""
        if self._failure is not None:
            return
        self._failure = error
        everybody: list[asyncio.Future[Any]] = [self._greeted, *self._answers.values()]
        for waiting in everybody:
            if not waiting.done():
                waiting.set_exception(error)
                waiting.exception()  # nobody may be waiting any more; that is no error of its own
        self._news.set()
        self._stirred.set()
        self._writer.close()
