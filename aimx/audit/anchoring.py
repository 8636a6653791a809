"""Getting the log's checkpoints out of the house: witnesses are asked to cosign, a time stamp authority to stamp.

Each outsider is asked at its own interval, on its own; one that is slow or away holds up nobody, least of all the mail.
What comes back is kept (`anchors`) and logged (`anchor.recorded`), so that later states of the log carry the proof of
earlier ones.
"""

import asyncio
import base64
import logging
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal, Protocol

import httpx

from aimx.audit import events, timestamp
from aimx.audit.anchors import Anchor, Anchors, Kind
from aimx.audit.log import LogError, Reader
from aimx.audit.standing import Trust
from aimx.audit.witness import read_key
from aimx.config import Audit, SettingError
from aimx.store.contract import EventRow, SpanRef, StoreError
from aimx.telemetry import metrics
from aimx.telemetry.span import CLIENT, Span, Tracer
from aimx.tlog import checkpoint, note, policy, witness
from aimx.tlog.checkpoint import Checkpoint
from aimx.tlog.errors import FormatError, ProofError
from aimx.tlog.note import Note, Verified, Verifier
from aimx.tlog.witness import Request

log = logging.getLogger("aimx.audit")

PATIENCE_S = 10.0
"""For one answer."""
MAX_ANSWER = 1 << 16
"""Octets of an outsider's answer that are read."""
TRIES = 3
"""Requests in a row: one may be needed to learn which size a witness knows, and others may ask it meanwhile."""
OURS = 256
"""Leaves looked at to see whether anything but anchoring itself has happened."""

Outcome = Literal["cosigned", "stamped", "sent", "behind", "ahead", "refused", "inconsistent", "invalid", "unreachable"]


class Failed(Exception):
    """An outsider did not give what it was asked for. `outcome` is low-cardinality."""

    def __init__(self, outcome: Outcome, text: str) -> None:
        super().__init__(text)
        self.outcome = outcome


class Recorder(Protocol):
    """The part of the Store contract this needs."""

    async def record(self, events: Sequence[EventRow]) -> None: ...


@dataclass(frozen=True, slots=True)
class Signed:
    """A checkpoint of ours and the note it stands in."""

    checkpoint: Checkpoint
    note: Note

    @classmethod
    def parse(cls, text: str) -> "Signed":
        parsed = note.parse(text)
        return cls(checkpoint.parse(parsed.text), parsed)


class Outsider(Protocol):
    """Somebody elsewhere who is given our checkpoints."""

    kind: Kind
    name: str
    every: float

    async def anchor(self, signed: Signed, span: Span) -> Anchor | None:
        """Hand it over. None: the confirmation comes later, by another way. Raises Failed."""


class HttpWitness:
    """A witness reached by `add-checkpoint` (https://c2sp.org/tlog-witness)."""

    kind: Kind = "witness"

    def __init__(
        self, name: str, url: str, key: Verifier, every: float, reader: Reader, anchors: Anchors, ca: str | None = None
    ) -> None:
        """`url`: the submission prefix. `ca`: a file with the authority to trust, and no other."""
        self.name, self.key, self.every = name, key, every
        self._url = url.rstrip("/") + "/add-checkpoint"
        self._reader = reader
        self._anchors = anchors
        self._tls = ssl.create_default_context(cafile=ca) if self._url.startswith("https:") else False
        self._known: dict[str, int] = {}
        """The size it last cosigned, by origin."""

    async def anchor(self, signed: Signed, span: Span) -> Anchor:
        origin = signed.checkpoint.origin
        if origin not in self._known:
            last = await asyncio.to_thread(self._anchors.newest, self.kind, self.name, origin)
            self._known[origin] = 0 if last is None else last.size
        async with httpx.AsyncClient(verify=self._tls, timeout=PATIENCE_S, follow_redirects=False) as client:
            for _ in range(TRIES):
                old = self._known[origin]
                status, body = await self._ask(client, await asyncio.to_thread(request, self._reader, old, signed))
                span.set("http.response.status_code", status)
                if status == 200:
                    held = cosignature(body, signed, self.key)
                    self._known[origin] = signed.checkpoint.size
                    return anchor_of(self.name, signed, held)
                if status != 409:
                    raise _refusal(self.name, status)
                self._known[origin] = known_size(body, signed.checkpoint.size)
        raise Failed("behind", f"witness {self.name} names another size each time it is asked")

    async def _ask(self, client: httpx.AsyncClient, asked: Request) -> tuple[int, bytes]:
        try:
            # A stream: whoever answers does not decide how much of it is read.
            async with (
                asyncio.timeout(PATIENCE_S),
                client.stream("POST", self._url, content=asked.body()) as response,
            ):
                body = b""
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > MAX_ANSWER:
                        raise Failed("invalid", f"witness {self.name} answers without end")
                return response.status_code, body
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError) as error:
            raise Failed("unreachable", f"witness {self.name}: {type(error).__name__}") from None


