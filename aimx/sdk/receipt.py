"""The receipt in the 250, as the sender holds it: checked offline, and followed into the log.

sent = await me.send("critic", {"draft": 1})
sent.receipt.verify()              # the node has promised this very message; no network
await sent.receipt.confirm()       # and kept the promise: the leaf is under a signed checkpoint
"""

import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

import httpx

from aimx.sdk.account import Account
from aimx.sdk.errors import AimxError, NotConfigured, Unreachable
from aimx.tlog import receipt as tlog
from aimx.tlog.errors import FormatError, ProofError
from aimx.tlog.inclusion import Fetch, Found, find
from aimx.tlog.note import RECEIPT, Verifier
from aimx.tlog.receipt import PROMISE_SECONDS, Promise

PATIENCE_S = 20.0


class ReceiptInvalid(AimxError):
    """The receipt is not this node's promise about this message."""


class Suppressed(AimxError):
    """The node promised that the message would be in its log and did not put it there.

    The receipt, the message and the log's signed checkpoint prove it to anybody.
    """


class ElsewhereLogged(AimxError):
    """No shard that is left holds the message; one that was dropped, its retention over, may have."""


class State(StrEnum):
    """INCLUDED: the leaf is under a signed checkpoint. PENDING: not yet, and there is time. SUPPRESSED: too late."""

    INCLUDED = "INCLUDED"
    PENDING = "PENDING"
    SUPPRESSED = "SUPPRESSED"


@dataclass(frozen=True, slots=True)
class Receipt:
    """One receipt and what its promise is about, which only the sender knows."""

    issued: tlog.Receipt
    data: tuple[bytes, ...] = field(repr=False)
    """SHA-256 of the message as it was sent; several where it is not known how a mail program ended its lines."""
    sender: str
    recipients: tuple[str, ...]
    account: Account | None = field(default=None, repr=False)

    @property
    def eid(self) -> str:
        """The node's id of the message."""
        return self.issued.eid

    @property
    def leaf(self) -> bytes:
        """Hash of the leaf that the node promised."""
        return self.issued.leaf

    @property
    def t_ms(self) -> int:
        """When it was promised, in Unix milliseconds."""
        return self.issued.t_ms

    def line(self) -> str:
        """The receipt as it stood in the reply, to be kept beside the message."""
        return self.issued.line()

    def verify(self, key: Verifier | None = None) -> None:
        """Offline: the node has signed this promise about this message. Raises ReceiptInvalid, NotConfigured.

        `key`: the node's receipt key; without it the one the account has (`vkeys`).
        """
        if key is None:
            known = _keys(self.account)[1]
            key = next((one for one in known if one.key_id == self.issued.key_id), None)
            if key is None:
                raise ReceiptInvalid("it was signed by none of the node's keys")
        if key.kind != RECEIPT:
            raise ReceiptInvalid("that is not a key by which receipts are signed")
        if key.key_id != self.issued.key_id:
            raise ReceiptInvalid(f"it was signed by another key than {key.name}'s")
        for digest in self.data:
            promise = Promise(key.name, self.eid, self.leaf, self.t_ms, digest, self.sender, self.recipients)
            try:
                tlog.verify(self.issued, promise, key)
            except ProofError:
                continue
            return
        raise ReceiptInvalid("the signature is not about this message, this sender and these recipients")

    async def follow(self, fetch: Fetch, logs: Sequence[Verifier]) -> tuple[State, Found]:
        """Look for the leaf in the log whose files `fetch` gets, then in the closed shards that it lists.

        Raises FormatError and ProofError for files that do not prove what they say, ElsewhereLogged.
        """
        newest = await find(fetch, self.leaf, logs)
        if newest.place is not None:
            return State.INCLUDED, newest
        closed, dropped = await _closed(fetch)
        for name in closed:
            found = await find(_within(fetch, name), self.leaf, logs)
            if found.place is not None:
                return State.INCLUDED, found
        if time.time() - self.t_ms / 1000 <= PROMISE_SECONDS:
            return State.PENDING, newest
        if dropped:
            raise ElsewhereLogged("no shard that is left holds it; older ones were dropped, and it may have been there")
        return State.SUPPRESSED, newest

    async def confirm(self) -> State:
        """Ask the node's log for the leaf, and prove the answer. Needs no token: hashes are public.

        Raises Suppressed when the promise is overdue, ElsewhereLogged when a shard that was dropped may have held it,
        ReceiptInvalid when the log's files do not hold together, NotConfigured, Unreachable.
        """
        logs = _keys(self.account)[0]
        async with _files(self.account) as fetch:
            try:
                state, _ = await self.follow(fetch, logs)
            except (FormatError, ProofError) as error:
                raise ReceiptInvalid(f"the log does not hold together: {error}") from None
        if state is State.SUPPRESSED:
            raise Suppressed(f"message {self.eid} was promised to the log and is not in it after {PROMISE_SECONDS} s")
        return state


