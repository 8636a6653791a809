"""A live log and its export, checked by programs of others: Go's sumdb/note, transparency-dev's merkle and formats,
Tessera's fsck. Nothing of ours is in that program but the reading of arguments."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aimx.audit.bundle import shards
from aimx.tlog import note
from tests.node_process import Account, NodeProcess

SOURCE = Path(__file__).parent / "go" / "check"
Check = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def check(tmp_path_factory: pytest.TempPathFactory) -> Check:
    """The program, built by Go from its own module proxy."""
    go = shutil.which("go") or "/usr/local/go/bin/go"
    if not Path(go).exists():
        pytest.skip("NOT TESTED: Go is not installed")
    folder = tmp_path_factory.mktemp("go")
    for path in SOURCE.iterdir():
        shutil.copy(path, folder)
    environ = {**os.environ, "GOFLAGS": "-mod=mod -buildvcs=false"}
    built = subprocess.run([go, "build", "-o", "check", "."], cwd=folder, env=environ, capture_output=True, text=True)
    if built.returncode and ("dial tcp" in built.stderr or "no such host" in built.stderr):
        pytest.skip("NOT TESTED: the Go module proxy is out of reach")
    assert built.returncode == 0, built.stderr

    def run(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "check"), *map(str, arguments)]
        return subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NodeProcess, str]]:
    """A node with more leaves than one tile holds, and the id of a message."""
    with NodeProcess(tmp_path_factory.mktemp("node")) as node:
        account = node.add_agent("anna")
        eid = flood(node, account, 150)
        yield node, eid


def flood(node: NodeProcess, account: Account, count: int) -> str:
    message = f"From: {account.address}\r\nTo: {account.address}\r\n\r\n"
    with node.smtp(account) as client:
        for number in range(count):
            client.mail(account.address)
            client.rcpt(account.address)
            _, answer = client.data(f"{message}{number}\r\n".encode())
    eid = answer.decode().partition("<")[2].partition(">")[0]
    node.aimx("audit", "prove", eid)  # waits until it is under a checkpoint
    return eid


def test_fsck_agrees_with_the_live_log_and_with_its_export(
    busy: tuple[NodeProcess, str], check: Check, tmp_path: Path
) -> None:
    node, _ = busy
    environ = {"CAFILE": node.ready["ca"], "BEARER": Path(node.ready["admin_token_file"]).read_text().strip()}
    live = check("log", node.ready["http"], node.data / "audit.vkeys", **environ)
    assert live.returncode == 0, live.stderr
    node.aimx("audit", "export", str(tmp_path / "out"))
    (shard,) = shards(tmp_path / "out")
    assert shard.state().size > 300, "several tiles"
    exported = check("log", f"file://{shard.path}/", tmp_path / "out" / "vkeys")
    assert exported.returncode == 0, exported.stderr
    tile = shard.path / "tile" / "0" / "000"
    good = tile.read_bytes()
    tile.write_bytes(good[:40] + bytes([good[40] ^ 1]) + good[41:])
    assert check("log", f"file://{shard.path}/", tmp_path / "out" / "vkeys").returncode != 0
    assert node.aimx("audit", "verify", "--bundle", str(tmp_path / "out"), check=False).returncode == 3


def test_a_proof_holds_for_its_leaf_and_for_no_other(
    busy: tuple[NodeProcess, str], check: Check, tmp_path: Path
) -> None:
    node, eid = busy
    proved = json.loads(node.aimx("audit", "prove", eid, "--json").stdout)
    (tmp_path / "proof").write_text(proved["proof"])
    (tmp_path / "leaf").write_bytes(proved["leaf"].encode())
    (tmp_path / "other").write_bytes(proved["leaf"].replace('"size":', '"size":1').encode())
    key = (node.data / "audit.vkeys").read_text().split()[0]
    good = check("proof", tmp_path / "proof", tmp_path / "leaf", key)
    assert good.returncode == 0, good.stderr
    assert check("proof", tmp_path / "proof", tmp_path / "other", key).returncode != 0


def test_cosignatures_are_those_of_the_witness_network(check: Check, tmp_path: Path) -> None:
    log = note.Signer("log.example/audit", b"\x01" * 32)
    witness = note.Signer("witness.example/w1", b"\x02" * 32, note.COSIGNATURE_V1)
    text = "log.example/audit\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"
    signed = note.Note(text, (log.sign(text.encode()), witness.sign(text.encode(), 1_780_000_000)))
    (tmp_path / "note").write_text(str(signed))
    good = check("note", tmp_path / "note", log.verifier.vkey(), witness.verifier.vkey())
    assert (good.returncode, good.stdout) == (0, "0\n"), good.stderr
    (tmp_path / "note").write_text(str(signed).replace("\n0\n", "\n1\n"))
    assert check("note", tmp_path / "note", log.verifier.vkey(), witness.verifier.vkey()).returncode != 0


def test_gos_own_signature_is_ours(check: Check, tmp_path: Path) -> None:
    signer = note.Signer("log.example/audit", b"\x01" * 32)
    (tmp_path / "text").write_text("a text\nof two lines\n")
    theirs = check("sign", signer.skey(), tmp_path / "text")
    assert theirs.stdout == str(note.sign("a text\nof two lines\n", [signer]))
