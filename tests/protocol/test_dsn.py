"""Reports to senders: delayed, failed, delivered, relayed; as asked for, never about a report (RFC 3461, 3464)."""

import asyncio
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

import aiosmtplib
import pytest

from aimx.store.contract import Row
from tests.outside import MailServer, argument
from tests.protocol.mail_node import PASSWORD, MailNode, address, running
from tests.protocol.test_relay import QUICK, nothing_waits, until, world

DSN = ("PIPELINING", "DSN", "ENHANCEDSTATUSCODES", "8BITMIME")


async def send(node: MailNode, to: str, rcpt: str = "", mail: str = "", body: bytes = b"secret\r\n") -> None:
    host, port = node.ready.smtps.rsplit(":", 1)
    async with aiosmtplib.SMTP(hostname=host, port=int(port), use_tls=True, tls_context=node.tls()) as client:
        await client.login(address("ada"), PASSWORD)
        await client.mail(address("ada"), options=mail.split())
        await client.rcpt(address(to), options=rcpt.split())
        await client.data(b"From: ada@fabric.local\r\nSubject: q\r\nMessage-ID: <q@x>\r\n\r\n" + body)


def read(row: Row) -> tuple[EmailMessage, dict[str, str], dict[str, str]]:
    """The report, its per-message and its per-recipient fields."""
    mail = message_from_bytes((row.header or b"") + (row.body or b""), policy=policy.default)
    assert isinstance(mail, EmailMessage)
    _, status, _ = mail.iter_parts()
    about, recipient = status.get_payload()  # type: ignore[misc]
    return mail, dict(about.items()), dict(recipient.items())  # type: ignore[union-attr]


async def reports(node: MailNode, count: int = 1) -> list[tuple[EmailMessage, dict[str, str], dict[str, str]]]:
    async def there() -> bool:
        return len(await node.inbox("ada")) >= count

    await until(there)
    await until(lambda: nothing_waits(node))
    found = await node.inbox("ada")
    assert len(found) == count
    return [read(row) for row in found]


async def none(node: MailNode) -> None:
    await until(lambda: nothing_waits(node))
    assert await node.inbox("ada") == []


async def test_a_delivery_is_reported_to_who_asked(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "bob"]) as node:
        await send(node, "bob", "NOTIFY=SUCCESS ORCPT=rfc822;bob+2Bx@fabric.local", "ENVID=e+2D1")
        ((mail, about, recipient),) = await reports(node)
        assert mail["Subject"] == "Mail delivered"
        assert mail["Return-Path"] == "<>"
        assert mail["Auto-Submitted"] == "auto-replied"
        assert about["Original-Envelope-Id"] == "e-1"
        assert recipient["Original-Recipient"] == "rfc822; bob+x@fabric.local"
        assert (recipient["Action"], recipient["Status"]) == ("delivered", "2.0.0")
        sent = (await node.inbox("bob"))[0]
        assert about["AIMX-Message"] == sent.eid
        assert mail["traceparent"].split("-")[1] == about["AIMX-Trace-ID"]
        assert (await node.verify()).ok


