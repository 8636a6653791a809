"""The session without sockets: whatever a peer says, it is answered, and never by an error of ours."""

import asyncio

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aimx.config import SignIn, Smtp
from aimx.identity import scram
from aimx.identity.agents import Directory
from aimx.smtp.budget import ByteBudget
from aimx.smtp.core import Receiver
from aimx.smtp.session import Door, Peer, Session
from aimx.store.contract import Agent
from tests.protocol.smtp_harness import DOMAIN, PASSWORD, AgentsOnly, RecordingIntake

CREDENTIAL = scram.derive(PASSWORD)

_lines = st.sampled_from(
    [
        b"EHLO x",
        b"HELO x",
        b"STARTTLS",
        b"AUTH PLAIN AHBsYW5uZXIAY29ycmVjdC1ob3JzZS1iYXR0ZXJ5",
        b"AUTH PLAIN",
        b"AUTH LOGIN",
        b"AUTH SCRAM-SHA-256 biwsbj1wbGFubmVyLHI9YWJj",
        b"*",
        b"=",
        b"AHBsYW5uZXIAY29ycmVjdC1ob3JzZS1iYXR0ZXJ5",
        b"MAIL FROM:<planner@fabric.local>",
        b"MAIL FROM:<planner@fabric.local> SIZE=10 SMTPUTF8",
        b"MAIL FROM:<>",
        b"RCPT TO:<critic@fabric.local>",
        b"RCPT TO:<x@elsewhere.example>",
        b"DATA",
        b".",
        b"..",
        b"From: x",
        b"",
        b"RSET",
        b"NOOP",
        b"VRFY x",
        b"HELP",
        b"QUIT",
        b"BDAT 5",
    ]
)
_octets = st.binary(max_size=30)
speech = st.lists(
    st.one_of(_lines.map(lambda line: line + b"\r\n"), _octets, _octets.map(lambda line: line + b"\r\n")), max_size=25
).map(b"".join)


async def converse(said: bytes, tls: str | None) -> tuple[Door, bytes, Session]:
    store = AgentsOnly()
    for name in ("planner", "critic"):
        store.put(Agent(f"{name}@{DOMAIN}", CREDENTIAL, 0))
    directory = Directory(
        store, (DOMAIN,), SignIn.model_construct(delay=0, max_failures=1000, window=1, iterations=4096)
    )
    door = Door((DOMAIN,), Smtp(), directory, RecordingIntake(store), ByteBudget(1 << 20))
    receiver = Receiver()
    session = Session(door, receiver, Peer("192.0.2.1", 1), tls)
    receiver.feed(said)
    try:
        while not (session.closing or session.wants_tls) and (event := receiver.next_event()) is not None:
            waiting = session.receive(event)
            if waiting is not None:
                await session.finish(waiting)
        await session.abandon()
    finally:
        directory.close()
    return door, b"".join(session.out), session


@given(speech, st.sampled_from([None, "TLSv1.3"]))
@settings(deadline=None, max_examples=200)
@example(b"EHLO x\r\nAUTH PLAIN\r\n\r\nDATA\r\n", "TLSv1.3")
def test_whatever_is_said_no_failure_of_ours_is_the_answer(said: bytes, tls: str | None) -> None:
    door, answered, _ = asyncio.run(converse(said, tls))
    assert door.counters.failures == 0
    assert door.budget.left == door.budget.limit
    for line in answered.splitlines(keepends=True):
        assert line.endswith(b"\r\n")
        assert line[:3].isdigit()
        assert line[3:4] in (b" ", b"-")
        assert line[:3] != b"451"
    if tls is None:
        assert door.counters.messages == 0
        assert b"235" not in answered


@pytest.mark.parametrize("last", [b"EHLO x", b"HELO x", b"NOOP", b"RSET", b"QUIT", b"VRFY x", b"HELP", b"BOGUS"])
def test_every_command_has_exactly_one_reply(last: bytes) -> None:
    _, answered, _ = asyncio.run(converse(b"EHLO x\r\n" + last + b"\r\n", "TLSv1.3"))
    assert sum(line[3:4] == b" " for line in answered.splitlines()) == 2
