"""A mail's way through a whole node: stamped, traced, routed, delivered or buffered, refused, bounced, and provable."""

import asyncio
import itertools
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiosmtplib
import pytest

from aimx.telemetry import metrics
from aimx.telemetry.catalogue import span_spec
from aimx.telemetry.span import CONSUMER, PRODUCER, SERVER
from tests.protocol.mail_node import add_agent, address, running

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
QUICK = {"delivery": {"first_delay": "50ms", "max_delay": "200ms", "jitter": 0.0}}


def eid_of(reply: str) -> str:
    match = re.search(r"<([0-9A-Z]{26})> queued", reply)
    assert match is not None, reply
    return match[1]


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.01)


async def refusal(sending: Awaitable[str]) -> aiosmtplib.SMTPDataError:
    with pytest.raises(aiosmtplib.SMTPDataError) as caught:
        await sending
    return caught.value


# ── stamping ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_mail_lies_in_the_mailbox_when_the_250_comes(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "bob"]) as node:
        eid = eid_of(await node.send("ada", "bob", b'{"x": 1}\r\n', Content_Type="application/json"))
        (row,) = await node.inbox("bob")
        assert row.eid == eid
        assert row.body == b'{"x": 1}\r\n'
        header = await node.header("bob")
        assert header.get("AIMX-ID") == eid
        assert header.get("X-Agent-ID") == "ada"
        assert header.get("Return-Path") == "<ada@fabric.local>"
        assert header.get("Message-ID")
        assert header.get("Date")
        assert header.get("traceparent")
        assert [event.row.ev for event in await node.events(eid)] == ["message.accepted", "delivery.mailbox"]


async def test_what_only_aimx_writes_is_stripped_and_the_rest_is_kept_byte_for_byte(tmp_path: Path) -> None:
    own = (
        b"Subject:  2  spaces\r\nX-Odd:\tfolded\r\n  twice\r\nAuthentication-Results: elsewhere.example; dkim=pass\r\n"
    )
    forged = (
        b"AIMX-Trace: hop=9; traceparent=00-%s-%s-01\r\nReturn-Path: <x@y>\r\nDelivered-To: z\r\n"
        b"Authentication-Results: fabric.local; dkim=pass\r\naimx-id: 1\r\n"
    ) % (TRACE.encode(), SPAN.encode())
    body = b"..dots\r\n.\xffcaf\xe9\r\n"
    async with running(tmp_path, ["ada", "bob"]) as node:
        await node.send_raw("ada", ["bob"], b"From: ada@fabric.local\r\n" + forged + own + b"\r\n" + body)
        (row,) = await node.inbox("bob")
        assert row.header is not None
        assert row.header.endswith(b"From: ada@fabric.local\r\n" + own + b"\r\n")
        assert row.header.count(b"hop=9") == 0
        assert row.header.lower().count(b"aimx-id:") == 1
        assert row.header.lower().count(b"return-path:") == 1
        assert b"fabric.local; dkim=pass" not in row.header
        assert row.body == body


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Agent_ID": "bob"},
        {"From": "bob@fabric.local"},
        {"From": "ada@fabric.local, bob@fabric.local"},
        {"Sender": "bob@fabric.local"},
    ],
)
async def test_an_agent_sends_only_as_itself(tmp_path: Path, headers: dict[str, str]) -> None:
    async with running(tmp_path, ["ada", "bob"]) as node:
        error = await refusal(node.send("ada", "bob", **headers))
        assert (error.code, error.message.split()[0]) == (550, "5.7.1")
        assert await node.inbox("bob") == []
        assert node.spans.one("smtp receive").error_type == "5.7.1"


async def test_a_megabyte_is_staged_and_comes_out_whole(tmp_path: Path) -> None:
    body = b"".join(b"%07d %s\r\n" % (i, b"x" * 60) for i in range(20_000))
    async with running(tmp_path, ["ada", "bob"]) as node:
        eid = eid_of(await node.send("ada", "bob", body))
        (row,) = await node.inbox("bob")
        assert row.body_size == len(body)
        pieces = [await node.store.read_body(eid, at, 300_000) for at in range(0, len(body), 300_000)]
        assert b"".join(pieces) == body
        assert (await node.verify()).ok


# ── the trace ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_delivered_mail_has_all_its_spans_with_their_parents(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "bob"]) as node:
        await node.send("ada", "bob", traceparent=f"00-{TRACE}-{SPAN}-01", X_Workflow_ID="wf-1")
        spans = node.spans
        receive = spans.one("smtp receive")
        assert receive.kind is SERVER
        assert receive.parent is not None
        assert receive.parent.span_id.hex() == SPAN
        assert receive.attributes["gen_ai.conversation.id"] == "wf-1"
        assert receive.attributes["aimx.context.source"] == "header"
        expected = {
            "route recipient": "smtp receive",
            "deliver mailbox": "route recipient",
            "mailbox append": "deliver mailbox",
        }
        for name, parent in expected.items():
            found = spans.parent(spans.one(name))
            assert found is not None
            assert found.name == parent
        deliver = spans.one("deliver mailbox")
        assert deliver.kind is CONSUMER
        assert deliver.links is not None
        assert deliver.links[0][0].span_id.hex() == SPAN
        appended = {spans.parent(span).name for span in spans.named("audit append") if span.parent}  # type: ignore[union-attr]
        assert appended == {"smtp receive", "deliver mailbox"}
        for span in spans:
            if span.parent is None:
                continue  # the log's own: opened, integrated, signed
            assert span.trace_id.hex() == TRACE
            assert span_spec(span.name) is not None
            assert span.start_ns <= span.end_ns
        header = await node.header("bob")
        assert header.get("traceparent") == f"00-{TRACE}-{SPAN}-01", "the creation context is never changed"
        assert (header.get("AIMX-Trace") or "").startswith(f"hop=1; traceparent=00-{TRACE}-")


