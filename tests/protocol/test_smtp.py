"""SMTP on the wire: real sockets, real TLS, uvloop."""

import asyncio

import pytest
import uvloop
from smtp_harness import DOMAIN, running

MESSAGE = b"From: planner@fabric.local\r\nSubject: x\r\n\r\nhello\r\n"


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()


async def test_a_mail_over_tls_is_handed_over_whole() -> None:
    async with running() as node:
        wire = await node.signed_in()
        assert (await wire.mail(MESSAGE)).startswith("250 2.6.0")
        await wire.say("QUIT", 221)
        assert await wire.closed() == b""
        (mail,) = node.mails
        assert mail.content == MESSAGE
        assert mail.envelope.agent == mail.envelope.sender == f"planner@{DOMAIN}"
        assert mail.envelope.recipients == (f"critic@{DOMAIN}",)
        assert (mail.envelope.protocol, mail.envelope.tls) == ("ESMTPSA", "TLSv1.3")
        assert mail.envelope.helo == "client.example"
        assert [event.name for event in mail.envelope.events] == ["smtp.auth"]
