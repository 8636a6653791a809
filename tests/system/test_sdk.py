"""An agent and a real node: what is promised to somebody who writes agents."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import struct_pb2

import aimx
from tests.node_process import Account, NodeProcess

NewAgent = Callable[..., Account]
SOON = 15.0


async def first(me: aimx.AsyncClient) -> aimx.Message:
    return (await some(me, 1))[0]


async def some(me: aimx.AsyncClient, count: int) -> list[aimx.Message]:
    found: list[aimx.Message] = []
    async with asyncio.timeout(SOON), aclosing(me.inbox()) as inbox:
        async for message in inbox:
            found.append(message)
            if len(found) == count:
                break
    return found


async def none(me: aimx.AsyncClient) -> None:
    """Nothing is waiting. A message sent to oneself marks the end of what was there."""
    sent = await me.send(me.address, "the end")
    message = await first(me)
    assert message.id == sent.id
    await message.ack()


@asynccontextmanager
async def echo(account: Account) -> AsyncIterator[None]:
    """An agent that answers everything with what it was sent."""

    async def work() -> None:
        async with aimx.connect(account.url) as me:
            async for message in me.inbox():
                async with message.process():
                    await message.reply({"echo": message.payload})

    task = asyncio.create_task(work())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_message_arrives_as_it_was_sent(new_agent: NewAgent) -> None:
    planner, critic = new_agent("planner"), new_agent("critic")
    async with aimx.connect(planner.url) as me, aimx.connect(critic.url) as other:
        sent = await me.send(
            critic.name, {"draft": "Grüße"}, subject="Für dich", workflow="w-7", headers={"X-Mine": "1"}
        )
        message = await first(other)
    assert message.payload == {"draft": "Grüße"}
    assert (message.sender, message.subject, message.workflow) == (planner.address, "Für dich", "w-7")
    assert (message.id, message.message_id, message.trace_id) == (sent.id, sent.message_id, sent.trace_id)
    assert message.agent == planner.name
    assert message.headers.get("X-Mine") == "1"
    assert sent.receipt is not None
    assert sent.receipt.eid == sent.id


@pytest.mark.parametrize(
    ("payload", "content_type", "got"),
    [
        ("text, with\nlines", None, "text, with\nlines"),
        (b"\x00\xff\r\n.\r\n", None, b"\x00\xff\r\n.\r\n"),
        ({"n": [1, 2.5, None, True]}, "application/msgpack", {"n": [1, 2.5, None, True]}),
        ({"raw": b"\x00\x01"}, None, {"raw": b"\x00\x01"}),
        ([1, 2, 3], "application/vnd.mine+json", [1, 2, 3]),
        (".\n..\n.hidden", None, ".\n..\n.hidden"),
    ],
)
async def test_payloads_go_and_come(new_agent: NewAgent, payload: Any, content_type: str | None, got: Any) -> None:
    async with aimx.connect(new_agent().url) as me:
        await me.send(me.address, payload, content_type=content_type)
        assert (await first(me)).payload == got


async def test_a_protobuf_message_is_itself_at_the_other_end(new_agent: NewAgent) -> None:
    value = struct_pb2.Struct()
    value.update({"a": 1, "b": ["x", None]})
    async with aimx.connect(new_agent().url) as me:
        await me.send(me.address, value)
        message = await first(me)
    assert message.content_type.startswith("application/protobuf")
    assert message.payload == value


async def test_a_large_message_goes_through(new_agent: NewAgent) -> None:
    octets = bytes(range(256)) * 40_000
    async with aimx.connect(new_agent().url) as me:
        await me.send(me.address, octets)
        assert (await first(me)).payload == octets


async def test_what_is_not_acknowledged_comes_again_and_what_is_does_not(new_agent: NewAgent) -> None:
    account = new_agent()
    async with aimx.connect(account.url) as me:
        for number in range(3):
            await me.send(me.address, number)
        one, two, three = await some(me, 3)
        await two.ack()
        await two.ack()
    async with aimx.connect(account.url) as me:
        again = await some(me, 2)
        assert [message.id for message in again] == [one.id, three.id]
        for message in again:
            await message.ack()
        await none(me)


async def test_processing_acknowledges_unless_it_fails(new_agent: NewAgent) -> None:
    async with aimx.connect(new_agent().url) as me:
        await me.send(me.address, {"n": 1})
        with pytest.raises(ZeroDivisionError):
            async with (await first(me)).process():
                raise ZeroDivisionError
        message = await first(me)
        async with message.process():
            pass
        assert message.acknowledged
        await none(me)


async def test_new_mail_wakes_a_waiting_agent(new_agent: NewAgent) -> None:
    sender, receiver = new_agent("sender"), new_agent("receiver")
    async with aimx.connect(sender.url) as me, aimx.connect(receiver.url) as other:
        waiting = asyncio.create_task(some(other, 3))
        for number in range(3):
            await me.send(receiver.name, {"n": number})
        assert [message.payload["n"] for message in await waiting] == [0, 1, 2]


async def test_loops_over_one_client_share_the_mail(new_agent: NewAgent) -> None:
    async with aimx.connect(new_agent().url) as me:
        for number in range(12):
            await me.send(me.address, {"n": number})
        shares = await asyncio.gather(*(some(me, 4) for _ in range(3)))
    assert sorted(message.payload["n"] for share in shares for message in share) == list(range(12))


async def test_a_look_at_what_is_there_ends(new_agent: NewAgent) -> None:
    me = new_agent()
    async with aimx.connect(me.url) as client:
        assert [m async for m in client.inbox(follow=False)] == []
        for n in range(3):
            await client.send(me.name, n)
        assert [m.payload async for m in client.inbox(follow=False)] == [0, 1, 2]
        async for message in client.inbox(follow=False):
            await message.ack()
        assert [m async for m in client.inbox(follow=False)] == []
    with pytest.raises(aimx.SignInFailed):
        async with aimx.connect(me.url.replace(me.password, "wrong")) as client:
            assert [m async for m in client.inbox(follow=False)] == []


async def test_mail_that_comes_while_requests_begin_and_end_is_not_passed_over(new_agent: NewAgent) -> None:
    """Each request starts and stops the watch, in the middle of whatever it is doing."""
    me, other = new_agent("me"), new_agent("other")
    async with echo(other), aimx.connect(me.url) as client, aimx.connect(other.url) as sender:

        async def ask(n: int) -> None:
            for k in range(5):
                assert (await client.request(other.name, [n, k], workflow=f"w-{n}-{k}")).payload == {"echo": [n, k]}

        async def tell(n: int) -> None:
            for k in range(5):
                await sender.send(me.name, {"told": [n, k]}, workflow=f"t-{n}-{k}")

        async with asyncio.timeout(4 * SOON):
            await asyncio.gather(*map(ask, range(4)), *map(tell, range(4)))
            found = [m.payload["told"] async for m in client.inbox(follow=False)]
    assert sorted(found) == [[n, k] for n in range(4) for k in range(5)]


async def test_the_reply_to_a_request_is_acknowledged_when_the_client_has_left(new_agent: NewAgent) -> None:
    me, other = new_agent("me"), new_agent("other")
    async with echo(other), aimx.connect(me.url) as client:
        reply = await client.request(other.name, "hello?")
        assert reply.acknowledged
    async with aimx.connect(me.url) as client:
        assert [m async for m in client.inbox(follow=False)] == []


async def test_a_request_gets_its_reply_and_nobody_else_does(new_agent: NewAgent) -> None:
    asker, answerer = new_agent("asker"), new_agent("answerer")
    async with echo(answerer), aimx.connect(asker.url) as me:
        bystander = asyncio.create_task(first(me))
        replies = await asyncio.gather(*(me.request(answerer.name, {"n": n}, timeout=SOON) for n in range(5)))
        assert [reply.payload["echo"]["n"] for reply in replies] == [0, 1, 2, 3, 4]
        assert all(reply.acknowledged for reply in replies)
        assert not bystander.done()
        await me.send(me.address, "for you")
        assert (await bystander).payload == "for you"


async def test_no_reply_in_time(new_agent: NewAgent) -> None:
    async with aimx.connect(new_agent().url) as me:
        with pytest.raises(aimx.NoReply, match=r"did not reply within 0\.2 s"):
            await me.request(new_agent("silent").name, {}, timeout=0.2)
        await none(me)


async def test_a_conversation_is_one_trace_and_one_workflow(new_agent: NewAgent) -> None:
    one, two = new_agent("one"), new_agent("two")
    async with aimx.connect(one.url) as me, aimx.connect(two.url) as other:
        sent = await me.send(two.name, {"step": 1}, workflow="w-trace")
        question = await first(other)
        async with question.process():
            await other.send(one.name, {"step": 2})
            reply = await question.reply({"step": 3})
        aside, answer = await some(me, 2)
    assert reply.trace_id == sent.trace_id == aside.trace_id == answer.trace_id
    assert aside.workflow == answer.workflow == "w-trace"
    assert aside.in_reply_to is None
    assert answer.in_reply_to == sent.message_id
    assert answer.references == [sent.message_id]
    assert answer.subject == "Re: w-trace"


async def test_a_reply_outside_of_process_stays_in_the_trace_too(new_agent: NewAgent) -> None:
    one, two = new_agent("one"), new_agent("two")
    async with aimx.connect(one.url) as me, aimx.connect(two.url) as other:
        sent = await me.send(two.name, {})
        assert (await (await first(other)).reply("yes")).trace_id == sent.trace_id


async def test_a_refusal_is_typed_and_the_connection_goes_on(new_agent: NewAgent) -> None:
    async with aimx.connect(new_agent().url) as me:
        with pytest.raises(aimx.Refused) as caught:
            await me.send("nobody.is.here", "x")
        refused = caught.value
        assert (refused.code, refused.enhanced, refused.temporary) == (550, "5.1.1", False)
        assert refused.recipient == f"nobody.is.here@{me.account.domain}"
        with pytest.raises(aimx.Refused, match=r"5\.7\.1"):
            await me.send("somebody@elsewhere.example", "x")
        await me.send(me.address, "still here")
        assert (await first(me)).payload == "still here"


async def test_one_bad_recipient_and_nobody_gets_it(new_agent: NewAgent) -> None:
    good = new_agent("good")
    async with aimx.connect(good.url) as me:
        with pytest.raises(aimx.Refused):
            await me.send([good.address, "nobody.is.here"], "x")
        await none(me)


async def test_a_wrong_password_is_said_so(new_agent: NewAgent) -> None:
    account = new_agent()
    async with aimx.connect(account.url, password="wrong") as me:
        with pytest.raises(aimx.SignInFailed, match=account.address):
            await me.send(me.address, "x")
        with pytest.raises(aimx.SignInFailed, match=account.address):
            await first(me)


async def test_a_node_that_is_not_there(new_agent: NewAgent) -> None:
    url = new_agent().url.replace("?smtp=", "?smtp=1&was=").replace("&imap=", "&imap=1&is=")
    async with aimx.connect(url) as me:
        with pytest.raises(aimx.Unreachable, match=r"no SMTP at 127\.0\.0\.1:1:"):
            await me.send(me.address, "x")
        with pytest.raises(aimx.Unreachable, match=r"no IMAP at 127\.0\.0\.1:1:"):
            await first(me)


async def test_a_certificate_of_somebody_else_is_not_believed(new_agent: NewAgent, tmp_path: Path) -> None:
    from aimx.identity.certificate import Certificates

    other = Certificates(tmp_path, ("fabric.local",))
    other.ensure()
    async with aimx.connect(new_agent().url.partition("&ca=")[0] + f"&ca={other.ca}") as me:
        with pytest.raises(aimx.Unreachable, match="certificate"):
            await me.send(me.address, "x")
        with pytest.raises(aimx.Unreachable, match="certificate"):
            await first(me)


async def test_a_data_folder_is_enough_to_connect(node: NodeProcess, new_agent: NewAgent) -> None:
    account = new_agent()
    async with aimx.connect(node.data, agent=account.name, password=account.password) as me:
        assert me.address == account.address
        await none(me)


async def test_a_headers_injection_is_impossible(new_agent: NewAgent) -> None:
    async with aimx.connect(new_agent().url) as me:
        for bad in ({"subject": "a\r\nX-Evil: 1"}, {"workflow": "w\nX-Evil: 1"}, {"headers": {"X": "a\r\nY: b"}}):
            with pytest.raises(ValueError, match="line break"):
                await me.send(me.address, "x", **bad)  # type: ignore[arg-type]
        with pytest.raises(aimx.InvalidMessage, match="Message-ID"):
            await me.send(me.address, 1, message_id="no-brackets")
        with pytest.raises(ValueError, match="address"):
            await me.send("a@b.c>\r\nRCPT TO:<x@y.z", "x")
        await none(me)


async def test_a_restart_of_the_node_is_survived(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        account, other = node.add_agent("stayer"), node.add_agent("helper")
        async with aimx.connect(account.url) as me, aimx.connect(other.url) as helper:
            waiting = asyncio.create_task(some(me, 2))
            await helper.send(account.name, "before")
            await asyncio.to_thread(node.restart, same_ports=True)
            await helper.send(account.name, "after")
            got = await waiting
            assert [message.payload for message in got] == ["before", "after"]
            for message in got:
                await message.ack()


async def test_undelivered_is_not_a_reply(tmp_path: Path) -> None:
    config = '[delivery]\nfirst_delay = "100ms"\nmax_delay = "200ms"\ndeadline = "500ms"\n'
    with NodeProcess(tmp_path, config) as node:
        asker, busy = node.add_agent("asker"), node.add_agent("busy", "--max-unacked", "1")
        async with aimx.connect(asker.url) as me:
            await me.send(busy.name, "fills it")
            with pytest.raises(aimx.Undelivered, match="could not be delivered"):
                await me.request(busy.name, {"q": 1}, timeout=SOON)


async def test_the_raw_octets_are_what_imap_has(node: NodeProcess, new_agent: NewAgent) -> None:
    account = new_agent()
    async with aimx.connect(account.url) as me:
        await me.send(me.address, {"a": 1})
        message = await first(me)
    assert node.bodies(account) == [message.raw]
    assert json.loads(message.content) == {"a": 1}
