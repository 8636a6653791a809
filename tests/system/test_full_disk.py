"""A node on a file system of 24 MB that fills up: nothing accepted is lost, and with room it goes on by itself."""

import os
import smtplib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node_process import Account, NodeProcess, receipt_id


@pytest.fixture
def small(tmp_path: Path) -> Iterator[NodeProcess]:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    mounting = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", str(data)]
    if os.getuid() != 0 or subprocess.run(mounting, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small tmpfs cannot be mounted here: run as root")
    try:
        with NodeProcess(tmp_path) as node:
            yield node
    finally:
        subprocess.run(["umount", "-l", str(data)], check=True)


def send(node: NodeProcess, client: smtplib.SMTP, account: Account, octets: int) -> tuple[int, str]:
    """Code and text of the answer to the data, or of the refusal before."""
    body = ("x" * 70 + "\r\n") * (octets // 72)
    for command in (f"MAIL FROM:<{account.address}>", f"RCPT TO:<{account.address}>"):
        code, text = client.docmd(command)
        if code >= 400:
            client.rset()
            return code, text.decode()
    code, text = client.data(f"From: {account.address}\r\nTo: {account.address}\r\n\r\n{body}".encode())
    return code, text.decode()


@pytest.mark.parametrize("octets", [2_000, 600_000])
def test_a_full_disk_is_said_and_survived(small: NodeProcess, octets: int) -> None:
    account = small.add_agent("ada")
    ballast = small.data / "ballast"
    with small.smtp(account) as client:
        accepted = [receipt_id(send(small, client, account, 2_000)[1])]
        free = os.statvfs(small.data)
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, (free.f_bavail - 100) * free.f_frsize)
        refusals = []
        for _ in range(200):
            code, text = send(small, client, account, octets)
            if code == 250:
                accepted.append(receipt_id(text))
            else:
                refusals.append((code, text))
                if len(refusals) == 5:
                    break
        assert len(refusals) == 5
        assert {code for code, _ in refusals} <= {451, 452}
        assert (452, "4.3.1 no room is left on the node's disk; nothing was taken, send it again later") in refusals
        with small.imap(account) as reader:  # who reads is not held up
            _, parts = reader.uid("FETCH", "1:*", "(UID)")
            assert len(parts) == len(accepted)
        ballast.unlink()
        until = time.monotonic() + 30
        while (answer := send(small, client, account, octets))[0] != 250:
            assert time.monotonic() < until, answer
            time.sleep(0.1)
        accepted.append(receipt_id(answer[1]))
    small.restart()
    raw = small.bodies(account)
    assert [f"AIMX-ID: {eid}" in message[:4000].decode() for eid, message in zip(accepted, raw, strict=True)] == [
        True
    ] * len(accepted)
    small.aimx("audit", "verify")
