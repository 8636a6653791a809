"""Failpoints: each is in the code, none does anything unless asked for, a wrong name is told."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aimx.failpoint import POINTS

ROOT = Path(__file__).parents[2]
REACHED = "from aimx.failpoint import reach\nfor n in range(5): print(n, flush=True); reach('store.commit')"


def test_every_point_is_reached_in_the_code_and_no_other() -> None:
    code = "".join(path.read_text() for path in (ROOT / "aimx").rglob("*.py"))
    assert set(re.findall(r'reach\("(.+?)"\)', code)) == set(POINTS)


def run(setting: str) -> subprocess.CompletedProcess[str]:
    environ = {"AIMX_FAILPOINT": setting, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", REACHED], env=environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("setting", "lines"), [("store.commit", 1), ("store.commit:4", 4)])
def test_the_process_dies_there(setting: str, lines: int) -> None:
    done = run(setting)
    assert (done.returncode, len(done.stdout.split())) == (-signal.SIGKILL, lines)


@pytest.mark.parametrize("setting", ["accept.begin", "", "store.commit:6"])
def test_it_lives_where_that_place_is_not_reached(setting: str) -> None:
    assert run(setting).returncode == 0


@pytest.mark.parametrize("setting", ["nowhere", "store.commit:x"])
def test_a_wrong_name_is_told(setting: str) -> None:
    done = run(setting)
    assert done.returncode == 1
    assert "no failpoint" in done.stderr