def of_reply(
    reply: str, octets: bytes, sender: str, recipients: Sequence[str], account: Account | None = None
) -> Receipt:
    """The receipt in a reply's text. `octets`: the message as sent. Raises FormatError when there is none."""
    # As a node takes addresses: in lower case, each once.
    heard = tuple(dict.fromkeys(recipient.lower() for recipient in recipients))
    return Receipt(tlog.parse(reply), digests(octets), sender.lower(), heard, account)


def digests(octets: bytes) -> tuple[bytes, ...]:
    """What the node may have hashed: the octets as they are, or with line ends as mail has them, ended by one."""
    lines = octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    forms = dict.fromkeys((octets, lines, lines if lines.endswith(b"\r\n") else lines + b"\r\n"))
    return tuple(sha256(form).digest() for form in forms)


class HttpLog:
    """A log's files over HTTPS: `async with HttpLog(url, ca) as fetch`."""

    def __init__(self, url: str, ca: str | None = None) -> None:
        """`ca`: the authority to trust, and no other. Raises NotConfigured when it cannot be read."""
        try:
            self._tls = ssl.create_default_context(cafile=ca)
        except (OSError, ssl.SSLError):
            raise NotConfigured(f"the CA file {ca!r} cannot be read") from None
        self._url = url.rstrip("/")
        self._http: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Fetch:
        self._http = httpx.AsyncClient(verify=self._tls, timeout=PATIENCE_S)
        return self._fetch

    async def __aexit__(self, *_: object) -> None:
        if self._http is not None:
            await self._http.aclose()

    async def _fetch(self, path: str) -> bytes:
        assert self._http is not None
        try:
            response = await self._http.get(f"{self._url}/{path}")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unreachable(f"no log at {self._url}: {type(error).__name__}") from None
        if response.status_code != 200:
            raise Unreachable(f"{self._url}/{path} answers {response.status_code}")
        return response.content


async def _closed(fetch: Fetch) -> tuple[list[str], bool]:
    """The closed shards that a log lists, newest first, and whether older ones were dropped.

    Whoever runs the log may say so falsely and be believed: then nothing is proved, and the answer is no `INCLUDED`.
    """
    try:
        lines = [line.split(" ") for line in (await fetch("log/shards")).decode().splitlines()]
        return [line[0].rpartition("/")[2] for line in lines[-2::-1]], bool(lines) and lines[0][1] != "0"
    except (Unreachable, FormatError, ProofError, UnicodeDecodeError, IndexError):
        return [], False


def _within(fetch: Fetch, shard: str) -> Fetch:
    async def fetched(path: str) -> bytes:
        return await fetch(f"log/{shard}/{path}")

    return fetched


def _files(account: Account | None) -> HttpLog:
    if account is None or account.http is None:
        raise NotConfigured("it is not known where the node's log is served; give the account its `http` port")
    host = f"[{account.http.host}]" if ":" in account.http.host else account.http.host
    return HttpLog(f"https://{host}:{account.http.port}", account.ca)


def _keys(account: Account | None) -> tuple[list[Verifier], list[Verifier]]:
    """The log's keys and the receipts', those in force first."""
    if account is None or account.vkeys is None:
        raise NotConfigured("the node's verifier keys are not known; give the account `vkeys` (the node's audit.vkeys)")
    try:
        keys = [Verifier.parse(line) for line in Path(account.vkeys).read_text().split()]
    except (OSError, ValueError):
        raise NotConfigured(f"{account.vkeys!r} does not hold the node's verifier keys") from None
    return [key for key in keys if key.kind != RECEIPT], [key for key in keys if key.kind == RECEIPT]