async def test_an_answer_without_any_trace_header_joins_by_in_reply_to(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "bob"]) as node:
        await node.send("ada", "bob", Message_ID="<q1@x>", traceparent=f"00-{TRACE}-{SPAN}-01")
        await node.send("bob", "ada", In_Reply_To="<q1@x>")
        answer = node.spans.named("smtp receive")[1]
        assert answer.trace_id.hex() == TRACE
        assert answer.attributes["aimx.context.source"] == "in_reply_to"
        assert answer.attributes["aimx.depth"] == 2
        stamped = (await node.header("ada")).get("traceparent") or ""
        assert stamped == f"00-{TRACE}-{answer.span_id.hex()}-01"


async def test_somebody_elses_message_id_joins_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "bob", "eve"]) as node:
        await node.send("ada", "bob", Message_ID="<q1@x>", traceparent=f"00-{TRACE}-{SPAN}-01")
        await node.send("eve", "ada", In_Reply_To="<q1@x>")
        assert node.spans.named("smtp receive")[1].trace_id.hex() != TRACE


@pytest.mark.parametrize(
    "bad", [f"00-{TRACE.upper()}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"ff-{TRACE}-{SPAN}-01", "nonsense"]
)
async def test_a_context_that_cannot_be_continued_is_replaced_by_a_new_root(tmp_path: Path, bad: str) -> None:
    async with running(tmp_path, ["ada", "bob"]) as node:
        await node.send("ada", "bob", traceparent=bad, tracestate="a=1", baggage="k=v")
        receive = node.spans.one("smtp receive")
        assert receive.parent is None
        header = await node.header("bob")
        assert header.get_all("traceparent") == [f"00-{receive.trace_id.hex()}-{receive.span_id.hex()}-03"]
        assert "tracestate" not in header
        assert "baggage" not in header


# ── routing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_list_shares_one_body_and_one_hop(tmp_path: Path) -> None:
    members = [f"m{i}" for i in range(5)]
    async with running(tmp_path, ["ada", *members], list={"all": {"members": members}}) as node:
        eid = eid_of(await node.send("ada", "all"))
        for member in members:
            (row,) = await node.inbox(member)
            assert row.eid == eid
        assert len((await node.header("m0")).get_all("AIMX-Trace")) == 1
        assert len(node.spans.named("deliver mailbox")) == 5
        assert node.spans.one("route recipient").attributes["aimx.route.decision"] == "list"
        assert {span.attributes["messaging.destination.name"] for span in node.spans.named("deliver mailbox")} == {
            "all"
        }


async def test_a_workflow_stays_with_its_pool_member(tmp_path: Path) -> None:
    members = ["m0", "m1", "m2"]
    async with running(tmp_path, ["ada", *members], pool={"work": {"members": members}}) as node:
        for _ in range(3):
            await node.send("ada", "work", X_Workflow_ID="one")
        counts = [len(await node.inbox(member)) for member in members]
        assert sorted(counts) == [0, 0, 3]


async def test_a_rule_refuses_with_its_text_and_nobody_gets_it(tmp_path: Path) -> None:
    rule = {"name": "no-drafts", "header": {"X-Draft": "*"}, "recipient": "bob@*", "refuse": "send drafts to critic"}
    async with running(tmp_path, ["ada", "bob", "cleo"], route=[rule]) as node:
        error = await refusal(node.send("ada", ["cleo", "bob"], X_Draft="1"))
        assert error.code == 550
        assert "send drafts to critic" in error.message
        assert await node.inbox("cleo") == []
        assert node.spans.one("route no-drafts").error_type == "5.7.1"


async def test_nobody_of_that_name_is_said_at_rcpt(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada"]) as node:
        with pytest.raises(aiosmtplib.SMTPRecipientsRefused) as caught:
            await node.send("ada", "ghost")
        (refused,) = caught.value.recipients
        assert (refused.code, refused.message.split()[0]) == (550, "5.1.1")
        with pytest.raises(aiosmtplib.SMTPRecipientsRefused) as caught:
            await node.send("ada", "someone@elsewhere.example")
        assert caught.value.recipients[0].message.split()[0] == "5.7.1"


# ── busy, retry, bounce ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_busy_agents_mail_waits_and_is_delivered_once_it_acknowledges(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada"], **QUICK) as node:
        await add_agent(node.store, "bob", max_unacked=1)
        await node.send("ada", "bob", b"first\r\n")
        second = eid_of(await node.send("ada", "bob", b"second\r\n"))
        assert [row.body for row in await node.inbox("bob")] == [b"first\r\n"]

        async def tried_again() -> bool:
            return sum(event.row.ev == "message.deferred" for event in await node.events(second)) >= 2

        await until(tried_again)
        await node.ack("bob")

        async def there() -> bool:
            return len(await node.inbox("bob")) == 2

        await until(there)
        names = [event.row.ev for event in await node.events(second)]
        assert names[0] == "message.accepted"
        assert set(names[1:-1]) == {"message.deferred"}
        assert names[-1] == "delivery.mailbox"

        enqueue = node.spans.one("enqueue mailbox")
        assert enqueue.kind is PRODUCER

        async def ended() -> bool:
            return any(s.attributes.get("aimx.outcome") == "delivered" for s in comb())

        def comb() -> list[object]:
            return [s for s in node.spans.named("deliver mailbox") if s.parent and s.parent.span_id == enqueue.span_id]

        await until(ended)
        attempts = sorted(comb(), key=lambda span: span.attributes["aimx.delivery.attempt"])  # type: ignore[attr-defined]
        assert [span.attributes["aimx.delivery.attempt"] for span in attempts] == list(range(1, len(attempts) + 1))
        for earlier, later in itertools.pairwise(attempts):
            assert earlier.error_type == "unacknowledged"
            assert [name for name, _, _ in earlier.events] == ["retry.scheduled"]
            assert earlier.span_id in [context.span_id for context, _ in later.links]
        assert (await node.verify()).ok


async def test_past_the_deadline_the_sender_gets_a_dsn_in_the_same_trace(tmp_path: Path) -> None:
    quick = {"delivery": QUICK["delivery"] | {"deadline": "100ms"}}
    async with running(tmp_path, ["ada"], **quick) as node:
        await add_agent(node.store, "bob", max_unacked=1)
        await node.send("ada", "bob")
        lost = eid_of(await node.send("ada", "bob", Message_ID="<lost@x>", traceparent=f"00-{TRACE}-{SPAN}-01"))

        async def told() -> bool:
            return len(await node.inbox("ada")) == 1

        await until(told)
        header = await node.header("ada")
        assert header.get("Return-Path") == "<>"
        assert header.get("In-Reply-To") == "<lost@x>"
        assert (header.get("Content-Type") or "").startswith("multipart/report")
        assert TRACE in (header.get("traceparent") or "")
        (row,) = await node.inbox("ada")
        assert b"Status: 4.4.7" in (row.body or b"")
        assert b"bob@fabric.local" in (row.body or b"")
        bounced = (await node.events(lost))[-1].row
        assert (bounced.ev, bounced.detail["dsn"]) == ("message.bounced", row.eid)
        dead = node.spans.one("dead-letter mailbox")
        assert dead.trace_id.hex() == TRACE
        assert await node.store.pending() == []
        assert (await node.verify()).ok


# ── loops ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_ping_pong_is_refused_with_a_text_anyone_can_read(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "bob"]) as node:
        sides = ["ada", "bob"]
        last = ""
        refused = None
        for turn in range(20):
            sender, to = sides[turn % 2], sides[(turn + 1) % 2]
            headers = {"Message_ID": f"<t{turn}@x>", "In_Reply_To": last, "X_Workflow_ID": "endless"}
            try:
                await node.send(sender, to, b"No, you first. (attempt %d)\r\n" % turn, **headers)
            except aiosmtplib.SMTPDataError as error:
                refused = error
                break
            last = f"<t{turn}@x>"
        assert refused is not None
        assert refused.code == 554
        assert refused.message.startswith("5.4.6 loop refused: these two agents have taken 12 turns")
        assert "max_alternations" in refused.message
        receive = node.spans.named("smtp receive")[-1]
        assert receive.attributes["aimx.loop.detected"] is True
        assert receive.error_type == "5.4.6"
        trace = await node.store.events_of_trace(receive.trace_id)
        assert trace[-1].row.ev == "loop.refused"
        assert trace[-1].row.detail["rule"] == "alternations"


async def test_failed_sign_ins_are_counted_by_door_and_mechanism(tmp_path: Path) -> None:
    attempts = metrics.counter("aimx.auth.attempts")
    async with running(tmp_path, ["ada"], sign_in={"delay": "10ms"}) as node:
        failed = attempts.labels("smtp", "PLAIN", "wrong").value
        host, port = node.ready.smtps.rsplit(":", 1)
        async with aiosmtplib.SMTP(hostname=host, port=int(port), use_tls=True, tls_context=node.tls()) as client:
            await client.ehlo()
            with pytest.raises(aiosmtplib.SMTPAuthenticationError):
                await client.auth_plain(address("ada"), "wrong")
        assert attempts.labels("smtp", "PLAIN", "wrong").value == failed + 1


async def test_a_second_node_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    from aimx.node import CannotStart

    async with running(tmp_path, ["ada"]):
        with pytest.raises(CannotStart, match="another node runs on"):
            async with running(tmp_path):
                pass
