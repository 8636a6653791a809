"""`aimx queue` beside a running node."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.node_process import Account, NodeProcess
from tests.system.test_cli import as_json, refused, sends

QUEUE = '[delivery]\nfirst_delay = "1h"\nmax_delay = "1h"\n'


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """A node that tries again after an hour."""
    with NodeProcess(tmp_path_factory.mktemp("slow"), QUEUE) as node:
        yield node


@pytest.fixture
def busy(slow: NodeProcess, request: pytest.FixtureRequest) -> Account:
    """An agent with one message in its mailbox and three that wait."""
    account = slow.add_agent("busy" + str(abs(hash(request.node.name)) % 10**8), "--max-unacked", "1")
    for number in range(4):
        sends(slow, account, account.name, str(number))
    return account


def waiting(node: NodeProcess, account: Account) -> list[dict[str, Any]]:
    return [one for one in as_json(node, "queue", "list") if one["address"] == account.address]


def free(node: NodeProcess, account: Account) -> None:
    node.aimx("agent", "set", account.name, "--max-unacked", "none")


def arrived(node: NodeProcess, account: Account, count: int) -> bool:
    until = time.monotonic() + 20
    with node.imap(account) as client:
        while time.monotonic() < until:
            _, found = client.search(None, "ALL")
            if len(found[0].split()) == count:
                return True
            client.noop()
    return False


def test_list_show_and_its_pages(slow: NodeProcess, busy: Account) -> None:
    found = waiting(slow, busy)
    assert [(one["attempt"], one["reason"], one["held"]) for one in found] == [(1, "unacknowledged", False)] * 3
    page = as_json(slow, "queue", "list", "--after", str(found[0]["id"]), "--limit", "1")
    assert [one["id"] for one in page] == [found[1]["id"]]
    assert [one["id"] for one in as_json(slow, "queue", "list", "--message", found[2]["eid"])] == [found[2]["id"]]
    assert as_json(slow, "queue", "list", "--destination", "nowhere.example") == []
    table = slow.aimx("queue", "list").stdout
    assert f"{busy.address}  mailbox  0" in table
    assert "unacknowledged" in table
    shown = as_json(slow, "queue", "show", str(found[0]["id"]))
    assert shown["eid"] == found[0]["eid"]
    assert [event["event"] for event in shown["events"]] == ["message.accepted", "message.deferred"]
    assert "unacknowledged" in slow.aimx("queue", "show", str(found[0]["id"])).stdout
    assert "there is no delivery 999999" in refused(slow, "queue", "show", "999999")


def test_retry_is_at_once_and_an_event_of_the_message(slow: NodeProcess, busy: Account) -> None:
    first, second, _ = waiting(slow, busy)
    free(slow, busy)
    done = as_json(slow, "queue", "retry", str(first["id"]), str(second["id"]))
    assert [one["id"] for one in done] == [first["id"], second["id"]]
    assert arrived(slow, busy, 3)
    events = sorted(event["ev"] for event in log(slow) if event.get("what") == "retry")
    assert events == ["queue.changed"]
    assert "made due by admin" in slow.aimx("trace", first["eid"]).stdout
    assert "not there" in refused(slow, "queue", "retry", "999999")


def test_held_it_stays_and_released_it_goes_on(slow: NodeProcess, busy: Account) -> None:
    first, *_ = waiting(slow, busy)
    slow.aimx("queue", "hold", "--message", first["eid"])
    assert [one["held"] for one in waiting(slow, busy)] == [True, False, False]
    assert "as asked" in refused(slow, "queue", "hold", str(first["id"]))
    slow.aimx("queue", "release", str(first["id"]))
    assert [one["held"] for one in waiting(slow, busy)] == [False] * 3


def test_dropped_it_is_gone_after_a_question(slow: NodeProcess, busy: Account) -> None:
    first, second, third = (str(one["id"]) for one in waiting(slow, busy))
    said_no = slow.aimx("queue", "drop", first, input="n\n", check=False)
    assert said_no.returncode != 0
    assert len(waiting(slow, busy)) == 3
    slow.aimx("queue", "drop", first, input="y\n")
    slow.aimx("queue", "drop", second, third, "--yes")
    assert waiting(slow, busy) == []
    slow.aimx("audit", "verify")


@pytest.mark.parametrize("arguments", [(), ("1", "--all"), ("--all", "--message", "x"), ("zero",), ("0",)])
def test_it_must_be_said_which(slow: NodeProcess, arguments: tuple[str, ...]) -> None:
    refused(slow, "queue", "hold", *arguments, code=2)


def test_all_of_a_stopped_node(tmp_path: Path) -> None:
    with NodeProcess(tmp_path, QUEUE) as node:
        account = node.add_agent("busy", "--max-unacked", "1")
        for number in range(6):
            sends(node, account, account.name, str(number))
    assert len(as_json(node, "queue", "hold", "--all")) == 5
    assert node.aimx("queue", "list").stdout.count("held") == 5
    assert len(as_json(node, "queue", "drop", "--all", "--yes")) == 5
    assert node.aimx("queue", "list").stdout == "nothing waits\n"


def log(node: NodeProcess) -> list[dict[str, Any]]:
    """Every leaf there is, as the store has it."""
    import sqlite3

    with sqlite3.connect(f"file:{node.data / 'mail.db'}?mode=ro", uri=True) as db:
        found = [json.loads(leaf) for (leaf,) in db.execute("SELECT leaf FROM event")]
    db.close()
    return found
