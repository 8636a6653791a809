"""The directory: looks agents up, proves them, remembers for a moment.

One writer for each piece of state here: the caches belong to the event loop; PBKDF2 runs on two threads of its own,
so that a password check never holds the loop.
"""

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import NamedTuple, Protocol

from aimx.config import SignIn
from aimx.identity import sasl, scram
from aimx.identity.addresses import normalise
from aimx.identity.refused import RefusedLogins, Via
from aimx.identity.throttle import Throttle
from aimx.store.contract import Agent, Credential, Topic

log = logging.getLogger("aimx.identity")

FRESH = 1.0
"""Seconds a looked-up agent is believed: another process (`aimx agent`) may change it, which no subscription tells."""
MAX_CACHED = 10_000

_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # nothing that is read wrongly


class Agents(Protocol):
    """The part of the store the directory needs."""

    async def agent(self, address: str) -> Agent | None: ...
    def subscribe(self, topic: Topic, callback: Callable[[], None]) -> Callable[[], None]: ...


class Granted(NamedTuple):
    agent: Agent


class Denied(NamedTuple):
    """`wrong`: not proved. `malformed`: broke the mechanism's grammar. `throttled`: try again in `wait` seconds."""

    reason: str
    wait: float = 0.0


def generate_password() -> str:
    """Six groups of five, about 148 bits: strong enough that no list of failed guesses matters."""
    return "-".join("".join(secrets.choice(_ALPHABET) for _ in range(5)) for _ in range(6))


class Directory:
    """Who the agents are, as fresh as `FRESH`, and whether a secret proves one."""

    def __init__(
        self,
        store: Agents,
        domains: tuple[str, ...],
        settings: SignIn | None = None,
        *,
        secret: bytes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`secret` is the node's own (identity.tokens.node_secret): it keeps decoy salts the same over restarts."""
        self.settings = settings or SignIn()
        self.throttle = Throttle(self.settings.max_failures, self.settings.window, clock)
        self.refused = RefusedLogins()
        self.domains = domains
        self._store = store
        self._clock = clock
        self._secret = secret or secrets.token_bytes(32)
        self._cache_key = secrets.token_bytes(32)
        self._agents: OrderedDict[str, tuple[float, Agent | None]] = OrderedDict()
        self._proved: OrderedDict[bytes, bytes] = OrderedDict()
        self._turns: dict[str, _Turn] = {}
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="aimx-password")
        self._unsubscribe = store.subscribe("agents", self._agents.clear)

    def close(self) -> None:
        self._unsubscribe()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # ── look-up ──

    def remembered(self, address: str) -> tuple[Agent | None] | None:
        """What is known without asking the store: a 1-tuple, or None when that is nothing fresh."""
        found = self._agents.get(address)
        if found is None or self._clock() - found[0] >= FRESH:
            return None
        return (found[1],)

    async def agent(self, address: str) -> Agent | None:
        """The agent with this normalised address, disabled ones too."""
        known = self.remembered(address)
        if known is not None:
            return known[0]
        asked = self._clock()
        agent = await self._store.agent(address)
        self._agents[address] = (asked, agent)
        self._agents.move_to_end(address)
        if len(self._agents) > MAX_CACHED:
            self._agents.popitem(last=False)
        return agent

    # ── sign-in ──

    def sign_in(self, mechanism: str, peer: str, *, via: Via) -> "SignInDialog | None":
        """Begin a conversation for `peer` (an IP address). None: no such mechanism."""
        make = sasl.MECHANISMS.get(mechanism.upper())
        return None if make is None else SignInDialog(self, make(), peer, via)

    async def authenticate(self, name: str, password: str, peer: str, *, via: Via) -> Granted | Denied:
        """Name and password at once, as IMAP's LOGIN and HTTP have them."""
        dialog = SignInDialog(self, sasl.plain(), peer, via)
        try:
            message = b"\0" + name.encode() + b"\0" + password.encode()
        except UnicodeEncodeError:
            return Denied("malformed")
        outcome = await dialog.respond(message)
        assert not isinstance(outcome, sasl.Challenge), "PLAIN has one message"
        return outcome

    @asynccontextmanager
    async def _turn(self, account: str) -> AsyncIterator[None]:
        """One password check at a time for one account: the throttle counts before the next one asks it."""
        turn = self._turns.setdefault(account, _Turn())
        turn.waiting += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                del self._turns[account]

    async def _proves(self, agent: Agent | None, address: str, password: str) -> bool:
        """Whether the password is this agent's; the same work when there is no such agent."""
        fingerprint = hmac.digest(self._cache_key, f"{address}\0{password}".encode(), "sha256")
        credential = agent.credential if agent else scram.decoy(self._secret, address, self.settings.iterations)
        # What was proved once counts as long as the stored key is the one it was proved against.
        if hmac.compare_digest(self._proved.get(fingerprint, b""), credential.stored_key):
            self._proved.move_to_end(fingerprint)
            return agent is not None
        loop = asyncio.get_running_loop()
        right = await loop.run_in_executor(self._threads, scram.proves, credential, password)
        if not right or agent is None:
            return False
        self._proved[fingerprint] = credential.stored_key
        if len(self._proved) > MAX_CACHED:
            self._proved.popitem(last=False)
        return True


