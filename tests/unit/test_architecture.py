"""The house keeps its shape: imports point one way, every package says what it owns."""

import subprocess
import sys
from pathlib import Path

import aimx

PACKAGE = Path(aimx.__file__).parent


def test_imports_point_one_way() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_package_opens_with_what_it_owns() -> None:
    silent = [str(init) for init in PACKAGE.glob("*/__init__.py") if not init.read_text().lstrip().startswith('"""')]
    assert silent == []
