"""What a sender must not achieve: another's name, a header of ours, a trace or a place in the queue not its own."""

import itertools
import re
from pathlib import Path

import aiosmtplib
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aimx.identity.sender import header_refusal
from aimx.intake import stamp
from aimx.intake.envelope import PART, HeaderTooLarge, Upload
from aimx.intake.told import tell
from aimx.message.header import HeaderBlock
from aimx.store.contract import Staged
from aimx.telemetry.context import Door
from tests.protocol.mail_node import add_agent, address, running

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


def block(text: bytes) -> HeaderBlock:
    return HeaderBlock.parse(text + b"\r\n")[0]


# ── whose name ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "field",
    [
        # A reader takes a field apart before it decodes words (RFC 2047 §5): to it the sender is bob.
        b"=?utf-8?q?ada=40fabric.local_=28?= <bob@fabric.local> =?utf-8?q?=29?=",
        b"=?utf-8?q?ada=40fabric.local?=",
        b"bob@fabric.local <ada@fabric.local>",
        b"<ada@fabric.local>, =?utf-8?q?x?= <bob@fabric.local>",
    ],
)
async def test_no_spelling_of_from_shows_another_name(tmp_path: Path, field: bytes) -> None:
    async with running(tmp_path, ["ada", "bob"]) as node:
        with pytest.raises(aiosmtplib.SMTPDataError, match="From must be your own address"):
            await node.send_raw("ada", ["bob"], b"From: " + field + b"\r\n\r\nx\r\n")


def test_a_name_that_holds_a_comma_once_decoded_is_still_one_name() -> None:
    header = block(b"From: =?utf-8?q?M=C3=BCller=2C_Ada?= <ada@fabric.local>\r\n")
    assert header_refusal("From", header.structured("From"), "ada@fabric.local") is None


@pytest.mark.parametrize(
    "own", [b"ada", b"ADA", b"ada@fabric.local", b"=?utf-8?q?ada?=", b"ada\r\nX-Agent-ID : ada@fabric.local"]
)
async def test_however_an_agent_writes_its_id_there_is_one_and_aimx_wrote_it(tmp_path: Path, own: bytes) -> None:
    async with running(tmp_path, ["ada", "bob"]) as node:
        await node.send_raw("ada", ["bob"], b"From: ada@fabric.local\r\nX-Agent-ID: " + own + b"\r\n\r\nx\r\n")
        header = await node.header("bob")
        assert header.raw_fields("X-Agent-ID") == [b"X-Agent-ID: ada\r\n"]


@pytest.mark.parametrize(
    "claim",
    [
        b"fabric.local; dkim=pass",
        b"(we say; so) fabric.local; dkim=pass",
        b'"fabric.local" 1; dkim=pass',
        b"fabric.local(1); dkim=pass",
        b"\r\n FABRIC.LOCAL;\r\n dkim=pass",
        b"fabric.local. ; dkim=pass",
        b"fabric.local",
    ],
)
def test_results_that_claim_to_be_ours_go_however_they_are_written(claim: bytes) -> None:
    header = block(b"Authentication-Results: " + claim + b"\r\nAuthentication-Results: other.example; spf=pass\r\n")
    stamp.strip(header, ("fabric.local",), Door.AGENT, context=False)
    assert header.to_bytes() == b"Authentication-Results: other.example; spf=pass\r\n\r\n"


# ── headers of ours ──────────────────────────────────────────────────────────────────────────────────────────────────


