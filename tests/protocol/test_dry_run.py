"""`X-Trace-Only: yes`: every decision is made and traced, nothing is delivered, and whoever asked is told."""

import asyncio
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import aiosmtplib
import pytest

import aimx
from aimx.telemetry import metrics
from tests.protocol.mail_node import PASSWORD, MailNode, add_agent, address, running

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ROUTES = [
    {"name": "urgent", "header": {"X-Urgent": "*"}, "priority": 4},
    {"name": "no-drafts", "header": {"X-Draft": "*"}, "refuse": "send drafts to critic"},
]
CREW = {"list": {"crew": {"members": ["bob", "cleo"]}}, "route": ROUTES}


async def reported(node: MailNode, who: str = "ada") -> tuple[EmailMessage, dict[str, Any], str]:
    """The newest message of the INBOX, what its JSON part says, and its text part."""
    row = (await node.inbox(who))[-1]
    mail = message_from_bytes((row.header or b"") + (row.body or b""), policy=policy.default)
    assert isinstance(mail, EmailMessage)
    text, document = mail.iter_parts()
    assert (text.get_content_type(), document.get_content_type()) == ("text/plain", "application/json")
    return mail, aimx.Message((row.header or b"") + (row.body or b"")).payload, text.get_content()


async def test_nothing_is_delivered_and_the_sender_reads_what_would_have_been(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "bob", "cleo"], **CREW) as node:
        before = await node.store.backlog()
        said = await node.send(
            "ada",
            "crew",
            X_Trace_Only="yes",
            X_Urgent="1",
            Message_ID="<dry@x>",
            X_Workflow_ID="wf",
            traceparent=f"00-{TRACE}-{SPAN}-01",
        )
        assert "traced only" in said
        assert await node.inbox("bob") == await node.inbox("cleo") == []
        assert (await node.store.backlog()).queue_depth == before.queue_depth
        mail, report, text = await reported(node)
        assert mail["In-Reply-To"] == "<dry@x>"
        assert mail["Auto-Submitted"] == "auto-replied"
        assert mail["X-Workflow-ID"] == "wf"
        assert TRACE in mail["traceparent"]
        assert (report["accepted"], report["trace_id"], report["context_source"]) == (True, TRACE, "header")
        (crew,) = report["recipients"]
        assert crew["priority"] == 4
        assert [(rule["rule"], rule["holds"]) for rule in crew["rules"]] == [("urgent", True), ("no-drafts", False)]
        assert [(one["address"], one["fate"]) for one in crew["landings"]] == [
            (address("bob"), "delivered"),
            (address("cleo"), "delivered"),
        ]
        assert report["loop"]["verdict"] == "pass"
        assert "rule urgent: holds" in text
        assert "nothing was delivered" in text
        receive = node.spans.one("smtp receive")
        assert receive.attributes["aimx.trace_only"] is True
        assert node.spans.one("route recipient").attributes["aimx.trace_only"] is True
        (delivered,) = node.spans.named("deliver mailbox")  # the report itself
        assert delivered.trace_id.hex() == TRACE
        names = [event.row.ev for event in await node.store.events_of_trace(bytes.fromhex(TRACE))]
        assert names == ["message.traced", "message.accepted", "delivery.mailbox"]
        assert (await node.verify()).ok


async def test_refusals_are_reported_instead_of_made(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "bob", "cleo"], **CREW, loop={"max_depth": 1}) as node:
        await node.send("ada", "bob", X_Trace_Only="yes", X_Draft="1")
        _, report, text = await reported(node)
        assert report["accepted"] is False
        assert report["reply"].startswith("550 5.7.1")
        assert report["recipients"][0]["refused"] == {"rule": "no-drafts", "text": "send drafts to critic"}
        assert "send drafts to critic" in text
        detected = metrics.counter("aimx.loops.detected").labels("depth", "refuse")
        counted = detected.value
        await node.send("ada", "bob", X_Trace_Only="yes")
        _, report, _ = await reported(node)
        assert report["reply"].startswith("554 5.4.6 loop refused")
        assert report["loop"] == {"verdict": "refuse", "rule": "depth", "count": 1, "limit": 1}
        assert report["recipients"][0]["landings"][0]["fate"] == "nothing: the message is refused"
        assert detected.value == counted, "no loop is counted"


async def test_a_dry_run_is_no_turn_in_a_loop(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "bob"], workflow={"wf": {"budget": 2}}) as node:
        for _ in range(5):
            await node.send("ada", "bob", X_Trace_Only="yes", X_Workflow_ID="wf")
        await node.send("ada", "bob", X_Workflow_ID="wf")
        await node.send("ada", "bob", X_Workflow_ID="wf")
        with pytest.raises(aiosmtplib.SMTPDataError, match="budget"):
            await node.send("ada", "bob", X_Workflow_ID="wf")


async def test_who_is_busy_or_full_is_said(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada"], list={"crew": {"members": ["bob", "cleo"]}}) as node:
        await add_agent(node.store, "bob", max_unacked=1)
        await add_agent(node.store, "cleo", quota=1000)
        await node.send("ada", "bob")
        await node.send("ada", "crew", b"x" * 2000 + b"\r\n", X_Trace_Only="yes")
        _, report, _ = await reported(node)
        fates = [one["fate"] for one in report["recipients"][0]["landings"]]
        assert fates == ["waits: unacknowledged", "waits: quota"]


@pytest.mark.parametrize("value", ["maybe", "on", "y e s"])
async def test_a_value_that_says_neither_delivers_nothing(tmp_path: Path, value: str) -> None:
    async with running(tmp_path, ["ada", "bob"]) as node:
        with pytest.raises(aiosmtplib.SMTPDataError, match=r"5\.6\.0 X-Trace-Only"):
            await node.send("ada", "bob", X_Trace_Only=value)
        assert await node.inbox("bob") == []


async def test_who_may_not_send_as_another_may_not_rehearse_it_either(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "bob"]) as node:
        with pytest.raises(aiosmtplib.SMTPDataError, match=r"5\.7\.1"):
            await node.send("ada", "bob", X_Trace_Only="yes", From="bob@fabric.local")


async def test_a_large_one_leaves_nothing_staged(tmp_path: Path) -> None:
    import sqlite3

    async with running(tmp_path, ["ada", "bob"]) as node:
        await node.send("ada", "bob", b"x" * 70 + b"\r\n" + (b"y" * 70 + b"\r\n") * 10_000, X_Trace_Only="yes")
        _, report, _ = await reported(node)
        assert report["accepted"]
        with sqlite3.connect(node.folder / "mail.db") as db:
            assert db.execute("SELECT count(*) FROM body").fetchone() == (0,)


async def test_the_sdk_asks_and_gets_the_report_as_a_dict(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "bob"]) as node:
        async with aimx.connect(node.folder, agent="ada@fabric.local", password=PASSWORD) as me, asyncio.timeout(20):
            report = await me.request("bob", {"draft": 1}, trace_only=True, workflow="wf")
            assert report.payload["recipients"][0]["landings"][0]["fate"] == "delivered"
            sent = await me.send("bob", "again", trace_only=True)
            assert sent.receipt is None
        assert await node.inbox("bob") == []
