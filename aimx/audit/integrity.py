"""Is the log one log? Every leaf hashed again, every stored node, the root, every signed checkpoint at hand, and how
one shard follows another.

Reads the log only, in pieces, and believes none of its hashes. Leaves below a size never change, so no transaction is
held while the node goes on writing.

Which key may speak for a shard is said by the log itself: the one in its first leaf, then each that a `key.rotated`
names. A checkpoint counts when the key in force at its size has signed it. A key is believed when it was given, or when
a checkpoint that a believed key has signed covers the leaf that names it.
"""

import base64
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple

from aimx.audit.log import Reader, Shard, State
from aimx.audit.memory import Memory
from aimx.audit.report import Report
from aimx.tlog import checkpoint, note, tile, tree
from aimx.tlog.checkpoint import Checkpoint
from aimx.tlog.errors import FormatError, ProofError
from aimx.tlog.note import Note, Verifier
from aimx.tlog.receipt import PROMISE_SECONDS
from aimx.tlog.tree import Frontier

CHUNK = 8192
"""Leaves in memory at a time: about four megabytes."""


SLACK_MS = PROMISE_SECONDS * 1000
"""By how much an event may be older than what was logged before it."""


class Claim(NamedTuple):
    """What somebody signed. `source` says where we have it from; no signature is checked yet."""

    found: Checkpoint
    note: Note
    source: str


Held = tuple[Claim, set[Verifier]]
"""A claim, and the keys whose signatures on it hold."""


class Checked(NamedTuple):
    """What the store is then held against: the place after the last leaf, and which messages were erased. `keys`: those
    given, and those they vouch for."""

    size: int
    erased: frozenset[str]
    keys: frozenset[Verifier]
    memory: Memory | None = None
    """What the next verification can go on from; None when something is wrong."""
    missing: str | None = None
    """The shard before the first one at hand, when no leaf says that it was dropped."""


Progress = Callable[[int], None]
"""Told how many leaves more were checked."""


@dataclass(slots=True)
class Walk:
    """One shard, read through: what its leaves say that matters to the whole."""

    shard: Shard
    frontier: Frontier = field(default_factory=Frontier)
    roots: dict[int, bytes] = field(default_factory=dict)
    """The root at each size that somebody signed."""
    opened: dict[str, Any] = field(default_factory=dict)
    closed: dict[str, Any] | None = None
    """The last leaf, where it closes this shard."""
    keys: list[tuple[int, Verifier]] = field(default_factory=list)
    """From which index on which key is in force."""
    erased: set[str] = field(default_factory=set)
    dropped: set[str] = field(default_factory=set)
    """Origins of shards that were let go."""
    floor_ms: int = 0
    """What is logged from here on cannot have happened before (Unix ms)."""


def check(
    readers: Sequence[Reader],
    given: Sequence[Verifier],
    high_water: str | None,
    remembered: Sequence[str],
    report: Report,
    memory: Memory | None = None,
    progress: Progress = lambda leaves: None,
) -> Checked:
    """Check the whole log and add what is wrong to `report`. Raises LogError when it cannot be read at all.

    `readers` are the shards, oldest first; `given` the log keys to believe, at least one. `high_water` is the text of
    the node's own newest checkpoint file, `remembered` signed checkpoints kept elsewhere; both were read before this
    call, so that none can be younger than the state read here. `memory`: leaves not to be read again.
    """
    notes = [("the newest checkpoint that this node remembers", high_water)] if high_water else []
    notes += [(f"remembered checkpoint {number}", text) for number, text in enumerate(remembered, 1)]
    report.remembered = len(remembered)
    outside = _claims(notes, report)
    believed, erased, previous = set(given), set(memory.erased if memory else ()), None
    dropped = set[str]()
    missing: str | None = None
    for number, reader in enumerate(readers):
        newest = reader is readers[-1]
        floor_ms = 0 if previous is None else previous.floor_ms
        walk, claims, outside = _read(reader, given, outside, report, memory, progress, floor_ms)
        erased |= walk.erased
        dropped |= walk.dropped
        if previous is not None:
            _check_succession(previous, walk, believed, report)
        else:
            report.dropped = walk.shard.start
            missing = _before(walk)
        lost = 0
        if (
            not newest and walk.closed is None
        ):  # an old copy was put back; the next shard's first leaf says how much went
            lost = max(0, readers[number + 1].described().start - walk.shard.end)
            report.lost += lost
        sound = _judge(walk, claims, believed, lost, report)
        _believe(walk, sound, believed, given, report)
        if newest:
            _check_signed_in_time(reader, walk, claims, report)
        previous = walk
    report.shards = len(readers)
    for claim in outside:
        if not report.dropped:
            text = f"{claim.source} is of {claim.found.origin}, which is no shard of this log"
            report.add("checkpoint-invalid", text)
    if missing in dropped or (memory is not None and memory.dropped == report.dropped):
        missing = None
    kept = None if previous is None or report.wrong else _remembered(previous, erased, report.dropped, memory)
    return Checked(report.size, frozenset(erased), frozenset(believed), kept, missing)


