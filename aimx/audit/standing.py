"""How far outsiders hold the log: which of its states they have confirmed, when, and whether enough of them have.

What counts is what an outsider has signed: a witness's cosignature, an authority's time stamp, and a checkpoint that
whoever verifies has brought along. That a checkpoint was mailed is no proof here: the mail is, in its mailbox
(`aimx audit check-mail`).
"""

import base64
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from aimx.audit import timestamp
from aimx.audit.anchors import Anchor
from aimx.audit.log import Reader
from aimx.audit.report import Report
from aimx.audit.succession import closing
from aimx.tlog import checkpoint, tree
from aimx.tlog.checkpoint import Checkpoint
from aimx.tlog.errors import FormatError, ProofError
from aimx.tlog.note import Verifier
from aimx.tlog.policy import Policy

BURST = 200
"""Anchors whose nodes are read together: what a node reader has read it keeps."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose word counts. `roots`: certificates (PEM) of the time stamp authorities to trust."""

    policy: Policy = field(default_factory=Policy)
    roots: bytes = b""


@dataclass(slots=True)
class Standing:
    """`newest_ms`: when somebody outside last confirmed a state of this log (Unix ms); None: nobody has."""

    newest_ms: int | None = None
    witnessed: int = 0
    """Witnesses of the policy that have cosigned `size`: the newest state with a quorum, else the one with the most."""
    of: int = 0
    quorum: bool = False
    size: int = 0
    stamped: int = 0
    """Time stamps that hold."""

    def confirmed(self, t_ms: int) -> None:
        self.newest_ms = max(self.newest_ms or 0, t_ms)

    def age_s(self, now_ms: int) -> float | None:
        return None if self.newest_ms is None else max(0.0, (now_ms - self.newest_ms) / 1000)


def stand(
    readers: Sequence[Reader],
    anchors: Callable[[str], Sequence[Anchor]],
    brought: Sequence[str],
    logs: Collection[Verifier],
    trust: Trust,
    report: Report,
) -> Standing:
    """`weigh` for a log of one or more shards, oldest first. `anchors`: those of an origin; `logs`: the shards' keys.

    What stands is what outsiders said of the newest shard; while they said nothing yet, of the one before it. Raises
    LogError.
    """
    standing = Standing(of=len(trust.policy.witnesses))
    for reader in readers:
        shard = reader.described()
        if reader is not readers[-1]:
            last = reader.entry(shard.size - 1) if shard.size else None
            if last is None or closing(last, shard.origin) is None:
                continue  # an old copy, and said to be one: what was confirmed beyond its end is lost
        own = [key for key in logs if key.name == (shard.origin or key.name)]
        found = weigh(anchors(shard.origin or report.origin), brought, reader, own, trust, report)
        if found.newest_ms is not None:
            standing = found
    return standing


def weigh(
    anchors: Sequence[Anchor],
    brought: Sequence[str],
    reader: Reader,
    logs: Sequence[Verifier],
    trust: Trust,
    report: Report,
) -> Standing:
    """Check every anchor of one shard, and hold the log to it. `brought`: signed checkpoints the caller came with.

    What does not hold, or contradicts the log, is added to `report`. `logs`: the shard's keys. Raises LogError.
    """
    standing = Standing(of=len(trust.policy.witnesses))
    cosigners: dict[tuple[int, bytes], set[Verifier]] = {}
    states: list[tuple[Checkpoint, str]] = []
    for anchor in anchors:
        source = f"the checkpoint of {anchor.size} leaves anchored with {anchor.name}"
        try:
            found, held = _open(anchor.note, logs, trust)
            states.append((found, source))
            cosigners.setdefault((found.size, found.root), set()).update(held)
            for t_s in held.values():
                standing.confirmed(t_s * 1000)
            if anchor.kind == "timestamp" and trust.roots:
                stamped = timestamp.check(anchor.token, anchor.note.encode(), trust.roots)
                standing.confirmed(int(stamped.timestamp() * 1000))
                standing.stamped += 1
        except (FormatError, ProofError) as error:
            report.add("anchor-invalid", f"{source} does not hold: {error}")
    _hold_to(states, reader, report)
    _count(cosigners, trust.policy, standing)
    for text in brought:
        _bring(text, reader, logs, standing)
    return standing


def _open(text: str, logs: Sequence[Verifier], trust: Trust) -> tuple[Checkpoint, dict[Verifier, int]]:
    """A checkpoint of ours and who of the policy's witnesses has cosigned it, when (Unix s)."""
    opened = checkpoint.open_any(text, logs, tuple(trust.policy.witnesses.values()))
    witnesses = {held.verifier: held.time for held in opened.signatures if held.time is not None}
    return opened.checkpoint, witnesses


def _hold_to(states: Sequence[tuple[Checkpoint, str]], reader: Reader, report: Report) -> None:
    size = reader.state().size
    for start in range(0, len(states), BURST):
        nodes = reader.node_reader()
        for found, source in states[start : start + BURST]:
            if found.size > size:
                report.add("truncated", f"{source} counts {found.size} leaves, the log holds {size}")
            elif (root := tree.root_at(found.size, nodes)) != found.root:
                ours, theirs = base64.b64encode(root).decode(), base64.b64encode(found.root).decode()
                text = f"{source} was signed with root {theirs}; the log now gives {ours}"
                report.add("checkpoint-contradicted", text, max(found.size - 1, 0))


def _count(cosigners: dict[tuple[int, bytes], set[Verifier]], policy: Policy, standing: Standing) -> None:
    best = (False, 0, 0)
    for (size, _), held in cosigners.items():
        enough = bool(held) and policy.quorum != "none" and policy.satisfied(held)
        rank = (enough, size, len(held)) if enough else (False, len(held), size)
        if held and rank > best:
            best = rank
            standing.quorum, standing.witnessed, standing.size = enough, len(held), size


def _bring(text: str, reader: Reader, logs: Sequence[Verifier], standing: Standing) -> None:
    """A checkpoint that was kept says no time; it is as young at most as the last leaf under it."""
    try:
        found = checkpoint.open_any(text, logs).checkpoint
    except (FormatError, ProofError):
        return  # the report has it already
    entry = reader.entry(found.size - 1) if found.size else None
    if entry is None:
        return
    digits = entry.partition(b'"t":')[2].partition(b",")[0]
    if digits.isdigit():
        standing.confirmed(min(int(digits), time.time_ns() // 1_000_000))
