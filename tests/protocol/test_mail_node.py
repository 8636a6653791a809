"""A node's life: what stops its start, what a reload takes over, how soon it leaves."""

import asyncio
import json
import logging
import socket
import ssl
import time
from pathlib import Path

import aiosmtplib
import pytest

from aimx.config import SettingError, Settings
from aimx.node import CannotStart, Node
from tests.protocol.mail_node import PASSWORD, PORTS, MailNode, address, running


def settings(folder: Path, **parts: object) -> Settings:
    return Settings.model_validate({"data": folder / "data", "listen": PORTS} | parts)


async def refused_start(folder: Path, **parts: object) -> str:
    with pytest.raises(CannotStart) as caught:
        await Node(settings(folder, **parts)).start()
    text = str(caught.value)
    assert "\n" not in text
    return text


# ── the start ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["server.pem", "server.key", "ca.pem", "ca.key"])
async def test_a_broken_certificate_is_one_line_that_says_what_to_do(tmp_path: Path, name: str) -> None:
    async with running(tmp_path):
        pass
    (tmp_path / "data" / "tls" / name).write_text("garbage")
    text = await refused_start(tmp_path)
    assert text.startswith("tls: ")
    assert "move the folder aside" in text


async def test_a_folder_open_to_others_is_refused_with_the_mend(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    assert "run: chmod 700" in await refused_start(tmp_path)


async def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    assert (await refused_start(tmp_path)).startswith("data: ")


async def test_a_lock_that_cannot_be_made_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "lock").mkdir()
    assert (await refused_start(tmp_path)).startswith("data: ")


async def test_a_mail_file_that_is_none_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "mail.db").write_bytes(b"this is no database" * 1000)
    assert "mail.db" in await refused_start(tmp_path)


async def test_a_mail_file_of_a_newer_aimx_is_said_in_a_line(tmp_path: Path) -> None:
    import sqlite3

    (tmp_path / "data").mkdir(mode=0o700)
    with sqlite3.connect(tmp_path / "data" / "mail.db") as db:
        db.execute("PRAGMA user_version = 9999")
    assert "mail.db" in await refused_start(tmp_path)


async def test_a_ready_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    text = await refused_start(tmp_path, ready_file=tmp_path / "no-such-folder" / "ready.json")
    assert text.startswith("ready_file: ")


async def test_a_broken_secret_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "node.secret").write_text("zz")
    assert "node.secret" in await refused_start(tmp_path)


async def test_a_start_that_fails_leaves_no_port_taken_and_no_ready_file(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = PORTS | {"http": f"127.0.0.1:{taken.getsockname()[1]}"}
        old = tmp_path / "ready.json"
        old.write_text("{}")
        text = await refused_start(tmp_path, listen=listen, ready_file=old)
        assert text.startswith("listen.http: ")
        assert not old.exists(), "a ready file of an earlier life must not tell anybody that this one is ready"
    async with running(tmp_path):
        pass


async def test_the_ready_file_goes_with_the_node(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    async with running(tmp_path, ready_file=path) as node:
        assert json.loads(path.read_text())["smtps"] == node.ready.smtps
        assert (tmp_path / "data" / "ready.json").exists()
    assert not (tmp_path / "data" / "ready.json").exists()
    assert not path.exists()


# ── reloading ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def reload(node: MailNode, new: Settings | Exception) -> None:
    def read() -> Settings:
        if isinstance(new, Exception):
            raise new
        return new

    node.node._reload = read
    await node.node.reload_rules()


async def test_a_reload_takes_rules_and_limits_and_says_what_needs_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, ["ada", "bob"]) as node:
        new = settings(
            tmp_path,
            route=[{"name": "shut", "workflow": "shut", "refuse": "closed"}],
            loop={"max_depth": 1},
            domain={"elsewhere.example": {}},
            smtp={"max_size": 100_000},
        )
        with caplog.at_level(logging.INFO):
            await reload(node, new)
        assert any("restart" in line and "domain, smtp" in line for line in caplog.messages)
        with pytest.raises(aiosmtplib.SMTPDataError, match="closed"):
            await node.send("ada", "bob", X_Workflow_ID="shut")
        with pytest.raises(aiosmtplib.SMTPDataError, match="limit 1"):
            await node.send("ada", "bob")
        await reload(node, settings(tmp_path))
        await node.send("ada", "bob", X_Workflow_ID="shut")


@pytest.mark.parametrize("error", [SettingError("route: no"), RuntimeError("a bug")])
async def test_a_reload_that_fails_keeps_the_old_rules(
    tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    rule = {"name": "shut", "refuse": "closed"}
    async with running(tmp_path, ["ada", "bob"], route=[rule]) as node:
        await reload(node, error)
        assert any("the old ones stay" in line for line in caplog.messages)
        with pytest.raises(aiosmtplib.SMTPDataError, match="closed"):
            await node.send("ada", "bob")


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_clients_stuck_in_every_door_at_once_do_not_add_up(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "bob"]) as node:
        tls = node.tls()
        stuck = [await stuck_in_smtp(node, tls), await stuck_in_imap(node, tls), await stuck_in_http(node, tls)]
        began = time.monotonic()
        await node.node.stop()
        assert time.monotonic() - began < 7
        for writer in stuck:
            writer.transport.abort()


async def opened(where: str, tls: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = where.removeprefix("https://").rsplit(":", 1)
    return await asyncio.open_connection(host, int(port), ssl=tls)


async def stuck_in_smtp(node: MailNode, tls: ssl.SSLContext) -> asyncio.StreamWriter:
    import base64

    reader, writer = await opened(node.ready.smtps, tls)
    plain = base64.b64encode(f"\0{address('ada')}\0{PASSWORD}".encode()).decode()
    await reader.readline()
    commands = [
        "EHLO me",
        f"AUTH PLAIN {plain}",
        f"MAIL FROM:<{address('ada')}>",
        f"RCPT TO:<{address('bob')}>",
        "DATA",
    ]
    for command in commands:
        writer.write(command.encode() + b"\r\n")
        line = await reader.readline()
        while line[3:4] == b"-":
            line = await reader.readline()
    assert line.startswith(b"354")
    writer.write(b"From: ada@fab")
    await writer.drain()
    return writer


async def stuck_in_imap(node: MailNode, tls: ssl.SSLContext) -> asyncio.StreamWriter:
    reader, writer = await opened(node.ready.imaps, tls)
    await reader.readline()
    writer.write(f'a LOGIN {address("ada")} "{PASSWORD}"\r\n'.encode())
    while not (await reader.readline()).startswith(b"a "):
        pass
    writer.write(b"b APPEND INBOX {1000}\r\n")
    assert (await reader.readline()).startswith(b"+")
    writer.write(b"From: ada")
    await writer.drain()
    return writer


async def stuck_in_http(node: MailNode, tls: ssl.SSLContext) -> asyncio.StreamWriter:
    _, writer = await opened(node.ready.http, tls)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
    await writer.drain()
    return writer
