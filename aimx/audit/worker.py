"""Verification's heavy arithmetic in processes of its own: for a long log it takes half the time, and a running node's
event loop is not held up by it.

A worker is `python -m aimx.audit.worker NAME`, a child of the process that verifies, and speaks frames of `marshal`
over its pipes: both ends are the same interpreter and program. It ends when its standard input does.
"""

import json
import marshal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from aimx.audit import integrity
from aimx.audit.integrity import Checked, Progress
from aimx.audit.keys import PublicKeys
from aimx.audit.log import LogError
from aimx.audit.memory import Memory
from aimx.audit.opening import opening_fault
from aimx.audit.place import open_reader
from aimx.audit.report import Finding, Report
from aimx.audit.series import Series
from aimx.store.contract import EventRow
from aimx.tlog.note import Verifier

Fault = tuple[int, str]
"""Which of the rows handed over, counted from 0, and what is wrong with it."""


class Openings:
    """Checks openings, one batch at a time, while its owner does something else."""

    def __init__(self, *, apart: bool) -> None:
        """`apart`: in a process of its own."""
        self._child = _start("openings") if apart else None
        # Its thread only waits: a pipe takes less than a batch, so whoever writes it waits for the child to read.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aimx-openings")
        self._round: Future[list[Fault]] | None = None

    def submit(self, rows: Sequence[EventRow]) -> None:
        """Hand over rows that have their keys. `collect` what came of the last ones first."""
        child = self._child
        if child is None:
            self._round = Future()
            self._round.set_result(faults(rows))
        else:
            self._round = self._thread.submit(_ask, child, rows)

    def collect(self) -> list[Fault]:
        """The faults of the rows submitted last. Raises LogError when the worker has died."""
        return [] if self._round is None else self._round.result()

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()  # first, so that a thread that waits for it is let go
        self._thread.shutdown()
        if self._child is not None:
            _end(self._child)


def _ask(child: subprocess.Popen[bytes], rows: Sequence[EventRow]) -> list[Fault]:
    _send(child, [_frame(row) for row in rows])
    found: list[Fault] = _receive(child)
    return found


def check_integrity(
    folder: Path,
    database: str | None,
    keys: PublicKeys,
    high_water: str | None,
    remembered: Sequence[str],
    report: Report,
    memory: Memory | None = None,
    progress: Progress = lambda leaves: None,
) -> Checked:
    """`integrity.check` in a process of its own; blocks until it is done. Raises LogError."""
    child = _start("integrity")
    try:
        before = None if memory is None else json.dumps(memory.to_json())
        vkeys = [key.vkey() for key in keys.logs]
        _send(child, (str(folder), database, vkeys, high_water, list(remembered), before))
        while isinstance(told := _receive(child), int):
            progress(told)
        error, size, erased, vkeys, counts, findings, after, missing = told
    finally:
        _end(child)
    if error is not None:
        raise LogError(error)
    for name, value in counts.items():
        setattr(report, name, value)
    report.findings += [Finding(*finding) for finding in findings]
    kept = None if after is None else Memory.from_json(json.loads(after))
    return Checked(size, frozenset(erased), frozenset(map(Verifier.parse, vkeys)), kept, missing)


def faults(rows: Sequence[EventRow]) -> list[Fault]:
    return [(place, fault) for place, row in enumerate(rows) if (fault := opening_fault(row)) is not None]


# --- the pipes ---


def _start(name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "aimx.audit.worker", name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _send(child: subprocess.Popen[bytes], frame: Any) -> None:
    assert child.stdin is not None
    try:
        marshal.dump(frame, child.stdin)
        child.stdin.flush()
    except OSError as error:
        raise LogError("a process that helps to verify has ended early; see its last lines above") from error


def _receive(child: subprocess.Popen[bytes]) -> Any:
    assert child.stdout is not None
    try:
        return marshal.load(child.stdout)  # noqa: S302 — written by our own child
    except (EOFError, ValueError, TypeError) as error:
        raise LogError("a process that helps to verify has ended early; see its last lines above") from error


def _end(child: subprocess.Popen[bytes]) -> None:
    """It holds nothing that could be lost, so it is not asked twice."""
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                continue


def _frame(row: EventRow) -> tuple[Any, ...]:
    """What an opening is checked by, in EventRow's own order up to its key."""
    plain = (row.eid, row.ev, row.t_ms, row.trace_id, row.span_id, row.leaf, row.ref, row.messages, None, row.key)
    return (*plain, {"open": row.detail.get("open", {})})


# --- the child ---


def _openings(source: BinaryIO, sink: BinaryIO) -> None:
    while True:
        try:
            frames = marshal.load(source)  # noqa: S302 — written by our own parent
        except EOFError:
            return
        marshal.dump(faults([EventRow(*frame) for frame in frames]), sink)
        sink.flush()


_COUNTS = (
    *("origin", "size", "root", "shards", "leaves", "checkpoints", "remembered", "lost", "dropped"),
    *("wrong", "inconsistent", "unreconciled"),
)


def _integrity(source: BinaryIO, sink: BinaryIO) -> None:
    asked = marshal.load(source)  # noqa: S302 — written by our own parent
    folder, database, vkeys, high_water, remembered, before = asked
    memory = None if before is None else Memory.from_json(json.loads(before))

    def progress(leaves: int) -> None:
        marshal.dump(leaves, sink)
        sink.flush()

    report, reader = Report(""), open_reader(Path(folder), database)
    error, checked = None, Checked(0, frozenset(), frozenset())
    try:
        keys = [Verifier.parse(vkey) for vkey in vkeys]
        shards = Series(reader).readers()
        checked = integrity.check(shards, keys, high_water, remembered, report, memory, progress)
    except LogError as refused:
        error = str(refused)
    finally:
        reader.close()
    counts = {name: getattr(report, name) for name in _COUNTS}
    findings = [tuple(finding) for finding in report.findings]
    believed = [key.vkey() for key in checked.keys]
    after = None if checked.memory is None else json.dumps(checked.memory.to_json())
    said = (error, checked.size, list(checked.erased), believed, counts, findings, after, checked.missing)
    marshal.dump(said, sink)
    sink.flush()


if __name__ == "__main__":
    {"openings": _openings, "integrity": _integrity}[sys.argv[1]](sys.stdin.buffer, sys.stdout.buffer)
