"""Mail to other domains: found by DNS, handed over by SMTP, and what becomes of it when the other side will not."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiosmtplib
import pytest

from aimx.identity.certificate import Certificates
from aimx.message.header import HeaderBlock
from aimx.sidecar.timeline import timeline
from aimx.store.contract import Due, EventRow, Unavailable
from aimx.store.sqlite import SqliteStore
from aimx.telemetry.catalogue import COMMON, span_spec
from tests.outside import MailServer, NameServer, Zone, name_server
from tests.protocol.mail_node import MailNode, running

QUICK = {"first_delay": "30ms", "max_delay": "60ms", "jitter": 0.0}
MX_B: Zone = {"mx.b.example": {"A": ["127.0.0.1"]}}
HERE: Zone = {"b.example": {"MX": ["10 mx.b.example."]}, **MX_B}


class World:
    """A node, the outside, and its names."""

    def __init__(self, node: MailNode, server: MailServer, dns: NameServer) -> None:
        self.node, self.server, self.dns = node, server, dns

    async def eid(self, answer: str) -> str:
        return answer.partition("<")[2].partition(">")[0]

    async def events(self, answer: str) -> list[tuple[str, dict[str, Any]]]:
        return [(stored.row.ev, stored.row.detail) for stored in await self.node.events(await self.eid(answer))]

    async def settled(self) -> None:
        await until(lambda: nothing_waits(self.node))


async def nothing_waits(node: MailNode) -> bool:
    return not await node.store.pending()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(15):
        while not await condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def world(
    folder: Path, server: MailServer | None = None, zone: Zone = HERE, relay: dict[str, Any] | None = None, **more: Any
) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        outside = await stack.enter_async_context((server or MailServer()).listening())
        dns, address = await stack.enter_async_context(name_server(zone))
        settings = {
            "enabled": True,
            "port": outside.port,
            "nameservers": [address],
            "allow_networks": ["127.0.0.0/8"],
            **(relay or {}),
        }
        node = await stack.enter_async_context(running(folder, ["ada"], relay=settings, **({"delivery": QUICK} | more)))
        yield World(node, outside, dns)


# ── whether and whom ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_nothing_is_relayed_until_it_is_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path, ["ada"]) as node:
        with pytest.raises(aiosmtplib.SMTPRecipientsRefused) as refused:
            await node.send("ada", "bob@b.example")
        (refusal,) = refused.value.recipients
        assert refusal.code == 550
        assert "5.7.1" in refusal.message


async def test_a_mail_goes_to_the_host_that_dns_names(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        answer = await w.node.send("ada", "bob@b.example", b"hello\r\n.dot\r\n", Subject="hi", baggage="user=ada")
        (mail,) = await w.server.until(1)
        await w.settled()
        assert mail.mail.startswith("FROM:<ada@fabric.local> SIZE=")
        assert mail.rcpt == ["TO:<bob@b.example>"]
        assert mail.body == b"hello\r\n.dot\r\n"
        assert mail.header.startswith(b"Received: from ")
        events = await w.events(answer)
        assert [ev for ev, _ in events] == ["message.accepted", "message.relayed"]
        said = events[1][1]
        assert (said["host"], said["code"], said["via"], said["attempt"]) == ("mx.b.example", 250, "mx", 1)


async def test_the_timeline_says_who_took_it(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        answer = await w.node.send("ada", "bob@b.example")
        await w.server.until(1)
        await w.settled()
        (entry,) = (await timeline(w.node.store, await w.eid(answer))).entries
        assert entry.outcome == "delivered"
        assert [step.text for step in entry.steps][-2:] == [
            "recipient: relay bob@b.example",
            "handed over for bob@b.example to mx.b.example by mx",
        ]
        assert (await w.node.verify()).ok


async def test_what_names_our_insides_stays_behind_and_the_trace_goes_along(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.node.send("ada", "bob@b.example", Bcc="boss@c.example", baggage="user=ada")
        (mail,) = await w.server.until(1)
        header, _ = HeaderBlock.parse(mail.data)
        names = {field.name for field in header.fields}
        assert not [name for name in names if name.startswith(b"aimx-")]
        assert not names & {b"baggage", b"bcc", b"return-path"}
        relayed = await spans_of(w, "relay mx")
        assert (header.get("traceparent") or "--").split("-")[1] == relayed[0].trace_id.hex()


async def spans_of(w: World, name: str) -> list[Any]:
    await until(lambda: _there(w, name))
    return w.node.spans.named(name)


async def _there(w: World, name: str) -> bool:
    return bool(w.node.spans.named(name))


async def test_the_spans_of_a_relayed_mail_hang_together(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.node.send("ada", "bob@b.example")
        await w.server.until(1)
        await w.settled()
        (talk,) = await spans_of(w, "relay mx")
        deliver = w.node.spans.parent(talk)
        assert deliver is not None
        assert deliver.name == "deliver relay"
        enqueue = w.node.spans.parent(deliver)
        assert enqueue is not None
        assert enqueue.name == "enqueue mx"
        assert w.node.spans.parent(enqueue).name == "route recipient"  # type: ignore[union-attr]
        assert talk.attributes["server.address"] == "mx.b.example"
        assert talk.attributes["smtp.response.status_code"] == 250
        assert deliver.attributes["aimx.outcome"] == "delivered"
        for span in w.node.spans:
            spec = span_spec(span.name)
            assert spec is not None, span.name
            assert set(span.attributes) <= {*spec.attributes, *COMMON, "gen_ai.agent.id"}, span.name


@pytest.mark.parametrize(
    ("zone", "status", "reason"),
    [
        ({}, "5.1.2", "dns.nxdomain"),
        ({"b.example": {"MX": ["0 ."]}}, "5.1.10", "dns.null-mx"),
        ({"b.example": {"MX": ["10 fabric.local."]}}, "5.4.6", "dns.loop"),
        ({"b.example": {"MX": ["5 fabric.local.", "10 mx.b.example."]}}, "5.4.6", "dns.loop"),
        ({"b.example": {"TXT": ['"nothing"']}}, "5.4.4", "dns.no-address"),
        ({"b.example": {"MX": ["10 mx.b.example."]}, "mx.b.example": {"A": ["10.1.2.3"]}}, "5.4.4", "dns.forbidden"),
        (
            {"b.example": {"MX": ["10 mx.b.example."]}, "mx.b.example": {"AAAA": ["::ffff:169.254.169.254"]}},
            "5.4.4",
            "dns.forbidden",
        ),
    ],
)
async def test_where_no_way_leads_the_sender_is_told(tmp_path: Path, zone: Zone, status: str, reason: str) -> None:
    async with world(tmp_path, zone=zone) as w:
        answer = await w.node.send("ada", "bob@b.example")
        await w.settled()
        (notice,) = await w.node.inbox("ada")
        assert f"Status: {status}\r\n".encode() in (notice.body or b"")
        bounced = (await w.events(answer))[-1]
        assert (bounced[0], bounced[1]["reason"]) == ("message.bounced", reason)
        assert not w.server.commands


@pytest.mark.parametrize(
    "zone",
    [
        {"b.example": {"A": ["127.0.0.1"]}},
        {
            "b.example": {"CNAME": ["c.example."]},
            "c.example": {"MX": ["10 mx.b.example."]},
            "mx.b.example": HERE["mx.b.example"],
        },
        {"b.example": {"MX": ["20 fabric.local.", "10 mx.b.example."]}, **MX_B},
        {
            "b.example": {"MX": ["10 gone.b.example.", "20 mx.b.example."]},
            "mx.b.example": {"AAAA": ["::1"], "A": ["127.0.0.1"]},
        },
    ],
    ids=["implicit-mx", "cname", "we-are-the-backup", "next-host-and-other-family"],
)
async def test_the_way_is_found(tmp_path: Path, zone: Zone) -> None:
    relay = {"allow_networks": ["127.0.0.0/8", "::1/128"]}
    async with world(tmp_path, zone=zone, relay=relay) as w:
        await w.node.send("ada", "bob@b.example")
        await w.server.until(1)


async def test_dns_that_does_not_answer_costs_only_time(tmp_path: Path) -> None:
    zone: Zone = {"b.example": {"SERVFAIL": []}}
    async with world(tmp_path, zone=zone, delivery=QUICK | {"breaker_failures": 100}) as w:
        answer = await w.node.send("ada", "bob@b.example")
        await until(lambda: deferred(w, answer))
        w.dns.zone.update(HERE)
        await w.server.until(1)


async def deferred(w: World, answer: str, times: int = 1) -> bool:
    return sum(ev == "message.deferred" for ev, _ in await w.events(answer)) >= times


# ── what the other side says ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("RCPT", "450 4.2.1 try later"),
        ("GREETING", "554 5.7.1 not you"),
        ("EHLO", "421 4.3.2 closing"),
        ("MAIL", "451 4.3.0 trouble"),
        ("DATA", "451 trouble"),
        ("END", "452 4.3.1 full"),
        ("END", ""),
        ("RCPT", "552 too many"),
    ],
)
async def test_a_no_for_now_is_tried_again(tmp_path: Path, verb: str, said: str) -> None:
    times = iter([said, said])
    server = MailServer(answers={verb: lambda _: next(times, None)})
    async with world(tmp_path, server, delivery=QUICK | {"breaker_failures": 100}) as w:
        answer = await w.node.send("ada", "bob@b.example")
        await w.server.until(1)
        await w.settled()
        assert [ev for ev, _ in await w.events(answer)] == [
            "message.accepted",
            "message.deferred",
            "message.deferred",
            "message.relayed",
        ]
        attempts = w.node.spans.named("deliver relay")
        assert len({span.parent.span_id for span in attempts if span.parent}) == 1, "siblings: one comb"
        assert [span.attributes["aimx.delivery.attempt"] for span in attempts] == [1, 2, 3]


@pytest.mark.parametrize(
    ("verb", "said", "status"),
    [
        ("RCPT", "550 5.1.1 nobody\u2019s <here>", "5.1.1"),
        ("MAIL", "550-5.7.1 you\n550 5.7.1 no", "5.7.1"),
        ("END", "554 5.6.0 spam", "5.6.0"),
        ("DATA", "554 no valid recipients", "5.0.0"),
    ],
)
@pytest.mark.parametrize("pipelining", [True, False])
async def test_a_no_for_good_is_told_to_the_sender_with_its_words(
    tmp_path: Path, verb: str, said: str, status: str, pipelining: bool
) -> None:
    server = MailServer(extensions=["PIPELINING"] if pipelining else [], answers={verb: said})
    async with world(tmp_path, server) as w:
        answer = await w.node.send("ada", "bob@b.example")
        await w.settled()
        (notice,) = await w.node.inbox("ada")
        body = notice.body or b""
        assert f"Status: {status}\r\n".encode() in body
        assert b"Remote-MTA: dns; mx.b.example\r\n" in body
        assert f"Diagnostic-Code: smtp; {said[:3]} ".encode() in body
        assert [ev for ev, _ in await w.events(answer)] == ["message.accepted", "message.bounced"]
        assert not server.mails


async def test_at_the_deadline_the_sender_is_told(tmp_path: Path) -> None:
    server = MailServer(answers={"RCPT": "450 4.2.1 never"})
    async with world(tmp_path, server, delivery=QUICK | {"deadline": "200ms"}) as w:
        await w.node.send("ada", "bob@b.example")
        await w.settled()
        (notice,) = await w.node.inbox("ada")
        assert b"Action: failed\r\nStatus: 4.4.7\r\n" in (notice.body or b"")


async def test_a_destination_that_is_down_is_left_alone_and_others_are_not(tmp_path: Path) -> None:
    zone = {**HERE, "down.example": {"MX": ["10 mx.down.example."]}, "mx.down.example": {"A": ["127.0.0.9"]}}
    delivery = QUICK | {"breaker_failures": 2, "breaker_delay": "1h", "breaker_max_delay": "1h"}
    async with world(tmp_path, zone=zone, delivery=delivery) as w:
        answer = await w.node.send("ada", "bob@down.example")
        await until(lambda: deferred(w, answer, 2))
        await w.node.send("ada", "bob@b.example")
        await w.server.until(1)
        await asyncio.sleep(0.3)  # several retries' worth
        assert sum(ev == "message.deferred" for ev, _ in await w.events(answer)) == 2
        assert len(await w.node.store.pending()) == 1


async def test_an_answer_that_takes_longer_than_the_lease_sends_nothing_twice(tmp_path: Path) -> None:
    server = MailServer(delays={"END": 0.9})
    delivery = QUICK | {"lease": "200ms", "destination_concurrency": 1}
    async with world(tmp_path, server, delivery=delivery) as w:
        answers = [await w.node.send("ada", "bob@b.example") for _ in range(3)]
        await w.settled()
        assert len(server.mails) == 3
        for answer in answers:
            assert [ev for ev, _ in await w.events(answer)] == ["message.accepted", "message.relayed"]


async def test_a_node_that_stops_in_the_middle_sends_it_after_the_restart(tmp_path: Path) -> None:
    server = MailServer(delays={"RCPT": 3600})
    async with server.listening():
        up = {"up": {"host": "127.0.0.1", "port": server.port, "tls": "none", "domains": ["*"]}}
        async with running(tmp_path, ["ada"], relay=up) as node:
            await node.send("ada", "bob@b.example")

            async def begun() -> bool:
                return any(command.startswith("RCPT") for command in server.commands)

            await until(begun)
        server.delays.clear()
        async with running(tmp_path, relay=up) as node:
            await server.until(1)
            await until(lambda: nothing_waits(node))
        assert len(server.mails) == 1


async def test_a_store_that_cannot_serve_after_the_handing_over_sends_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimx.delivery.outbound.AFTER_FAILURE", 0.02)
    failing = iter([Unavailable("not now")] * 3)
    settle = SqliteStore.settle

    async def sometimes(store: SqliteStore, due: Due, events: Sequence[EventRow]) -> None:
        for failure in failing:
            raise failure
        await settle(store, due, events)

    monkeypatch.setattr(SqliteStore, "settle", sometimes)
    async with world(tmp_path) as w:
        await w.node.send("ada", "bob@b.example")
        await w.settled()
        assert len(w.server.mails) == 1


async def test_one_host_that_is_not_there_ends_nothing_while_another_may_come_back(tmp_path: Path) -> None:
    zone: Zone = {**MX_B, "b.example": {"MX": ["10 mx.b.example.", "20 gone.example."]}}
    server = MailServer(answers={"GREETING": "421 4.3.2 not now"})
    async with world(tmp_path, server, zone) as w:
        answer = await w.node.send("ada", "bob@b.example")
        await until(lambda: deferred(w, answer))
        server.answers.clear()
        await server.until(1)


@pytest.mark.parametrize("extensions", [("PIPELINING",), ()])
async def test_a_no_to_data_leaves_the_connection_good_for_the_next_mail(
    tmp_path: Path, extensions: tuple[str, ...]
) -> None:
    open_now = [False]

    def once_only(_: str) -> str | None:  # as Postfix, which keeps the transaction when it refuses DATA
        was, open_now[0] = open_now[0], True
        return "503 5.5.1 nested MAIL" if was else None

    def end(_: str) -> None:
        open_now[0] = False

    refusals = iter(["451 4.7.1 not now"])
    answers = {"MAIL": once_only, "RSET": end, "END": end, "DATA": lambda _: next(refusals, None)}
    server = MailServer(extensions, answers)
    async with world(tmp_path, server) as w:
        answer = await w.node.send("ada", "bob@b.example")
        await server.until(1)
        assert "message.bounced" not in [ev for ev, _ in await w.events(answer)]


async def test_only_a_yes_at_the_end_is_a_yes(tmp_path: Path) -> None:
    strange = iter(["354 go on"])
    server = MailServer(answers={"END": lambda _: next(strange, None)})
    async with world(tmp_path, server) as w:
        answer = await w.node.send("ada", "bob@b.example")
        await until(lambda: deferred(w, answer))
        await w.settled()


async def test_other_answers_than_smtp_are_survived(tmp_path: Path) -> None:
    times = iter(["HTTP/1.1 400 Bad Request", "250-" + "x" * 5000, "220-a\n221 b"])
    server = MailServer(answers={"GREETING": lambda _: next(times, None)})
    async with world(tmp_path, server, delivery=QUICK | {"breaker_failures": 100}) as w:
        answer = await w.node.send("ada", "bob@b.example")
        await w.server.until(1)
        await w.settled()
        reasons = [detail["reason"] for ev, detail in await w.events(answer) if ev == "message.deferred"]
        assert reasons == ["protocol"] * 3


# ── connections ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_connection_is_kept_for_the_next_mail(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for n in range(5):
            await w.node.send("ada", "bob@b.example")
            await w.server.until(n + 1)
            await w.settled()
        assert {mail.connection for mail in w.server.mails} == {1}


async def test_a_kept_connection_that_is_gone_costs_no_attempt(tmp_path: Path) -> None:
    seen = iter(["250 2.1.0 ok", ""])
    server = MailServer(answers={"MAIL": lambda _: next(seen, None)})
    async with world(tmp_path, server) as w:
        await w.node.send("ada", "bob@b.example")
        await w.settled()
        answer = await w.node.send("ada", "bob@b.example")
        await w.settled()
        assert len(server.mails) == 2
        assert [ev for ev, _ in await w.events(answer)] == ["message.accepted", "message.relayed"]


async def test_after_the_idle_time_a_connection_is_ended_politely(tmp_path: Path) -> None:
    async with world(tmp_path, relay={"idle_timeout": "50ms"}) as w:
        await w.node.send("ada", "bob@b.example")
        await w.server.until(1)

        async def quit() -> bool:
            return w.server.commands[-1] == "QUIT"

        await until(quit)


async def test_many_mails_share_few_connections(tmp_path: Path) -> None:
    async with world(tmp_path, relay={"connections": 3}) as w:
        await asyncio.gather(*[w.node.send("ada", "bob@b.example") for _ in range(30)])
        await w.server.until(30)
        await w.settled()
        assert w.server.connections <= 3
        assert len(w.server.mails) == 30


# ── what the other side can take ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_long_line_is_encoded_and_says_the_same(tmp_path: Path) -> None:
    from email import message_from_bytes

    body = json.dumps({"items": list(range(2000))}).encode() + b"\r\n"
    async with world(tmp_path) as w:
        await w.node.send("ada", "bob@b.example", body, Content_Type="application/json")
        (mail,) = await w.server.until(1)
        assert max(map(len, mail.data.split(b"\r\n"))) <= 998
        assert message_from_bytes(mail.data).get_payload(decode=True) == body


@pytest.mark.parametrize(
    ("extensions", "headers", "body", "to", "status"),
    [
        (["SIZE 2000"], {}, b"x\r\n" * 1000, "bob@b.example", "5.3.4"),
        (["8BITMIME"], {"Subject": "grüße"}, b"x\r\n", "bob@b.example", "5.6.9"),
        (["8BITMIME"], {}, b"x\r\n", "bøb@b.example", "5.6.7"),
        ([], {"DKIM-Signature": "v=1"}, "grüße\r\n".encode(), "bob@b.example", "5.6.3"),
    ],
)
async def test_what_the_next_server_cannot_take_comes_back(
    tmp_path: Path, extensions: list[str], headers: dict[str, str], body: bytes, to: str, status: str
) -> None:
    async with world(tmp_path, MailServer(extensions=extensions)) as w:
        head = "".join(f"{name}: {value}\r\n" for name, value in ({"From": "ada@fabric.local"} | headers).items())
        await send_utf8(w.node, to, head.encode() + b"\r\n" + body)
        await w.settled()
        (notice,) = await w.node.inbox("ada")
        assert f"Status: {status}\r\n".encode() in (notice.body or b"")
        assert not w.server.mails


async def send_utf8(node: MailNode, to: str, message: bytes) -> None:
    from tests.protocol.mail_node import PASSWORD

    host, port = node.ready.smtps.rsplit(":", 1)
    async with aiosmtplib.SMTP(hostname=host, port=int(port), use_tls=True, tls_context=node.tls()) as client:
        await client.login("ada@fabric.local", PASSWORD)
        await client.mail("ada@fabric.local", options=["SMTPUTF8", "BODY=8BITMIME"], encoding="utf-8")
        await client.rcpt(to, encoding="utf-8")
        await client.data(message)


async def test_eight_bit_mail_goes_as_it_is_or_encoded(tmp_path: Path) -> None:
    from email import message_from_bytes

    body = "grüße\r\n".encode()
    for extensions in (["8BITMIME"], []):
        server = MailServer(extensions=extensions)
        async with world(tmp_path / str(len(extensions)), server) as w:
            await w.node.send("ada", "bob@b.example", body, Content_Type="text/plain; charset=utf-8")
            (mail,) = await server.until(1)
            assert ("BODY=8BITMIME" in mail.mail) == bool(extensions)
            assert (mail.body == body) == bool(extensions)
            assert message_from_bytes(mail.data).get_payload(decode=True) == body


async def test_a_large_mail_goes_through_in_pieces(tmp_path: Path) -> None:
    body = (b"y" * 70 + b"\r\n") * 60_000
    async with world(tmp_path, MailServer(extensions=["8BITMIME"])) as w:
        await w.node.send("ada", "bob@b.example", body)
        (mail,) = await w.server.until(1)
        assert mail.body == body


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    made = Certificates(tmp_path / "other-tls", ["mx.b.example"])
    made.ensure()
    return made


@pytest.mark.parametrize(
    ("level", "offered", "believed", "arrives"),
    [
        ("none", True, False, None),
        ("may", False, False, None),
        ("may", True, False, "TLSv1.3"),
        ("encrypt", False, False, ""),
        ("encrypt", True, False, "TLSv1.3"),
        ("verify", True, False, ""),
        ("verify", True, True, "TLSv1.3"),
    ],
)
async def test_levels_of_tls(
    tmp_path: Path, certificates: Certificates, level: str, offered: bool, believed: bool, arrives: str | None
) -> None:
    """`arrives`: under which TLS (None: in the clear); empty: it does not."""
    server = MailServer(context=certificates.server_context() if offered else None)
    relay = {"tls": level} | ({"ca": str(certificates.ca)} if believed else {})
    async with world(tmp_path, server, relay=relay) as w:
        answer = await w.node.send("ada", "bob@b.example")
        if arrives == "":
            await until(lambda: deferred(w, answer))
            assert not server.mails
            assert not [command for command in server.commands if command.startswith("MAIL")]
        else:
            (mail,) = await server.until(1)
            assert mail.tls == arrives


async def test_tls_that_fails_is_done_without_where_it_was_optional(tmp_path: Path, certificates: Certificates) -> None:
    server = MailServer(context=certificates.server_context(), answers={"STARTTLS": "454 4.7.0 not now"})
    async with world(tmp_path, server) as w:
        await w.node.send("ada", "bob@b.example")
        (mail,) = await server.until(1)
        assert mail.tls is None


async def test_what_is_slipped_in_before_tls_is_not_believed(tmp_path: Path, certificates: Certificates) -> None:
    server = MailServer(context=certificates.server_context(), answers={"STARTTLS": "220 go\n250 injected"})
    async with world(tmp_path, server, relay={"tls": "encrypt"}) as w:
        answer = await w.node.send("ada", "bob@b.example")
        await until(lambda: deferred(w, answer))
        assert not server.mails


# ── smarthosts ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_smarthost_gets_it_all_signed_in_and_under_tls(tmp_path: Path, certificates: Certificates) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    server = MailServer(context=certificates.server_context(), users={"node": "s3cret"})
    async with (
        server.listening(),
        running(
            tmp_path,
            ["ada"],
            relay={
                "enabled": True,
                "via": "up",
                "up": {
                    "host": "localhost",
                    "port": server.port,
                    "ca": str(certificates.ca),
                    "user": "node",
                    "password_file": str(tmp_path / "secret"),
                },
            },
        ) as node,
    ):
        await node.send("ada", ["bob@b.example", "cy@c.example"])
        mails = await server.until(2)
        assert {mail.login for mail in mails} == {"node"}
        assert {mail.tls for mail in mails} == {"TLSv1.3"}
        await until(lambda: nothing_waits(node))
        assert len(node.spans.named("relay up")) == 2


async def test_a_wrong_password_keeps_the_mail_and_is_said(tmp_path: Path, certificates: Certificates) -> None:
    (tmp_path / "secret").write_text("wrong\n")
    server = MailServer(context=certificates.server_context(), users={"node": "s3cret"})
    up = {
        "host": "localhost",
        "ca": str(certificates.ca),
        "user": "node",
        "password_file": str(tmp_path / "secret"),
        "domains": ["*"],
    }
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(server.listening())
        relay = {"up": up | {"port": server.port}}
        node = await stack.enter_async_context(running(tmp_path, ["ada"], relay=relay, delivery=QUICK))
        await node.send("ada", "bob@b.example")

        async def waits() -> bool:
            return any(each.reason == "4.7.8" for each in await node.store.pending())

        await until(waits)
        assert not server.mails


def test_a_password_does_not_show(tmp_path: Path) -> None:
    from aimx.delivery.dialogue import Login, Server

    shown = repr(Server("h", "a", 1, "must", login=Login("node", "s3cret")))
    assert "s3cret" not in shown
