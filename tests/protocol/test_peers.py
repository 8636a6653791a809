"""Two nodes that relay to each other: one trace, hops believed, and nobody else taken for a peer."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aimx.identity.certificate import Certificates
from aimx.message.header import HeaderBlock
from aimx.node import CannotStart
from aimx.telemetry.context import hops
from tests.ports import free_port
from tests.protocol.mail_node import PORTS, MailNode, address, running
from tests.protocol.test_relay import QUICK, until


@dataclass
class Pair:
    a: MailNode
    b: MailNode


def settings(folder: Path, name: str, other: str, port: int, other_port: int) -> dict[str, Any]:
    return {
        "node": name,
        "domain": {f"{name}.example": {}},
        "listen": {**PORTS, "peer": f"127.0.0.1:{port}"},
        "peer": {
            other: {
                "domains": [f"{other}.example"],
                "ca": str(folder / other / "data" / "tls" / "ca.pem"),
                "host": "127.0.0.1",
                "port": other_port,
            }
        },
        "delivery": QUICK | {"breaker_failures": 100},
    }


@asynccontextmanager
async def pair(folder: Path, **more: Any) -> AsyncIterator[Pair]:
    ports = free_port(), free_port()
    for name in ("a", "b"):  # each is told of the other's authority before either starts
        Certificates(folder / name / "data" / "tls", [f"{name}.example"]).ensure()
        (folder / name / "data").chmod(0o700)
    async with AsyncExitStack() as stack:
        a = running(folder / "a", ["ada@a.example"], **settings(folder, "a", "b", *ports), **more)
        b = running(folder / "b", ["bob@b.example"], **settings(folder, "b", "a", *reversed(ports)), **more)
        yield Pair(await stack.enter_async_context(a), await stack.enter_async_context(b))


async def arrives(node: MailNode, who: str, count: int = 1) -> HeaderBlock:
    async def there() -> bool:
        return len(await node.inbox(who)) >= count

    await until(there)
    return await node.header(who)


async def test_a_message_and_its_answer_are_one_trace_over_both_nodes(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        creation = f"00-{'ab' * 16}-{'cd' * 8}-01"
        await two.a.send("ada@a.example", "bob@b.example", traceparent=creation, baggage="user=ada", Subject="hi")
        header = await arrives(two.b, "bob@b.example")
        assert header.get("baggage") == "user=ada", "inside the trust zone nothing is lost"
        assert header.get("X-Agent-ID") == "ada@a.example"
        (relay,) = two.a.spans.named("relay b")
        receive = two.b.spans.one("smtp receive")
        assert receive.parent is not None
        assert (receive.trace_id, receive.parent.span_id) == (relay.trace_id, relay.span_id)
        assert receive.attributes["aimx.context.source"] == "hop"
        assert receive.attributes["aimx.context.trusted"] is True
        found = hops(header)
        assert [(hop.number, hop.by, hop.rule) for hop in found] == [
            (3, "b.example", "recipient"),
            (2, "a.example", "b"),
            (1, "a.example", "recipient"),
        ]
        assert header.get("traceparent") == creation, "never changed on the way"

        await two.b.send(
            "bob@b.example", "ada@a.example", Subject="re", In_Reply_To=header.get("Message-ID") or "missing"
        )
        answer = await arrives(two.a, "ada@a.example")
        assert (answer.get("traceparent") or "").split("-")[1] == relay.trace_id.hex()
        for node in (two.a, two.b):
            assert (await node.verify()).ok


async def test_a_long_line_goes_to_a_peer_as_it_is(tmp_path: Path) -> None:
    body = b"x" * 50_000 + b"\r\n"
    async with pair(tmp_path) as two:
        await two.a.send("ada@a.example", "bob@b.example", body, DKIM_Signature="v=1")
        await arrives(two.b, "bob@b.example")
        assert (await two.b.inbox("bob@b.example"))[0].body == body


async def test_nobody_at_the_peer_is_told_to_the_sender(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.a.send("ada@a.example", "ghost@b.example")
        await arrives(two.a, "ada@a.example")
        notice = (await two.a.inbox("ada@a.example"))[0]
        assert b"Status: 5.1.1\r\n" in (notice.body or b"")


async def test_what_fails_later_at_the_peer_comes_back_through_it(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        store = two.b.store
        await two.b.send("bob@b.example", "bob@b.example")
        found = await store.agent(address("bob@b.example"))
        assert found is not None
        from dataclasses import replace

        await store.update_agent(replace(found, max_unacked=1), [])
        await asyncio.sleep(1.1)  # the directory's memory
        await two.a.send("ada@a.example", "bob@b.example")

        async def waits() -> bool:
            return bool(await store.pending())

        await until(waits)
        await store.remove_agent(address("bob@b.example"), [])
        header = await arrives(two.a, "ada@a.example")
        assert header.get("Return-Path") == "<>"
        notice = (await two.a.inbox("ada@a.example"))[0]
        assert b"Reporting-MTA: dns; b.example\r\n" in (notice.body or b"")


class Client:
    """Somebody at the peers' door, by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, line: str) -> str:
        self.writer.write(line.encode() + b"\r\n")
        said = ""
        while not said or said[3:4] == "-":
            said = (await self.reader.readline()).decode()
            if not said:
                raise ConnectionError
        return said

    @classmethod
    async def at(cls, node: MailNode, context: ssl.SSLContext) -> "Client":
        assert node.ready.peer is not None
        host, port = node.ready.peer.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        client = cls(reader, writer)
        await reader.readline()
        await client.say("EHLO x.example")
        await client.say("STARTTLS")
        await writer.start_tls(context, server_hostname="localhost")
        return client


