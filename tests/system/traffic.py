"""A node to which everything happens that it measures: for tests of metrics, dashboards and the collector.

    with busy_node(folder, receiver.environ) as node:
        traffic(node)

The node is a witness of its own log, posts its checkpoints to one of its agents, relays to where nobody answers, and
has a smarthost, an LMTP store and a webhook where somebody does.
"""

import asyncio
import smtplib
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx

from aimx.store.sqlite import SqliteStore
from tests.node_process import Account, NodeProcess
from tests.outside import MailServer
from tests.protocol.mail_node import PASSWORD, add_agent, address
from tests.receiver import SECRET, Receiver

NAMES = ("zelda", "yorick", "xenia", "walter")
"""Walter takes one message at a time; yorick is in a hurry."""
BURST = 60
BASE = """
[relay]
enabled = true
via = "nowhere"
[relay.nowhere]
host = "127.0.0.1"
port = {dead}
tls = "none"
[relay.up]
host = "127.0.0.1"
port = {up}
tls = "none"
[lmtp.old]
host = "127.0.0.1"
port = {lmtp}
[webhook.crm]
url = "http://localhost:{hook}/"
secret = "{secret}"
networks = ["127.0.0.0/8"]
[delivery]
first_delay = "200ms"
max_delay = "400ms"
jitter = 0.0
deadline = "2s"
breaker_failures = 2
breaker_delay = "1s"
[limits]
messages_per_second = 20
message_burst = {burst}
[[route]]
name = "no-thanks"
header = {{ X-Refuse = "*" }}
refuse = "not today"
[[route]]
name = "upwards"
recipient = "up@*"
to = "relay:up"
[[route]]
name = "stored"
recipient = "old@*"
to = "lmtp:old"
[[route]]
name = "hooked"
recipient = "hook@*"
to = "webhook:crm"
[audit]
witness_every = "300ms"
mail_every = "300ms"
mail_to = ["zelda@fabric.local"]
[audit.cosign.self]
vkey = "{log}"
"""
WITNESS = """
[audit.witness.self]
url = "{http}"
vkey = "{witness}"
ca = "{ca}"
"""


@contextmanager
def busy_node(folder: Path, environ: Mapping[str, str]) -> Iterator[NodeProcess]:
    """Started three times: a witness and a log must each have a key before they can know each other's."""
    with ExitStack() as outside, socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))  # bound and never listening: whoever connects is refused
        up, lmtp = (outside.enter_context(MailServer(lmtp=spoken).in_thread()) for spoken in (False, True))
        hook = outside.enter_context(Receiver().listening())
        ports = {"dead": dead.getsockname()[1], "up": up.port, "lmtp": lmtp.port, "hook": hook.port}
        node = NodeProcess(folder, environ=environ)
        with node:
            asyncio.run(_enlist(node.data))
            log = (node.data / "audit.vkeys").read_text().split()[0]
        config = BASE.format(**ports, secret=SECRET, burst=BURST, log=log)
        node.configure(config)
        with node:
            witness = (node.data / "witness.vkey").read_text().strip()
        node.configure(config + WITNESS.format(http=node.ready["http"], witness=witness, ca=node.ready["ca"]))
        node.start(same_ports=True)
        try:
            yield node
        finally:
            if node.process is not None:
                node.stop()


async def _enlist(data: Path) -> None:
    store = SqliteStore(data / "mail.db", "test", guest=True)
    await store.open()
    for name in NAMES:
        await add_agent(store, name, max_unacked=1 if name == "walter" else None)
    await store.close()


def who(name: str) -> Account:
    return Account(address(name), PASSWORD)


def send(node: NodeProcess, sender: str, to: str, **headers: str) -> bool:
    """Whether it was accepted. Header names with `_` for `-`."""
    lines = {"From": address(sender), "To": to, "Subject": "work", "X-Workflow-ID": "wf-secret"} | headers
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items() if value)
    with node.smtp(who(sender)) as client:
        try:
            client.sendmail(address(sender), [to], f"{head}\r\nhello\r\n")
        except smtplib.SMTPException:
            return False
    return True


def traffic(node: NodeProcess, turns: int = 1) -> None:
    """Deliveries and refusals of each kind, answers, pickups, a loop, a retry, a bounce, repeats, haste, bad login."""
    for turn in range(turns):
        assert send(node, "zelda", address("xenia"), Message_ID=f"<ask{turn}@x>")
        assert send(node, "xenia", address("zelda"), In_Reply_To=f"<ask{turn}@x>")
        assert not send(node, "zelda", address("xenia"), X_Refuse="1")
        assert not send(node, "zelda", address("nobody"))
        for _ in range(2):
            assert send(node, "zelda", address("xenia"), Idempotency_Key=f"once{turn}")
        send(node, "zelda", address("walter"))
        send(node, "zelda", address("walter"))  # waits: walter has one already; bounces after two seconds
        send(node, "zelda", "somebody@outside.example")
        for taken in ("up", "old", "hook"):
            assert send(node, "zelda", address(taken))
        loop(node, turn)
        with node.imap(who("xenia")) as client:
            client.fetch("1:*", "(BODY[])")
            client.store("1:*", "+FLAGS", "($AimxDone)")
            client.append("Sent", "", None, b"Subject: kept\r\n\r\nkept\r\n")  # type: ignore[arg-type]
        with suppress(smtplib.SMTPException), node.smtp() as stranger:
            stranger.login(address("zelda"), "wrong")
    haste(node)


def loop(node: NodeProcess, turn: int) -> None:
    """Two say the same to each other until they are stopped."""
    last = ""
    for number in range(30):
        sender, to = ("xenia", "zelda") if number % 2 else ("zelda", "xenia")
        mail = {"Message_ID": f"<loop{turn}.{number}@x>", "In_Reply_To": last}
        if not send(node, sender, address(to), **mail):
            return
        last = mail["Message_ID"]
    raise AssertionError("the loop was not stopped")


def haste(node: NodeProcess) -> None:
    """More at once than one agent may: the last ones are told to come again."""
    with node.smtp(who("yorick")) as client:
        codes = []
        for _ in range(2 * BURST):
            codes.append(client.mail(address("yorick"))[0])
            client.rset()
    assert 451 in codes


def http(node: NodeProcess) -> httpx.Client:
    """For what the administrator may ask."""
    token = Path(node.ready["admin_token_file"]).read_text().strip()
    return httpx.Client(
        base_url=node.ready["http"], verify=node.tls(), headers={"Authorization": f"Bearer {token}"}, timeout=30
    )
