"""One event's openings against its leaf: does every plain value in the store's row stand under its commitment?"""

import json
from functools import lru_cache
from typing import Any

from aimx.audit.events import ACCEPTANCE, CATALOGUE, commitment, opened
from aimx.store.contract import EventRow
from aimx.tlog.leaf import KEY_SIZE, committer


def opening_fault(row: EventRow) -> str | None:
    """What is wrong between a row that still has its key and its own leaf; None when every commitment opens.

    The leaf is not parsed unless something is wrong: canonical JSON has one spelling, so the commitments made anew must
    stand in it octet for octet, and so must the event's name, id, time and message.
    """
    if row.key is None or len(row.key) != KEY_SIZE:
        return "its key is missing"
    parts = _PARTS.get(row.ev)
    if parts is None:
        return "its name is in no catalogue"
    opening: dict[str, Any] = row.detail.get("open", {})
    if not opening.keys() >= CATALOGUE[row.ev].commits.keys():
        return f"the opening of {min(CATALOGUE[row.ev].commits.keys() - opening.keys())} is missing"
    leaf = row.leaf
    if f'"eid":"{row.eid}","ev":"{row.ev}"'.encode() not in leaf or b'"t":%d,' % row.t_ms not in leaf:
        return "its name, id or time is not the leaf's"
    if row.ev in ACCEPTANCE:
        named = row.ref == row.eid
    else:
        named = b'"ref":' not in leaf if row.ref is None else f'"ref":"{row.ref}"'.encode() in leaf
    if not named:
        return "it names another message than its leaf"
    if row.messages and set(row.messages) != set(str(opening["msgs"]).split("\n")):
        return "it names other messages than its leaf commits to"
    commit = _committer(row.key)
    made: dict[str, object] = {"trace": commit("trace", row.trace_id), "span": commit("span", row.span_id)}
    try:
        for part in CATALOGUE[row.ev].commits:
            made[part] = commitment(commit, part, opened(part, opening[part]))
    except (TypeError, ValueError, AttributeError):
        return "its openings are malformed"
    if f'"c":{{{",".join([_pair(part, made[part]) for part in parts])}}}'.encode() in leaf:
        return None
    return _differing(leaf, made)


def _pair(part: str, committed: object) -> str:
    if isinstance(committed, list):
        members = '","'.join(committed)
        return f'"{part}":["{members}"]' if committed else f'"{part}":[]'
    return f'"{part}":"{committed}"'


def _differing(leaf: bytes, made: dict[str, object]) -> str:
    """Name the commitments that do not open; only for a leaf that is wrong, so it may be anything."""
    try:
        commits = dict(json.loads(leaf)["c"])
    except (KeyError, TypeError, ValueError):
        return "its leaf commits to nothing"
    wrong = sorted(part for part in made.keys() | commits.keys() if commits.get(part) != made.get(part))
    return f"its {' and '.join(wrong)} differs from what the leaf commits to"


_PARTS = {ev: tuple(sorted({"trace", "span", *kind.commits})) for ev, kind in CATALOGUE.items()}
_committer = lru_cache(64)(committer)
"""One message's events stand together and share their key."""
