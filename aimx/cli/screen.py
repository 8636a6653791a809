"""What every command prints with: one console, JSON, and times a person can read."""

import codecs
import json
import os
import re
import sys
import time
from functools import cache
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


_PLAIN = {
    "→": "->",
    "↳": "`->",
    "·": ".",
    "⚠": "!",
    "█": "#",
    "✓": "+",
    "◷": "o",
    "✗": "x",
    "◉": "*",
    "…": "...",
    "—": "--",
}
"""What stands for our signs where the terminal has no letters for them."""
WIDE = 10_000
_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All control characters but tab and line feed."""


def any_screen() -> None:
    """Let nothing that is printed fail for want of a letter: a locale without UTF-8 gets the nearest it has."""
    codecs.register_error("aimx", _nearest)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and not is_unicode(stream):
            stream.reconfigure(errors="aimx")


def is_unicode(stream: Any) -> bool:
    """Whether everything can be written to it."""
    return (getattr(stream, "encoding", None) or "").lower().replace("-", "").startswith("utf")


def _nearest(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(char, "?") for char in error.object[error.start : error.end]), error.end


@cache
def console() -> "Console":
    """The one console; loaded when something is drawn, for most commands only print a line."""
    from rich.console import Console

    return Console(highlight=False)


def page() -> "Console":
    """The console for what is as wide as it is: in a pipe or a file nothing is broken, unless COLUMNS says where."""
    from rich.console import Console

    narrow = sys.stdout.isatty() or os.environ.get("COLUMNS")
    return Console(highlight=False) if narrow else Console(highlight=False, width=WIDE)


def harmless(text: str) -> str:
    """A stranger's text for a terminal: what would command it (escape sequences, C0 and C1) stands as `\\x1b`."""
    return _COMMANDS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def print_json(value: Any) -> None:
    """For programs: one document, stable key order, UTF-8, or ASCII where the locale has no UTF-8."""
    click.echo(json_of(value, indent=2))


def json_of(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=not is_unicode(sys.stdout), default=str)


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
