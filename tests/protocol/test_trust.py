"""What a message may say of itself, by who hands it over: an agent, an authenticated peer, or a stranger."""

import time
from pathlib import Path

import aiosmtplib
import pytest

from aimx.intake.envelope import Envelope, Reply
from aimx.message.identifier import new_eid
from aimx.telemetry.context import Door
from tests.protocol.mail_node import MailNode, address, running

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HOP_SPAN = "53995c3f42cd8ad8"
CLAIM = f"traceparent: 00-{TRACE}-{SPAN}-01\r\ntracestate: a=1\r\nbaggage: admin=true\r\n"
HOP = f"AIMX-Trace: hop=2; traceparent=00-{TRACE}-{HOP_SPAN}-01; by=a.example; rule=out\r\n"
BOB = "bob@a.example"


async def handed(node: MailNode, door: Door, sender: str, to: str, head: str, body: bytes = b"hello\r\n") -> Reply:
    """Through the intake itself: what the doors of peers and strangers make of a connection is their own tests'."""
    intake = node.node._intake
    upload = intake.upload()
    upload.write(f"From: {sender}\r\n{head}\r\n".encode() + body)
    return await intake.accept(
        Envelope(
            agent=None,
            sender=sender,
            recipients=(address(to),),
            upload=upload,
            peer="192.0.2.1:25",
            helo="a.example",
            protocol="ESMTPS",
            tls="TLSv1.3",
            started_ns=time.time_ns(),
            door=door,
            by_peer="a" if door is Door.PEER else "",
        )
    )


async def test_a_strangers_trace_is_a_claim_that_nobody_continues(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada"]) as node:
        reply = await handed(node, Door.STRANGER, BOB, "ada", CLAIM.replace("-01\r", "-00\r") + HOP)
        assert reply.code == 250
        span = node.spans.one("smtp receive")
        assert span.parent is None
        assert span.sampled, "a stranger's flag neither hides nor shows what this node does"
        assert span.trace_id.hex() != TRACE
        assert [(link.trace_id.hex(), link.flags, link.baggage) for link, _ in span.links or []] == [(TRACE, 0, "")]
        assert span.attributes["aimx.context.trusted"] is False
        assert span.attributes["aimx.context.source"] == "new"
        header = await node.header("ada")
        assert header.get_all("traceparent") == [span.context.traceparent]
        assert header.get("AIMX-Claimed-Traceparent") == f"00-{TRACE}-{SPAN}-00"
        assert header.get("AIMX-Claimed-Tracestate") == "a=1"
        assert header.get("AIMX-Claimed-Baggage") == "admin=true"
        assert "baggage" not in header
        assert "tracestate" not in header
        assert "X-Agent-ID" not in header
        assert [hop.partition(";")[0] for hop in header.get_all("AIMX-Trace")] == ["hop=1"]


async def test_a_stranger_chooses_no_workflow_and_no_priority(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "cleo"], workflow={"small": {"budget": 1}}) as node:
        await node.send("ada", "cleo", X_Workflow_ID="small")
        head = "X-Workflow-ID: small\r\nMT-Priority: 9\r\nX-Agent-ID: cleo\r\nAIMX-Claimed-Traceparent: forged\r\n"
        assert (await handed(node, Door.STRANGER, BOB, "ada", head)).code == 250, "it is not counted against the budget"
        header = await node.header("ada")
        assert header.get("X-Workflow-ID") is None
        assert header.get("AIMX-Claimed-Workflow-ID") == "small"
        assert header.get("AIMX-Claimed-Traceparent") is None
        assert header.get("X-Agent-ID") is None
        assert node.spans.named("route recipient")[-1].attributes["aimx.priority"] == 0


async def test_a_peers_hop_is_the_parent_and_the_creation_context_stays(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada"]) as node:
        head = CLAIM + HOP + "X-Agent-ID: bob\r\nX-Workflow-ID: wf\r\nAIMX-ID: 01ARZ3NDEKTSV4RRFFQ69G5FAV\r\n"
        assert (await handed(node, Door.PEER, BOB, "ada", head)).code == 250
        span = node.spans.one("smtp receive")
        assert span.trace_id.hex() == TRACE
        assert span.parent is not None
        assert span.parent.span_id.hex() == HOP_SPAN
        assert span.attributes["aimx.context.source"] == "hop"
        assert span.attributes["aimx.context.trusted"] is True
        header = await node.header("ada")
        assert header.get("traceparent") == f"00-{TRACE}-{SPAN}-01"
        assert header.get("baggage") == "admin=true"
        assert [hop.partition(";")[0] for hop in header.get_all("AIMX-Trace")] == ["hop=3", "hop=2"]
        assert header.get("X-Agent-ID") == BOB, "never a bare name, which would be one of ours"
        assert header.get("X-Workflow-ID") == "wf"
        assert len(header.get_all("AIMX-ID")) == 1
        deliver = node.spans.one("deliver mailbox")
        assert [link.span_id.hex() for link, _ in deliver.links or []] == [SPAN], "linked to the creation context"
        assert node.spans.one("route recipient").attributes["aimx.hop.count"] == 3


async def test_a_peer_does_not_vouch_for_our_agents(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "cleo"]) as node:
        assert (await handed(node, Door.PEER, address("cleo"), "ada", "X-Agent-ID: cleo\r\n")).code == 250
        assert "X-Agent-ID" not in await node.header("ada")


async def minted(node: MailNode, to: str) -> str:
    """The Message-ID that the node gave a mail of ada's. Outside mail is not relayed here, so `to` is an agent."""
    await node.send("ada", to, traceparent=f"00-{TRACE}-{SPAN}-01", X_Workflow_ID="talk")
    return (await node.header(to)).get("Message-ID") or ""


