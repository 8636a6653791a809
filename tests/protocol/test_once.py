"""Idempotency over the wire: what is sent again under its key is accepted once and answered as the first time."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import aiosmtplib
import pytest

from aimx.intake.once import MAX_KEY, TAKEN_APART
from tests.lying_disk import lying
from tests.protocol.mail_node import MailNode, running
from tests.protocol.test_mail import eid_of, refusal

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
KEY = '"8e03978e-40d5-43dd-bc93-6894a57f9324"'


async def test_sent_again_it_is_answered_with_the_first_receipt_and_delivered_once(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "bob"]) as node:
        first = await node.send(
            "ada", "bob", Idempotency_Key=KEY, Message_ID="<1@x>", Date="Mon, 1 Jan 2024 00:00:00 +0000"
        )
        again = await node.send(
            "ada", "bob", Idempotency_Key=KEY, Message_ID="<2@x>", traceparent=f"00-{TRACE}-00f067aa0ba902b7-01"
        )
        assert again == first
        assert len(await node.inbox("bob")) == 1
        events = [event.row for event in await node.events(eid_of(first))]
        assert [row.ev for row in events] == ["message.accepted", "delivery.mailbox", "message.repeated"]
        assert events[2].detail["open"] == {"by": "ada@fabric.local"}
        one, two = node.spans.named("smtp receive")
        assert "aimx.idempotent.replay" not in one.attributes
        assert two.attributes["aimx.idempotent.replay"] is True
        assert two.attributes["aimx.idempotent.first"] == eid_of(first)
        assert two.links is not None
        assert two.links[0][0].span_id == one.span_id
        assert two.error_type is None
        assert len(node.spans.named("deliver mailbox")) == 1
        assert (await node.verify()).ok


async def test_another_message_under_the_key_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    changes: list[tuple[list[str], bytes, dict[str, str]]] = [
        (["bob", "eve"], b"hello\r\n", {}),
        (["bob"], b"hallo\r\n", {}),
        (["bob"], b"hello\r\n", {"Subject": "other"}),
        (["bob"], b"hello\r\n", {"Content_Type": "application/json"}),
    ]
    async with running(tmp_path, ["ada", "bob", "eve"]) as node:
        first = await node.send("ada", "bob", Idempotency_Key="k")
        for to, body, headers in changes:
            refused = await refusal(node.send("ada", to, body, Idempotency_Key="k", **headers))
            assert (refused.code, refused.message[:39]) == (554, "5.7.1 Idempotency-Key was used for anot")
            assert "new key" in refused.message
        assert len(await node.inbox("bob")) == 1
        assert await node.inbox("eve") == []
        coded = {"Idempotency_Key": '"k"', "Content_Transfer_Encoding": "base64"}
        assert await node.send("ada", ["bob", "bob"], b"aGVsbG8NCg==\r\n", **coded) == first, "said otherwise, the same"
        rejected = [event.row for event in await node.store.events_after(0, 100) if event.row.ev == "message.rejected"]
        assert len(rejected) == len(changes)


async def test_a_multipart_is_known_again_by_its_parts(tmp_path: Path) -> None:
    def body(boundary: str, second: str) -> bytes:
        part = f"--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n"
        other = f"--{boundary}\r\nContent-Disposition: attachment; filename=a\r\n\r\n{second}\r\n"
        return f"{part}{other}--{boundary}--\r\n".encode()

    async with running(tmp_path, ["ada", "bob"]) as node:

        async def send(boundary: str, second: str) -> str:
            kind = f"multipart/mixed; boundary={boundary}"
            return await node.send("ada", "bob", body(boundary, second), Content_Type=kind, Idempotency_Key="k")

        assert await send("b1", "same") == await send("b2", "same")
        assert (await refusal(send("b1", "other"))).code == 554


@pytest.mark.parametrize("size", [TAKEN_APART + 10_000, 1_000_000])
async def test_a_large_body_is_known_again_and_its_second_copy_is_dropped(tmp_path: Path, size: int) -> None:
    body = b"x" * 70 + b"\r\n"
    body *= size // len(body)
    async with running(tmp_path, ["ada", "bob"]) as node:
        first = await node.send("ada", "bob", body, Idempotency_Key="k")
        assert await node.send("ada", "bob", body, Idempotency_Key="k") == first
        (row,) = await node.inbox("bob")
        assert row.body == body
        assert (await refusal(node.send("ada", "bob", body + b"!\r\n", Idempotency_Key="k"))).code == 554
    with sqlite3.connect(node.folder / "mail.db") as db:
        assert db.execute("SELECT count(*) FROM body WHERE message IS NULL").fetchone() == (0,)
    db.close()


@pytest.mark.parametrize("key", ['""', "two words", '"open', "k" * (MAX_KEY + 1), "\N{SNOWMAN}", '"a"b"', "a\tb"])
async def test_a_malformed_key_is_refused(tmp_path: Path, key: str) -> None:
    async with running(tmp_path, ["ada", "bob"]) as node:
        refused = await refusal(node.send("ada", "bob", Idempotency_Key=key))
        assert (refused.code, refused.message[:21]) == (550, "5.6.0 Idempotency-Key")
        assert await node.inbox("bob") == []


async def test_two_keys_are_none(tmp_path: Path) -> None:
    message = b"From: ada@fabric.local\r\nIdempotency-Key: a\r\nIdempotency-Key: b\r\n\r\nhello\r\n"
    async with running(tmp_path, ["ada", "bob"]) as node:
        assert (await refusal(node.send_raw("ada", ["bob"], message))).code == 550


async def test_keys_are_an_agent_s_own(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "bob", "eve"]) as node:
        texts = {await node.send(agent, "bob", Idempotency_Key="k") for agent in ("ada", "eve")}
        assert len(texts) == 2
        assert len(await node.inbox("bob")) == 2


async def test_many_at_once_are_one_and_nobody_else_is_harmed(tmp_path: Path) -> None:
    """Sessions that commit in one group."""
    async with running(tmp_path, ["ada", "bob"]) as node:
        same = [send_on_own(node, b"same\r\n", "k") for _ in range(12)]
        others = [send_on_own(node, b"other %d\r\n" % n, f"k{n}") for n in range(12)]
        texts = await asyncio.gather(*same, *others)
        assert len(set(texts[:12])) == 1
        assert len(set(texts[12:])) == 12
        assert len(await node.inbox("bob")) == 13
        assert (await node.verify()).ok


async def send_on_own(node: MailNode, body: bytes, key: str) -> str:
    return await node.send("ada", "bob", body, Idempotency_Key=key)


async def test_a_repeat_is_no_loop(tmp_path: Path) -> None:
    """Judged as new mail the second would be beyond the budget."""
    async with running(tmp_path, ["ada", "bob"], loop={"budget": 1}) as node:
        texts = {await node.send("ada", "bob", X_Workflow_ID="w", Idempotency_Key="k") for _ in range(3)}
        assert len(texts) == 1
        assert len(await node.inbox("bob")) == 1
        with pytest.raises(aiosmtplib.SMTPDataError):
            await node.send("ada", "bob", X_Workflow_ID="w", Idempotency_Key="new")


async def test_a_repeat_after_the_recipient_has_gone_is_still_answered(tmp_path: Path) -> None:
    routes = [{"name": "off", "header": {"X-Late": "yes"}, "refuse": "not any more"}]
    async with running(tmp_path, ["ada", "bob"], route=routes) as node:
        first = await node.send("ada", "bob", Idempotency_Key="k")
        assert await node.send("ada", "bob", Idempotency_Key="k", X_Late="yes") == first


async def test_a_key_is_forgotten_in_time(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada", "bob"], idempotency={"keep": "50ms"}) as node:
        first = await node.send("ada", "bob", Idempotency_Key="k")
        intake = node.node._intake
        intake.clock = lambda clock=intake.clock: clock() + 60  # type: ignore[misc]
        assert await node.send("ada", "bob", Idempotency_Key="k") != first
        assert len(await node.inbox("bob")) == 2


async def test_a_commit_that_is_reported_as_failed_and_was_not_makes_no_second_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An I/O error from COMMIT does not say whether it took place. Alone in its group the sender hears 451 and comes
    again; else the node itself tries again, and finds it."""
    lies = lying(monkeypatch)
    async with running(tmp_path, ["ada", "bob"]) as node:
        await node.send("ada", "bob")
        lies.left = 1
        with contextlib.suppress(aiosmtplib.SMTPDataError):
            await node.send("ada", "bob", Idempotency_Key="k")
        assert lies.left == 0
        _, row = await node.inbox("bob")
        assert eid_of(await node.send("ada", "bob", Idempotency_Key="k")) == row.eid
        assert len(await node.inbox("bob")) == 2
        assert (await node.verify()).ok
