"""Imported by a node before all else, it has the node's wall clock go wrong by what stands in a file (`CLOCK`).

Only this process's: the machine's clock, and PostgreSQL's, stay right, as they do when one machine of several is wrong.
"""

import mmap
import os
import struct
import time
from pathlib import Path

VARIABLE = "SHIFTED_CLOCK"
_SHAPE = struct.Struct("<q")


class Clock:
    """The file with the nanoseconds by which a node is wrong. The node sees a change at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_bytes(_SHAPE.pack(0))

    @property
    def environ(self) -> dict[str, str]:
        return {VARIABLE: str(self._path)}

    def shift(self, seconds: float) -> None:
        with self._path.open("r+b") as file:
            file.write(_SHAPE.pack(int(seconds * 1e9)))


def _shift(path: str) -> None:
    with Path(path).open("rb") as file:
        shared = mmap.mmap(file.fileno(), _SHAPE.size, access=mmap.ACCESS_READ)
    real = time.time_ns

    def time_ns() -> int:
        return real() + int(_SHAPE.unpack(shared[: _SHAPE.size])[0])

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9


if VARIABLE in os.environ:
    _shift(os.environ[VARIABLE])
