"""A node that dies while it works the queue: nothing is lost, nothing comes twice, nothing stays stuck.

The steps of accepting are in test_sdk_once.py, those of the log in test_audit_kill.py.
"""

import contextlib
import signal
import smtplib
import sqlite3
import time
from pathlib import Path

import pytest

from aimx.failpoint import POINTS
from tests.node_process import Account, NodeProcess, receipt_id

RETRY = '[delivery]\nfirst_delay = "50ms"\nmax_delay = "100ms"\njitter = 0.0\nlease = "1s"\n'
SHORT = {"claim.committed", "attempt.begin", "settle.begin"}


def points(*parts: str) -> list[object]:
    return [
        pytest.param(name, marks=() if name in SHORT else pytest.mark.torture)
        for name in POINTS
        if name.startswith(parts)
    ]


QUEUE = points("claim.", "attempt.")
END = points("settle.")


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


def wait_until_nothing_waits(node: NodeProcess) -> None:
    until = time.monotonic() + 60
    with contextlib.closing(sqlite3.connect(f"file:{node.data / 'mail.db'}?mode=ro", uri=True)) as db:
        while found := db.execute("SELECT id, attempt, reason, leased_by FROM delivery").fetchall():
            assert time.monotonic() < until, found
            time.sleep(0.02)


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
        wait_until_nothing_waits(node)
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
        wait_until_nothing_waits(node)
        (notice,) = node.bodies(ada)
        assert b"multipart/report" in notice
        assert numbers(node, busy) == [0]
        node.aimx("audit", "verify")
