"""What changed, told to those who wait for it: in this process at once, in the others by NOTIFY.

NOTIFY takes a lock that all of a database's share until its transaction ends. So it goes out after the commit, on a
connection of its own, and what comes together while one is under way goes as one. It can be missed (a process dies
between commit and NOTIFY, a connection breaks): so each process also looks once a second at what its subscribers wait
for, by a handful of index steps, and takes everything for changed when it has been away.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress

from aimx.store.contract import MailboxKey, Topic
from aimx.store.postgres.connection import Complaint, Db, connect

log = logging.getLogger(__name__)

CHANNEL = "aimx"
LOOK_S = 1.0
"""A missed notification costs at most this."""
MOST = 500
"""Topics in one NOTIFY: it holds 8,000 octets."""

GONE = -1
"""MODSEQ of a mailbox that is no more."""

_LETTERS: dict[str, Topic] = {"q": "queue", "e": "events", "a": "agents"}
_NAMES = {name: letter for letter, name in _LETTERS.items()}

_COUNTERS = """
SELECT (SELECT last_value + is_called::int FROM delivery_id), (SELECT last_value + is_called::int FROM event_seq),
    (SELECT value FROM counter WHERE name = 'agents')
"""
_COUNTED: tuple[Topic, ...] = ("queue", "events", "agents")
_MAILBOXES = "SELECT id, modseq FROM mailbox WHERE id = ANY ($1::bigint[])"


class Notifier:
    """Subscribers of one process, and its line to the other processes. All on the event loop's thread."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._subscribers: dict[Topic, dict[object, Callable[[], None]]] = {}
        self._mailboxes: dict[int, MailboxKey] = {}
        """Subscribed ones, by id."""
        self._unsent: set[str] = set()
        self._to_send = asyncio.Event()
        self._db: Db | None = None
        self._task: asyncio.Task[None] | None = None
        self._complain = Complaint()
        self._seen: dict[Topic, int] = {}
        """Numbers at the last look."""
        self._unsettled: set[Topic] = set()
        """Counters that had moved then: the transaction that moved them may have been still under way."""

    @property
    def stands(self) -> bool:
        """Whether the others would be heard now."""
        return self._db is not None and not self._db.is_closed()

    def subscribe(self, topic: Topic, callback: Callable[[], None]) -> Callable[[], None]:
        token = object()
        self._subscribers.setdefault(topic, {})[token] = callback
        self._seen.pop(topic, None)  # to be called at the next look: see there
        if isinstance(topic, MailboxKey):
            self._mailboxes[topic.id] = topic

        def end() -> None:
            of_topic = self._subscribers.get(topic, {})
            of_topic.pop(token, None)
            if not of_topic:
                self._subscribers.pop(topic, None)
                self._seen.pop(topic, None)
                if isinstance(topic, MailboxKey):
                    self._mailboxes.pop(topic.id, None)

        return end

    def changed(self, topics: Iterable[Topic]) -> None:
        """A commit of this process."""
        topics = set(topics)
        self._call(topics)
        self._unsent.update(str(topic.id) if isinstance(topic, MailboxKey) else _NAMES[topic] for topic in topics)
        self._to_send.set()

    def _call(self, topics: Iterable[Topic]) -> None:
        for topic in topics:
            for callback in list(self._subscribers.get(topic, {}).values()):
                try:
                    callback()
                except Exception as error:
                    asyncio.get_running_loop().call_exception_handler(
                        {"message": "a store subscriber failed", "exception": error}
                    )

    # ── the line to the others ──────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Returns when the line stands. Raises what asyncpg raises."""
        await self._dial()
        self._task = asyncio.create_task(self._run(), name="aimx-store-notify")

    async def close(self) -> None:
        if self._task is None:
            return
        with suppress(Exception):
            async with asyncio.timeout(LOOK_S):
                await self._send()
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._hang_up()

    def _hang_up(self) -> None:
        if self._db is not None:
            self._db.terminate()
            self._db = None

    async def _run(self) -> None:
        while True:
            try:
                await self._talk(self._db or await self._dial())
            except Exception as error:
                self._complain("no word from the other nodes", error)
                self._hang_up()
                await asyncio.sleep(LOOK_S)

    async def _dial(self) -> Db:
        db = await connect(self._url, self._name, synchronous_commit="off")  # what it writes is only said
        await db.add_listener(CHANNEL, self._heard)
        self._db = db
        self._seen.clear()
        self._call(list(self._subscribers))  # nobody knows what was said meanwhile
        return db

    async def _talk(self, db: Db) -> None:
        """Raises when the connection is lost."""
        loop = asyncio.get_running_loop()
        next_look = loop.time()
        while True:
            if loop.time() >= next_look:
                await self._look(db)
                next_look = loop.time() + LOOK_S
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_look):
                    await self._to_send.wait()
            await self._send()

    async def _send(self) -> None:
        self._to_send.clear()
        while self._unsent and self._db is not None:
            some = [self._unsent.pop() for _ in range(min(MOST, len(self._unsent)))]
            try:
                await self._db.execute("SELECT pg_notify($1, $2)", CHANNEL, ";".join(some))
            except BaseException:
                self._unsent.update(some)
                raise

    def _heard(self, _db: object, process: int, _channel: str, payload: str) -> None:
        if self._db is not None and process == self._db.get_server_pid():
            return  # our own
        topics: set[Topic] = set()
        for word in payload.split(";"):
            if word.isdecimal():
                if (key := self._mailboxes.get(int(word))) is not None:
                    topics.add(key)
            elif word in _LETTERS:
                topics.add(_LETTERS[word])
        self._call(topics)

    # ── what was missed ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _look(self, db: Db) -> None:
        numbers: dict[Topic, int] = {}
        if any(topic in self._subscribers for topic in _COUNTED):
            counters = zip(_COUNTED, await db.fetchrow(_COUNTERS), strict=True)
            numbers |= {topic: number for topic, number in counters if topic in self._subscribers}
        if self._mailboxes:
            asked = dict(self._mailboxes)
            rows = {row[0]: row[1] for row in await db.fetch(_MAILBOXES, list(asked))}
            numbers |= {key: rows.get(number, GONE) for number, key in asked.items()}
        # Who has just subscribed may have missed something between its last reading and this look.
        new = numbers.keys() - self._seen.keys()
        moved = {topic for topic, number in numbers.items() if self._seen.get(topic, number) != number}
        self._seen |= numbers
        self._call(new | moved | self._unsettled)
        self._unsettled = moved.intersection(_COUNTED)