async def test_an_answer_from_outside_rejoins_by_an_id_that_this_node_minted(tmp_path: Path) -> None:
    outside = {"domain": {"fabric.local": {}, "a.example": {}}}
    async with running(tmp_path, ["ada", BOB], **outside) as node:
        message_id = await minted(node, BOB)
        node.node._intake.table._domains = frozenset({"fabric.local"})  # type: ignore[attr-defined]
        for head in (f"In-Reply-To: {message_id}\r\n", f"References: <other@x> {message_id}\r\n"):
            assert (await handed(node, Door.STRANGER, BOB, "ada", head + CLAIM.replace(TRACE, "a" * 32))).code == 250
        direct, late = node.spans.named("smtp receive")[-2:]
        assert [span.attributes["aimx.context.source"] for span in (direct, late)] == ["in_reply_to", "references"]
        assert {span.trace_id.hex() for span in (direct, late)} == {TRACE}
        assert [link.trace_id.hex() for link, _ in direct.links or []] == ["a" * 32], "its claim is a link, still"
        assert direct.attributes["aimx.depth"] == 2
        header = await node.header("ada")
        assert header.get("X-Workflow-ID") == "talk", "of what it answers, not of its own choice"
        assert (header.get("traceparent") or "").startswith(f"00-{TRACE}-")


async def test_so_it_does_by_an_id_that_the_sdk_has_drawn(tmp_path: Path) -> None:
    outside = {"domain": {"fabric.local": {}, "a.example": {}}}
    async with running(tmp_path, ["ada", BOB], **outside) as node:
        drawn, chosen = f"<{new_eid().lower()}@fabric.local>", "<question-1@fabric.local>"
        for message_id in (drawn, chosen):
            await node.send("ada", BOB, Message_ID=message_id, traceparent=f"00-{TRACE}-{SPAN}-01")
        node.node._intake.table._domains = frozenset({"fabric.local"})  # type: ignore[attr-defined]
        for message_id in (drawn, chosen):
            assert (await handed(node, Door.STRANGER, BOB, "ada", f"In-Reply-To: {message_id}\r\n")).code == 250
        sources = [span.attributes["aimx.context.source"] for span in node.spans.named("smtp receive")[-2:]]
        assert sources == ["in_reply_to", "new"], "anybody could have guessed the other"


async def test_an_agent_that_does_not_sample_decides_for_itself_only(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "cleo"]) as node:
        await node.send("ada", "cleo", traceparent=f"00-{TRACE}-{SPAN}-00")
        names = {span.name for span in node.spans if span.trace_id.hex() == TRACE}
        assert {"smtp receive", "route recipient", "deliver mailbox"} <= names
        assert (await node.header("cleo")).get("traceparent") == f"00-{TRACE}-{SPAN}-00"


@pytest.mark.parametrize("sender", ["eve@b.example", "ada@fabric.local", BOB])
async def test_nobody_else_rejoins(tmp_path: Path, sender: str) -> None:
    """Not who did not get the message, not who pretends to be its sender, not by an id that another has minted."""
    outside = {"domain": {"fabric.local": {}, "a.example": {}}}
    async with running(tmp_path, ["ada", BOB], **outside) as node:
        message_id = await minted(node, BOB)
        node.node._intake.table._domains = frozenset({"fabric.local"})  # type: ignore[attr-defined]
        if sender == BOB:
            digits = message_id.split(".")
            digits[2] = f"{int(digits[2], 16) ^ 1:08x}"
            message_id = ".".join(digits)
        reply = await handed(node, Door.STRANGER, sender, "ada", f"In-Reply-To: {message_id}\r\n")
        assert reply.code == (550 if sender == address("ada") else 250)
        span = node.spans.named("smtp receive")[-1]
        assert span.attributes["aimx.context.source"] == "new"
        assert span.trace_id.hex() != TRACE


async def test_a_notice_from_outside_joins_the_message_that_failed(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "cleo"]) as node:
        message_id = await minted(node, "cleo")
        assert (await handed(node, Door.STRANGER, "", "ada", f"In-Reply-To: {message_id}\r\n")).code == 250
        assert node.spans.named("smtp receive")[-1].trace_id.hex() == TRACE


async def test_what_strangers_are_refused_is_one_event_however_often(tmp_path: Path) -> None:
    shut = {"name": "shut", "sender": "*@a.example", "refuse": "not from you"}
    async with running(tmp_path, ["ada"], route=[shut]) as node:
        before = len(await node.store.events_after(0, 1000))
        for _ in range(5):
            assert (await handed(node, Door.STRANGER, BOB, "ada", "")).code == 550
        assert len(await node.store.events_after(0, 1000)) == before
        await node.node._intake.record_turned_away()
        (event,) = (await node.store.events_after(0, 1000))[before:]
        assert event.row.ev == "message.rejected"
        assert b'"n":5' in event.row.leaf
        await node.node._intake.record_turned_away()
        assert len(await node.store.events_after(0, 1000)) == before + 1
        assert (await node.verify()).ok


async def test_a_message_that_was_everywhere_goes_in_circles(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada"]) as node:
        body = b"From: ada@fabric.local\r\n" + b"Received: from a by b; Mon, 23 Nov 2026 06:00:00 +0000\r\n" * 101
        with pytest.raises(aiosmtplib.SMTPDataError, match=r"5\.4\.6 mail loop"):
            await node.send_raw("ada", ["ada"], body + b"\r\nx\r\n")
