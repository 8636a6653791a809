"""Keeping the log, as an operator does: `aimx audit rotate-key`, `shards`, `drop-shard`, `restore-fork`."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from aimx.audit import keys
from tests.node_process import NodeProcess

PROMPT = '[audit]\ncheckpoint_every = "100ms"\nintegrate_within = "20ms"\n'


def said(node: NodeProcess, *arguments: str) -> Any:
    return json.loads(node.aimx("audit", *arguments, "--json").stdout)


def until(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_keys_are_rotated_beside_a_running_node(tmp_path: Path) -> None:
    with NodeProcess(tmp_path, config=PROMPT) as node:
        first = keys.load_public(node.data)
        for option, old in ((), first.log), (("--receipt",), first.receipt):
            turned = said(node, "rotate-key", *option)
            assert turned["old"] == old.vkey()
            new = keys.Verifier.parse(turned["new"])
            until(lambda new=new: new in keys.load_public(node.data).all[:2])
        assert said(node, "verify")["ok"]
        sender = node.add_agent("planner")
        with node.smtp(sender) as client:
            client.sendmail(sender.address, [sender.address], "Subject: hi\r\n\r\nhi\r\n")
        assert said(node, "verify")["ok"]
    public = keys.load_public(node.data)
    assert {first.log, first.receipt} == set(public.earlier)
    with node:
        assert said(node, "verify")["ok"], "and after a restart"


def test_a_log_is_divided_and_its_oldest_part_dropped(tmp_path: Path) -> None:
    with NodeProcess(tmp_path, config=PROMPT) as node:
        node.add_agent("planner")
    (first,) = said(node, "shards")
    node.configure(f'{PROMPT}shard = "1mo"\n')
    with node:
        until(lambda: len(said(node, "shards")) == 2)
        found = said(node, "shards")
        assert (found[0]["origin"], found[1]["start"]) == (first["origin"], found[0]["size"])
        assert said(node, "verify")["shards"] == 2
        refusal = node.aimx("audit", "drop-shard", found[1]["origin"], "--yes", check=False)
        assert (refusal.returncode, "oldest" in refusal.stderr) == (1, True)
        node.aimx("audit", "drop-shard", first["origin"], "--yes")
        report = said(node, "verify")
        assert (report["ok"], report["dropped"]) == (True, found[0]["size"])
    assert not (node.data / "audit.db").exists()
    with node:
        assert said(node, "verify")["ok"]


def test_after_an_old_copy_was_put_back_the_node_refuses_and_an_honest_new_log_goes_on(tmp_path: Path) -> None:
    with NodeProcess(tmp_path, config=PROMPT) as node:
        pass
    shutil.copy(node.data / "audit.db", tmp_path / "backup")
    with node:
        node.add_agent("planner")
        running = node.aimx("audit", "restore-fork", "--yes", check=False)
        assert (running.returncode, "stop it first" in running.stderr) == (1, True)
        until(lambda: said(node, "verify")["complete"] == "COMPLETE")
    shutil.copy(tmp_path / "backup", node.data / "audit.db")
    with pytest.raises(AssertionError, match=r"an old copy was put in its place.*restore-fork"):
        node.start()
    forked = said(node, "restore-fork", "--yes")
    assert forked["origin"].endswith(".restored1")
    assert forked["lost"] > 0
    with node:
        report = said(node, "verify")
        assert (report["ok"], report["lost"]) == (True, forked["lost"])
