"""What the documentation says about settings and RFCs is what the code has."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from aimx.config import Domain, Group, LoopLimits, Rule, Settings, load

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "configuration.md").read_text()
BLOCKS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
RFCS = tomllib.loads((ROOT / "docs" / "rfc-status.toml").read_text())["rfc"]


OUTWARD = ("peer", "webhook", "lmtp")


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, BaseModel):
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, field in type(value).model_fields.items():
        found |= leaves(getattr(value, name), f"{prefix}.{field.alias or name}".lstrip("."))
    return found


def test_the_block_of_defaults_says_the_defaults() -> None:
    assert load(tomllib.loads(BLOCKS[0]), environ={}) == load(environ={})


def test_every_setting_is_documented() -> None:
    uncommented = re.sub(r"(?m)^# (?=[a-z_\[])", "", BLOCKS[0])
    given = tomllib.loads(uncommented)
    for name in leaves(Settings()):
        if name.partition(".")[0] in ("config", "workflow", "agent", "route", "pool", "list", "domain", *OUTWARD):
            continue
        place = given
        for part in name.split("."):
            assert part in place, name
            place = place[part]
    assert set(given["domain"]["agents.example"]) == set(Domain.model_fields)
    assert load({**given, "data": "x"}, environ={}).domains == ("agents.example",)


def test_the_routing_example_is_valid_and_complete() -> None:
    routing = tomllib.loads(BLOCKS[1])
    assert load(routing, environ={}).routes[0].name == "reviews"
    used = {name for rule in routing["route"] for name in rule}
    assert used == set(Rule.model_fields)
    assert {name for group in routing["pool"].values() for name in group} == set(Group.model_fields)


def test_the_loop_example_is_valid() -> None:
    settings = load(tomllib.loads(BLOCKS[2]), environ={})
    assert settings.workflow["long-dialogue-*"].max_depth == 500
    assert set(tomllib.loads(BLOCKS[0])["loop"]) | {"budget", "deadline"} == set(LoopLimits.model_fields)


def test_the_example_of_ways_out_is_valid_and_complete() -> None:
    given = tomllib.loads(BLOCKS[3])
    settings = load(given, environ={})
    assert set(given["relay"]["upstream"]) == set(type(settings.relay.smarthosts["upstream"]).model_fields)
    for kind, named in zip(OUTWARD, (settings.peers, settings.webhooks, settings.lmtps), strict=True):
        (name,) = named
        assert set(given[kind][name]) == set(type(named[name]).model_fields) - {"secret", "socket"}


@pytest.mark.parametrize("rfc", RFCS, ids=lambda rfc: str(rfc["number"]))
def test_an_rfc_is_tied_to_code_and_tests(rfc: dict[str, Any]) -> None:
    assert rfc["status"] in ("full", "partial")
    assert rfc["status"] == "full" or rfc["note"]
    for path in (*rfc["code"], *rfc["tests"]):
        assert (ROOT / path).is_file(), path


def test_links_between_pages_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_files_that_the_pages_name_are_there() -> None:
    for page in (ROOT / "README.md", ROOT / "docs" / "flow.md"):
        for path in re.findall(r"`((?:aimx|docs|tests)/[a-z_/.-]+\.[a-z]+)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
