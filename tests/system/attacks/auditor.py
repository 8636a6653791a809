"""The auditor's side: AIMX's commands, run here and now."""

import os
import sys
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from unittest.mock import patch


@dataclass(frozen=True)
class Said:
    """An exit code, and everything that was printed."""

    code: int
    text: str


def aimx(data: Path, *arguments: str) -> Said:
    """`aimx …` on a data folder, in this process: a second saved each time."""
    from aimx.cli import main

    out = StringIO()
    with ExitStack() as stack:
        stack.enter_context(patch.object(sys, "argv", ["aimx", *arguments]))
        stack.enter_context(patch.dict(os.environ, {"AIMX_DATA": str(data)}))
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(out))
        try:
            main()
        except SystemExit as ended:
            return Said(int(ended.code or 0), out.getvalue())
    raise AssertionError("a command ends with an exit code")
