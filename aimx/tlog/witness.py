"""The witness protocol without its wire (https://c2sp.org/tlog-witness): a request's form, and how it is judged.

A witness remembers one thing of a log: the last checkpoint it cosigned. It cosigns the next one only when a proof shows
that the log it speaks of begins with that one. Whoever calls `judge` keeps that memory, and replaces it before the
cosignature leaves the house.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from aimx.tlog import checkpoint, note, tree
from aimx.tlog.checkpoint import Checkpoint
from aimx.tlog.errors import FormatError, ProofError
from aimx.tlog.note import Note, Signature, Signer, Verified, Verifier

MAX_HASHES = 63
MAX_REQUEST = 1 << 16
"""Octets; a request is below four thousand unless its checkpoint carries very many signatures."""


class Request(NamedTuple):
    """The body of `add-checkpoint`: the size the witness is thought to know, the proof from there, the signed note."""

    old: int
    proof: tuple[bytes, ...]
    note: str

    def body(self) -> bytes:
        lines = [f"old {self.old}", *(base64.b64encode(part).decode() for part in self.proof)]
        return ("\n".join(lines) + "\n\n" + self.note).encode()


def parse(data: bytes) -> Request:
    """Read a request's body. Raises FormatError; checks neither proof nor signature."""
    if len(data) > MAX_REQUEST:
        raise FormatError("too long for an add-checkpoint request")
    try:
        head, blank, signed = data.decode().partition("\n\n")
    except UnicodeDecodeError as error:
        raise FormatError("an add-checkpoint request is UTF-8") from error
    first, *rest = head.split("\n")
    word, _, size = first.partition(" ")
    if word != "old" or not blank:
        raise FormatError("an add-checkpoint request begins with the old size")
    if len(rest) > MAX_HASHES:
        raise FormatError("at most 63 hashes make a consistency proof")
    proof = tuple(note.decode64(line) for line in rest)
    if any(len(part) != tree.HASH_SIZE for part in proof):
        raise FormatError("a consistency proof consists of hashes of 32 octets")
    return Request(checkpoint.parse_size(size), proof, signed)


class Latest(NamedTuple):
    """What a witness remembers of a log: the last checkpoint it cosigned. Size 0: none yet."""

    size: int
    root: bytes


UNKNOWN = Latest(0, tree.EMPTY_ROOT)


@dataclass(frozen=True, slots=True)
class Sound:
    """May be cosigned, once it is remembered. `signatures` are the log's own that hold."""

    checkpoint: Checkpoint
    note: Note
    signatures: tuple[Signature, ...]


@dataclass(frozen=True, slots=True)
class Conflict:
    """The witness knows another size: prove from there."""

    size: int


@dataclass(frozen=True, slots=True)
class Malformed:
    """Not a request."""

    why: str


@dataclass(frozen=True, slots=True)
class UnknownLog:
    """This witness has not been told of the log."""

    origin: str


@dataclass(frozen=True, slots=True)
class Unsigned:
    """The log has not signed it."""

    why: str


@dataclass(frozen=True, slots=True)
class Inconsistent:
    """Signed by the log, and not a continuation of what the witness has cosigned: evidence against the log."""

    why: str


Verdict = Sound | Conflict | Malformed | UnknownLog | Unsigned | Inconsistent


def origin_of(request: Request) -> str:
    """The log a request speaks of. Raises FormatError when it holds no checkpoint."""
    return checkpoint.parse(note.parse(request.note).text).origin


def judge(request: Request, keys: Sequence[Verifier], latest: Latest) -> Verdict:
    """What to answer. `keys`: those trusted for the request's origin, none if the log is not known.

    The order of the checks is the specification's, for it decides which answer a client gets.
    """
    try:
        signed = note.parse(request.note)
        found = checkpoint.parse(signed.text)
    except FormatError as error:
        return Malformed(str(error))
    if not keys:
        return UnknownLog(found.origin)
    try:
        held = note.verify(signed, keys)
    except ProofError as error:
        return Unsigned(str(error))
    if request.old > found.size:
        return Malformed(f"the old size {request.old} is above the checkpoint's {found.size}")
    if request.old != latest.size:
        return Conflict(latest.size)
    if found.size == 0 and found.root != tree.EMPTY_ROOT:
        return Inconsistent("the root of an empty tree is fixed and is another")
    try:
        tree.verify_consistency(request.old, found.size, latest.root, found.root, request.proof)
    except ProofError as error:
        return Inconsistent(str(error))
    return Sound(found, signed, tuple(verified.signature for verified in held))


def cosign(sound: Sound, signer: Signer, time: int) -> Signature:
    """The cosignature (https://c2sp.org/tlog-cosignature) at `time`, in Unix seconds."""
    return signer.sign(sound.note.text.encode(), time)


def accept(answer: str | bytes, text: str, witness: Verifier) -> Verified:
    """The witness's cosignature out of its answer to a request about the checkpoint with this text.

    Raises FormatError for an answer that is not signature lines, ProofError when none of them is this witness's or
    its own does not hold. Lines of unknown keys are passed over.
    """
    lines = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer
    held = note.verify(note.parse(f"{text}\n{lines}"), [witness])
    if not held[0].time:
        raise ProofError(f"the cosignature of {witness.name} says no time")
    return held[0]