def add_missing(origin: str, report: Report) -> None:
    """A shard is gone, and neither log nor store says why."""
    report.add("shard-missing", f"the shard {origin} is not there and no log.dropped says so", 0)


def _before(first: Walk) -> str | None:
    """The shard before the first one at hand, if there was one."""
    if not first.shard.start:
        return None
    try:
        return checkpoint.parse(note.parse(str(first.opened.get("prev"))).text).origin
    except FormatError:
        return f"before {first.shard.origin}"


def _remembered(walk: Walk, erased: set[str], dropped: int, before: Memory | None) -> Memory:
    keys = tuple((start, key.vkey()) for start, key in walk.keys)
    tip = walk.frontier
    return Memory(
        walk.shard.origin,
        tip.size,
        tip.to_bytes().hex(),
        keys,
        walk.opened,
        tuple(sorted(erased)),
        place=walk.shard.start + tip.size,
        full_ms=before.full_ms if before else 0,
        dropped=dropped,
        floor_ms=walk.floor_ms,
    )


def _read(
    reader: Reader,
    given: Sequence[Verifier],
    outside: list[Claim],
    report: Report,
    memory: Memory | None,
    progress: Progress,
    floor_ms: int,
) -> tuple[Walk, list[Claim], list[Claim]]:
    """One shard: its walk, everything that was signed of it, and what was signed of others."""
    kept, state, shard = reader.checkpoints(), reader.state(), reader.described()
    inside = [(f"the checkpoint kept at size {size}", text) for size, _, text in kept]
    if state.signed is not None:
        inside.append(("the newest checkpoint", state.signed))
    origin = shard.origin or given[0].name
    claims = [*_claims(inside, report), *(claim for claim in outside if claim.found.origin == origin)]
    claims.sort(key=lambda claim: claim.found.size)
    report.size, report.root, report.origin = shard.start + state.size, state.root.hex(), origin
    key = next((key for key in given if key.name == origin), given[0])
    walk = Walk(shard, keys=[(0, key)], floor_ms=floor_ms)
    if memory is not None and memory.origin == origin:
        _resume(reader, state, walk, memory, claims, report)
    walk = _walk(reader, state, walk, claims, report, progress)
    return walk, claims, [claim for claim in outside if claim.found.origin != origin]


# --- signatures ---


def _claims(notes: Sequence[tuple[str, str]], report: Report) -> list[Claim]:
    claims: list[Claim] = []
    for source, text in notes:
        try:
            parsed = note.parse(text)
            claims.append(Claim(checkpoint.parse(parsed.text), parsed, source))
        except FormatError as error:
            report.add("checkpoint-invalid", f"{source} is not one this log has signed: {error}")
    return claims


