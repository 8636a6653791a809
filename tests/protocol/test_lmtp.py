"""Mail for a store that speaks LMTP: what it says after the data decides, for each recipient."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aimx.config import SettingError, load
from aimx.message.header import HeaderBlock
from tests.outside import MailServer, argument
from tests.protocol.mail_node import MailNode, running
from tests.protocol.test_relay import QUICK, nothing_waits, until


@asynccontextmanager
async def world(folder: Path, **store: Any) -> AsyncIterator[MailNode]:
    rule = {"name": "stored", "recipient": "*@old.local", "to": "lmtp:old"}
    domain: dict[str, Any] = {"fabric.local": {}, "old.local": {}}
    delivery = QUICK | {"breaker_failures": 100}
    settings = {"domain": domain, "route": [rule], "lmtp": {"old": store}, "delivery": delivery}
    async with running(folder, ["ada"], **settings) as node:
        yield node


async def events(node: MailNode, answer: str) -> list[tuple[str, dict[str, Any]]]:
    eid = answer.partition("<")[2].partition(">")[0]
    return [(stored.row.ev, stored.row.detail) for stored in await node.events(eid)]


async def test_a_message_is_handed_over_and_its_trace_goes_along(tmp_path: Path) -> None:
    async with MailServer(lmtp=True).listening() as server, world(tmp_path, host="localhost", port=server.port) as node:
        answer = await node.send("ada", "bob@old.local", b"hello\r\n.dot\r\n", baggage="user=ada")
        (mail,) = await server.until(1)
        await until(lambda: nothing_waits(node))
        assert server.commands[0] == "LHLO fabric.local"
        assert mail.body == b"hello\r\n.dot\r\n"
        header, _ = HeaderBlock.parse(mail.data)
        assert not [field for field in header.fields if field.name.startswith(b"aimx-") or field.name == b"baggage"]
        talk = node.spans.one("lmtp old")
        assert (header.get("traceparent") or "").split("-")[1] == talk.trace_id.hex()
        assert (talk.attributes["server.address"], talk.attributes["smtp.response.status_code"]) == ("localhost", 250)
        deliver = node.spans.parent(talk)
        assert deliver is not None
        assert (deliver.name, deliver.attributes["aimx.outcome"]) == ("deliver lmtp", "delivered")
        stored = (await events(node, answer))[-1]
        assert (stored[0], stored[1]["via"], stored[1]["code"]) == ("delivery.lmtp", "old", 250)
        assert (await node.verify()).ok


async def test_it_is_reached_by_a_unix_socket(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="aimx-lmtp-") as short:  # a socket's path has at most 107 octets
        path = Path(short) / "lmtp"
        async with MailServer(lmtp=True).listening(path=path) as server, world(tmp_path, socket=str(path)) as node:
            await node.send("ada", "bob@old.local")
            await server.until(1)


async def test_each_recipient_has_its_own_answer_after_the_data(tmp_path: Path) -> None:
    full = argument("eve", "552 5.2.2 mailbox full")
    server = MailServer(lmtp=True, answers={"END": full, "RCPT": argument("ghost", "550 5.1.1 nobody")})
    async with server.listening(), world(tmp_path, host="127.0.0.1", port=server.port) as node:
        answer = await node.send("ada", ["bob@old.local", "eve@old.local", "ghost@old.local"])
        await until(lambda: nothing_waits(node))
        found = [ev for ev, _ in await events(node, answer)]
        assert sorted(found) == ["delivery.lmtp", "message.accepted", "message.bounced", "message.bounced"]
        notices = b"".join([row.body or b"" for row in await node.inbox("ada")])
        assert b"Status: 5.2.2\r\n" in notices
        assert b"Status: 5.1.1\r\n" in notices


async def test_what_is_for_now_waits(tmp_path: Path) -> None:
    answers = iter(["452 4.2.2 full for now", "451 4.3.0 not now"])
    server = MailServer(lmtp=True, answers={"END": lambda _: next(answers, None)})
    async with server.listening(), world(tmp_path, host="127.0.0.1", port=server.port) as node:
        answer = await node.send("ada", "bob@old.local")
        await until(lambda: nothing_waits(node))
        found = await events(node, answer)
        assert [detail.get("reason") for ev, detail in found if ev == "message.deferred"] == ["4.2.2", "4.3.0"]
        assert found[-1][0] == "delivery.lmtp"


async def test_a_store_that_speaks_no_lmtp_costs_only_time(tmp_path: Path) -> None:
    server = MailServer(lmtp=True, answers={"EHLO": "500 5.5.1 what?"})
    async with server.listening(), world(tmp_path, host="127.0.0.1", port=server.port) as node:
        answer = await node.send("ada", "bob@old.local")

        async def deferred() -> bool:
            return any(ev == "message.deferred" for ev, _ in await events(node, answer))

        await until(deferred)
        server.answers.clear()
        await until(lambda: nothing_waits(node))
        assert len(server.mails) == 1


@pytest.mark.parametrize("store", [{}, {"host": "127.0.0.1", "socket": "/run/lmtp"}])
def test_a_store_is_in_one_place(store: dict[str, str]) -> None:
    with pytest.raises(SettingError, match="`host` or a `socket`"):
        load({"lmtp": {"old": store}} if store else {"lmtp": {"old": {"port": 24}}}, {})
