"""Checkpoints: what a log says of itself, in three lines, signed (https://c2sp.org/tlog-checkpoint)."""

import base64
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from aimx.tlog import note
from aimx.tlog.errors import FormatError, ProofError
from aimx.tlog.note import Note, SigningKey, Verified, Verifier
from aimx.tlog.tree import HASH_SIZE


class Checkpoint(NamedTuple):
    """A log's name, how many leaves it holds, the root over them, and extension lines (C2SP advises against any)."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def text(self) -> str:
        lines = (self.origin, str(self.size), base64.b64encode(self.root).decode(), *self.extensions)
        return "".join(line + "\n" for line in lines)


def parse(text: str) -> Checkpoint:
    """Read a note's text as a checkpoint. Raises FormatError."""
    lines = text.split("\n")
    if lines[-1] != "" or len(lines) < 4 or not all(lines[:-1]):
        raise FormatError("a checkpoint has at least three lines, none of them empty")
    origin, size, root = lines[:3]
    digest = note.decode64(root)
    if len(digest) != HASH_SIZE:
        raise FormatError("a checkpoint's root has 32 octets")
    return Checkpoint(origin, parse_size(size), digest, tuple(lines[3:-1]))


def parse_size(text: str) -> int:
    """A size or an index as C2SP's formats write it. Raises FormatError."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 20 or (text[0] == "0" and text != "0"):
        raise FormatError("a size is a decimal number without leading zeros")
    return int(text)


def sign(checkpoint: Checkpoint, signers: Iterable[SigningKey]) -> Note:
    """The signed note that publishes `checkpoint`. Never sign two that contradict each other: the caller's duty."""
    return note.sign(checkpoint.text(), signers)


class Opened(NamedTuple):
    """A checkpoint whose log signature holds, the note it came in, and every signature that was checked."""

    checkpoint: Checkpoint
    note: Note
    signatures: list[Verified]


def open_signed(data: str | bytes, log: Verifier, cosigners: Sequence[Verifier] = ()) -> Opened:
    """Parse a signed checkpoint and check the log's own signature and those of known `cosigners`.

    Raises FormatError for a malformed note, ProofError when the log has not signed it, a known signature does not
    hold, or it speaks of another log.
    """
    return open_any(data, [log], cosigners)


def open_any(data: str | bytes, logs: Sequence[Verifier], cosigners: Sequence[Verifier] = ()) -> Opened:
    """As `open_signed`, for a log that has had several keys, or for one of several logs: one of `logs` must sign."""
    parsed = note.parse(data)
    checkpoint = parse(parsed.text)
    keys = [log for log in logs if log.name == checkpoint.origin]
    if not keys:
        raise ProofError(f"a checkpoint of {checkpoint.origin}, not of {' or '.join({log.name for log in logs})}")
    signatures = note.verify(parsed, [*keys, *cosigners])
    if not any(verified.verifier in keys for verified in signatures):
        raise ProofError(f"{checkpoint.origin} has not signed this checkpoint")
    return Opened(checkpoint, parsed, signatures)
