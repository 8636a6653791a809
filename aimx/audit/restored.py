"""Was an old copy of the log put back? What this node has signed, and what others hold of it, knows.

Going on from such a copy would sign a second history over the first one. The honest way is a new shard whose first leaf
names the newest head anybody knows, so that what is lost is said to be lost.
"""

import contextlib
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from aimx import durable
from aimx.audit import events, succession
from aimx.audit import keys as keyring
from aimx.audit.keys import Keys
from aimx.audit.log import LogError, Reader
from aimx.audit.place import open_log, open_reader
from aimx.audit.succession import Sharding
from aimx.message.identifier import new_eid
from aimx.store.contract import EventRow
from aimx.tlog import checkpoint, note, tree
from aimx.tlog.checkpoint import Checkpoint
from aimx.tlog.errors import FormatError, ProofError
from aimx.tlog.note import Verifier

log = logging.getLogger(__name__)

ADVICE = "put the newest copy back; if there is none, `aimx audit restore-fork` goes on with an honest new log"


class Head(NamedTuple):
    """A signed checkpoint of this log that lies outside the log. `source` says where."""

    source: str
    checkpoint: Checkpoint
    note: str


class Outbox(Protocol):
    async def record(self, events: Sequence[EventRow]) -> None: ...


def heads(texts: Iterable[tuple[str, str]], keys: Sequence[Verifier]) -> list[Head]:
    """Those of (source, signed note) that a key of ours has signed; others are passed over with a warning."""
    found: list[Head] = []
    for source, text in texts:
        try:
            parsed = note.parse(text)
            note.verify(parsed, keys)
            found.append(Head(source, checkpoint.parse(parsed.text), text))
        except (FormatError, ProofError) as error:
            log.warning("a remembered checkpoint is unreadable and not heeded", extra={"error": f"{source}: {error}"})
    return found


def fault(reader: Reader, known: Sequence[Head]) -> str | None:
    """Why the log is not the one these heads were signed for; None when it continues them all.

    Older shards are left to the verification: the newest one is what would be signed.
    """
    shards = reader.shards()
    newest = shards[-1]
    for head in known:
        seen = head.checkpoint
        if seen.origin != newest.origin:
            if newest.size and any(shard.origin == seen.origin for shard in shards[:-1]):
                continue
            if newest.size:
                return f"has no shard {seen.origin}, which {head.source} is of: an old copy was put in its place"
        if seen.size > newest.size:
            return f"holds {newest.size} leaves, but {head.source} counts {seen.size}: an old copy was put in its place"
        if tree.root_at(seen.size, reader.shard(newest.number).node_reader()) != seen.root:
            return f"is not the log that {head.source} was signed for"
    return None


async def fork(
    outbox: Outbox,
    folder: Path,
    keys: Keys,
    known: Sequence[Head],
    *,
    node: str,
    database: str | None,
    sharding: Sharding,
    high_water: Path,
) -> tuple[str, int]:
    """Go on in a new shard, under a new key, that names the newest head known. The node must not run.

    Returns the new shard's origin and how many leaves are known to be lost. Raises LogError when nothing is lost.
    """
    with (
        contextlib.closing(open_log(folder, database)) as writer,
        contextlib.closing(open_reader(folder, database)) as reader,
    ):
        if not writer.lead("restore-fork", 60.0):
            raise LogError("a node works on this log; stop it first")
        wrong, shards = fault(reader, known), reader.shards()
        if wrong is None:
            raise LogError("the log is the one this node has signed for; there is nothing to fork")
        newest, old = max(known, key=lambda head: head.checkpoint.size), shards[-1]
        lost = max(0, newest.checkpoint.size - (old.size if newest.checkpoint.origin == old.origin else 0))
        now_ms = time.time_ns() // 1_000_000
        domain = keys.origin.partition("/")[0]
        name = succession.next_origin(domain, shards, sharding, now_ms, mark="restored")
        waiting = keyring.make_next(folder, "log", name, new_eid(now_ms), signer=sharding.signer)
        row = events.log_opened(
            events.Stamp(node, now_ms, events.no_span(), "admin"),
            origin=name,
            log=waiting.key.verifier.vkey(),
            receipt=keys.receipt.verifier.vkey(),
            prev=newest.note,
            start=old.end + lost,
            why="restored",
        )
        await outbox.record([row])
        writer.begin((row.eid, row.leaf), [waiting.key], now_ms)
        keyring.put_in_force(folder, "log", now_ms, 0)
        durable.replace(high_water, writer.sign([waiting.key], now_ms).encode(), 0o644)
        writer.lead("restore-fork", 0.0)
    return name, lost