def request(reader: Reader, old: int, signed: Signed) -> Request:
    """The body that asks for a cosignature, with the proof from `old` on. Blocks; raises LogError."""
    proof = tuple(reader.consistency(old, signed.checkpoint.size))
    return Request(old, proof, str(signed.note))


def cosignature(body: bytes, signed: Signed, key: Verifier) -> Verified:
    """The witness's signature out of its answer. Raises Failed."""
    try:
        return witness.accept(body, signed.note.text, key)
    except (FormatError, ProofError) as error:
        raise Failed("invalid", f"the answer of {key.name} does not hold: {error}") from None


def anchor_of(name: str, signed: Signed, held: Verified) -> Anchor:
    both = Note(signed.note.text, (*signed.note.signatures, held.signature))
    return Anchor("witness", name, signed.checkpoint.origin, signed.checkpoint.size, _now_ms(), str(both))


def known_size(body: bytes, size: int) -> int:
    """The size a witness says it knows. Raises Failed: also when that is more than this log holds."""
    try:
        known = checkpoint.parse_size(body.decode("ascii").removesuffix("\n"))
    except (UnicodeDecodeError, FormatError):
        raise Failed("invalid", "a witness answers 409 without the size it knows") from None
    if known > size:
        text = f"a witness has cosigned {known} leaves of this log, which holds {size}; was an old copy restored?"
        raise Failed("ahead", text)
    return known


def _refusal(name: str, status: int) -> Failed:
    match status:
        case 422:
            return Failed("inconsistent", f"witness {name} says that the log is not the one it has cosigned before")
        case 403 | 404:
            return Failed("refused", f"witness {name} does not know this log or its key ({status})")
    return Failed("unreachable" if status >= 500 else "refused", f"witness {name} answers {status}")


def outsiders(settings: Audit, reader: Reader, anchors: Anchors) -> list[Outsider]:
    """Those of the settings that are reached by HTTP. Raises SettingError."""
    found: list[Outsider] = []
    for name, asked in settings.witness.items():
        key = witness_key(name, asked.vkey)
        if asked.url is not None:
            every = asked.every or settings.witness_every
            try:
                ca = None if asked.ca is None else str(asked.ca)
                found.append(HttpWitness(name, asked.url, key, every, reader, anchors, ca))
            except OSError as error:
                raise SettingError(f"audit.witness.{name}.ca: {str(asked.ca)!r} cannot be read: {error}") from None
    if settings.timestamp is not None:
        try:
            pem = settings.timestamp.ca.read_bytes()
            timestamp.roots(pem)
        except (OSError, FormatError) as error:
            text = f"audit.timestamp.ca: {str(settings.timestamp.ca)!r} cannot be used: {error}"
            raise SettingError(text) from None
        found.append(TimestampAuthority(settings.timestamp.url, pem, settings.timestamp.every))
    return found


def witness_key(name: str, vkey: str) -> Verifier:
    """A witness's verifier key out of the settings. Raises SettingError."""
    try:
        return read_key(f"audit.witness.{name}.vkey", vkey, note.COSIGNATURE_V1)
    except FormatError as error:
        raise SettingError(str(error)) from None