def _judge(walk: Walk, claims: list[Claim], believed: set[Verifier], lost: int, report: Report) -> list[Held]:
    """Each claim's signatures, then whether it is a state the shard went through. Returns the sound ones."""
    sound: list[Held] = []
    for claim in claims:
        in_force = [key for start, key in walk.keys if start < claim.found.size or start == 0][-1]
        try:
            held = {one.verifier for one in note.verify(claim.note, list({*believed, *(key for _, key in walk.keys)}))}
            if claim.found.origin != in_force.name or in_force not in held:
                raise ProofError(f"{in_force.name} has not signed it with the key in force at that size")
        except ProofError as error:
            report.add("checkpoint-invalid", f"{claim.source} is not one this log has signed: {error}")
            continue
        report.checkpoints += 1
        sound.append((claim, held))
    for claim, _ in sound:
        _check_claim(claim, walk, lost, report)
    return sound


def _believe(walk: Walk, sound: list[Held], believed: set[Verifier], given: Sequence[Verifier], report: Report) -> None:
    """Whom to believe besides: adds to `believed` whoever a believed key's checkpoint covers."""
    known: set[Verifier] = set()
    while known != believed:
        known = set(believed)
        covered = max((claim.found.size for claim, held in sound if held & believed), default=0)
        believed |= {key for start, key in walk.keys if start < covered}
    spoke = [key for _, key in walk.keys]
    for key in spoke:
        if sound and key not in believed:
            report.add("key-strange", f"{key.name} speaks under {key.vkey()}, for which nothing vouches")
    for key in given:
        if walk.opened and key.name == walk.shard.origin and key not in spoke:
            report.add("key-strange", f"{key.name} never spoke under {key.vkey()}, which was given as its key")


def _check_claim(claim: Claim, walk: Walk, lost: int, report: Report) -> None:
    """`lost`: how many leaves after this shard's last are said to be lost."""
    size, root = claim.found.size, claim.found.root
    held = walk.shard.size
    if size > held + lost:
        said = f" and {lost} are said to be lost" if lost else ""
        report.add("truncated", f"{claim.source} counts {size} leaves, the log holds {held}{said}")
    elif size in walk.roots and walk.roots[size] != root:
        ours, theirs = base64.b64encode(walk.roots[size]).decode(), base64.b64encode(root).decode()
        text = f"{claim.source} was signed for {size} leaves with root {theirs}; they now give {ours}"
        report.add("checkpoint-contradicted", text, walk.shard.start + max(size - 1, 0))


def _check_signed_in_time(reader: Reader, walk: Walk, claims: list[Claim], report: Report) -> None:
    """A rewritten or added tail cannot be signed without the key; an honest one is, within a second."""
    size, signed = walk.shard.size, max((claim.found.size for claim in claims), default=0)
    if signed >= size:
        return
    entry = reader.entry(signed)
    if entry is None:
        return
    _, _, rest = entry.partition(b'"t":')
    digits = rest.partition(b",")[0]
    age_s = time.time() - int(digits) / 1000 if digits.isdigit() else float("inf")
    if age_s > PROMISE_SECONDS:
        text = f"{size - signed} leaves are under no signed checkpoint, the first of them for {age_s:.0f} s"
        report.add("unsigned", f"{text}; start the node to have them signed", walk.shard.start + signed)


# --- succession ---


def _check_succession(old: Walk, new: Walk, believed: set[Verifier], report: Report) -> None:
    """That a shard begins where the one before it ended, and that the one before said so."""
    origin, said = new.shard.origin, new.opened
    key = new.keys[0][1]
    fault: str | None = None
    if old.closed is not None:
        if (old.closed.get("next"), old.closed.get("log")) != (origin, key.vkey()):
            fault = f"{old.shard.origin} was closed for another shard or key than {origin}"
        elif new.shard.start != old.shard.end or not _is_head(said.get("prev"), old):
            fault = f"{origin} does not begin where {old.shard.origin} ends"
        elif any(known in believed for _, known in old.keys):
            believed.add(key)  # the old key's last checkpoint covers the leaf that names the new one
    elif said.get("why") != "restored" or new.shard.start < old.shard.end:
        fault = f"{old.shard.origin} was never closed, and {origin} goes on after it"
    if fault is not None:
        report.add("shard-unlinked", fault, new.shard.start)


