"""What every command prints with: one console, JSON, and times a person can read."""

import json
import time
from functools import cache
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


@cache
def console() -> "Console":
    """The one console; loaded when something is drawn, for most commands only print a line."""
    from rich.console import Console

    return Console(highlight=False)


def print_json(value: Any) -> None:
    """For programs: one document, stable key order, UTF-8."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(rows: list[list[str]]) -> None:
    """Columns as wide as they need to be, whatever the terminal: a table is also there to be cut and grepped."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for n, row in enumerate(rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(click.style(line, bold=True) if n == 0 else line)


def span_of(ms: float) -> str:
    """A length of time in the unit that reads best: `3 ms`, `1.2 s`, `4 min`, `2 h`."""
    if ms < 1000:
        return f"{ms:.0f} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    if ms < 3_600_000:
        return f"{ms / 60_000:.0f} min"
    return f"{ms / 3_600_000:.0f} h"


def size_of(octets: int) -> str:
    """`812 B`, `2.0 kB`, `48 MB`."""
    if octets < 1000:
        return f"{octets} B"
    if octets < 1_000_000:
        return f"{octets / 1000:.1f} kB"
    return f"{octets / 1_000_000:.0f} MB"


def clock(t_ms: int) -> str:
    """Local date and time with seconds."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(t_ms / 1000))