def trust_of(settings: Audit, log: Verifier) -> Trust:
    """Whose word counts by the settings: their policy, else most of their witnesses. Raises SettingError."""
    roots = settings.timestamp.ca if settings.timestamp is not None else None
    try:
        if settings.policy is not None:
            found = policy.parse(settings.policy.read_bytes())
        else:
            known = {name: witness_key(name, asked.vkey) for name, asked in settings.witness.items()}
            found = policy.of_witnesses(log, known)
    except (OSError, FormatError) as error:
        raise SettingError(f"audit.policy: {str(settings.policy)!r} cannot be used: {error}") from None
    try:
        return Trust(found, b"" if roots is None else roots.read_bytes())
    except OSError as error:
        raise SettingError(f"audit.timestamp.ca: {str(roots)!r} cannot be used: {error}") from None


class TimestampAuthority:
    """A time stamp over the newest checkpoint (RFC 3161 over HTTP, §3.4)."""

    kind: Kind = "timestamp"

    def __init__(self, url: str, roots: bytes, every: float) -> None:
        """`roots`: the certificates (PEM) of the authorities to trust."""
        self.name, self.every = "timestamp", every
        self._url = url
        self._roots = roots

    async def anchor(self, signed: Signed, span: Span) -> Anchor:
        data = str(signed.note).encode()
        asked = timestamp.request(data)
        headers = {"Content-Type": "application/timestamp-query"}
        try:
            async with asyncio.timeout(PATIENCE_S), httpx.AsyncClient(timeout=PATIENCE_S) as client:
                response = await client.post(self._url, content=asked, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError) as error:
            raise Failed("unreachable", f"time stamp authority: {type(error).__name__}") from None
        span.set("http.response.status_code", response.status_code)
        if response.status_code != 200 or len(response.content) > MAX_ANSWER:
            raise Failed("refused", f"the time stamp authority answers {response.status_code}")
        try:
            await asyncio.to_thread(timestamp.check, response.content, data, self._roots)
        except (FormatError, ProofError) as error:
            raise Failed("invalid", str(error)) from None
        found = signed.checkpoint
        return Anchor(self.kind, self.name, found.origin, found.size, _now_ms(), str(signed.note), response.content)