def _is_head(prev: object, old: Walk) -> bool:
    try:
        found = checkpoint.parse(note.parse(str(prev)).text)
    except FormatError:
        return False
    return found == Checkpoint(old.shard.origin, old.shard.size, old.frontier.root())


# --- leaves ---


def _resume(reader: Reader, state: State, walk: Walk, memory: Memory, claims: list[Claim], report: Report) -> None:
    """Begin after the leaves that were checked before: the tree's stored nodes must still be theirs."""
    if memory.size > state.size:
        text = f"{memory.size} leaves were checked before, the log holds {state.size}"
        report.add("truncated", text)
        return
    nodes, before = reader.node_reader(), memory.tree()
    if tree.root_at(memory.size, nodes) != before.root():
        text = f"the first {memory.size} leaves are not those that were checked before"
        report.add("checkpoint-contradicted", text, walk.shard.start)
        return
    walk.frontier, walk.opened, walk.floor_ms = before, memory.opened, memory.floor_ms
    walk.keys = [(start, Verifier.parse(vkey)) for start, vkey in memory.keys]
    for size in {claim.found.size for claim in claims if claim.found.size <= memory.size}:
        walk.roots[size] = tree.root_at(size, nodes)


def _walk(reader: Reader, state: State, walk: Walk, claims: list[Claim], report: Report, progress: Progress) -> Walk:
    """Stream all leaves: hashes, density, ids, nodes, the root at each size claimed, and the root at the end."""
    frontier, start, done = walk.frontier, walk.shard.start, walk.frontier.size
    wanted = sorted({claim.found.size for claim in claims if done < claim.found.size <= state.size} | {done})
    waiting = iter([*wanted, state.size + 1])
    size = next(waiting)
    for first in range(done, state.size, CHUNK):
        end = min(first + CHUNK, state.size)
        hashes = _check_chunk(reader, first, end, walk, report)
        if hashes is None:
            return walk
        report.leaves += end - first
        at, nodes = first, list[tuple[int, int, bytes]]()
        while size <= end:
            nodes += frontier.extend(hashes[at - first : size - first], tile.HEIGHT)
            at, walk.roots[size] = size, frontier.root()
            size = next(waiting)
        nodes += frontier.extend(hashes[at - first :], tile.HEIGHT)
        # Nodes before checkpoints: they say where it is wrong to 256 leaves, a checkpoint only that it is.
        _check_nodes(reader, nodes, start, report)
        progress(end - first)
    while size <= state.size:
        walk.roots[size] = frontier.root()
        size = next(waiting)
    if frontier.root() != state.root or frontier != state.frontier:
        report.add("root-differs", f"the {state.size} leaves do not add up to the root that is stored for them")
    return walk


