"""What a verification says: separate words for separate promises, the first thing that is wrong, and what was checked.

CONSISTENT      every leaf hashes to the tree, and every signed checkpoint at hand is a state this log went through
COMPLETE        every event and message of the store has its leaf, every leaf its event, every opening its commitment
PENDING         complete, but for events committed a moment ago that the log has yet to take in
UNRECONCILED    rows and leaves do not agree
ANCHORED(age)   somebody outside has confirmed a state of this log, that long ago: a witness, a time stamp authority, or
                whoever verifies, with a checkpoint kept elsewhere. What was logged before cannot be changed unseen
WITNESSED k/n   k of the n witnesses of the policy have cosigned one state
NOT ANCHORED    nobody outside this machine has been asked: whoever owns the machine and the key could have rewritten
                everything at once
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from aimx.audit.memory import Memory
    from aimx.audit.standing import Standing

MAX_FINDINGS = 50

Complete = Literal["COMPLETE", "PENDING", "UNRECONCILED"]

KINDS: Mapping[str, str] = {
    "log-unreadable": "audit.db is missing or damaged",
    "leaf-missing": "an index has no leaf",
    "leaf-edited": "a leaf's octets do not hash to its stored hash",
    "leaf-misnamed": "a leaf stands under another event's id",
    "node-differs": "a stored tree node is not the hash of the leaves under it",
    "root-differs": "the leaves do not add up to the stored root",
    "checkpoint-invalid": "a kept checkpoint is malformed or not signed by the log's key",
    "checkpoint-contradicted": "a signed checkpoint says another root for this size",
    "truncated": "a signed checkpoint counts more leaves than the log has",
    "anchor-invalid": "what is kept as an outsider's word is malformed or does not hold",
    "unsigned": "leaves older than the promise are under no signed checkpoint",
    "key-strange": "the log speaks under a key that nothing vouches for",
    "shard-unlinked": "a shard does not begin where the one before it ended",
    "shard-missing": "an earlier shard is gone and no log.dropped says so",
    "backdated": "a leaf says a time long before that of a cosignature which was logged before it",
    "leaf-unexplained": "a leaf has no event in the store",
    "event-unlogged": "an event says it is in the log and is not",
    "event-differs": "an event's row and its leaf are not the same",
    "event-overdue": "an event has waited for the log longer than promised",
    "opening-differs": "an opening is not what the leaf commits to",
    "opening-missing": "an opening is gone and no message.erased says so",
    "message-unlogged": "a message has no event of its acceptance",
    "message-missing": "an accepted message is gone and no message.erased says so",
    "message-differs": "a stored message is not the one its leaf commits to",
}
"""Every kind of finding; those in `_INCONSISTENT` are about the log itself, the others about the store beside it."""

_INCONSISTENT = frozenset(
    (
        "log-unreadable",
        "leaf-missing",
        "leaf-edited",
        "leaf-misnamed",
        "node-differs",
        "root-differs",
        "checkpoint-invalid",
        "checkpoint-contradicted",
        "truncated",
        "anchor-invalid",
        "unsigned",
        "key-strange",
        "shard-unlinked",
        "shard-missing",
        "backdated",
    )
)


class Finding(NamedTuple):
    """One thing that is wrong. `kind` is from KINDS; `index` and `eid` where it has a place."""

    kind: str
    text: str
    leaf: int | None = None
    eid: str | None = None

    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind, "text": self.text, "leaf": self.leaf, "eid": self.eid}


@dataclass(slots=True)
class Report:
    """The outcome of one verification. `findings` are in the order of discovery, at most MAX_FINDINGS of `wrong`."""

    origin: str
    size: int = 0
    root: str = ""
    """Hex."""
    leaves: int = 0
    checkpoints: int = 0
    events: int = 0
    openings: int = 0
    messages: int = 0
    contents: int = 0
    """Messages whose stored header and body were hashed again."""
    erased: int = 0
    pending: int = 0
    shards: int = 1
    lost: int = 0
    """Leaves that were signed for and are gone with a restored copy, as the next shard's first leaf says."""
    dropped: int = 0
    """Leaves of shards whose retention ended and that were dropped whole."""
    remembered: int = 0
    """Of the checkpoints, how many the caller brought along."""
    seconds: float = 0.0
    wrong: int = 0
    inconsistent: bool = False
    unreconciled: bool = False
    findings: list[Finding] = field(default_factory=list)
    standing: "Standing | None" = None
    since: int = 0
    """Leaves before this place were checked by an earlier verification and not read again."""
    memory: "Memory | None" = None
    """What the next verification can go on from; None unless nothing is wrong."""
    reconciled: bool = True
    """False: no store was at hand, so completeness was not looked at."""

    def add(self, kind: str, text: str, leaf: int | None = None, eid: str | None = None) -> None:
        assert kind in KINDS
        self.wrong += 1
        if kind in _INCONSISTENT:
            self.inconsistent = True
        else:
            self.unreconciled = True
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(kind, text, leaf, eid))

    def take_integrity(self, other: "Report") -> None:
        """Put what `integrity.check` found into this report, before what stands in it."""
        self.origin, self.size, self.root = other.origin, other.size, other.root
        self.leaves, self.checkpoints, self.remembered = other.leaves, other.checkpoints, other.remembered
        self.shards, self.lost, self.dropped = other.shards, max(self.lost, other.lost), other.dropped
        self.wrong += other.wrong
        self.inconsistent |= other.inconsistent
        self.unreconciled |= other.unreconciled
        self.findings = (other.findings + self.findings)[:MAX_FINDINGS]

    @property
    def ok(self) -> bool:
        return self.wrong == 0

    @property
    def complete(self) -> Complete:
        if self.unreconciled:
            return "UNRECONCILED"
        return "PENDING" if self.pending else "COMPLETE"

    @property
    def words(self) -> tuple[str, ...]:
        """The verdicts, each on its own: consistency, completeness where it was looked at, anchors."""
        words = ["INCONSISTENT" if self.inconsistent else "CONSISTENT"]
        if self.reconciled:
            words.append(self.complete)
        standing, age_s = self.standing, self.anchored_s
        words.append("NOT ANCHORED" if age_s is None else f"ANCHORED({age(age_s)})")
        if standing is not None and standing.witnessed:
            words.append(f"WITNESSED {standing.witnessed}/{standing.of}")
        return tuple(words)

    @property
    def anchored_s(self) -> float | None:
        """Seconds since somebody outside confirmed a state of this log; None: nobody has, or the log contradicts it."""
        if self.standing is None or self.inconsistent:
            return None
        return self.standing.age_s(time.time_ns() // 1_000_000)

    def lines(self) -> list[str]:
        """For a person at a terminal."""
        out = [", ".join(self.words)]
        out.append(f"  log       {self.origin}")
        out.append(f"  tree      {self.size} leaves, root {self.root[:16]}…")
        brought = f", {self.remembered} of them brought along" if self.remembered else ""
        out.append(f"  checked   {self.leaves} leaves, {self.checkpoints} signed checkpoints{brought}")
        contents = f", contents of {self.contents}" if self.contents else ", contents not looked at"
        out.append(f"            {self.events} events, {self.openings} openings, {self.messages} messages{contents}")
        if self.shards > 1:
            out.append(f"  shards    {self.shards}, each beginning where the one before it ended")
        if self.dropped:
            out.append(f"  dropped   the first {self.dropped} leaves, with shards whose retention ended (DROPPED)")
        if self.lost:
            out.append(f"  lost      {self.lost} leaves, when an old copy was put back, as log.opened says (RESTORED)")
        if self.since:
            out.append(f"  new       from leaf {self.since} on; what is before was checked earlier and not read again")
        if self.erased:
            out.append(f"  erased    {self.erased} openings, as message.erased says (ERASED)")
        if self.pending:
            out.append(f"  pending   {self.pending} events committed and not yet in the log")
        for finding in self.findings:
            place = "" if finding.leaf is None else f" (leaf {finding.leaf})"
            out.append(f"  WRONG     {finding.kind}: {finding.text}{place}")
        if self.wrong > len(self.findings):
            out.append(f"            and {self.wrong - len(self.findings)} more")
        out.append(f"  took      {self.seconds:.1f} s")
        if self.ok and self.anchored_s is None:
            out.append("  note      nobody outside this machine has witnessed the log; keep its checkpoints elsewhere")
        return out

    def to_json(self) -> dict[str, object]:
        standing, age_s = self.standing, self.anchored_s
        return {
            "ok": self.ok,
            "consistent": self.words[0],
            "complete": self.complete if self.reconciled else None,
            "anchored": "NOT ANCHORED" if age_s is None else "ANCHORED",
            "anchored_s": None if age_s is None else round(age_s, 1),
            "witnessed": None
            if standing is None or not standing.of
            else {
                "by": standing.witnessed,
                "of": standing.of,
                "size": standing.size,
                "quorum": standing.quorum,
            },
            "words": list(self.words),
            "origin": self.origin,
            "size": self.size,
            "root": self.root,
            "checked": {
                "leaves": self.leaves,
                "checkpoints": self.checkpoints,
                "remembered": self.remembered,
                "events": self.events,
                "openings": self.openings,
                "messages": self.messages,
                "contents": self.contents,
            },
            "shards": self.shards,
            "dropped": self.dropped,
            "lost": self.lost,
            "since": self.since,
            "erased": self.erased,
            "pending": self.pending,
            "wrong": self.wrong,
            "first": self.findings[0].to_json() if self.findings else None,
            "findings": [finding.to_json() for finding in self.findings],
            "seconds": round(self.seconds, 3),
        }


def age(seconds: float) -> str:
    """A length of time in the unit that reads best: `40 s`, `3 min`, `5 h`, `2 d`."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