class _Throttled(Exception):
    def __init__(self, wait: float) -> None:
        self.wait = wait


class _Turn:
    __slots__ = ("lock", "waiting")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0


class SignInDialog:
    """One conversation with a client that wants to sign in. Not to be used again after Granted or Denied."""

    __slots__ = ("_account", "_agent", "_directory", "_mechanism", "_peer", "_started", "_via")

    def __init__(self, directory: Directory, mechanism: sasl.Mechanism, peer: str, via: Via) -> None:
        self._directory = directory
        self._mechanism = mechanism
        self._peer = peer
        self._via = via
        self._started = False
        self._account = ""
        self._agent: Agent | None = None

    async def respond(self, response: bytes | None) -> sasl.Challenge | Granted | Denied:
        """Take the client's decoded response (None: it sent no initial response) and say what comes next.

        A denial for a wrong secret takes at least `settings.delay` seconds to be said.
        """
        try:
            return await self._respond(response)
        except scram.Malformed:
            self._mechanism.close()
            return Denied("malformed")
        except scram.NotProved:
            self._mechanism.close()
            self._directory.throttle.failed(self._peer, self._account)
            self._directory.refused.add(self._via, self._peer, self._account)
            who = hashlib.sha256(self._account.encode("utf-8", "replace")).hexdigest()[:12]
            log.warning("sign-in failed", extra={"event": "auth.failed", "peer": self._peer, "account_hash": who})
            await asyncio.sleep(self._directory.settings.delay)
            return Denied("wrong")
        except _Throttled as throttled:
            self._mechanism.close()
            self._directory.refused.add(self._via, self._peer, self._account)
            return Denied("throttled", throttled.wait)

    async def _respond(self, response: bytes | None) -> sasl.Challenge | Granted | Denied:
        mechanism = self._mechanism
        try:
            if not self._started:
                self._started = True
                need = next(mechanism)
                if response is None:
                    assert isinstance(need, sasl.Challenge), "every mechanism begins with the client"
                    return need
            if response is None or len(response) > sasl.MAX_RESPONSE:
                raise scram.Malformed("response")
            if self._account:
                self._allowed()  # again: others may have failed since the name was given
            need = mechanism.send(response)
            if isinstance(need, sasl.Find):
                await self._look_up(need.name)
                self._allowed()
                need = mechanism.send(self._credential())
            elif isinstance(need, sasl.Check):
                await self._look_up(need.name)
                async with self._directory._turn(self._account):
                    self._allowed()
                    proved = await self._directory._proves(self._agent, self._account, need.password)
                need = mechanism.send(proved)  # nothing is awaited until a failure is counted
            assert isinstance(need, sasl.Challenge), "a mechanism asks for one thing at a time"
            return need
        except StopIteration as end:
            return self._conclude(end.value)

    async def _look_up(self, name: str) -> None:
        self._account = normalise(name, self._directory.domains[0])
        self._agent = await self._directory.agent(self._account)

    def _allowed(self) -> None:
        wait = self._directory.throttle.wait(self._peer, self._account)
        if wait > 0:
            raise _Throttled(wait)

    def _credential(self) -> Credential:
        if self._agent is not None:
            return self._agent.credential
        return scram.decoy(self._directory._secret, self._account, self._directory.settings.iterations)

    def _conclude(self, claim: sasl.Claim) -> Granted:
        agent = self._agent
        # Nobody acts as another, and a disabled agent is told no more than a stranger is.
        acts_as_itself = not claim.authzid or normalise(claim.authzid, self._directory.domains[0]) == self._account
        if agent is None or agent.disabled or not acts_as_itself:
            raise scram.NotProved("not this agent")
        self._directory.throttle.succeeded(self._peer, self._account)
        return Granted(agent)
