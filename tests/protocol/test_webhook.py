"""Messages posted to URLs: signed, traced, once by their id, and never to where they must not go."""

import asyncio
import base64
import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from aimx.config import SettingError, load
from aimx.delivery.webhook import MAX_WAIT, retry_after, sign
from aimx.identity.certificate import Certificates
from tests.protocol.mail_node import MailNode, running
from tests.protocol.test_relay import QUICK, nothing_waits, until
from tests.receiver import Receiver

NEW, OLD = ("whsec_" + base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
LOOPBACK = {"networks": ["127.0.0.0/8"]}


@asynccontextmanager
async def world(
    folder: Path, receiver: Receiver, hook: dict[str, Any] | None = None, **more: Any
) -> AsyncIterator[MailNode]:
    """Mail for hook@… is posted to the receiver."""
    url = f"http://localhost:{receiver.port}/in?x=1"
    webhook = {"url": url, "secret": NEW, **LOOPBACK, **(hook or {})}
    settings = {
        "route": [{"name": "hooked", "recipient": "hook@*", "to": "webhook:crm"}],
        "webhook": {"crm": {name: value for name, value in webhook.items() if value is not None}},
        "delivery": QUICK | {"breaker_failures": 100},
    }
    async with running(folder, ["ada"], **settings | more) as node:
        yield node


async def settled(node: MailNode) -> None:
    await until(lambda: nothing_waits(node))


async def events(node: MailNode, answer: str) -> list[tuple[str, dict[str, Any]]]:
    eid = answer.partition("<")[2].partition(">")[0]
    return [(stored.row.ev, stored.row.detail) for stored in await node.events(eid)]


async def test_a_message_is_posted_signed_and_in_its_trace(tmp_path: Path) -> None:
    with Receiver().listening() as receiver:
        async with world(tmp_path, receiver) as node:
            answer = await node.send(
                "ada",
                "hook",
                b'{"n": 1}\r\n',
                Content_Type="application/json",
                Subject="grüße",
                X_Workflow_ID="w-1",
                baggage="user=ada",
                traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01",
                tracestate="vendor=1",
            )
            await settled(node)
            (got,) = receiver.got
            assert got.path == "/in?x=1"
            assert got.headers["host"] == f"localhost:{receiver.port}"
            assert Webhook(NEW).verify(got.body, got.headers) == json.loads(got.body)
            with pytest.raises(WebhookVerificationError):
                Webhook(OLD).verify(got.body, got.headers)

            said = json.loads(got.body)
            data = said["data"]
            assert said["type"] == "message.received"
            assert said["timestamp"].endswith("Z")
            assert (data["from"], data["to"], data["agent"]) == (
                "ada@fabric.local",
                "hook@fabric.local",
                "ada@fabric.local",
            )
            assert (data["subject"], data["workflow"], data["content_type"]) == ("grüße", "w-1", "application/json")
            assert data["payload"] == {"n": 1}
            assert data["trace_id"] == "ab" * 16
            assert f"aimx-leaf={data['audit']['leaf']} " in answer, "the leaf that the sender's receipt names"

            request = node.spans.one("webhook crm")
            assert got.headers["traceparent"].split("-")[1:3] == [request.trace_id.hex(), request.span_id.hex()]
            assert got.headers["tracestate"] == "vendor=1"
            assert "baggage" not in got.headers
            assert request.trace_id == bytes.fromhex("ab" * 16)
            assert request.attributes["http.response.status_code"] == 204
            assert request.attributes["server.address"] == "localhost"
            deliver = node.spans.parent(request)
            assert deliver is not None
            assert (deliver.name, deliver.attributes["aimx.outcome"]) == ("deliver webhook", "delivered")
            departed = (await events(node, answer))[-1]
            assert (departed[0], departed[1]["via"], departed[1]["code"]) == ("delivery.webhook", "crm", 204)
            assert (await node.verify()).ok


@pytest.mark.parametrize(
    ("kind", "body", "field", "value"),
    [
        ("text/plain; charset=iso-8859-1", b"gr\xfc\xdfe", "payload", "grüße"),
        ("application/octet-stream", b"\x00\x01", "payload_base64", base64.b64encode(b"\x00\x01\r\n").decode()),
        ("application/json", b"{broken", "payload_base64", base64.b64encode(b"{broken\r\n").decode()),
        ("application/json", b"[NaN]", "payload_base64", base64.b64encode(b"[NaN]\r\n").decode()),
    ],
)
async def test_the_payload_is_json_or_base64(tmp_path: Path, kind: str, body: bytes, field: str, value: str) -> None:
    encoded = base64.b64encode(body + b"\r\n") + b"\r\n"
    with Receiver().listening() as receiver:
        async with world(tmp_path, receiver) as node:
            await node.send("ada", "hook", encoded, Content_Type=kind, Content_Transfer_Encoding="base64")
            await settled(node)
            data = json.loads(receiver.got[0].body)["data"]
            assert {name: data[name] for name in data if name.startswith("payload")} == {field: value}


async def test_a_receiver_that_fails_and_recovers_gets_the_same_id(tmp_path: Path) -> None:
    with Receiver([(500, {}), (503, {"Retry-After": "0"}), (429, {})]).listening() as receiver:
        async with world(tmp_path, receiver) as node:
            answer = await node.send("ada", "hook")
            await settled(node)
            assert len(receiver.got) == 4
            assert len({got.headers["webhook-id"] for got in receiver.got}) == 1
            assert len({got.headers["traceparent"] for got in receiver.got}) == 4, "each attempt is a span of its own"
            for got in receiver.got:
                Webhook(NEW).verify(got.body, got.headers)
            reasons = [detail["reason"] for ev, detail in await events(node, answer) if ev == "message.deferred"]
            assert reasons == ["http.500", "http.503", "http.429"]
            spans = node.spans.named("webhook crm")
            assert [span.error_type for span in spans] == ["http.500", "http.503", "http.429", None]
            assert spans[-1].attributes["http.request.resend_count"] == 3
            await node.send("ada", "hook")
            await settled(node)
            assert receiver.got[-1].headers["webhook-id"] != receiver.got[0].headers["webhook-id"]


async def test_retry_after_is_honoured(tmp_path: Path) -> None:
    with Receiver([(503, {"Retry-After": "1"})]).listening() as receiver:
        async with world(tmp_path, receiver) as node:
            await node.send("ada", "hook")
            await until(lambda: _got(receiver, 1))
            came = time.monotonic()
            await settled(node)
            assert len(receiver.got) == 2
            assert time.monotonic() - came > 0.9, "the backoff alone would have been 60 ms"


async def test_a_circuit_that_opens_while_the_store_is_asked_is_not_overlooked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Receiver([(503, {"Retry-After": "1"})]).listening() as receiver:
        async with world(tmp_path, receiver) as node:
            store, queue = type(node.node._store), node.node._queue
            plain = store.next_due

            async def slow(self: Any, closed: Any = ()) -> Any:
                found = await plain(self, closed)
                await asyncio.sleep(0.8)
                return found

            await node.send("ada", "hook")
            await until(lambda: _got(receiver, 1))
            await asyncio.sleep(0.5)
            assert queue._destinations.closed()
            monkeypatch.setattr(store, "next_due", slow)
            queue._wake.set()  # a look that begins while it is open and ends when it is not
            await settled(node)
            assert len(receiver.got) == 2


async def _got(receiver: Receiver, count: int) -> bool:
    return len(receiver.got) >= count


@pytest.mark.parametrize(
    ("status", "headers"),
    [(410, {}), (400, {}), (404, {}), (301, {"Location": "http://localhost/"}), (308, {"Location": "/"})],
)
async def test_what_will_not_do_is_told_to_the_sender(tmp_path: Path, status: int, headers: dict[str, str]) -> None:
    with Receiver([(status, headers)]).listening() as receiver:
        async with world(tmp_path, receiver) as node:
            answer = await node.send("ada", "hook")
            await settled(node)
            assert len(receiver.got) == 1, "no second try, and no redirect is followed"
            bounced = (await events(node, answer))[-1]
            assert (bounced[0], bounced[1]["reason"]) == ("message.bounced", f"http.{status}")
            assert b"Status: 5.3.0\r\n" in ((await node.inbox("ada"))[0].body or b"")


async def test_a_receiver_that_is_silent_or_away_costs_only_time(tmp_path: Path) -> None:
    receiver = Receiver()
    receiver.silent.set()
    with receiver.listening():
        async with world(tmp_path, receiver, {"timeout": "200ms"}) as node:
            answer = await node.send("ada", "hook")
            await until(lambda: _deferred(node, answer, "timeout"))
            receiver.silent.clear()
            await settled(node)
            assert (await events(node, answer))[-1][0] == "delivery.webhook"
    async with world(tmp_path / "away", receiver) as node:
        answer = await node.send("ada", "hook")
        await until(lambda: _deferred(node, answer, "connect"))
        with receiver.listening():
            await settled(node)


async def _deferred(node: MailNode, answer: str, reason: str) -> bool:
    return any(detail.get("reason") == reason for _, detail in await events(node, answer))


async def test_an_endless_answer_is_not_read(tmp_path: Path) -> None:
    with Receiver([(200, {})], body=b"x" * 5_000_000).listening() as receiver:
        async with world(tmp_path, receiver) as node:
            answer = await node.send("ada", "hook")
            await settled(node)
            assert (await events(node, answer))[-1][0] == "delivery.webhook"


async def test_a_yes_whose_content_does_not_come_is_a_yes(tmp_path: Path) -> None:
    posts = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal posts
        await reader.readuntil(b"\r\n\r\n")
        posts += 1
        writer.write(b"HTTP/1.1 200 %b\r\nContent-Length: 10\r\n\r\n" % (b"O" * 20_000))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    receiver = Receiver(port=server.sockets[0].getsockname()[1])
    async with server, world(tmp_path, receiver, {"timeout": "3s"}) as node:
        sent = await node.send("ada", "hook")
        await settled(node)
        (_, (ev, detail)) = await events(node, sent)
        assert (ev, posts) == ("delivery.webhook", 1)
        assert len(str(detail)) < 2000, "nor is a phrase of any length kept"


async def test_a_message_that_is_too_large_is_not_posted(tmp_path: Path) -> None:
    with Receiver().listening() as receiver:
        async with world(tmp_path, receiver, {"max_body": 1000}) as node:
            await node.send("ada", "hook", b"x" * 900 + b"\r\n")
            await node.send("ada", "hook", (b"x" * 70 + b"\r\n") * 20)
            await settled(node)
            assert len(receiver.got) == 1
            assert b"Status: 5.3.4\r\n" in ((await node.inbox("ada"))[0].body or b"")


# ── secrets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_secrets_are_replaced_while_the_node_runs(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{OLD}\n")
    with Receiver().listening() as receiver:
        async with world(tmp_path, receiver, {"secret": None, "secret_file": str(file)}) as node:
            for secrets, known in ((f"{OLD}\n", {OLD}), (f"{NEW}\n{OLD}\n", {OLD, NEW}), (f"{NEW}\n", {NEW})):
                file.write_text(secrets)
                await node.send("ada", "hook")
                await settled(node)
                got = receiver.got[-1]
                assert {secret for secret in (OLD, NEW) if _verifies(secret, got.body, got.headers)} == known
            file.write_text("whsec_short")
            answer = await node.send("ada", "hook")
            await until(lambda: _deferred(node, answer, "secret"))
            file.write_text(NEW)
            await settled(node)


def _verifies(secret: str, body: bytes, headers: dict[str, str]) -> bool:
    try:
        Webhook(secret).verify(body, headers)
    except WebhookVerificationError:
        return False
    return True


def test_a_secret_is_never_shown() -> None:
    settings = load({"webhook": {"crm": {"url": "https://crm.example", "secret": NEW}}}, {})
    assert NEW not in repr(settings) + str(settings.webhooks) + settings.model_dump_json()
    with pytest.raises(SettingError) as refused:
        load({"webhook": {"crm": {"url": "https://crm.example", "secret": "whsec_mine"}}}, {})
    assert "whsec_mine" not in str(refused.value)


@pytest.mark.parametrize(
    ("hook", "says"),
    [
        ({"url": "https://crm.example"}, "a webhook is signed"),
        ({"url": "http://crm.example", "secret": NEW}, "write https://"),
        ({"url": "ftp://crm.example", "secret": NEW}, "webhook"),
        ({"url": "https:///x", "secret": NEW}, "webhook"),
        ({"url": "https://crm.example", "secret": f"{NEW} {OLD} {NEW}"}, "at most two"),
    ],
)
def test_settings_of_a_webhook(hook: dict[str, str], says: str) -> None:
    with pytest.raises(SettingError) as refused:
        load({"webhook": {"crm": hook}}, {})
    assert says in str(refused.value)


@given(st.binary(max_size=300), st.integers(0, 2**31))
def test_the_signature_is_what_the_library_makes(body: bytes, seconds: int) -> None:
    from datetime import UTC, datetime

    text = body.hex()
    theirs = Webhook(NEW).sign("msg_1", datetime.fromtimestamp(seconds, UTC), text)
    assert sign([bytes([1]) * 32], "msg_1", seconds, text.encode()) == theirs


# ── where it goes ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "0.0.0.0",
        "10.1.2.3",
        "169.254.169.254",
        "100.100.100.200",
        "168.63.129.16",
        "192.168.1.1",
        "224.0.0.1",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "2130706433",
        "0x7f.1",
    ],
)
async def test_it_never_goes_where_it_must_not(tmp_path: Path, host: str) -> None:
    with Receiver().listening() as receiver:
        hook = {"url": f"https://{host}:{receiver.port}/", "networks": []}
        async with world(tmp_path, receiver, hook) as node:
            answer = await node.send("ada", "hook")
            await settled(node)
            assert (await events(node, answer))[-1][1]["reason"] == "dns.forbidden"
            assert not receiver.got


