"""Every event of the catalogue is made by real code: one node, real clients and peers; at the end its log is whole."""

import asyncio
import imaplib
import json
import sqlite3
import time
from pathlib import Path

import aiosmtplib
import httpx
import pytest
from click.testing import CliRunner

from aimx.audit import events
from aimx.audit.events import CATALOGUE
from aimx.cli import aimx
from aimx.store.contract import StoredEvent
from tests.outside import MailServer, argument
from tests.protocol.mail_node import PASSWORD, MailNode, add_agent, address, running
from tests.protocol.test_relay import QUICK, until
from tests.protocol.test_webhook import LOOPBACK, NEW, Receiver

SHARD = 1000
"""Leaves after which the log goes on in a new shard; the least that can be set."""
STOPPED = {"data.mended"}
"""Not while the node runs."""
LATER = {"log.closed", "log.dropped", "heartbeat"}


@pytest.mark.timeout(90)
async def test_each_event_of_the_catalogue_is_made_by_a_node(tmp_path: Path) -> None:
    lmtp = MailServer(lmtp=True, answers={"RCPT": argument("ghost", "550 5.1.1 nobody")})
    with Receiver().listening() as hook:
        async with lmtp.listening(), MailServer().listening() as upstream:
            settings = {
                "domain": {"fabric.local": {}, "old.local": {}},
                "delivery": QUICK,
                "workflow": {"small": {"budget": 1}},
                "audit": {
                    "shard_leaves": SHARD,
                    "heartbeat_every": "1s",
                    "mail_to": ["ops@fabric.local"],
                    "mail_every": "300ms",
                },
                "route": [
                    {"name": "hooked", "recipient": "hook@*", "to": "webhook:crm"},
                    {"name": "stored", "recipient": "*@old.local", "to": "lmtp:old"},
                ],
                "webhook": {"crm": {"url": f"http://localhost:{hook.port}/", "secret": NEW, **LOOPBACK}},
                "lmtp": {"old": {"host": "localhost", "port": lmtp.port}},
                "relay": {
                    "enabled": True,
                    "via": "up",
                    "up": {"host": "localhost", "port": upstream.port, "tls": "none"},
                },
            }
            async with running(tmp_path, ["ada", "bob", "ops"], **settings) as node:
                await messages_go_everywhere(node)
                await asyncio.to_thread(a_mailbox_is_used, node)
                await somebody_looks_from_outside(node)
                await its_keeper_acts(node)
                await all_of(node, CATALOGUE.keys() - LATER - STOPPED)
                await shards_follow_each_other(node)
                found = await everything(node)
                for stored in found:
                    is_as_the_catalogue_says(stored)
                assert {stored.row.ev for stored in found} == CATALOGUE.keys() - STOPPED
                report = await node.verify()
                assert report.ok, report.lines()
    await asyncio.to_thread(data_is_mended, tmp_path / "data")


async def messages_go_everywhere(node: MailNode) -> None:
    await node.send("ada", "bob")
    await node.append("ada", "Drafts", b"From: ada@fabric.local\r\n\r\nx\r\n")
    for _ in range(2):
        await node.send("ada", "bob", b"once\r\n", Idempotency_Key="k1")
    await node.send("ada", "bob", X_Trace_Only="yes")
    with pytest.raises(aiosmtplib.SMTPDataError):
        await node.send("ada", "bob", From="eve@fabric.local")
    await node.send("ada", "bob", X_Workflow_ID="small")
    with pytest.raises(aiosmtplib.SMTPDataError):
        await node.send("ada", "bob", X_Workflow_ID="small")
    await node.send("ada", ["hook@fabric.local"])
    await node.send("ada", ["kept@old.local", "ghost@old.local"])
    await node.send("ada", ["somebody@elsewhere.example"])
    await add_agent(node.store, "busy", max_unacked=1)  # type: ignore[arg-type]
    for number in range(2):
        await node.send("ada", "busy", b"%d\r\n" % number)