async def test_a_delivery_that_had_to_wait_is_reported_too(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada"], delivery=QUICK) as node:
        from tests.protocol.mail_node import add_agent

        await add_agent(node.store, "bob", max_unacked=1)
        await node.send("ada", "bob")
        await send(node, "bob", "NOTIFY=SUCCESS")
        await node.ack("bob")
        ((_, _, recipient),) = await reports(node)
        assert recipient["Action"] == "delivered"


@pytest.mark.parametrize("notify", ["", "NOTIFY=FAILURE,DELAY", "NOTIFY=NEVER"])
async def test_nobody_hears_of_a_success_unasked(tmp_path: Path, notify: str) -> None:
    async with running(tmp_path, ["ada", "bob"]) as node:
        await send(node, "bob", notify)
        await none(node)


async def test_what_was_asked_for_is_passed_on_to_who_knows_it(tmp_path: Path) -> None:
    async with world(tmp_path, MailServer(extensions=DSN)) as w:
        await send(w.node, "bob@b.example", "NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;b@c.example", "RET=HDRS ENVID=e1")
        (mail,) = await w.server.until(1)
        assert "RET=HDRS ENVID=e1" in mail.mail
        assert mail.rcpt == ["TO:<bob@b.example> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;b@c.example"]
        await none(w.node)


async def test_where_it_is_not_known_the_handing_over_is_reported(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await send(w.node, "bob@b.example", "NOTIFY=SUCCESS", "ENVID=e1")
        ((mail, _, recipient),) = await reports(w.node)
        assert "NOTIFY" not in w.server.mails[0].rcpt[0]
        assert (recipient["Action"], recipient["Remote-MTA"]) == ("relayed", "dns; mx.b.example")
        assert mail["Subject"] == "Mail handed to another server"


@pytest.mark.parametrize("notify", ["NOTIFY=NEVER", "NOTIFY=SUCCESS,DELAY"])
async def test_who_does_not_want_to_hear_of_a_failure_does_not(tmp_path: Path, notify: str) -> None:
    async with world(tmp_path, MailServer(answers={"RCPT": "550 5.1.1 nobody"})) as w:
        await send(w.node, "bob@b.example", notify)
        await none(w.node)


@pytest.mark.parametrize(("ret", "whole"), [("RET=FULL", True), ("RET=HDRS", False), ("", False)])
async def test_a_failure_brings_back_as_much_as_was_asked_for(tmp_path: Path, ret: str, whole: bool) -> None:
    async with world(tmp_path, MailServer(answers={"RCPT": "550 5.1.1 nobody"})) as w:
        await send(w.node, "bob@b.example", "", ret)
        ((mail, _, recipient),) = await reports(w.node)
        assert recipient["Diagnostic-Code"] == "smtp; 550 5.1.1 nobody"
        assert recipient["Remote-MTA"] == "dns; mx.b.example"
        assert (b"secret" in mail.as_bytes()) == whole
        _, _, returned = mail.iter_parts()
        assert returned.get_content_type() == ("message/rfc822" if whole else "text/rfc822-headers")


async def test_a_delay_is_reported_once_and_says_until_when(tmp_path: Path) -> None:
    server = MailServer(answers={"RCPT": "450 4.2.0 later"})
    async with world(tmp_path, server, delivery=QUICK | {"warn_after": "100ms"}) as w:
        await send(w.node, "bob@b.example")

        async def warned() -> bool:
            return len(await w.node.inbox("ada")) >= 1

        await until(warned)
        await asyncio.sleep(0.3)  # several attempts more
        (row,) = await w.node.inbox("ada")
        mail, _, recipient = read(row)
        assert (recipient["Action"], recipient["Status"]) == ("delayed", "4.2.0")
        assert "Will-Retry-Until" in recipient
        assert mail["AIMX-Action"] == "delayed"
        server.answers.clear()
        await server.until(1)


async def test_who_does_not_want_to_hear_of_a_delay_does_not(tmp_path: Path) -> None:
    times = iter(["450 4.2.0 later"] * 8)
    server = MailServer(answers={"RCPT": lambda _: next(times, None)})
    async with world(tmp_path, server, delivery=QUICK | {"warn_after": "50ms"}) as w:
        await send(w.node, "bob@b.example", "NOTIFY=FAILURE")
        await server.until(1)
        await none(w.node)


async def test_there_is_no_report_about_a_report(tmp_path: Path) -> None:
    """Two recipients elsewhere fail; the sender is gone by then, and nothing is sent to anybody."""
    async with world(tmp_path, MailServer(answers={"RCPT": argument("bob", "550 5.1.1 nobody")})) as w:
        await send(w.node, "bob@b.example")
        ((mail, _, _),) = await reports(w.node)
        assert mail["Return-Path"] == "<>"
        assert not w.server.mails
