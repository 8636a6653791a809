"""Erasure and legal hold from the command line, beside a running node."""

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node_process import Account, NodeProcess, receipt_id


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("erasure")) as running:
        yield running


@pytest.fixture(scope="module")
def ann(node: NodeProcess) -> Account:
    return node.add_agent("ann")


@pytest.fixture
def bob(node: NodeProcess, request: pytest.FixtureRequest) -> Account:
    return node.add_agent(f"bob{abs(hash(request.node.name)) % 10**9}")


def send(node: NodeProcess, who: Account, to: Account, text: str) -> str:
    with node.smtp(who) as client:
        client.mail(who.address)
        client.rcpt(to.address)
        code, said = client.data(f"From: {who.address}\r\nTo: {to.address}\r\nSubject: {text}\r\n\r\n{text}\r\n")
    assert code == 250
    return receipt_id(said)


def verified(node: NodeProcess, *, check: bool = True) -> dict[str, object]:
    return dict(json.loads(node.aimx("audit", "verify", "--json", check=check).stdout))


def test_an_erased_message_vanishes_for_sessions_and_the_log_stays_complete(
    node: NodeProcess, ann: Account, bob: Account
) -> None:
    kept, eid = send(node, ann, bob, "kept"), send(node, ann, bob, "tulip")
    with node.imap(bob) as client:
        assert client.search(None, "ALL")[1] == [b"1 2"]
        done = json.loads(node.aimx("audit", "erase", eid, "--yes", "--json").stdout)
        assert (done["erased"], done["held"]) == ([eid], {})
        assert any("backups" in place for place in done["survivors"])
        until = time.monotonic() + 20
        while client.untagged_responses.get("EXPUNGE") != [b"2"] and time.monotonic() < until:
            client.noop()
        assert client.untagged_responses.get("EXPUNGE") == [b"2"]
        assert client.search(None, "ALL")[1] == [b"1"]
    found = verified(node)
    assert (found["consistent"], found["complete"]) == ("CONSISTENT", "COMPLETE")
    assert found["erased"] == 2  # its acceptance and its delivery
    assert "ERASED" in node.aimx("audit", "verify").stdout
    assert "erased before" in node.aimx("audit", "erase", eid, "--yes", check=False).stderr
    proof = json.loads(node.aimx("audit", "prove", eid, "--json").stdout)
    assert proof["opening"] is None
    assert json.loads(node.aimx("audit", "prove", kept, "--json").stdout)["opening"]


def test_everything_of_an_agent_goes_but_what_is_held(node: NodeProcess, ann: Account, bob: Account) -> None:
    eids = [send(node, ann, bob, str(n)) for n in range(3)]
    node.aimx("audit", "hold", eids[1], "--reason", "case 7")
    again = node.aimx("audit", "hold", eids[1], "--reason", "case 7", check=False)
    assert again.returncode == 1
    assert "there is a hold on the message" in again.stderr
    assert [one["subject"] for one in json.loads(node.aimx("audit", "holds", "--json").stdout)] == [eids[1]]
    refused = node.aimx("audit", "erase", eids[1], "--yes", check=False)
    assert refused.returncode == 1
    assert "case 7" in refused.stdout
    done = json.loads(node.aimx("audit", "erase", "--agent", bob.name, "--yes", "--json").stdout)
    assert done["erased"] == [eids[2], eids[0]]
    assert list(done["held"]) == [eids[1]]
    node.aimx("audit", "release", eids[1])
    assert "no hold" in node.aimx("audit", "release", eids[1], check=False).stderr
    node.aimx("audit", "erase", "--agent", bob.address, "--yes")
    assert node.bodies(bob) == []
    assert verified(node)["complete"] == "COMPLETE"


def test_it_asks_first(node: NodeProcess, ann: Account, bob: Account) -> None:
    eid = send(node, ann, bob, "asked")
    asked = node.aimx("audit", "erase", eid, input="n\n", check=False)
    assert asked.returncode == 130
    assert f"Destroy message {eid} for good?" in asked.stderr
    assert len(node.bodies(bob)) == 1
    for wrong in ((), (eid, "--agent", "x"), (eid, "--yes", "--reason", "for bob@fabric.local")):
        assert node.aimx("audit", "erase", *wrong, check=False).returncode == 2


def test_erasing_silently_is_reported(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        ann = node.add_agent("ann")
        eid = send(node, ann, ann, "silent")
        assert verified(node)["complete"] == "COMPLETE"
        db = sqlite3.connect(node.data / "mail.db", timeout=10)
        with db:
            db.execute("UPDATE event SET key = NULL, detail = '{}' WHERE ref = ?", (eid,))
            db.execute("UPDATE content SET header = x'', data = x''")
        db.close()
        done = node.aimx("audit", "verify", check=False)
        assert done.returncode == 4
        assert "opening-missing" in done.stdout


def test_a_node_erases_what_has_had_its_time(tmp_path: Path) -> None:
    rules = '[retention]\nevery = "500ms"\n\n[retention.short]\nkeep = "1s"\nagent = "bob@*"\n'
    with NodeProcess(tmp_path, rules) as node:
        ann, bob = node.add_agent("ann"), node.add_agent("bob")
        with node.imap(bob) as client:
            send(node, ann, bob, "short-lived")
            until = time.monotonic() + 30
            while "EXPUNGE" not in client.untagged_responses and time.monotonic() < until:
                client.noop()
            assert client.search(None, "ALL")[1] == [b""]
        found = verified(node)
        assert (found["ok"], found["complete"], found["erased"]) == (True, "COMPLETE", 2)
