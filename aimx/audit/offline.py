"""Verify an exported log: no server, no configuration, no network."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aimx.audit import bundle, integrity
from aimx.audit.bundle import BundleReader
from aimx.audit.events import ACCEPTANCE
from aimx.audit.log import LogError
from aimx.audit.opening import opening_fault
from aimx.audit.report import Report
from aimx.audit.standing import Trust, stand
from aimx.store.contract import EventRow
from aimx.tlog import policy
from aimx.tlog.errors import FormatError
from aimx.tlog.note import ED25519, Verifier


def verify_bundle(
    folder: Path, *, keys: Sequence[Verifier] = (), remembered: Sequence[str] = (), trust: Trust | None = None
) -> Report:
    """Check everything in the folder. Without `keys` and `trust` the folder's own keys and policy are believed.

    Raises LogError when the folder is no export.
    """
    began = time.monotonic()
    readers = list(bundle.shards(folder))
    logs = [key for key in keys or bundle.vkeys(folder / bundle.VKEYS) if key.kind == ED25519]
    if not logs:
        raise LogError(f"{folder} comes with no verifier key of a log; give one with --vkeys")
    trust = trust or Trust(_policy(folder / bundle.POLICY))
    total = Report(logs[0].name, reconciled=False)
    try:
        checked = integrity.check(readers, logs, None, remembered, total)
        total.erased = len(checked.erased)
        if checked.missing is not None:
            integrity.add_missing(checked.missing, total)
        anchors = {reader.described().origin: reader.anchors() for reader in readers}
        total.standing = stand(readers, lambda origin: anchors.get(origin, []), remembered, checked.keys, trust, total)
    except (LogError, FormatError) as error:
        total.add("log-unreadable", str(error))
    try:
        _openings(folder, readers, total)
    except LogError as error:
        total.add("opening-differs", str(error))
    total.seconds = time.monotonic() - began
    return total


def _policy(path: Path) -> policy.Policy:
    if not path.exists():
        return policy.Policy()
    try:
        return policy.parse(path.read_bytes())
    except FormatError as error:
        raise LogError(f"{path}: {error}") from None


def _openings(folder: Path, readers: Sequence[BundleReader], total: Report) -> None:
    starts = [(reader.described().start, reader) for reader in readers] if not total.inconsistent else []
    for opening in bundle.openings(folder) if starts else ():
        eid, place = str(opening.get("eid")), opening.get("place")
        row = None
        for start, reader in reversed(starts):
            if isinstance(place, int) and place >= start:
                row = _row(opening, reader.entry(place - start))
                break
        fault = "it names no leaf" if row is None else opening_fault(row)
        if fault is None:
            total.openings += 1
        else:
            total.add("opening-differs", f"the opening of {eid}: {fault}", None, eid)


def _row(opening: dict[str, Any], entry: bytes | None) -> EventRow | None:
    """The event as its node has it, from its leaf and what opens it."""
    try:
        leaf = json.loads(entry or b"")
        key, trace, span = (bytes.fromhex(str(opening[name])) for name in ("key", "trace", "span"))
        ev, eid, t_ms = str(leaf["ev"]), str(opening["eid"]), int(leaf["t"])
        ref = eid if ev in ACCEPTANCE else leaf.get("ref")
        return EventRow(eid, ev, t_ms, trace, span, entry or b"", ref, key=key, detail={"open": dict(opening["open"])})
    except (KeyError, TypeError, ValueError):
        return None
