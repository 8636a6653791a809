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
from tests.ports import free_port

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


def test_requests_and_answers_go_by_mail_and_checkpoints_reach_a_mailbox_elsewhere(tmp_path: Path) -> None:
    """Both roles on one node: what is mailed goes through its intake, its delivery and its own mailbox."""
    node = NodeProcess(tmp_path / "node")
    with node:
        auditor = node.add_agent("auditor")
    node.configure(f'[audit]\nmail_every = "1s"\nmail_to = ["{auditor.address}"]\n' + cosigns(node))
    with node:
        witness = f'[audit.witness.self]\nmail = "witness@fabric.local"\nvkey = "{witness_vkey(node)}"\n'
    node.configure(node.config + witness)
    with node:
        until(lambda: any(kind == "witness" for kind, *_ in anchors(node)), "a cosignature by mail")
        text = next(text for kind, _, _, text in anchors(node) if kind == "witness")
        keys = note.Verifier.parse(log_vkey(node)), note.Verifier.parse(witness_vkey(node))
        assert len(checkpoint.open_signed(text, keys[0], keys[1:]).signatures) == 2
        until(lambda: sum(kind == "mail" for kind, *_ in anchors(node)) >= 1, "a checkpoint on its way")
        until(lambda: len(node.bodies(auditor)) >= 2, "two checkpoints in the auditor's mailbox")
        mails = node.bodies(auditor)
        verdict = json.loads(node.aimx("audit", "verify", "--json").stdout)
        assert verdict["words"][-1] == "WITNESSED 1/1", verdict
        assert node.aimx("audit", "verify", "--require", "witnessed", "--within", "1h").returncode == 0
        nobody = node.aimx("audit", "verify", "--require", "witnessed", "--within", "1ms", check=False)
        assert nobody.returncode == 5
    kept = tmp_path / "mbox"
    kept.write_bytes(b"".join(b"From auditor\n" + mail.replace(b"\r\n", b"\n") + b"\n" for mail in mails))
    found = json.loads(node.aimx("audit", "check-mail", str(kept), "--json").stdout)
    assert (found["word"], found["mails"] >= 2, found["checkpoints"] >= 2) == ("CONSISTENT", True, True)
    alone = node.aimx("audit", "check-mail", str(kept), "--alone", "--vkeys", str(node.data / "audit.vkeys"))
    assert alone.stdout.startswith("UNCHECKED")
    # Another history, signed with the right key: somebody kept a mail that says otherwise.
    signer = note.Signer.parse((node.data / "keys" / "log.key").read_text())
    size = found["sizes"][signer.verifier.name][0]
    forged = checkpoint.sign(checkpoint.Checkpoint(signer.verifier.name, size, b"\x07" * 32), [signer])
    other = tmp_path / "other.eml"
    other.write_bytes(
        b"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n" + str(forged).encode()
    )
    kept.write_bytes(kept.read_bytes() + b"From auditor\n" + other.read_bytes() + b"\n")
    done = node.aimx(
        "audit", "check-mail", str(kept), "--alone", "--vkeys", str(node.data / "audit.vkeys"), check=False
    )
    assert (done.returncode, done.stdout.split("\n")[0]) == (3, "FORKED")
    done = node.aimx("audit", "check-mail", str(other), check=False)
    assert (done.returncode, done.stdout.split("\n")[0]) == (3, "ALTERED")


def peered(folder: Path, name: str, other: str, ports: dict[str, int]) -> str:
    return f"""\
listen.peer = "127.0.0.1:{ports[name]}"
delivery = {{ first_delay = "200ms", breaker_failures = 100 }}
[domain."{name}.example"]
[peer.{other}]
domains = ["{other}.example"]
ca = {json.dumps(str(folder / other / "data" / "tls" / "ca.pem"))}
host = "127.0.0.1"
port = {ports[other]}
"""


def test_two_nodes_cosign_for_each_other_by_mail_alone(tmp_path: Path) -> None:
    """Requests, conflicts and cosignatures go over the relay; neither node reaches the other's HTTP side."""
    ports, nodes = {"a": free_port(), "b": free_port()}, {}
    for name in ports:
        nodes[name] = NodeProcess(tmp_path / name, config=names(f"{name}.example"))
        with nodes[name]:
            pass
    a, b = nodes["a"], nodes["b"]
    b.configure(peered(tmp_path, "b", "a", ports) + cosigns(a))
    with b:
        mail = '[audit]\nmail_every = "1s"\n[audit.witness.b]\nmail = "witness@b.example"\n'
        a.configure(peered(tmp_path, "a", "b", ports) + mail + f'vkey = "{witness_vkey(b)}"\n')
        with a:
            until(lambda: len(anchors(a)) > 0, "a cosignature that came by mail")
            first = newest(a)
            send(a, 3)
            until(lambda: newest(a) > first, "the next one, proved from the first on")
            verdict = json.loads(a.aimx("audit", "verify", "--json").stdout)
            assert verdict["words"][-1] == "WITNESSED 1/1", verdict
        assert json.loads(b.aimx("audit", "verify", "--json").stdout)["ok"]
