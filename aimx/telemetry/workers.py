"""Several worker processes, one truth: a scrape of any of them answers for the whole node.

Each worker keeps one file, `metrics/NUMBER.json` in the node's data folder, and replaces it whole: every second, at its
end, and *before* it answers a scrape. What was once told can therefore be read by all others, so that a counter never
goes back, whichever worker is asked next. A scrape is the worker's own numbers and the newest of the others' files.

When a worker dies its file stays, and whoever takes its number goes on from the counters in it: nothing is lost but
the last second, and nothing is counted twice, because a number has one file and one process at a time (the node's
parent sees to that). Gauges of the dead are nobody's: they are left out as soon as its process is gone. Counters begin
at 0 when the node is started anew (`clear`), as Prometheus expects of a restart.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from aimx.telemetry.metrics import PROCESS, Exemplar, Metrics, Point, Snapshot, Tally, merge, metric_spec

log = logging.getLogger(__name__)

FOLDER = "metrics"
PUBLISH_EVERY = 1.0
"""Seconds; what a worker that is killed has counted since is lost."""


def clear(data: Path) -> None:
    """For the parent, before it begins the first worker."""
    for path in (data / FOLDER).glob("*.json*"):
        path.unlink(missing_ok=True)


class Workers:
    """One worker's view of its node. Methods are for the event loop's thread."""

    def __init__(self, data: Path, number: int, source: Metrics = PROCESS) -> None:
        self._folder = data / FOLDER
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._own = self._folder / f"{number}.json"
        self._source = source
        self._base = _lasting(_read(self._own)[1])
        self.publish()

    def publish(self) -> None:
        """Let the others see this worker's numbers as they are now."""
        self._write(self._now())

    def snapshot(self) -> Snapshot:
        """The node's: for a scrape."""
        own = self._now()
        self._write(own)
        found = [own]
        for path in sorted(self._folder.glob("*.json")):
            if path != self._own:
                pid, theirs = _read(path)
                found.append(theirs if _lives(pid) else _lasting(theirs))
        return merge(found)

    def _now(self) -> Snapshot:
        return merge([self._base, self._source.snapshot()])

    def _write(self, snapshot: Snapshot) -> None:
        said = {"pid": os.getpid(), "metrics": [(spec.name, points) for spec, points in snapshot]}
        beside = self._own.with_suffix(".json.new")
        try:
            beside.write_text(json.dumps(said))
            beside.replace(self._own)  # not synced: after a power cut the node starts anew, and so do its counters
        except OSError as error:
            log.warning("metrics of this worker are not seen by the others", extra={"error": str(error)})


def _read(path: Path) -> tuple[int, Snapshot]:
    """Whose it is, and what it says; (0, nothing) when there is none."""
    try:
        said = json.loads(path.read_bytes())
        return int(said["pid"]), [
            (metric_spec(name), [_point(one) for one in points]) for name, points in said["metrics"]
        ]
    except FileNotFoundError:
        return 0, []
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("a worker's metrics cannot be read", extra={"error": f"{path.name}: {type(error).__name__}"})
        return 0, []


def _point(said: list[Any]) -> Point:
    labels, value = said
    if isinstance(value, list):
        counts, total, exemplars = value
        value = Tally(tuple(counts), total, tuple(None if one is None else Exemplar(*one) for one in exemplars))
    return Point(tuple(labels), value)


def _lasting(snapshot: Snapshot) -> Snapshot:
    """What outlives a process: what it counted."""
    return [(spec, points) for spec, points in snapshot if spec.kind != "gauge"]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0