async def test_without_tls_only_allowed_networks(tmp_path: Path) -> None:
    with Receiver().listening() as receiver:
        async with world(tmp_path, receiver, {"networks": ["10.0.0.0/8"]}) as node:
            answer = await node.send("ada", "hook")
            await settled(node)
            assert (await events(node, answer))[-1][1]["reason"] == "dns.forbidden"


async def test_over_tls_the_name_must_be_the_certificates(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "tls", ["crm.example"])
    certificates.ensure()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.chain, certificates.key)
    with Receiver().listening(context) as receiver:
        url = f"https://localhost:{receiver.port}/"
        async with world(tmp_path / "a", receiver, {"url": url, "ca": str(certificates.ca)}) as node:
            await node.send("ada", "hook")
            await settled(node)
            assert len(receiver.got) == 1
        async with world(tmp_path / "b", receiver, {"url": url}) as node:  # the system's authorities do not know it
            answer = await node.send("ada", "hook")
            await until(lambda: _deferred(node, answer, "certificate"))
            assert len(receiver.got) == 1
        name = f"https://localhost.localdomain:{receiver.port}/"
        async with world(tmp_path / "c", receiver, {"url": name, "ca": str(certificates.ca)}) as node:
            answer = await node.send("ada", "hook")
            await until(lambda: _waits(node, answer))
            assert len(receiver.got) == 1


async def _waits(node: MailNode, answer: str) -> bool:
    return await _deferred(node, answer, "certificate") or await _deferred(node, answer, "dns.failed")


def test_how_long_to_wait_is_a_number_or_a_date() -> None:
    assert retry_after("120") == 120
    assert retry_after("99999999999") == MAX_WAIT
    assert 50 < retry_after(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert retry_after(formatdate(time.time() - 60, usegmt=True)) == 0
    assert [retry_after(value) for value in (None, "", "soon", "-5", "1e9", "²")] == [0] * 6
    assert retry_after(f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT") == 0
    assert retry_after(f"Mon, 01 Jan 2020 00:00:00 +{'9' * 14}") == 0
