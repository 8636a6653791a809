"""AIMX hands its mail to other people's servers: a Postfix that insists on TLS, and Postfix's test sink."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest

from aimx.identity.certificate import Certificates
from tests.interop.postfix import Postfix
from tests.outside import name_server
from tests.ports import free_port
from tests.protocol.mail_node import MailNode, running
from tests.protocol.test_relay import HERE, nothing_waits, until


@asynccontextmanager
async def node(folder: Path, port: int, **relay: Any) -> AsyncIterator[MailNode]:
    async with name_server(HERE) as (_, address):
        settings = {"enabled": True, "port": port, "nameservers": [address], "allow_networks": ["127.0.0.0/8"]}
        async with running(folder, ["ada"], relay=settings | relay) as made:
            yield made


async def test_postfix_takes_what_we_relay_and_refuses_what_it_must(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "tls", ["mx.b.example"])
    certificates.ensure()
    long = json.dumps({"items": list(range(5000))}).encode() + b"\r\n"
    bodies = {
        "plain": b"hello\r\n.\r\n..dots\r\n",
        "eight bit": "grüße\r\n".encode(),
        "long line": long,
        "large": (b"z" * 70 + b"\r\n") * 20_000,
    }
    with Postfix(certificates.chain, certificates.key).running() as postfix:
        async with node(tmp_path, postfix.port, tls="verify", ca=str(certificates.ca)) as made:
            for subject, body in bodies.items():
                kind = "application/json" if subject == "long line" else "text/plain; charset=utf-8"
                await made.send("ada", "bob@b.example", body, Subject=subject, Content_Type=kind)
            mails = [message_from_bytes(octets) for octets in await postfix.mails(len(bodies))]
            found = {mail["Subject"]: mail.get_payload(decode=True) for mail in mails}
            assert {name: _lines(octets) for name, octets in found.items()} == {
                name: _lines(octets) for name, octets in bodies.items()
            }
            assert all("using TLSv1.3" in " ".join(mail.get_all("Received")) for mail in mails)
            assert {mail["Return-Path"] for mail in mails} <= {"<ada@fabric.local>", None}
            await until(lambda: nothing_waits(made))
            talks = made.spans.named("relay mx")
            assert {talk.attributes["tls.protocol.version"] for talk in talks} == {"TLSv1.3"}

            await made.send("ada", "ghost@b.example")
            await until(lambda: nothing_waits(made))
            (notice,) = await made.inbox("ada")
            assert b"Status: 5.1.1\r\n" in (notice.body or b"")
            assert b"Diagnostic-Code: smtp; 550 5.1.1 <ghost@b.example>" in (notice.body or b"").replace(b"\r\n ", b" ")


def _lines(octets: object) -> list[bytes]:
    assert isinstance(octets, bytes)
    return octets.splitlines()


@pytest.mark.parametrize("options", [[], ["-e"], ["-p"]], ids=["ESMTP", "HELO only", "no PIPELINING"])
async def test_smtp_sink_takes_many(tmp_path: Path, options: list[str]) -> None:
    program = shutil.which("smtp-sink") or shutil.which("smtp-sink", path="/usr/sbin")
    if program is None:
        pytest.skip("NOT TESTED: smtp-sink is not installed (see .ci/run)")
    port = free_port()
    sink = await asyncio.create_subprocess_exec(program, *options, "-u", "nobody", f"127.0.0.1:{port}", "100")
    try:
        async with node(tmp_path, port) as made:
            await asyncio.gather(*[made.send("ada", "bob@b.example", f"{n}\r\n".encode()) for n in range(60)])
            await until(lambda: nothing_waits(made))
            talks = made.spans.named("relay mx")
            assert sum(talk.error_type is None for talk in talks) == 60
            assert await made.inbox("ada") == []
    finally:
        sink.terminate()
        await sink.wait()
