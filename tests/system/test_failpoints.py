"""A node that dies while it works the queue or the log: nothing is lost, nothing comes twice, nothing stays stuck."""

import contextlib
import json
import signal
import smtplib
import time
from pathlib import Path

import pytest

from aimx.failpoint import POINTS
from tests.node_process import Account, NodeProcess, receipt_id

RETRY = '[delivery]\nfirst_delay = "50ms"\nmax_delay = "100ms"\njitter = 0.0\nlease = "1s"\n'
QUEUE = [name for name in POINTS if name.startswith(("claim.", "attempt."))]
END = [name for name in POINTS if name.startswith("settle.")]
LOG = [name for name in POINTS if name.startswith(("sequence.", "checkpoint."))]


def test_all_places_are_died_at() -> None:
    here = {*QUEUE, *END, *LOG}
    assert {name for name in POINTS if name not in here} == {
        name
        for name in POINTS
        if name.startswith(("accept.", "store."))  # test_sdk_once.py
    }


def send(node: NodeProcess, sender: Account, to: Account, number: int) -> str:
    """The id; as often as it takes, under one key."""
    text = f"From: {sender.address}\r\nTo: {to.address}\r\nIdempotency-Key: k{number}\r\n\r\n{number}\r\n"
    with node.smtp(sender) as client:
        for command in (f"MAIL FROM:<{sender.address}>", f"RCPT TO:<{to.address}>"):
            assert client.docmd(command)[0] == 250
        code, answer = client.data(text)
        assert code == 250, answer
        return receipt_id(answer)


def die(node: NodeProcess, point: str) -> None:
    """Wait until it has."""
    assert node.process is not None
    assert node.process.wait(30) == -signal.SIGKILL, point
    node.process, node.environ = None, {}


def numbers(node: NodeProcess, account: Account) -> list[int]:
    return sorted(int(body.rpartition(b"\r\n\r\n")[2]) for body in node.bodies(account))


def queue(node: NodeProcess) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(node.aimx("queue", "list", "--json").stdout)
    return found


@pytest.mark.parametrize("point", QUEUE)
def test_dead_while_it_works_the_queue_it_delivers_once(tmp_path: Path, point: str) -> None:
    node = NodeProcess(tmp_path, RETRY)
    with node:
        ada, busy = node.add_agent("ada"), node.add_agent("busy", "--max-unacked", "1")
        node.stop()
        node.environ = {"AIMX_FAILPOINT": f"{point}:2"}
        node.start()
        with contextlib.suppress(smtplib.SMTPException, OSError):  # it may die between two of them
            for number in range(3):
                send(node, ada, busy, number)
        die(node, point)
        node.start()
        for number in range(3):
            send(node, ada, busy, number)
        node.aimx("agent", "set", "busy", "--max-unacked", "none")
        until = time.monotonic() + 30
        while queue(node):
            assert time.monotonic() < until, queue(node)
        assert numbers(node, busy) == [0, 1, 2]
        node.aimx("audit", "verify")


@pytest.mark.parametrize("point", END)
def test_dead_while_it_gives_up_the_sender_is_told_once(tmp_path: Path, point: str) -> None:
    node = NodeProcess(tmp_path, RETRY + 'deadline = "200ms"\n')
    with node:
        ada, busy = node.add_agent("ada"), node.add_agent("busy", "--max-unacked", "1")
        node.stop()
        node.environ = {"AIMX_FAILPOINT": point}
        node.start()
        send(node, ada, busy, 0)
        send(node, ada, busy, 1)
        die(node, point)
        node.start()
        until = time.monotonic() + 30
        while queue(node):
            assert time.monotonic() < until, queue(node)
        (notice,) = node.bodies(ada)
        assert b"multipart/report" in notice
        assert numbers(node, busy) == [0]
        node.aimx("audit", "verify")


@pytest.mark.parametrize("point", LOG)
def test_dead_while_it_writes_the_log_no_leaf_is_lost_or_doubled(tmp_path: Path, point: str) -> None:
    node = NodeProcess(tmp_path)
    with node:
        ada = node.add_agent("ada")
        node.stop()
        node.environ = {"AIMX_FAILPOINT": f"{point}:3"}
        with contextlib.suppress(AssertionError):
            node.start()
            with contextlib.suppress(smtplib.SMTPException, OSError):
                for number in range(200):
                    send(node, ada, ada, number)
        if node.process is not None:
            die(node, point)
        node.environ = {}
        node.start()
        have = numbers(node, ada)
        for number in range(len(have) + 2):
            send(node, ada, ada, number)
        assert numbers(node, ada) == list(range(len(have) + 2))
        node.restart()
        assert "COMPLETE" in node.aimx("audit", "verify").stdout
