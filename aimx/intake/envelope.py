"""What a door hands over: an envelope and its octets, and what it gets back."""

import hashlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aimx.message.header import HeaderBlock
from aimx.store.contract import Staged, Store
from aimx.telemetry.context import Door

PART = 256 * 1024
"""Octets of a message kept in memory before the rest is staged to the store."""


class Reply(NamedTuple):
    """An SMTP reply (RFC 5321 §4.2) with its enhanced status code (RFC 3463)."""

    code: int
    enhanced: str
    text: str

    @property
    def accepted(self) -> bool:
        return self.code < 400

    def __str__(self) -> str:
        return f"{self.code} {self.enhanced} {self.text}"


class SpanEvent(NamedTuple):
    """Something a door saw, for the span that intake makes of the transaction."""

    name: str
    t_ns: int
    attributes: dict[str, Any]


class Octets(NamedTuple):
    """A whole message as received."""

    header: HeaderBlock
    body: bytes | Staged
    sample: bytes
    """The body's first octets, at most `PART`: what the loop guard looks at."""
    sha256: bytes
    """Of all octets as received."""
    body_sha256: bytes

    @classmethod
    def of(cls, data: bytes) -> "Octets":
        """Of a message that is in memory."""
        header, start = HeaderBlock.parse(data)
        body = data[start:]
        return cls(header, body, body, hashlib.sha256(data).digest(), hashlib.sha256(body).digest())


class HeaderTooLarge(Exception):
    """No empty line ends the header block within one part."""


class Upload:
    """The octets of one message as they arrive, after dot-unstuffing; large bodies go to the store in parts.

    `write` only takes a chunk in; when `full` is true the door stops reading and awaits `spill`. What was spilled and
    is not used must be given back with `discard`.
    """

    __slots__ = ("_body_digest", "_digest", "_header", "_held", "_held_size", "_sample", "_staged", "_store", "size")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: list[bytes] = []
        self._held_size = 0
        self._header: HeaderBlock | None = None
        self._sample = b""
        self._staged: Staged | None = None
        self._digest = hashlib.sha256()
        self._body_digest = hashlib.sha256()
        self.size = 0

    @property
    def full(self) -> bool:
        return self._held_size >= PART

    def write(self, chunk: bytes) -> None:
        self._held.append(chunk)
        self._held_size += len(chunk)
        self.size += len(chunk)

    async def spill(self) -> None:
        """Put what is held into the store. Raises HeaderTooLarge."""
        data = self._take()
        self._digest.update(data)
        if self._header is None:
            self._header, start = HeaderBlock.parse(data)
            if not self._header.separator:
                # Where it ends is not known yet. A guess would let the rest pass as body, unread and unstripped.
                raise HeaderTooLarge
            data = self._sample = data[start:]
        elif not self._header.separator:
            raise HeaderTooLarge  # and what still comes of it is dropped
        if data:
            self._body_digest.update(data)
            self._staged = await self._store.stage(self._staged, data)

    async def finish(self) -> Octets:
        """All of it. The upload owns nothing afterwards but what `discard` would drop. Raises HeaderTooLarge."""
        if self._header is not None:
            await self.spill()
            body = b"" if self._staged is None else self._staged
            return Octets(self._header, body, self._sample, self._digest.digest(), self._body_digest.digest())
        return Octets.of(self._take())

    async def discard(self) -> None:
        """Drop everything, staged parts too. Not to be called once the message is accepted."""
        self._held.clear()
        staged, self._staged = self._staged, None
        if staged is not None:
            await self._store.unstage(staged)

    def _take(self) -> bytes:
        data = b"".join(self._held)
        self._held.clear()
        self._held_size = 0
        return data


@dataclass(slots=True)
class Envelope:
    """One mail transaction: who hands over what, from whom, to whom."""

    agent: str | None
    """The account that signed in; None at the doors of peers and strangers."""
    sender: str
    """Reverse path: proved where an agent hands over, a peer's word, a stranger's claim. Empty: a notice."""
    recipients: tuple[str, ...]
    upload: Upload
    peer: str
    """Address and port of the client."""
    helo: str
    protocol: str
    """`with` clause of Received (RFC 3848): ESMTPSA, UTF8SMTPSA, …"""
    tls: str
    """`TLSv1.3`."""
    started_ns: int
    """When MAIL came: the start of the span."""
    priority: int | None = None
    """MT-PRIORITY parameter (RFC 6710)."""
    events: list[SpanEvent] = field(default_factory=list)
    reports: dict[str, dict[str, str]] = field(default_factory=dict)
    """By recipient, what is to be told to the sender: `notify`, `orcpt`, `ret`, `envid` (RFC 3461)."""
    door: Door = Door.AGENT
    """Which of the three hands it over: what the message says of its trace, agent and priority is believed by it."""
    by_peer: str = ""
    """The authenticated peer's name; empty at the other doors."""
    by_network: bool = False
    """The agent did not sign in: it came from a trusted network and said its name."""
