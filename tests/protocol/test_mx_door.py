"""The door of the outside world: mail for us only, nothing believed, nobody taken for one of ours."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiosmtplib
import pytest

from aimx.smtp import server as smtp_server
from tests.outside import MailServer, name_server
from tests.protocol.mail_node import PORTS, MailNode, address, running
from tests.protocol.test_relay import HERE, QUICK, nothing_waits, until

BOB = "bob@b.example"


@asynccontextmanager
async def world(folder: Path, agents: tuple[str, ...] = ("ada",), **settings: Any) -> AsyncIterator[MailNode]:
    listen = {**PORTS, "mx": "127.0.0.1:0"}
    async with running(folder, agents, **{"listen": listen, **settings}) as node:
        yield node


@asynccontextmanager
async def outside(node: MailNode, *, tls: bool = True, **options: Any) -> AsyncIterator[aiosmtplib.SMTP]:
    assert node.ready.mx is not None
    host, port = node.ready.mx.rsplit(":", 1)
    context = options.pop("context", None) or (node.tls() if tls else None)
    async with aiosmtplib.SMTP(hostname=host, port=int(port), start_tls=tls, tls_context=context) as smtp:
        yield smtp


def letter(sender: str = BOB, head: str = "") -> bytes:
    return f"From: {sender}\r\nTo: ada@fabric.local\r\n{head}Subject: x\r\n\r\nhello\r\n".encode()


async def test_a_stranger_writes_to_an_agent_and_is_believed_nothing(tmp_path: Path) -> None:
    trace = f"traceparent: 00-{'ab' * 16}-{'cd' * 8}-01\r\n"
    async with world(tmp_path) as node:
        async with outside(node) as smtp:
            await smtp.ehlo()
            assert "auth" not in smtp.esmtp_extensions
            await smtp.sendmail(
                BOB, ["ada@fabric.local"], letter(head=f"{trace}X-Agent-ID: ada\r\nX-Workflow-ID: w\r\n")
            )
        header = await node.header("ada")
        assert "X-Agent-ID" not in header
        assert "X-Workflow-ID" not in header
        assert " with ESMTPS " in (header.get("Received") or "")
        assert header.get("AIMX-Claimed-Traceparent") == f"00-{'ab' * 16}-{'cd' * 8}-01"
        assert "Authentication-Results" not in header, "nothing was checked, nothing is claimed"
        receive = node.spans.one("smtp receive")
        assert receive.trace_id != bytes.fromhex("ab" * 16)
        assert receive.attributes["aimx.context.trusted"] is False
        assert (await node.verify()).ok


@pytest.mark.parametrize(
    ("commands", "code", "status"),
    [
        ((f"MAIL FROM:<{BOB}>", "RCPT TO:<x@elsewhere.example>"), 550, "5.7.1"),
        ((f"MAIL FROM:<{BOB}>", "RCPT TO:<nobody@fabric.local>"), 550, "5.1.1"),
        (("MAIL FROM:<ada@fabric.local>",), 550, "5.7.1"),
        (("MAIL FROM:<nobody@fabric.local>",), 550, "5.7.1"),
        (("AUTH PLAIN AGEAYg==",), 502, "5.5.1"),
        (("MAIL FROM:<>", "RCPT TO:<ada@fabric.local>"), 250, "2.1.5"),
        ((f"MAIL FROM:<{BOB}> MT-PRIORITY=9",), 250, "2.1.0"),
    ],
)
async def test_what_is_taken_and_what_is_not(tmp_path: Path, commands: tuple[str, ...], code: int, status: str) -> None:
    relay = {"enabled": True}  # for agents: nothing of it is for strangers
    async with world(tmp_path, relay=relay) as node, outside(node) as smtp:
        await smtp.ehlo()
        for command in commands:
            answer = await smtp.execute_command(command.encode())
        assert (answer.code, answer.message[:5]) == (code, status)


@pytest.mark.parametrize(
    "sender",
    [
        "ada@fabric.local",
        '"ada@fabric.local" <x@b.example>',
        "Ada <ADA@Fabric.Local>",
        "x@b.example, ada @fabric.local",
        "ada@(a comment)fabric.local",
        "ada@fabric . local",
        '"x (" <ada@((nested) too)fabric.local>',
        "=?utf-8?q?ada=40fabric.local?= <x@b.example>",
        "ada@=?utf-8?q?fabric.local?=",
    ],
)
async def test_nobody_outside_is_shown_as_one_of_ours(tmp_path: Path, sender: str) -> None:
    async with world(tmp_path) as node, outside(node) as smtp:
        with pytest.raises(aiosmtplib.SMTPDataError) as refused:
            await smtp.sendmail(BOB, ["ada@fabric.local"], letter(sender))
        assert (refused.value.code, refused.value.message[:5]) == (550, "5.7.1")
        await smtp.sendmail(BOB, ["ada@fabric.local"], letter("x@fabric.local.example"))
        assert len(await node.inbox("ada")) == 1


async def test_tls_is_required_unless_it_is_said_otherwise(tmp_path: Path) -> None:
    async with world(tmp_path / "required") as node, outside(node, tls=False) as smtp:
        await smtp.ehlo()
        answer = await smtp.execute_command(f"MAIL FROM:<{BOB}>".encode())
        assert (answer.code, answer.message[:5]) == (530, "5.7.0")
    async with world(tmp_path / "may", mx={"tls": "opportunistic"}) as node:
        async with outside(node, tls=False) as smtp:
            await smtp.ehlo()
            assert "starttls" in smtp.esmtp_extensions
            await smtp.sendmail(BOB, ["ada@fabric.local"], letter())
        assert " with ESMTP " in ((await node.header("ada")).get("Received") or "")
        assert "tls.protocol.version" not in node.spans.one("smtp receive").attributes


@pytest.mark.parametrize(("floor", "works"), [("1.2", True), ("1.3", False)])
async def test_the_floor_of_tls(tmp_path: Path, floor: str, works: bool) -> None:
    async with world(tmp_path, mx={"floor": floor}) as node:
        old = node.tls()
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        try:
            async with outside(node, context=old) as smtp:
                await smtp.sendmail(BOB, ["ada@fabric.local"], letter())
        except (aiosmtplib.SMTPException, ssl.SSLError, OSError):
            assert not works
        assert len(await node.inbox("ada")) == works


async def test_an_answer_from_outside_finds_its_trace(tmp_path: Path) -> None:
    async with MailServer().listening() as server, name_server(HERE) as (_, dns):
        relay = {"enabled": True, "port": server.port, "nameservers": [dns], "allow_networks": ["127.0.0.0/8"]}
        async with world(tmp_path, relay=relay, delivery=QUICK) as node:
            await node.send("ada", BOB, traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01")
            (mail,) = await server.until(1)
            minted = mail.data.partition(b"Message-ID: ")[2].partition(b"\r\n")[0].decode()
            async with outside(node) as smtp:
                await smtp.sendmail(BOB, ["ada@fabric.local"], letter(head=f"In-Reply-To: {minted}\r\n"))
            assert ((await node.header("ada")).get("traceparent") or "").split("-")[1] == "ab" * 16


async def test_nobody_is_hurried_to_sign_in_where_nobody_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtp_server, "SIGN_IN_WITHIN", 0.2)
    async with world(tmp_path) as node, outside(node) as smtp:
        await asyncio.sleep(0.5)
        await smtp.sendmail(BOB, ["ada@fabric.local"], letter())


async def test_too_much_from_one_address_waits(tmp_path: Path) -> None:
    async with world(tmp_path, mx={"messages_per_minute": 2}) as node, outside(node) as smtp:
        for _ in range(2):
            await smtp.sendmail(BOB, ["ada@fabric.local"], letter())
        with pytest.raises(aiosmtplib.SMTPSenderRefused) as refused:
            await smtp.sendmail(BOB, ["ada@fabric.local"], letter())
        assert (refused.value.code, refused.value.message[:5]) == (451, "4.7.1")


async def test_what_fails_later_is_told_to_the_stranger(tmp_path: Path) -> None:
    async with MailServer().listening() as server, name_server(HERE) as (_, dns):
        relay = {"port": server.port, "nameservers": [dns], "allow_networks": ["127.0.0.0/8"]}
        async with world(tmp_path, relay=relay, delivery=QUICK | {"deadline": "100ms"}) as node:
            found = await node.store.agent("ada@fabric.local")
            assert found is not None
            from dataclasses import replace

            await node.store.update_agent(replace(found, quota=1), [])
            async with outside(node) as smtp:
                await smtp.sendmail(BOB, ["ada@fabric.local"], letter())
            (report,) = await server.until(1)
            assert report.mail.startswith("FROM:<>")
            assert report.rcpt == [f"TO:<{BOB}>"]
            assert b"Status: 4.4.7\r\n" in report.data
            await until(lambda: nothing_waits(node))


async def test_a_report_to_a_stranger_names_whom_he_wrote_to_and_no_member(tmp_path: Path) -> None:
    async with MailServer().listening() as server, name_server(HERE) as (_, dns):
        relay = {"port": server.port, "nameservers": [dns], "allow_networks": ["127.0.0.0/8"]}
        async with world(tmp_path, relay=relay, delivery=QUICK, list={"crew": {"members": ["ada"]}}) as node:
            async with outside(node) as smtp:
                await smtp.sendmail(
                    BOB, ["crew@fabric.local"], letter().replace(b"ada@", b"crew@"), rcpt_options=["NOTIFY=SUCCESS"]
                )
            (report,) = await server.until(1)
            assert b"Final-Recipient: rfc822; crew@fabric.local\r\n" in report.data
            assert b"ada@" not in report.data
            await until(lambda: nothing_waits(node))


# ── postmaster (RFC 5321 §4.5.1) ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("recipient", ["postmaster@fabric.local", "Postmaster"])
async def test_mail_for_postmaster_is_held_where_nobody_is_named(tmp_path: Path, recipient: str) -> None:
    async with world(tmp_path) as node:
        for _ in range(2):
            async with outside(node) as smtp:
                await smtp.sendmail(BOB, [recipient], letter())
        assert len(await node.inbox("postmaster")) == 2
        assert (await node.verify()).ok


async def test_a_domain_names_who_is_its_postmaster(tmp_path: Path) -> None:
    domain = {"fabric.local": {"postmaster": "ada"}, "b.local": {"postmaster": "ada@fabric.local"}, "c.local": {}}
    async with world(tmp_path, ("ada", "postmaster@c.local"), domain=domain) as node:
        async with outside(node) as smtp:
            for name in domain:
                await smtp.sendmail(BOB, [f"postmaster@{name}"], letter())
        assert len(await node.inbox("ada")) == 2
        assert len(await node.inbox(address("postmaster@c.local"))) == 1
        assert await node.store.agent("postmaster@fabric.local") is None
