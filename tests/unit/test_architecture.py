"""The house keeps its shape: imports point one way, every package says what it owns."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
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


def test_what_is_imported_is_declared_with_the_least_version_that_will_do() -> None:
    """Not by way of another library, which may let go of it."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    bounded = {found[1] for one in project["dependencies"] if (found := re.match(r"([\w-]+)(?:\[\w+\])?>=", one))}
    assert len(bounded) == len(project["dependencies"])
    offered = packages_distributions()
    owners = {top: set(offered.get(top, [])) for top in imported()}
    assert {top for top, names in owners.items() if not names & bounded} == set()


def imported() -> Iterator[str]:
    """The libraries of others, by top-level module."""
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            yield from {
                top for name in names if (top := name.partition(".")[0]) not in {"aimx", *sys.stdlib_module_names}
            }
