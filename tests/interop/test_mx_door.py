"""A Postfix of the outside world brings mail to our MX door, and its bounces."""

import asyncio
import smtplib
from pathlib import Path

import pytest

from aimx.identity.certificate import Certificates
from tests.interop.postfix import Postfix
from tests.protocol.mail_node import PORTS, running
from tests.protocol.test_relay import until


@pytest.mark.parametrize(("ours", "theirs"), [("required", "encrypt"), ("opportunistic", "none")])
async def test_postfix_relays_to_us(tmp_path: Path, ours: str, theirs: str) -> None:
    certificates = Certificates(tmp_path / "tls", ["mx.b.example"])
    certificates.ensure()
    listen = {**PORTS, "mx": "127.0.0.1:0"}
    async with running(tmp_path, ["ada"], listen=listen, mx={"tls": ours}) as node:
        assert node.ready.mx is not None
        postfix = Postfix(certificates.chain, certificates.key, onward=node.ready.mx, smtp_tls=theirs)
        with postfix.running():

            def submit(sender: str, to: str) -> None:
                with smtplib.SMTP("127.0.0.1", postfix.port, timeout=20) as client:
                    client.sendmail(sender, [to], f"From: {sender}\r\nTo: {to}\r\nSubject: hi\r\n\r\nhello\r\n")

            await asyncio.to_thread(submit, "bob@b.example", "ada@fabric.local")

            async def there(count: int) -> bool:
                return len(await node.inbox("ada")) >= count

            await until(lambda: there(1))
            header = await node.header("ada")
            assert ("TLSv1.3" in " ".join(header.get_all("Received"))) == (theirs == "encrypt")
            assert header.get("Return-Path") == "<bob@b.example>"

            await asyncio.to_thread(submit, "ada@fabric.local", "ada@fabric.local")
            await until(lambda: there(2))
            bounce = await node.header("ada")
            assert bounce.get("Return-Path") == "<>", "a bounce has no sender, and is let in"
            assert "MAILER-DAEMON" in (bounce.get("From") or "")

            await asyncio.to_thread(submit, "bob@b.example", "nobody@fabric.local")
            (returned,) = await postfix.mails(1)
            assert b"5.1.1" in returned
