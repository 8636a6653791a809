"""Is the log one log? Every leaf hashed again, every stored node, the root, and every signed checkpoint at hand.

Reads audit.db only, in pieces, and believes none of its hashes. Leaves below a size never change, so no transaction is
held while the node goes on writing.
"""

import base64
import time
from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from aimx.audit.log import Reader, State
from aimx.audit.report import Report
from aimx.tlog import checkpoint, tile
from aimx.tlog.errors import FormatError, ProofError
from aimx.tlog.note import Verifier
from aimx.tlog.receipt import PROMISE_SECONDS
from aimx.tlog.tree import Frontier

CHUNK = 8192
"""Leaves in memory at a time: about four megabytes."""


class Claim(NamedTuple):
    """What somebody signed: `size` leaves have `root`. `source` says where we have it from."""

    size: int
    root: bytes
    source: str


class Checked(NamedTuple):
    """What the store is then held against: how many leaves there are, and which messages were erased."""

    size: int
    erased: frozenset[str]


def check(reader: Reader, key: Verifier, high_water: str | None, remembered: Sequence[str], report: Report) -> Checked:
    """Check the whole log and add what is wrong to `report`. Raises LogError when it cannot be read at all.

    `high_water` is the text of the node's own newest checkpoint file, `remembered` signed checkpoints kept elsewhere;
    both were read before this call, so that none can be younger than the state read here.
    """
    kept = reader.checkpoints()
    state = reader.state()
    report.size, report.root = state.size, state.root.hex()
    claims = _claims(kept, state, key, high_water, remembered, report)
    signed = max((claim.size for claim in claims), default=0)
    for claim in claims:
        if claim.size > state.size:
            report.add("truncated", f"{claim.source} counts {claim.size} leaves, the log holds {state.size}")
    erased = _check_leaves(reader, state, [claim for claim in claims if claim.size <= state.size], report)
    _check_signed_in_time(reader, signed, state.size, report)
    return Checked(state.size, frozenset(erased))


def _claims(
    kept: Sequence[tuple[int, int, str]],
    state: State,
    key: Verifier,
    high_water: str | None,
    remembered: Sequence[str],
    report: Report,
) -> list[Claim]:
    """Every signed checkpoint at hand whose signature holds, by size."""
    notes = [(f"the checkpoint kept at size {size}", note) for size, _, note in kept]
    if state.signed is not None:
        notes.append(("the newest checkpoint", state.signed))
    if high_water:
        notes.append(("the checkpoint beside audit.db", high_water))
    notes += [(f"remembered checkpoint {number}", note) for number, note in enumerate(remembered, 1)]
    report.remembered = len(remembered)
    claims: list[Claim] = []
    for source, note in notes:
        try:
            found = checkpoint.open_signed(note, key).checkpoint
        except (FormatError, ProofError) as error:
            report.add("checkpoint-invalid", f"{source} is not one this log has signed: {error}")
            continue
        claims.append(Claim(found.size, found.root, source))
        report.checkpoints += 1
    return sorted(claims)


def _check_leaves(reader: Reader, state: State, claims: list[Claim], report: Report) -> set[str]:
    """Stream all leaves: hashes, density, ids, nodes, the root after each claim, and the root at the end."""
    erased: set[str] = set()
    frontier = Frontier()
    waiting = iter([*claims, Claim(state.size, state.root, "")])
    claim = next(waiting)
    for start in range(0, state.size, CHUNK):
        end = min(start + CHUNK, state.size)
        hashes = _check_chunk(reader, start, end, erased, report)
        if hashes is None:
            return erased
        report.leaves += end - start
        at, nodes, held = start, list[tuple[int, int, bytes]](), list[tuple[Claim, bytes]]()
        while claim.size <= end and claim.source:
            nodes += frontier.extend(hashes[at - start : claim.size - start], tile.HEIGHT)
            at = claim.size
            held.append((claim, frontier.root()))
            claim = next(waiting)
        nodes += frontier.extend(hashes[at - start :], tile.HEIGHT)
        # Nodes first: they say where it is wrong to 256 leaves, a checkpoint only that it is.
        _check_nodes(reader, nodes, report)
        for checked, root in held:
            _check_claim(checked, root, report)
    while claim.source:
        _check_claim(claim, frontier.root(), report)
        claim = next(waiting)
    if frontier.root() != state.root or frontier != state.frontier:
        report.add("root-differs", f"the {state.size} leaves do not add up to the root that is stored for them")
    return erased


def _check_chunk(reader: Reader, start: int, end: int, erased: set[str], report: Report) -> list[bytes] | None:
    """The hashes of leaves start … end−1 as they are now; None when one is missing, for then nothing after it fits."""
    rows = reader.leaves(start, end)
    hashes: list[bytes] = []
    for place, (idx, eid, stored, entry) in enumerate(rows, start):
        if idx != place:
            report.add("leaf-missing", f"there is no leaf {place}", place)
            return None
        digest = sha256(b"\x00" + entry).digest()
        hashes.append(digest)
        if digest != stored:
            report.add("leaf-edited", f"leaf {idx} was changed after it was logged", idx, eid)
        elif entry.find(_named(eid)) < 0:
            report.add("leaf-misnamed", f"leaf {idx} stands under the id {eid}, which is not its own", idx, eid)
        elif b'"ev":"message.erased"' in entry and (ref := _ref(entry)):
            erased.add(ref)
    if len(rows) < end - start:
        place = start + len(rows)
        report.add("leaf-missing", f"there is no leaf {place}, and the log says it holds more", place)
        return None
    return hashes


def _named(eid: str) -> bytes:
    return b'"eid":"' + eid.encode() + b'"'


def _ref(entry: bytes) -> str | None:
    _, found, rest = entry.partition(b'"ref":"')
    return rest[:26].decode("ascii", "replace") if found else None


def _check_claim(claim: Claim, root: bytes, report: Report) -> None:
    if root != claim.root:
        ours, theirs = base64.b64encode(root).decode(), base64.b64encode(claim.root).decode()
        text = f"{claim.source} was signed for {claim.size} leaves with root {theirs}; they now give {ours}"
        report.add("checkpoint-contradicted", text, max(claim.size - 1, 0))


def _check_nodes(reader: Reader, nodes: list[tuple[int, int, bytes]], report: Report) -> None:
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
                leaf = index << tile.HEIGHT * level
                last = leaf + (1 << tile.HEIGHT * level) - 1
                report.add(
                    "node-differs", f"leaves {leaf} to {last} are not those that were hashed into the tree", leaf
                )
                break


def _check_signed_in_time(reader: Reader, signed: int, size: int, report: Report) -> None:
    """A rewritten or added tail cannot be signed without the key; an honest one is, within a second."""
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
        report.add("unsigned", f"{text}; start the node to have them signed", signed)
