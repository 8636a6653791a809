"""This node as a witness for others: it cosigns what continues the logs it was told of, and remembers it first.

The same request comes over HTTP (`POST /add-checkpoint`) and by mail; both get this `Answer`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Literal

from aimx import durable
from aimx.audit.anchors import Anchors, Witnessed
from aimx.audit.keys import load_or_create_key
from aimx.config import Audit, SettingError
from aimx.telemetry import metrics
from aimx.tlog import note, witness
from aimx.tlog.errors import FormatError
from aimx.tlog.note import COSIGNATURE_V1, Note, Signer, Verifier
from aimx.tlog.witness import UNKNOWN, Conflict, Inconsistent, Latest, Malformed, Sound, UnknownLog, Unsigned

KEY = "witness.key"
VKEY = "witness.vkey"

Outcome = Literal["cosigned", "conflict", "malformed", "unknown", "unsigned", "inconsistent"]


@dataclass(frozen=True, slots=True)
class Answer:
    """`text` is what the specification has in the body of a 200 or a 409; for the other outcomes a sentence."""

    outcome: Outcome
    text: str


def load_key(data: Path, domain: str) -> Signer:
    """The witness's own key, `keys/witness.key`, made when it is first needed; its name is `<domain>/witness`.

    Whoever lets this node cosign is given `witness.vkey`. Raises KeyUnusable.
    """
    folder = data / "keys"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    signer = load_or_create_key(folder / KEY, f"{domain}/witness", COSIGNATURE_V1)
    public = signer.verifier.vkey() + "\n"
    path = data / VKEY
    if not path.exists() or path.read_text() != public:
        durable.replace(path, public.encode(), 0o644)
    return signer


class Witness:
    """Calls block for a commit: not for the event loop. Safe from several threads."""

    def __init__(self, signer: Signer, logs: Sequence[Verifier], anchors: Anchors) -> None:
        """`logs`: the keys of the logs to cosign for; a log whose key is being changed has two."""
        self.verifier = signer.verifier
        self._signer = signer
        self._logs = logs
        self._anchors = anchors
        self._turn = Lock()

    def add_checkpoint(self, body: bytes) -> Answer:
        """Judge one request, and cosign what is sound. Raises LogError when it cannot be remembered."""
        with self._turn:
            answer = self._answer(body)
        _ANSWERS.labels(answer.outcome).add()
        return answer

    def checkpoint(self, origin_hash: str) -> str | None:
        """The last checkpoint cosigned of the log whose origin has this SHA-256 (hex), with both signatures."""
        for origin in {log.name for log in self._logs}:
            if sha256(origin.encode()).hexdigest() == origin_hash:
                found = self._anchors.witnessed(origin)
                return None if found is None else found.note
        return None

    def _answer(self, body: bytes) -> Answer:
        try:
            request = witness.parse(body)
            origin = witness.origin_of(request)
        except FormatError as error:
            return Answer("malformed", str(error))
        keys = [log for log in self._logs if log.name == origin]
        known = self._anchors.witnessed(origin) if keys else None
        verdict = witness.judge(request, keys, UNKNOWN if known is None else Latest(known.size, known.root))
        match verdict:
            case Sound():
                return self._cosign(verdict, known)
            case Conflict(size):
                return Answer("conflict", f"{size}\n")
            case Malformed(why):
                return Answer("malformed", why)
            case UnknownLog():
                return Answer("unknown", "this witness does not know the log")
            case Unsigned(why):
                return Answer("unsigned", why)
            case Inconsistent(why):
                return Answer("inconsistent", why)

    def _cosign(self, sound: Sound, known: Witnessed | None) -> Answer:
        signature = witness.cosign(sound, self._signer, int(time.time()))
        found = sound.checkpoint
        # What is remembered already need not be written again: whoever repeats a request costs no disk.
        if known is None or known.size != found.size:
            signed = str(Note(sound.note.text, (*sound.signatures, signature)))
            before = 0 if known is None else known.size
            if not self._anchors.witness(found.origin, before, Witnessed(found.size, found.root, signed)):
                # Another node of this deployment was first.
                now = self._anchors.witnessed(found.origin)
                return Answer("conflict", f"{now.size if now else 0}\n")
        return Answer("cosigned", signature.line())


_ANSWERS = metrics.counter("aimx.audit.witness.answers")


def cosigned_logs(settings: Audit) -> list[Verifier]:
    """The logs of the settings that this node is a witness of. Raises SettingError."""
    try:
        named = settings.cosign.items()
        return [read_key(f"audit.cosign.{name}.vkey", found.vkey, note.ED25519) for name, found in named]
    except FormatError as error:
        raise SettingError(str(error)) from None


def read_key(name: str, vkey: str, kind: bytes) -> Verifier:
    """One verifier key of a setting. Raises FormatError, which names the setting."""
    try:
        key = Verifier.parse(vkey)
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from None
    if key.kind != kind:
        what = "a witness's (type 04)" if kind == COSIGNATURE_V1 else "a log's (type 01)"
        raise FormatError(f"{name}: this verifier key is not {what}")
    return key