class NoStore:
    """Takes parts and forgets them."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    async def stage(self, staged: Staged | None, chunk: bytes) -> Staged:
        self.parts.append(chunk)
        return Staged(1, (staged.size if staged else 0) + len(chunk))

    async def unstage(self, staged: Staged) -> None:
        self.parts.clear()


@pytest.mark.parametrize("cut", [b"X-Agent-I", b"X-Filler: y", b"X-Filler: y\r", b"garbage\r\nX-Filler: y\r\n"])
async def test_a_header_block_longer_than_a_part_is_refused_wherever_the_part_ends(cut: bytes) -> None:
    """Else what follows the cut would count as body, and no header there would be stripped."""
    upload = Upload(NoStore())  # type: ignore[arg-type]
    filler = b"X-Filler: " + b"y" * 80 + b"\r\n"
    upload.write(b"From: ada@fabric.local\r\n" + filler * (PART // len(filler)) + cut)
    with pytest.raises(HeaderTooLarge):
        await upload.spill()


async def test_a_long_header_block_is_refused_with_its_reason_and_the_session_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "bob"]) as node:
        host, port = node.ready.smtps.rsplit(":", 1)
        client = aiosmtplib.SMTP(hostname=host, port=int(port), use_tls=True, tls_context=node.tls())
        async with client:
            await client.login(address("ada"), "correct horse battery staple")
            huge = b"From: ada@fabric.local\r\n" + b"X-Filler: " + b"y" * 70 + b"\r\n"
            huge += (b"X-Filler: " + b"y" * 70 + b"\r\n") * 8000 + b"\r\nx\r\n"
            with pytest.raises(aiosmtplib.SMTPDataError) as caught:
                await client.sendmail(address("ada"), [address("bob")], huge)
            assert (caught.value.code, caught.value.message.split()[0]) == (552, "5.3.4")
            await client.sendmail(address("ada"), [address("bob")], b"From: ada@fabric.local\r\n\r\nx\r\n")
        assert len(await node.inbox("bob")) == 1


@pytest.mark.parametrize(
    "odd",
    [
        b"Message-ID: no-brackets@x\r\n",
        b"Message-ID:\r\n",
        b"Message-ID: <a b>\r\n",
        b"Message-ID: <caf\xc3\xa9@x> trailing\r\n",
        b"In-Reply-To: <nobody@knows>\r\n",
        b"In-Reply-To: =?utf-8?b?PGFAYj4NClgtSW5qZWN0ZWQ6IHllcw==?=\r\n",
        b"X-Workflow-ID: =?utf-8?b?dw0KWC1JbmplY3RlZDogeWVz?=\r\n",
        b"References: " + b" ".join(b"<r%d@x>" % i for i in range(3000)) + b"\r\n",
        b": no name\r\n",
        b"no colon at all\r\n",
        b"Subject: " + b"\xff\xfe" * 50 + b"\r\n",
        b"Date: whenever\r\n",
        b"Content-Type: multipart/mixed; boundary=\r\n",
        b'Content-Type: multipart/mixed; boundary="' + b"x" * 5000 + b'"\r\n',
        b"traceparent: 00-%s-%s-01\r\ntracestate: =,,;\r\nbaggage: \xff=\r\n" % (TRACE.encode(), SPAN.encode()),
    ],
)
async def test_odd_headers_are_taken_as_they_are_and_make_no_line_of_ours(tmp_path: Path, odd: bytes) -> None:
    async with running(tmp_path, ["ada"]) as node:
        await add_agent(node.store, "bob", quota=1)  # buffered at first, so that every value also goes into the queue
        await node.send_raw("ada", ["ada", "bob"], b"From: ada@fabric.local\r\n" + odd + b"\r\nx\r\n")
        (row,) = await node.inbox("ada")
        assert row.header is not None
        header = HeaderBlock.parse(row.header)[0]
        assert header.count("Message-ID") == 1
        assert header.count("Date") == 1
        assert header.count("traceparent") == 1
        assert "X-Injected" not in header
        assert (await node.verify()).ok


async def test_a_helo_of_odd_characters_cannot_write_a_header(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "bob"]) as node:
        host, port = node.ready.smtps.rsplit(":", 1)
        name = "evil(]);x\\<>"
        client = aiosmtplib.SMTP(
            hostname=host, port=int(port), use_tls=True, tls_context=node.tls(), local_hostname=name
        )
        async with client:
            await client.login(address("ada"), "correct horse battery staple")
            await client.sendmail(address("ada"), [address("bob")], b"From: ada@fabric.local\r\n\r\nx\r\n")
        received = (await node.header("bob")).raw_fields("Received")[0]
        assert received.startswith(b"Received: from evil?]??x\\?? ([127.0.0.1])")


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_reading_and_stamping_take_any_octets(junk: bytes) -> None:
    header, _ = HeaderBlock.parse(junk)
    told = tell(header)
    stamp.strip(header, ("fabric.local",), Door.AGENT, context=True)
    stored = stamp.stamp_accepted(
        header,
        eid="01JZ0000000000000000000000",
        sender="ada@fabric.local",
        agent="ada",
        received=b"Received: x\r\n",
        workflow=None,
        claims=[],
        hops=[],
        context=None,
        message_id="<minted@fabric.local>" if told.message_id is None else None,
        date_ms=None if "Date" in header else 0,
    )
    again, _ = HeaderBlock.parse(stored + b"\r\n")
    assert again.get("AIMX-ID") == "01JZ0000000000000000000000"
    assert again.get("Return-Path") == "<ada@fabric.local>"
    assert again.get_all("X-Agent-ID") == ["ada"]
    assert again.count("Message-ID") == 1 or told.message_id is not None


# ── a place in the queue ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("header", "parameter", "expected"),
    [
        (b"MT-Priority: 4\r\n", None, 4),
        (b"MT-Priority: -9\r\n", None, -9),
        (b"MT-Priority: 99\r\n", None, 0),
        (b"MT-Priority: --\r\nX-Priority: 5\r\n", None, -4),
        (b"X-Priority: 1 (Highest)\r\n", None, 4),
        (b"X-Priority: 12\r\n", None, 0),
        (b"MT-Priority: 4\r\n", 2, 2),
    ],
)
def test_priority_as_asked_for(header: bytes, parameter: int | None, expected: int) -> None:
    assert tell(block(header), parameter).priority == expected


async def test_a_priority_rule_lifts_only_the_recipient_it_holds_for(tmp_path: Path) -> None:
    rules = [{"name": "urgent", "recipient": "bob@*", "priority": 7}]
    async with running(tmp_path, ["ada"], route=rules) as node:
        await add_agent(node.store, "bob", quota=1)
        await add_agent(node.store, "cleo", quota=1)
        await node.send("ada", ["bob", "cleo"], X_Priority="1", MT_Priority="-3")
        waiting = {pending.address: pending.priority for pending in await node.store.pending()}
        assert waiting == {"bob@fabric.local": 7, "cleo@fabric.local": -3}


async def test_an_agent_asks_for_more_than_normal_only_where_it_may(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada"]) as node:
        await add_agent(node.store, "vip", may_prioritise=True)
        await add_agent(node.store, "bob", quota=1)
        for sender, asked in (("ada", "5"), ("vip", "5"), ("ada", "-5")):
            await node.send(sender, "bob", MT_Priority=asked)
        assert [pending.priority for pending in await node.store.pending()] == [0, 5, -5]


# ── loops that hide ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_ping_pong_through_a_pool_is_seen(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "bob"], pool={"work": {"members": ["bob"]}}) as node:
        refused = await ping_pong(node, itertools.cycle([("ada", "work"), ("bob", "ada")]))
        assert refused is not None
        assert "these two agents have taken 12 turns" in refused


async def test_repeats_to_several_are_seen_in_whatever_order_they_are_named(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "bob", "cleo"]) as node:
        last, refused = "", None
        for turn in range(12):
            try:
                await node.send(
                    "ada", ["cleo", "bob"], b"again\r\n", Message_ID=f"<t{turn}@x>", In_Reply_To=last, X_Workflow_ID="w"
                )
            except aiosmtplib.SMTPDataError as error:
                refused = error.message
                break
            last = f"<t{turn}@x>"
        assert refused is not None
        assert "said exactly this 6 times" in refused


async def ping_pong(node, turns) -> str | None:  # type: ignore[no-untyped-def]
    last = ""
    for turn, (sender, to) in zip(range(20), turns, strict=False):
        headers = {"Message_ID": f"<t{turn}@x>", "In_Reply_To": last, "X_Workflow_ID": "endless"}
        try:
            await node.send(sender, to, b"No, you first. (attempt %d)\r\n" % turn, **headers)
        except aiosmtplib.SMTPDataError as error:
            return str(error.message)
        last = f"<t{turn}@x>"
    return None


# ── the trace ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_two_traceparents_are_none(tmp_path: Path) -> None:
    line = f"traceparent: 00-{TRACE}-{SPAN}-01\r\n".encode()
    async with running(tmp_path, ["ada", "bob"]) as node:
        await node.send_raw("ada", ["bob"], b"From: ada@fabric.local\r\n" + line + line + b"\r\nx\r\n")
        receive = node.spans.one("smtp receive")
        assert receive.trace_id.hex() != TRACE
        assert receive.attributes["aimx.context.invalid"] == "duplicate"
        assert (await node.header("bob")).count("traceparent") == 1


async def test_in_reply_to_goes_before_references_and_references_are_looked_at_newest_first(tmp_path: Path) -> None:
    traces = {name: f"{i}" * 32 for i, name in enumerate("abc", 1)}
    async with running(tmp_path, ["ada", "bob"]) as node:
        for name, trace in traces.items():
            await node.send("ada", "bob", Message_ID=f"<{name}@x>", traceparent=f"00-{trace}-{SPAN}-01")
        await node.send("bob", "ada", In_Reply_To="<a@x>", References="<b@x> <c@x>")
        await node.send("bob", "ada", In_Reply_To="<unknown@x>", References="<b@x> <c@x> <unknown2@x>")
        await node.send("bob", "ada", In_Reply_To="<unknown@x> <b@x> <a@x>", References="<c@x>")
        first, second, third = node.spans.named("smtp receive")[3:]
        assert third.trace_id.hex() == traces["b"]
        assert (first.trace_id.hex(), first.attributes["aimx.context.source"]) == (traces["a"], "in_reply_to")
        assert (second.trace_id.hex(), second.attributes["aimx.context.source"]) == (traces["c"], "references")


async def test_an_answer_joins_also_when_the_question_was_expunged_from_every_mailbox(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "bob"]) as node:
        await node.send("ada", "bob", traceparent=f"00-{TRACE}-{SPAN}-01")
        minted = (await node.header("bob")).get("Message-ID")
        assert minted is not None
        assert re.match(rf"<{TRACE}\.{SPAN}\.", minted)
        mailbox = await node.store.mailbox(address("bob"), "INBOX")
        assert mailbox is not None
        await node.store.mark(mailbox.key, ((1, 99),), "add", frozenset({"\\Deleted"}), lambda flagged: [])
        await node.store.expunge(mailbox.key, None, lambda expunged: [])
        assert await node.inbox("bob") == []
        await node.send("bob", "ada", In_Reply_To=minted)
        assert node.spans.named("smtp receive")[1].trace_id.hex() == TRACE


async def test_a_copy_that_a_client_files_does_not_begin_the_conversation_anew(tmp_path: Path) -> None:
    """Clients append what they sent to Sent, before AIMX stamped it: the copy has no context and no depth."""
    async with running(tmp_path, ["ada", "bob"]) as node:
        await node.send("ada", "bob", Message_ID="<q@x>", traceparent=f"00-{TRACE}-{SPAN}-01")
        await node.append("ada", "Sent", b"From: ada@fabric.local\r\nMessage-ID: <q@x>\r\n\r\nhello\r\n")
        await node.send("ada", "bob", In_Reply_To="<q@x>")
        later = node.spans.named("smtp receive")[-1]
        assert later.trace_id.hex() == TRACE
        assert later.attributes["aimx.depth"] == 2


async def test_the_senders_baggage_is_carried_on_and_reaches_the_answer(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "bob"]) as node:
        context = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "a=1", "baggage": "tenant=x"}
        await node.send("ada", "bob", Message_ID="<q@x>", **context)
        header = await node.header("bob")
        assert {name: header.get(name) for name in context} == context
        await node.send("bob", "ada", In_Reply_To="<q@x>")
        answer = await node.header("ada")
        assert (answer.get("tracestate"), answer.get("baggage")) == ("a=1", "tenant=x")


async def test_names_that_hide_controls_are_one_line_that_can_be_asked_for(tmp_path: Path) -> None:
    hidden = b"=?utf-8?q?report=0D=0AX-Evil:_1=00=1B[31m=E2=80=A8?="
    head = b"From: planner@fabric.local\r\nSubject: %b\r\nX-Workflow-ID: %b\r\n\r\nx\r\n" % (hidden, hidden)
    async with running(tmp_path, ("planner", "critic")) as node:
        await node.send_raw("planner", ["critic"], head)
        (row,) = await node.inbox("critic")
        record = await node.store.message(row.eid)
        assert record is not None
        assert (record.subject, record.workflow) == ("report X-Evil: 1\N{REPLACEMENT CHARACTER} [31m",) * 2
