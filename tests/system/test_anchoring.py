"""Checkpoints leave the house: real nodes cosign for each other, and nobody who is away holds up the mail."""

import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from aimx.tlog import checkpoint, note
from tests.node_process import NodeProcess

PATIENCE_S = 20.0


def until(happened: Callable[[], bool], what: str) -> None:
    """For what another process does and nothing announces: looked at, for a bounded time."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.05)


def log_vkey(node: NodeProcess) -> str:
    return (node.data / "audit.vkeys").read_text().split()[0]


def witness_vkey(node: NodeProcess) -> str:
    return (node.data / "witness.vkey").read_text().strip()


def asks(witness: NodeProcess, name: str = "peer") -> str:
    """Settings of a node that has `witness` cosign its checkpoints."""
    return (
        '[audit]\nwitness_every = "300ms"\n'
        f'[audit.witness.{name}]\nurl = "{witness.ready["http"]}"\n'
        f'vkey = "{witness_vkey(witness)}"\nca = "{witness.ready["ca"]}"\n'
    )


def cosigns(log: NodeProcess) -> str:
    return f'[audit.cosign.peer]\nvkey = "{log_vkey(log)}"\n'


def anchors(node: NodeProcess) -> list[tuple[str, str, int, str]]:
    path = node.data / "anchors.db"
    if not path.exists():
        return []
    with sqlite3.connect(path) as db:
        found = db.execute("SELECT kind, name, size, note FROM anchor ORDER BY id").fetchall()
    db.close()
    return found


def newest(node: NodeProcess) -> int:
    return max((size for _, _, size, _ in anchors(node)), default=0)


def names(domain: str) -> str:
    return f'[domain."{domain}"]\n'


def send(node: NodeProcess, n: int = 1) -> None:
    account = node.add_agent(f"agent{time.monotonic_ns()}")
    with node.smtp(account) as client:
        for number in range(n):
            message = f"From: {account.address}\r\nTo: {account.address}\r\nSubject: {number}\r\n\r\nhello\r\n"
            client.sendmail(account.address, [account.address], message)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[NodeProcess, NodeProcess]:
    """A log, and a witness that knows it. The witness runs; the log has run once, so that it has its key."""
    log = NodeProcess(tmp_path / "log", config=names("log.example"))
    with log:
        pass
    return log, NodeProcess(tmp_path / "witness", config=names("witness.example") + cosigns(log))


def test_a_node_cosigns_for_another_and_each_log_says_so(pair: tuple[NodeProcess, NodeProcess]) -> None:
    log, witness = pair
    with witness:
        log.configure(log.config + asks(witness))
        with log:
            send(log)
            until(lambda: len(anchors(log)) > 0, "a cosignature")
            kind, name, size, text = anchors(log)[-1]
            assert (kind, name) == ("witness", "peer")
            keys = note.Verifier.parse(log_vkey(log)), note.Verifier.parse(witness_vkey(witness))
            opened = checkpoint.open_signed(text, keys[0], keys[1:])
            assert (opened.checkpoint.size, len(opened.signatures)) == (size, 2)
            assert abs((opened.signatures[1].time or 0) - time.time()) < 60
            verdict = json.loads(log.aimx("audit", "verify", "--json").stdout)
            assert verdict["ok"], verdict

            # An idle log stays as it is: anchoring itself is nothing to anchor.
            until(lambda: settled(log), "an end of anchoring")


def settled(node: NodeProcess) -> bool:
    before = size_of(node)
    time.sleep(1.5)
    return size_of(node) == before


def size_of(node: NodeProcess) -> int:
    text = (node.data / "audit.checkpoint").read_text()
    return int(text.split("\n")[1])


def test_a_witness_that_is_away_stops_nothing_and_is_asked_again(pair: tuple[NodeProcess, NodeProcess]) -> None:
    log, witness = pair
    witness.start()
    log.configure(log.config + asks(witness))
    witness.stop()
    with log:
        send(log, 20)
        until(lambda: any("not anchored" in str(line) for line in log.lines()), "a word about it")
        assert anchors(log) == []
        witness.configure(witness.config)
        witness.start(same_ports=True)
        until(lambda: len(anchors(log)) > 0, "a cosignature once it is back")
    witness.stop()


def test_a_log_that_was_put_back_is_refused_by_its_witness_and_says_so(
    pair: tuple[NodeProcess, NodeProcess], tmp_path: Path
) -> None:
    log, witness = pair
    with witness:
        log.configure(log.config + asks(witness))
        shutil.copytree(log.data, tmp_path / "old")
        with log:
            send(log, 5)
            until(lambda: newest(log) > 10, "a cosignature")
        # All of it goes back, also the mark by which the node itself would have noticed.
        shutil.rmtree(log.data)
        shutil.copytree(tmp_path / "old", log.data)
        with log:
            until(lambda: any("old copy restored" in str(line) for line in log.lines()), "the witness's word")
            send(log, 20)
            until(lambda: any("not the one it has cosigned" in str(line) for line in log.lines()), "its refusal")
            assert any(line["level"] == "error" for line in log.lines())
            assert anchors(log) == []


def test_an_open_door_for_requests_only(pair: tuple[NodeProcess, NodeProcess]) -> None:
    _, witness = pair
    with witness, httpx.Client(verify=witness.tls(), base_url=witness.ready["http"]) as client:
        assert client.post("/add-checkpoint", content=b"old 0\n\nnobody\n0\nAAAA\n").status_code == 400
        assert client.get("/v1/messages").status_code == 401