def a_mailbox_is_used(node: MailNode) -> None:
    host, port = node.ready.imaps.rsplit(":", 1)
    with imaplib.IMAP4_SSL(host, int(port), ssl_context=node.tls()) as client, pytest.raises(imaplib.IMAP4.error):
        client.login(address("bob"), "wrong")
    with imaplib.IMAP4_SSL(host, int(port), ssl_context=node.tls()) as client:
        client.login(address("bob"), PASSWORD)
        client.select("INBOX")
        client.fetch("1", "(BODY[])")
        client.store("1", "+FLAGS", "(\\Flagged)")
        client.copy("1", "Archive")
        client.uid("MOVE", "1", "Trash")
        client.store("1", "+FLAGS", "(\\Deleted)")
        client.expunge()


async def somebody_looks_from_outside(node: MailNode) -> None:
    """An administrator reads a message; somebody else tries a token that is none."""
    record = (await node.inbox("bob"))[-1]
    token = (node.folder / "admin.token").read_text().strip()
    async with httpx.AsyncClient(base_url=node.ready.http, verify=node.tls()) as http:
        place = f"/v1/messages/{record.eid}"
        assert (await http.get(place, headers={"Authorization": f"Bearer {token}"})).status_code == 200
        assert (await http.get(place, headers={"Authorization": "Bearer none"})).status_code == 401
    await node.node._intake.record_turned_away()


async def its_keeper_acts(node: MailNode) -> None:
    record = (await node.inbox("bob"))[-1]
    for line in (
        "queue drop --all --yes",
        f"audit hold {record.eid} --reason case-7",
        f"audit release {record.eid}",
        f"audit erase {record.eid} --yes",
        "audit rotate-key --receipt",
    ):
        await run(node, line)


def data_is_mended(folder: Path) -> None:
    db = sqlite3.connect(folder / "mail.db", isolation_level=None)
    db.execute("UPDATE mailbox SET unseen = unseen + 1 WHERE messages > 0")
    done = CliRunner().invoke(aimx, ["verify-data", "--fix", "--data", str(folder)])
    (leaf,) = db.execute("SELECT leaf FROM event ORDER BY seq DESC LIMIT 1").fetchone()
    db.close()
    assert json.loads(leaf)["ev"] == "data.mended", done.output


async def shards_follow_each_other(node: MailNode) -> None:
    """Filled with what any agent's change leaves behind, until the next one begins; then the first is dropped."""
    stamp = events.Stamp("n1", time.time_ns() // 1_000_000, events.no_span(), "admin")
    rows = [events.config_changed(stamp, what="test", by="admin", subject="x") for _ in range(SHARD)]
    await node.store.record(rows)
    first, *_ = await listed(node)

    async def begun() -> bool:
        return len(await listed(node)) > 1

    await until(begun)
    await run(node, f"audit drop-shard {first} --yes")
    await all_of(node, LATER)


async def listed(node: MailNode) -> list[str]:
    return [one["origin"] for one in json.loads(await run(node, "audit shards --json"))]


async def run(node: MailNode, line: str) -> str:
    """A command beside the node."""
    arguments = [*line.split(), "--data", str(node.folder)]
    done = await asyncio.to_thread(lambda: CliRunner().invoke(aimx, arguments))
    assert done.exit_code == 0, (line, done.output, done.exception)
    return done.stdout


async def everything(node: MailNode) -> list[StoredEvent]:
    return await node.store.events_after(0, 100_000)


async def missing(node: MailNode, names: set[str]) -> set[str]:
    return names - {stored.row.ev for stored in await everything(node) if stored.index is not None}


async def all_of(node: MailNode, names: set[str]) -> None:
    """Wait for events of these names to be in the log."""
    deadline = time.monotonic() + 15
    while (left := await missing(node, names)) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    assert left == set()


def is_as_the_catalogue_says(stored: StoredEvent) -> None:
    row, leaf = stored.row, json.loads(stored.row.leaf)
    kind = CATALOGUE[row.ev]
    assert leaf.keys() - {"ref"} == {"v", "ev", "t", "eid", "node", "c"} | kind.fields.keys(), row.ev
    assert leaf["c"].keys() == {"trace", "span"} | kind.commits.keys(), row.ev
    assert any(row.trace_id), row.ev
    assert any(row.span_id), row.ev
