"""docs/audit.md lists what the catalogues hold, word for word."""

from pathlib import Path

import pytest

from aimx.audit.events import CATALOGUE
from aimx.audit.report import KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_event_is_documented(name: str) -> None:
    kind = CATALOGUE[name]
    fields, commits = (", ".join(f"`{part}`" for part in parts) for parts in (kind.fields, kind.commits))
    assert f"| `{name}` | {kind.doc} | {fields} | {commits} |\n" in PAGE


@pytest.mark.parametrize("name", KINDS)
def test_every_finding_is_documented(name: str) -> None:
    assert f"| `{name}` | {KINDS[name]} |\n" in PAGE