@dataclass(slots=True)
class _Course:
    """How it goes with one outsider."""

    outsider: Outsider
    size: int = -1
    """The last that was handed over."""
    anchored_ms: int = 0
    outcome: str = ""
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Anchoring:
    """Start it after the sequencer, stop it before. All methods belong to the loop's thread."""

    def __init__(
        self,
        outsiders: Sequence[Outsider],
        reader: Reader,
        anchors: Anchors,
        recorder: Recorder,
        *,
        node: str,
        tracer: Tracer | None = None,
    ) -> None:
        self._courses = [_Course(outsider) for outsider in outsiders]
        self._reader = reader
        self._anchors = anchors
        self._recorder = recorder
        self._node = node
        self._tracer = tracer or Tracer()

    def start(self) -> None:
        for course in self._courses:
            name = f"anchoring-{course.outsider.kind}-{course.outsider.name}"
            course.task = asyncio.create_task(self._keep_asking(course), name=name)
        metrics.observe("aimx.audit.anchor.age", self._ages)

    async def stop(self) -> None:
        """What is under way is broken off: it is asked again after the next start."""
        tasks = [course.task for course in self._courses if course.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def confirm(self, anchor: Anchor, row_of: SpanRef | None = None) -> None:
        """An anchor that came by another way than the answer to a call: kept and logged."""
        for course in self._courses:
            if (course.outsider.kind, course.outsider.name) == (anchor.kind, anchor.name):
                await self._keep(anchor, row_of or _new_span(self._tracer))
                course.anchored_ms, course.outcome = anchor.t_ms, "cosigned"
                _ASKED.labels(*_series(anchor.kind, anchor.name), "cosigned").add()

    # --- one outsider ---

    async def _keep_asking(self, course: _Course) -> None:
        """For as long as the node runs. Several nodes on one database take turns: whoever is first in an interval."""
        outsider = course.outsider
        while True:
            try:
                wait_s = await self._turn(course)
            except (LogError, StoreError) as error:
                log.warning("nothing could be anchored; trying again", extra={"error": str(error)})
                wait_s = outsider.every
            except Exception:
                log.exception("a fault in anchoring; trying again")
                wait_s = outsider.every
            await asyncio.sleep(wait_s)

    async def _turn(self, course: _Course) -> float:
        """Ask if it is time and there is something new; the seconds until the next look."""
        outsider = course.outsider
        text = await asyncio.to_thread(self._reader.checkpoint)
        if text is None:
            return min(1.0, outsider.every)
        signed = Signed.parse(text)
        last = await asyncio.to_thread(self._anchors.newest, outsider.kind, outsider.name, signed.checkpoint.origin)
        if last is not None:
            course.anchored_ms, course.size = last.t_ms, max(course.size, last.size)
            early_s = outsider.every - (_now_ms() - last.t_ms) / 1000
            if early_s > outsider.every * 0.05:
                return early_s
        if await asyncio.to_thread(self._nothing_new, course.size, signed.checkpoint.size):
            return min(outsider.every, 60.0)
        await self._ask(course, signed)
        return outsider.every

    def _nothing_new(self, since: int, size: int) -> bool:
        """Whether all that was logged since is anchoring: else each anchor would call for the next one, for ever."""
        if since < 0 or size - since > OURS:
            return False
        return all(_ANCHORED in leaf.entry for leaf in self._reader.leaves(since, size))

    async def _ask(self, course: _Course, signed: Signed) -> None:
        outsider = course.outsider
        span = self._tracer.start(
            "checkpoint witness",
            CLIENT,
            attributes={
                "aimx.audit.size.after": signed.checkpoint.size,
                "aimx.audit.witness": outsider.name,
                "aimx.audit.anchor": outsider.kind,
            },
        )
        outcome: str = "failed"
        try:
            anchor = await outsider.anchor(signed, span)
            outcome = _DONE[outsider.kind] if anchor is not None else "sent"
            if anchor is not None:
                await self._keep(anchor, SpanRef(span.trace_id, span.span_id))
                course.anchored_ms = anchor.t_ms
                course.size = signed.checkpoint.size
        except Failed as failed:
            outcome = failed.outcome
            span.error(failed.outcome)
            serious = failed.outcome in ("ahead", "inconsistent")
            if serious or course.outcome != failed.outcome:  # once, not every minute
                level = logging.ERROR if serious else logging.WARNING
                log.log(level, "checkpoint not anchored: %s", failed, extra={"event": "anchor.failed"})
        finally:
            course.outcome = outcome
            span.set("aimx.audit.verdict", outcome)
            span.end()
            _ASKED.labels(*_series(outsider.kind, outsider.name), outcome).add()

    async def _keep(self, anchor: Anchor, span: SpanRef) -> None:
        await asyncio.to_thread(self._anchors.add, anchor)
        stamp = events.Stamp(self._node, _now_ms(), span)
        row = events.anchor_recorded(stamp, kind=anchor.kind, size=anchor.size, who=anchor.name, proof=proof_of(anchor))
        await self._recorder.record([row])

    def _ages(self) -> list[tuple[tuple[str, ...], float]]:
        now = _now_ms()
        return [
            (_series(course.outsider.kind, course.outsider.name), (now - course.anchored_ms) / 1000)
            for course in self._courses
            if course.anchored_ms
        ]


def proof_of(anchor: Anchor) -> str:
    """What the leaf says of an anchor, base64: a cosignature as it stands in its line (with the checkpoint, which any
    later state of the log gives back, it is whole); of anything else the SHA-256."""
    if anchor.kind == "witness":
        last = note.parse(anchor.note).signatures[-1]
        return base64.b64encode(last.key_id + last.blob).decode()
    return base64.b64encode(sha256(anchor.token or anchor.note.encode()).digest()).decode()


def _new_span(tracer: Tracer) -> SpanRef:
    span = tracer.start("audit append")
    span.end()
    return SpanRef(span.trace_id, span.span_id)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


_ANCHORED = b'"ev":"anchor.recorded"'
_DONE: dict[Kind, Outcome] = {"witness": "cosigned", "timestamp": "stamped", "mail": "sent"}
_ASKED = metrics.counter("aimx.audit.anchors")


def _series(kind: str, name: str) -> tuple[str, str]:
    """Labels. A mailbox's name is its address, which no metric tells."""
    return kind, "" if kind == "mail" else name
