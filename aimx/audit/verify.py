"""Verify a node's audit log against itself, its signatures, and the store beside it; while the node runs or not.

    report = await verify(store, Path("aimx-data"))
    print("\\n".join(report.lines()))
    sys.exit(0 if report.ok else 1)

The words of the verdict are explained in `report`.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock

from aimx.audit import integrity
from aimx.audit.integrity import Checked, Progress
from aimx.audit.keys import PublicKeys, load_public
from aimx.audit.log import LogError
from aimx.audit.memory import Memory
from aimx.audit.place import open_reader, read_anchors
from aimx.audit.reconciliation import Evidence, Reconciliation
from aimx.audit.report import Report
from aimx.audit.sequencer import HIGH_WATER
from aimx.audit.series import Series
from aimx.audit.standing import Trust, stand
from aimx.audit.worker import Openings, check_integrity
from aimx.telemetry import metrics

APART_ABOVE = 50_000
"""Leaves; a longer log is worth the third of a second that two more processes take to start."""


async def verify(
    store: Evidence,
    folder: Path,
    *,
    database: str | None = None,
    keys: PublicKeys | None = None,
    remembered: Sequence[str] = (),
    contents: bool = True,
    patience_s: float = 2.0,
    trust: Trust | None = None,
    memory: Memory | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check everything a machine can check about itself.

    `folder` is the data folder. `keys` are the verifier keys you hold; without them the folder's own are believed.
    `remembered` are signed checkpoints you kept elsewhere: each must be a state this log went through. `contents`: also
    hash every stored message again, which reads all mail. `patience_s`: how long to wait for events committed a moment
    ago to reach the log. `trust`: whose word from outside counts; without it nobody's but yours. `memory`: what an
    earlier verification ended with (`report.memory`): only what is new is read. `progress` is told, from any thread,
    how much is done and of how much. Raises KeyUnusable when there are no keys to verify with.
    """
    began = time.monotonic()
    keys = keys or load_public(folder)
    report = Report(keys.log.name)
    high_water = await asyncio.to_thread(_read_high_water, folder / HIGH_WATER)
    reader = open_reader(folder, database)
    try:
        series = await asyncio.to_thread(Series, reader)
        begun = 0 if memory is None else memory.place
        apart = series.size - begun > APART_ABOVE
        told = _Told(2 * max(0, series.size - begun), progress)
        found = Report(keys.log.name)
        checking = asyncio.create_task(
            asyncio.to_thread(
                check_integrity if apart else _check_here,
                *(folder, database, keys, high_water, remembered, found, memory, told),
            )
        )
        run = Reconciliation(
            store, series, report, Openings(apart=apart), contents=contents, memory=memory, progress=told
        )
        try:
            if not apart:
                await checking
            await run.read(patience_s)
            checked = await checking
            run.judge(checked.erased)
        finally:
            run.close()
            await asyncio.wait([checking])
            report.take_integrity(found)
        if checked.missing is not None and checked.missing not in run.dropped:
            integrity.add_missing(checked.missing, report)
        anchors = partial(read_anchors, folder, database)
        report.standing = await asyncio.to_thread(
            stand, series.readers(), anchors, remembered, checked.keys, trust or Trust(), report
        )
        report.since = begun
        if report.ok and not report.pending and checked.memory is not None:
            report.memory = replace(checked.memory, seq=run.seq, eid=run.eid)
    except LogError as error:
        report.add("log-unreadable", str(error))
    finally:
        reader.close()
    report.seconds = time.monotonic() - began
    if not report.ok:
        _FAILURES.add()
    return report


def _check_here(
    folder: Path,
    database: str | None,
    keys: PublicKeys,
    high_water: str | None,
    remembered: Sequence[str],
    report: Report,
    memory: Memory | None,
    progress: Progress,
) -> Checked:
    reader = open_reader(folder, database)
    try:
        return integrity.check(Series(reader).readers(), keys.logs, high_water, remembered, report, memory, progress)
    finally:
        reader.close()


class _Told:
    """Adds up what several threads have done."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self._total, self._progress = total, progress
        self._done = 0
        self._lock = Lock()

    def __call__(self, more: int) -> None:
        with self._lock:
            self._done += more
            if self._progress is not None:
                self._progress(min(self._done, self._total), self._total)


_FAILURES = metrics.counter("aimx.audit.verify.failures").labels()


def _read_high_water(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None
