"""A dashboard asks only for what a node says: every metric and label in it is in the catalogue."""

import json
import re
from pathlib import Path

import pytest

from aimx.telemetry.catalogue import METRICS
from aimx.telemetry.exposition import prometheus_name

FOLDER = Path(__file__).parents[2] / "dashboards"
KNOWN = {prometheus_name(spec): set(spec.labels) for spec in METRICS}


def expressions() -> list[tuple[str, str]]:
    found = []
    for path in sorted(FOLDER.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            found += [(f"{path.name}: {panel['title']}", target["expr"]) for target in panel["targets"]]
    return found


@pytest.mark.parametrize(("panel", "expression"), expressions())
def test_a_panel_asks_for_what_there_is(panel: str, expression: str) -> None:
    names = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"aimx_[a-z_]+", expression)}
    assert names, panel
    assert names <= KNOWN.keys()
    labels = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
    assert labels - {"le"} <= set().union(*(KNOWN[name] for name in names))
