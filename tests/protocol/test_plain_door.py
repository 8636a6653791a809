"""The door for trusted networks: no TLS, no password, and nobody from anywhere else."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiosmtplib
import pytest

from tests.interop.programs import need
from tests.protocol.mail_node import PORTS, MailNode, running


@asynccontextmanager
async def world(folder: Path, *networks: str) -> AsyncIterator[MailNode]:
    trusted = {"networks": networks or ["127.0.0.0/8"]}
    listen = {**PORTS, "plain": "127.0.0.1:0"}
    async with running(folder, ["planner", "critic"], listen=listen, trusted=trusted) as node:
        yield node


@asynccontextmanager
async def client(node: MailNode) -> AsyncIterator[aiosmtplib.SMTP]:
    assert node.ready.plain is not None
    host, port = node.ready.plain.rsplit(":", 1)
    async with aiosmtplib.SMTP(hostname=host, port=int(port), start_tls=False) as smtp:
        yield smtp


def letter(sender: str = "planner") -> bytes:
    return f"From: {sender}@fabric.local\r\nSubject: x\r\n\r\nhello\r\n".encode()


async def test_whoever_is_there_sends_as_the_agent_it_names(tmp_path: Path) -> None:
    async with world(tmp_path) as node:
        async with client(node) as smtp:
            await smtp.ehlo()
            assert "starttls" not in smtp.esmtp_extensions
            assert "auth" not in smtp.esmtp_extensions
            for sender in ("planner", "critic"):
                await smtp.sendmail(f"{sender}@fabric.local", ["critic@fabric.local"], letter(sender))
        headers = [await node.header("critic", index) for index in (0, 1)]
        assert [header.get("X-Agent-ID") for header in headers] == ["planner", "critic"]
        assert " with ESMTP " in (headers[0].get("Received") or "")
        row = (await node.inbox("critic"))[0]
        accepted = (await node.events(row.eid))[0]
        assert json.loads(accepted.row.leaf)["auth"] == "network", "the log says that nobody proved it"
        assert (await node.verify()).ok


@pytest.mark.parametrize(
    ("command", "code", "status"),
    [
        ("MAIL FROM:<nobody@fabric.local>", 550, "5.7.1"),
        ("MAIL FROM:<>", 550, "5.7.1"),
        ("MAIL FROM:<planner@elsewhere.example>", 550, "5.7.1"),
        ("STARTTLS", 502, "5.5.1"),
        ("AUTH PLAIN AGEAYg==", 502, "5.5.1"),
    ],
)
async def test_what_is_not_taken(tmp_path: Path, command: str, code: int, status: str) -> None:
    async with world(tmp_path) as node, client(node) as smtp:
        await smtp.ehlo()
        answer = await smtp.execute_command(command.encode())
        assert (answer.code, answer.message[:5]) == (code, status)


async def test_the_header_must_name_the_same_agent(tmp_path: Path) -> None:
    async with world(tmp_path) as node, client(node) as smtp:
        with pytest.raises(aiosmtplib.SMTPDataError) as refused:
            await smtp.sendmail("planner@fabric.local", ["critic@fabric.local"], letter("critic"))
        assert (refused.value.code, refused.value.message[:5]) == (550, "5.7.1")
        assert not await node.inbox("critic")


async def test_nobody_comes_in_from_another_network(tmp_path: Path) -> None:
    async with world(tmp_path, "10.0.0.0/8", "127.0.0.2/32") as node:
        assert node.ready.plain is not None
        host, port = node.ready.plain.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        assert (await reader.read()).startswith(b"554 5.7.1 ")
        writer.close()
        reader, writer = await asyncio.open_connection(host, int(port), local_addr=("127.0.0.2", 0))
        assert (await reader.readline()).startswith(b"220 ")
        writer.close()


async def test_the_log_of_the_node_warns_of_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with world(tmp_path):
        assert "may send as any agent" in caplog.text


async def test_postfix_source_of_load_is_understood(tmp_path: Path) -> None:
    program = need("smtp-source")
    async with world(tmp_path) as node:
        command = [program, "-4", "-m", "40", "-s", "4", "-l", "2048", "-f", "planner@fabric.local"]
        command += ["-t", "critic@fabric.local", f"inet:{node.ready.plain}"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        assert len(await node.inbox("critic")) == 40
