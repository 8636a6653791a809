"""The directory: sign-in by every mechanism, caching, throttling, and what strangers can learn."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from aimx.config import SignIn
from aimx.identity import scram
from aimx.identity.agents import Denied, Directory, Granted, SignInDialog
from aimx.identity.sasl import Challenge
from aimx.store.contract import Agent
from tests.unit.test_scram import CLIENT_FIRST, client_final

ME = "user@fabric.local"
PEER = "192.0.2.1"


class Agents:
    def __init__(self) -> None:
        self.known = {ME: Agent(ME, scram.derive("pencil"), 0)}
        self.asked = 0
        self.changed: Callable[[], None] = lambda: None

    async def agent(self, address: str) -> Agent | None:
        self.asked += 1
        return self.known.get(address)

    def subscribe(self, topic: str, callback: Callable[[], None]) -> Callable[[], None]:
        self.changed = callback
        return lambda: None


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def agents() -> Agents:
    return Agents()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def directory(agents: Agents, clock: Clock) -> AsyncIterator[Directory]:
    made = Directory(agents, ("fabric.local",), SignIn(delay=0.01, max_failures=3), secret=b"s" * 32, clock=clock)
    yield made
    made.close()


def dialog(directory: Directory, mechanism: str) -> SignInDialog:
    made = directory.sign_in(mechanism, PEER, via="imap")
    assert made is not None
    return made


async def test_plain(directory: Directory) -> None:
    granted = await dialog(directory, "plain").respond(b"\0user\0pencil")
    assert isinstance(granted, Granted)
    assert granted.agent.address == ME
    later = dialog(directory, "PLAIN")
    assert await later.respond(None) == Challenge(b"")
    assert isinstance(await later.respond(b"User@Fabric.Local\0USER\0pencil"), Granted)


async def test_login(directory: Directory) -> None:
    asked = dialog(directory, "LOGIN")
    assert await asked.respond(None) == Challenge(b"Username:")
    assert await asked.respond(b"user") == Challenge(b"Password:")
    assert isinstance(await asked.respond(b"pencil"), Granted)


async def test_scram(directory: Directory) -> None:
    asked = dialog(directory, "SCRAM-SHA-256")
    challenge = await asked.respond(CLIENT_FIRST)
    assert isinstance(challenge, Challenge)
    final = await asked.respond(client_final("pencil", CLIENT_FIRST, challenge.data))
    assert isinstance(final, Challenge)
    assert final.data.startswith(b"v=")
    assert isinstance(await asked.respond(b""), Granted)


async def test_there_is_no_other_mechanism(directory: Directory) -> None:
    assert directory.sign_in("CRAM-MD5", PEER, via="imap") is None
    assert directory.sign_in("", PEER, via="imap") is None


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\0user\0wrong", "wrong"),
        (b"\0nobody\0pencil", "wrong"),
        (b"critic@fabric.local\0user\0pencil", "wrong"),
        (b"user\0pencil", "malformed"),
        (b"\0\0pencil", "malformed"),
        (b"\0user\0\xff", "malformed"),
        (b"x" * 5000, "malformed"),
        (b"", "malformed"),
    ],
)
async def test_what_proves_nothing_is_denied(directory: Directory, message: bytes, reason: str) -> None:
    assert await dialog(directory, "PLAIN").respond(message) == Denied(reason)


async def test_scram_tells_nobody_who_exists(directory: Directory) -> None:
    first = b"n,,n=nobody,r=abc"

    async def salt() -> bytes:
        challenge = await dialog(directory, "SCRAM-SHA-256").respond(first)
        assert isinstance(challenge, Challenge)
        return challenge.data.split(b",")[1]

    assert await salt() == await salt()
    asked = dialog(directory, "SCRAM-SHA-256")
    challenge = await asked.respond(first)
    assert isinstance(challenge, Challenge)
    assert await asked.respond(client_final("pencil", first, challenge.data)) == Denied("wrong")


async def test_a_disabled_agent_is_a_stranger(directory: Directory, agents: Agents) -> None:
    agents.known[ME] = replace(agents.known[ME], disabled=True)
    assert await directory.authenticate("user", "pencil", PEER, via="imap") == Denied("wrong")


async def test_a_changed_password_counts_at_once(directory: Directory, agents: Agents) -> None:
    assert isinstance(await directory.authenticate("user", "pencil", PEER, via="imap"), Granted)
    agents.known[ME] = replace(agents.known[ME], credential=scram.derive("crayon"))
    agents.changed()
    assert await directory.authenticate("user", "pencil", PEER, via="imap") == Denied("wrong")
    assert isinstance(await directory.authenticate("user", "crayon", PEER, via="imap"), Granted)


async def test_another_processs_change_counts_within_a_second(
    directory: Directory, agents: Agents, clock: Clock
) -> None:
    assert await directory.agent("new@fabric.local") is None
    agents.known["new@fabric.local"] = replace(agents.known[ME], address="new@fabric.local")
    asked = agents.asked
    assert await directory.agent("new@fabric.local") is None
    assert agents.asked == asked, "the store is not asked each time"
    clock.now += 1.0
    assert await directory.agent("new@fabric.local") is not None


async def test_a_wrong_password_is_answered_slowly(agents: Agents) -> None:
    directory = Directory(agents, ("fabric.local",), SignIn(delay=0.2))
    start = time.monotonic()
    assert await directory.authenticate("user", "wrong", PEER, via="imap") == Denied("wrong")
    assert time.monotonic() - start >= 0.19
    directory.close()


async def test_after_some_failures_even_the_right_password_is_not_heard(directory: Directory, clock: Clock) -> None:
    for _ in range(3):
        assert await directory.authenticate("user", "wrong", PEER, via="imap") == Denied("wrong")
    assert await directory.authenticate("user", "pencil", PEER, via="imap") == Denied("throttled", 300.0)
    scram_dialog = dialog(directory, "SCRAM-SHA-256")
    assert await scram_dialog.respond(CLIENT_FIRST) == Denied("throttled", 300.0)
    clock.now += 300
    assert isinstance(await directory.authenticate("user", "pencil", PEER, via="imap"), Granted)


async def test_many_guesses_at_once_get_no_more_than_few(directory: Directory) -> None:
    outcomes = await asyncio.gather(*(directory.authenticate("user", f"guess{n}", PEER, via="imap") for n in range(50)))
    assert sum(outcome == Denied("wrong") for outcome in outcomes) == 3
    assert not directory._turns


async def test_many_honest_sign_ins_at_once_all_succeed(directory: Directory) -> None:
    outcomes = await asyncio.gather(*(directory.authenticate("user", "pencil", PEER, via="imap") for _ in range(50)))
    assert all(isinstance(outcome, Granted) for outcome in outcomes)


async def test_a_thousand_sign_ins_take_no_second(directory: Directory) -> None:
    await directory.authenticate("user", "pencil", PEER, via="imap")
    start = time.process_time()
    for _ in range(1000):
        assert isinstance(await directory.authenticate("user", "pencil", PEER, via="imap"), Granted)
    assert time.process_time() - start < 1.0


async def test_hashing_does_not_hold_the_loop(directory: Directory, agents: Agents) -> None:
    agents.known[ME] = Agent(ME, scram.derive("pencil", iterations=400_000), 0)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.001)
            turns += 1

    counter = asyncio.create_task(count())
    assert isinstance(await directory.authenticate("user", "pencil", PEER, via="imap"), Granted)
    counter.cancel()
    assert turns > 10