def showing(node: MailNode, chain: Path | None, key: Path | None) -> ssl.SSLContext:
    context = node.tls()
    if chain is not None and key is not None:
        context.load_cert_chain(chain, key)
    return context


@pytest.mark.parametrize("shown", ["nothing", "somebody else's", "its own server certificate"])
async def test_without_the_peers_certificate_nobody_is_a_peer(tmp_path: Path, shown: str) -> None:
    other = Certificates(tmp_path / "other", ["a.example"])
    other.ensure()
    async with pair(tmp_path) as two:
        tls = tmp_path / "b" / "data" / "tls"
        chain, key = {
            "nothing": (None, None),
            "somebody else's": other.peer_credentials(),
            "its own server certificate": (tls / "server.pem", tls / "server.key"),
        }[shown]
        try:
            client = await Client.at(two.b, showing(two.b, chain, key))
            await client.say("EHLO a.example")
            said = await client.say("MAIL FROM:<ada@a.example>")
        except (ConnectionError, ssl.SSLError):
            said = ""
        assert not said.startswith("250")


async def test_a_peer_is_served_without_signing_in_and_nobody_relays_through_it(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        credentials = Certificates(tmp_path / "a" / "data" / "tls", ["a.example"]).peer_credentials()
        client = await Client.at(two.b, showing(two.b, *credentials))
        assert "AUTH" not in await client.say("EHLO a.example")
        assert (await client.say("AUTH PLAIN AGEAYg==")).startswith("502")
        assert (await client.say("MAIL FROM:<>")).startswith("250")
        assert (await client.say("RCPT TO:<x@elsewhere.example>")).startswith("550 5.7.1")
        assert (await client.say("RCPT TO:<bob@b.example>")).startswith("250")


async def test_a_door_for_peers_needs_peers(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match=r"add \[peer.NAME\]"):
        async with running(tmp_path, listen={**PORTS, "peer": "127.0.0.1:0"}):
            pass


async def test_a_peer_that_is_away_costs_only_time(tmp_path: Path) -> None:
    ports = free_port(), free_port()
    for name in ("a", "b"):
        Certificates(tmp_path / name / "data" / "tls", [f"{name}.example"]).ensure()
        (tmp_path / name / "data").chmod(0o700)
    async with running(tmp_path / "a", ["ada@a.example"], **settings(tmp_path, "a", "b", *ports)) as a:
        await a.send("ada@a.example", "bob@b.example")

        async def tried() -> bool:
            return any(each.attempt > 1 for each in await a.store.pending())

        await until(tried)
        async with running(tmp_path / "b", ["bob@b.example"], **settings(tmp_path, "b", "a", *reversed(ports))) as b:
            await arrives(b, "bob@b.example")