def _check_chunk(reader: Reader, start: int, end: int, walk: Walk, report: Report) -> list[bytes] | None:
    """The hashes of leaves start … end-1 as they are now; None when one is missing, for then nothing after it fits."""
    rows = reader.leaves(start, end)
    base, hashes, floor = walk.shard.start, list[bytes](), _digits(walk.floor_ms)
    for place, (idx, eid, stored, entry) in enumerate(rows, start):
        if idx != place:
            report.add("leaf-missing", f"there is no leaf {base + place}", base + place)
            return None
        digest = sha256(b"\x00" + entry).digest()
        hashes.append(digest)
        if digest != stored:
            report.add("leaf-edited", f"leaf {base + idx} was changed after it was logged", base + idx, eid)
        elif entry.find(_named(eid)) < 0:
            text = f"leaf {base + idx} stands under the id {eid}, which is not its own"
            report.add("leaf-misnamed", text, base + idx, eid)
        elif entry.find(b'"ev":"log.') >= 0 or entry.find(b'"ev":"key.') >= 0:
            _heed(idx, entry, walk)
        elif entry.find(b'"ev":"message.erased"') >= 0 and (ref := _ref(entry)):
            walk.erased.add(ref)
        elif entry.find(b'"ev":"anchor.recorded"') >= 0:
            _heed_outsider(entry, walk)
            floor = _digits(walk.floor_ms)
        # Every leaf comes by here, so times are compared as they are written: thirteen digits and a comma.
        if floor and (entry[(at := entry.rfind(b'"t":') + 4) : at + 13] < floor or entry[at + 13 : at + 14] != b","):
            text = f"leaf {base + idx} says {_when(entry[at:])}, and stands after a cosignature of"
            report.add("backdated", f"{text} {_utc(walk.floor_ms + SLACK_MS)}", base + idx, eid)
    if len(rows) < end - start:
        place = base + start + len(rows)
        report.add("leaf-missing", f"there is no leaf {place}, and the log says it holds more", place)
        return None
    return hashes


def _heed(index: int, entry: bytes, walk: Walk) -> None:
    """A leaf about the log itself: who speaks for it, and where it goes on."""
    try:
        leaf = json.loads(entry)
        match leaf["ev"]:
            case "log.opened" if index == 0:
                walk.opened, walk.keys = leaf, [(0, Verifier.parse(leaf["log"]))]
            case "log.dropped":
                walk.dropped.add(str(leaf["origin"]))
            case "log.closed" if leaf["origin"] == walk.shard.origin and index == walk.shard.size - 1:
                walk.closed = leaf
            case "key.rotated" if leaf["what"] == "log" and leaf["old"] == walk.keys[-1][1].vkey():
                walk.keys.append((index, Verifier.parse(leaf["new"])))
    except (FormatError, ValueError, KeyError, TypeError):
        return  # a leaf of ours would be well-formed; what it should have said is then missed, and that is found


def _heed_outsider(entry: bytes, walk: Walk) -> None:
    """A witness's signature stands in the log: what follows it was logged after it was made.

    The witness's own clock counts no more than the log's: one that goes fast could make every later leaf look old.
    """
    try:
        leaf = json.loads(entry)
        if leaf["kind"] == "witness":
            signed_ms = int.from_bytes(base64.b64decode(leaf["proof"])[4:12], "big") * 1000
            walk.floor_ms = max(walk.floor_ms, min(signed_ms, int(leaf["t"])) - SLACK_MS)
    except (ValueError, KeyError, TypeError):
        return


def _digits(t_ms: int) -> bytes:
    return b"%d" % t_ms if t_ms > 0 else b""


def _when(rest: bytes) -> str:
    digits = rest.partition(b",")[0][:16]
    return _utc(int(digits)) if digits.isdigit() and len(digits) <= 13 else "no time"


def _utc(t_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(t_ms / 1000))


def _named(eid: str) -> bytes:
    return b'"eid":"' + eid.encode() + b'"'


def _ref(entry: bytes) -> str | None:
    _, found, rest = entry.partition(b'"ref":"')
    return rest[:26].decode("ascii", "replace") if found else None


def _check_nodes(reader: Reader, nodes: list[tuple[int, int, bytes]], base: int, report: Report) -> None:
    by_level: dict[int, list[tuple[int, bytes]]] = {}
    for level, index, node in nodes:
        by_level.setdefault(level // tile.HEIGHT, []).append((index, node))
    for level, expected in by_level.items():
        first = expected[0][0]
        stored = reader.nodes(level, first, first + len(expected))
        if stored == [node for _, node in expected]:
            continue
        for place, (index, node) in enumerate(expected):
            if place >= len(stored) or stored[place] != node:
                leaf = base + (index << tile.HEIGHT * level)
                last = leaf + (1 << tile.HEIGHT * level) - 1
                report.add(
                    "node-differs", f"leaves {leaf} to {last} are not those that were hashed into the tree", leaf
                )
                break
