"""The log's key outside the mail process: in a real ssh-agent, behind a command, with `aimx signer`."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimx.audit import keys
from aimx.audit.keeper import REFUSED, Keeper
from aimx.audit.sequencer import HIGH_WATER, Sequencer
from aimx.audit.signer import SIGN_WANTED, SignerAway, key_blob, outside, string
from aimx.audit.verify import verify
from aimx.tlog import checkpoint
from aimx.tlog.checkpoint import Checkpoint
from aimx.tlog.note import Signer
from tests.node_process import AIMX
from tests.store.audit_memory import MemoryStore

NAME = "x.example/audit/2026h1"
T0 = 1_780_000_000_000


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[str]:
    """A real ssh-agent with two Ed25519 keys, `one` and `two`."""
    if shutil.which("ssh-agent") is None:
        pytest.skip("NOT TESTED: no ssh-agent here")
    path = tmp_path / "agent.sock"
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            for name in ("one", "two"):
                file = tmp_path / name
                subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", file], check=True)
                environ = {**os.environ, "SSH_AUTH_SOCK": str(path)}
                subprocess.run(["ssh-add", "-q", file], env=environ, check=True)
                file.unlink()
            yield str(path)
        finally:
            process.kill()


KMS = """#!{python}
import base64, sys
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
key = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
octets = key.public_key().public_bytes_raw() if sys.argv[1] == "public" else key.sign(sys.stdin.buffer.read())
print(base64.b64encode(octets).decode())
"""


@pytest.fixture
def command(tmp_path: Path) -> str:
    path = tmp_path / "kms"
    path.write_text(KMS.format(python=sys.executable))
    path.chmod(0o700)
    return str(path)


async def test_a_node_signs_with_a_key_in_an_ssh_agent_and_keeps_no_secret(tmp_path: Path, agent: str) -> None:
    await signs(tmp_path / "data", f"agent:{agent}#two")
    text = (tmp_path / "data" / "keys" / "log.key").read_text()
    assert text.startswith(f"agent:{agent} {NAME}+")
    assert "PRIVATE" not in text


async def test_a_node_signs_with_a_command(tmp_path: Path, command: str) -> None:
    await signs(tmp_path / "data", f"exec:{command}")


async def signs(data: Path, spec: str) -> None:
    store = MemoryStore()
    for _ in range(2):
        made = keys.load_or_create(data, "x.example", T0, signer=spec)
        sequencer = Sequencer(store, data, made, node="n1")
        await sequencer.start()
        store.accept()
        await sequencer.stop()
    opened = checkpoint.open_signed((data / HIGH_WATER).read_text(), keys.load_public(data).log)
    assert opened.checkpoint.size == 5
    report = await verify(store, data)
    assert report.ok, report.lines()


def test_an_agent_that_is_not_clear_about_the_key_is_told_so(agent: str) -> None:
    with pytest.raises(SignerAway, match="2 Ed25519 keys"):
        outside(f"agent:{agent}", NAME)
    with pytest.raises(SignerAway, match="0 Ed25519 keys called 'three'"):
        outside(f"agent:{agent}#three", NAME)
    assert outside(f"agent:{agent}#one", NAME).verifier != outside(f"agent:{agent}#two", NAME).verifier


def test_a_signer_that_is_away_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(SignerAway, match="cannot be asked"):
        outside(f"agent:{tmp_path}/nowhere", NAME)
    with pytest.raises(SignerAway, match="cannot be run"):
        outside(f"exec:{tmp_path}/nowhere", NAME)
    with pytest.raises(SignerAway, match="ended with 1"):
        outside("exec:false", NAME)
    with pytest.raises(SignerAway, match="did not print 32 octets"):
        outside("exec:echo", NAME)


def test_a_signature_by_another_key_is_not_believed(command: str) -> None:
    key = outside(f"exec:{command}", NAME, public=Signer(NAME, b"\x08" * 32).verifier.public)
    with pytest.raises(SignerAway, match="another key"):
        key.sign(b"text")


async def test_while_the_signer_is_away_events_are_logged_and_they_are_signed_when_it_is_back(
    tmp_path: Path, command: str
) -> None:
    store, data = MemoryStore(), tmp_path / "data"
    made = keys.load_or_create(data, "x.example", T0, signer=f"exec:{command}")
    sequencer = Sequencer(store, data, made, node="n1", checkpoint_every=0.05)
    await sequencer.start()
    await sequencer.flush()
    Path(command).chmod(0o000 if os.geteuid() else 0o600)
    Path(command).rename(f"{command}.away")
    store.accept()
    async with asyncio.timeout(10):
        while sequencer.size < 3 or sequencer.lag_ms == 0:
            await asyncio.sleep(0.02)
    Path(f"{command}.away").rename(command)
    Path(command).chmod(0o700)
    async with asyncio.timeout(20):
        assert await sequencer.flush() == 3
    await sequencer.stop()
    assert (await verify(store, data)).ok


# --- aimx signer ---


def test_the_keeper_signs_checkpoints_forward_and_nothing_else(tmp_path: Path) -> None:
    signer = Signer("aimx-log", b"\x05" * 32)
    blob = string(key_blob(signer.verifier.public))

    def ask(text: bytes, keeper: Keeper) -> bytes:
        return keeper.answer(bytes([SIGN_WANTED]) + blob + string(text) + bytes(4))

    def point(size: int, root: bytes, origin: str = NAME) -> bytes:
        return Checkpoint(origin, size, root * 32).text().encode()

    keeper = Keeper(signer, tmp_path / "seen")
    assert ask(point(3, b"a"), keeper) != REFUSED
    assert ask(point(3, b"a"), keeper) != REFUSED, "once more is no other history"
    for text in (b"aimx/receipt/v1\n", b"", point(2, b"b"), point(3, b"b"), b"\xff\n\n"):
        assert ask(text, keeper) == REFUSED
    keeper = Keeper(signer, tmp_path / "seen")
    assert ask(point(3, b"b"), keeper) == REFUSED, "it remembers"
    assert ask(point(4, b"b"), keeper) != REFUSED
    assert ask(point(1, b"c", "x.example/audit/2026h2"), keeper) != REFUSED, "another log"
    for message in (b"", b"\x0d", b"\x0d\x00\x00\x00\xff", b"\x11", bytes([SIGN_WANTED]) + b"\xff" * 40):
        assert keeper.answer(message) == REFUSED


async def test_aimx_signer_keeps_the_key_from_the_node(tmp_path: Path) -> None:
    path = tmp_path / "signer.sock"
    process = await asyncio.create_subprocess_exec(
        *AIMX, "signer", "--key", str(tmp_path / "log.key"), "--socket", str(path), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert b"signing on" in await asyncio.wait_for(process.stdout.readline(), 30)
        await signs(tmp_path / "data", f"agent:{path}")
        assert (tmp_path / "log.key").stat().st_mode & 0o777 == 0o600
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 10) == 0
    assert not path.exists()
