"""Checkpoints that were mailed to somebody: read out of his mailbox, and held against each other and against the log.

Two signed checkpoints that contradict each other prove, to anybody, that the log's owner has shown two histories.
"""

import mailbox
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from email.message import Message
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from aimx.audit.log import LogError, Reader
from aimx.tlog import checkpoint, tree
from aimx.tlog.checkpoint import Checkpoint
from aimx.tlog.errors import FormatError, ProofError
from aimx.tlog.note import Verifier

MAX_NOTE = 1 << 16

Word = Literal["CONSISTENT", "UNCHECKED", "FORKED", "ALTERED"]


@dataclass(slots=True)
class Compared:
    """What the mailbox says of each log. `notes`: different checkpoints that hold; `mails`: in which they came."""

    mails: int = 0
    notes: dict[str, dict[tuple[int, bytes], str]] = field(default_factory=dict)
    """By origin: (size, root) to the signed note."""
    invalid: list[str] = field(default_factory=list)
    """What looked like a checkpoint and is none that the log has signed: which mail, and why."""
    contradictions: list[str] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)
    """The signed notes that contradict each other, or the log."""
    altered: bool = False
    compared: bool = False
    """They were held against the log too, so that different sizes were compared."""

    @property
    def count(self) -> int:
        return sum(len(found) for found in self.notes.values())

    @property
    def word(self) -> Word:
        """FORKED: two of them contradict each other. ALTERED: one contradicts the log. UNCHECKED: there is no log at
        hand, and of different sizes nothing can be said without it."""
        if self.contradictions:
            return "ALTERED" if self.altered else "FORKED"
        sizes = max((len(found) for found in self.notes.values()), default=0)
        return "CONSISTENT" if self.compared or sizes < 2 else "UNCHECKED"


def compare(path: Path, keys: Sequence[Verifier], log: Callable[[str], Reader | None] | None = None) -> Compared:
    """Read a mailbox (mbox, Maildir, or one mail) and compare what is in it. `log`: the log of an origin, if at hand.

    Raises LogError when the mailbox or the log cannot be read.
    """
    compared = Compared()
    for name, text in _attached(path, compared):
        try:
            found = checkpoint.open_any(text, keys).checkpoint
        except (FormatError, ProofError) as error:
            compared.invalid.append(f"{name}: {error}")
            continue
        compared.notes.setdefault(found.origin, {}).setdefault((found.size, found.root), text)
    for origin, notes in compared.notes.items():
        _pairwise(origin, notes, compared)
        reader = log(origin) if log is not None else None
        if reader is not None:
            compared.compared = True
            _against_log(reader, [Checkpoint(origin, size, root) for size, root in notes], notes, compared)
    return compared


def _pairwise(origin: str, notes: dict[tuple[int, bytes], str], compared: Compared) -> None:
    ordered = sorted(notes)
    for (size, root), (other, another) in pairwise(ordered):
        if size == other:
            compared.contradictions.append(f"{origin} has signed two histories of {size} leaves")
            compared.evidence += [notes[size, root], notes[other, another]]


def _against_log(
    reader: Reader, found: Sequence[Checkpoint], notes: dict[tuple[int, bytes], str], compared: Compared
) -> None:
    size, nodes = reader.state().size, reader.node_reader()
    for one in sorted(found, key=lambda one: one.size):
        if one.size > size:
            text = f"{one.origin} has signed for {one.size} leaves and holds {size}"
        elif tree.root_at(one.size, nodes) != one.root:
            text = f"the first {one.size} leaves of {one.origin} are not those it has signed for"
        else:
            continue
        compared.altered = True
        compared.contradictions.append(text)
        compared.evidence.append(notes[one.size, one.root])


def _attached(path: Path, compared: Compared) -> Iterator[tuple[str, str]]:
    """Every part that may be a checkpoint, however a mail program has labelled it."""
    for mail in _mails(path, compared):
        compared.mails += 1
        name = str(mail.get("Message-ID", f"mail {compared.mails}"))
        for part in mail.walk():
            if part.is_multipart():
                continue
            octets = part.get_payload(decode=True)
            if not isinstance(octets, bytes) or len(octets) > MAX_NOTE:
                continue
            text = octets.decode("utf-8", "replace").replace("\r\n", "\n")
            if "\n\n\u2014 " in text and text.partition("\n\n")[0].count("\n") >= 2:
                yield name, text


def _each(box: mailbox.Mailbox[Any], compared: Compared) -> Iterator[Message]:
    """Anybody may write to the mailbox: a mail nested deeper than can be read must not hide the others."""
    for key in box.iterkeys():
        try:
            found = box[key]
        except RecursionError:
            compared.mails += 1
            compared.invalid.append(f"mail {compared.mails}: nested too deeply to be read")
            continue
        yield found


def _mails(path: Path, compared: Compared) -> Iterator[Message]:
    try:
        if path.is_dir():
            yield from _each(mailbox.Maildir(path, create=False), compared)
            return
        with path.open("rb") as file:
            is_mbox = file.read(5) == b"From "
        if is_mbox:
            yield from _each(mailbox.mbox(path, create=False), compared)
        else:
            yield Message() if path.stat().st_size == 0 else mailbox.mboxMessage(path.read_bytes())
    except (OSError, mailbox.Error) as error:
        raise LogError(f"{path} cannot be read as a mailbox: {error}") from None
