"""What a server's processes have used: of a parent, its children that ended, and all that run (Linux, /proc)."""

import os
from pathlib import Path


def tree(pid: int) -> list[int]:
    """`pid` and everything that descends from it and runs."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:
                continue  # it ended meanwhile
    return found


def cpu_s(pid: int) -> float:
    """Processor seconds, user and system. Who ended is counted with the parent that waited for it."""
    ticks = 0
    for one in tree(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_kib(pid: int, what: str = "Pss") -> int:
    """Pss: each page shared by n processes counts an n-th part in each."""
    total = 0
    for one in tree(pid):
        for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
            if line.startswith(f"{what}:"):
                total += int(line.split()[1])
    return total
