"""A real node that has lived, and what others hold of its log: made once, copied for each attack."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.node_process import Account, NodeProcess, receipt_id
from tests.postgres_server import PostgresServer
from tests.system.attacks.auditor import Said, aimx
from tests.system.attacks.victim import Victim, copied

PATIENCE_S = 40.0
PROMPT = (
    '[audit]\nintegrate_within = "20ms"\ncheckpoint_every = "100ms"\nwitness_every = "200ms"\nmail_every = "500ms"\n'
)


@dataclass
class Scene:
    """`kind` says where log and mail are kept. All but `victim` and `backup` is out of the administrator's reach."""

    kind: str
    folder: Path
    witness: NodeProcess
    victim: Victim
    backup: Victim
    """The node's folder and databases as they were early in its life."""
    mail: bytes = b""
    receipt: str = ""
    """The text of the 250 that `mail` was answered with, and its event."""
    ann: Account = field(default_factory=lambda: Account("", ""))
    server: PostgresServer | None = None

    @property
    def eid(self) -> str:
        return receipt_id(self.receipt)

    @property
    def kept(self) -> Path:
        """A checkpoint that somebody wrote down when the node was in the middle of its life."""
        return self.folder / "kept.checkpoint"

    @property
    def vkeys(self) -> Path:
        return self.folder / "kept.vkeys"

    @property
    def mbox(self) -> Path:
        """Of the mailbox that checkpoints were mailed to."""
        return self.folder / "mbox"

    @property
    def export(self) -> Path:
        return self.folder / "export"

    @property
    def eml(self) -> Path:
        return self.folder / "mail.eml"

    def copy(self, of: Victim, folder: Path) -> Victim:
        return copied(of, folder, self._database)

    def _database(self, url: str) -> str:
        assert self.server is not None
        name = f"copy{time.monotonic_ns()}"
        self.server.run(f'CREATE DATABASE {name} TEMPLATE "{url.rpartition("/")[2]}"')
        return self.server.url(name)

    def check_receipt(self, victim: Victim, *options: str) -> Said:
        return aimx(victim.data, "audit", "check-receipt", self.receipt, str(self.eml), *options)


def made(kind: str, folder: Path, witness: NodeProcess, server: PostgresServer | None) -> Scene:
    """Let a node live: agents, mail, a backup, a receipt, cosignatures, mailed checkpoints, an export."""
    url = None if server is None else server.database()
    database = f'[database]\nurl = "{url}"\n' if url else ""
    prompt = f'[domain."{kind}.example"]\n{database}{PROMPT}'
    node = NodeProcess(folder / "node", config=prompt)
    scene = Scene(kind, folder, witness, Victim(node.folder, url), Victim(folder / "backup", url), server=server)
    with node:
        scene.ann = node.add_agent("ann")
        auditor = node.add_agent("auditor")
        _send(node, scene.ann, 5)
    witness.configure(witness.config + f'[audit.cosign.{kind}]\nvkey = "{_vkey(node)}"\n')
    witness.restart(same_ports=True)
    node.configure(f'{prompt}mail_to = ["{auditor.address}"]\n{_asks(witness)}')
    scene.backup = scene.copy(scene.victim, folder / "backup")
    with node:
        _send(node, scene.ann, 100)
        shutil.copy(node.data / "audit.vkeys", scene.vkeys)
        scene.mail = f"From: {scene.ann.address}\r\nTo: {scene.ann.address}\r\n\r\nPay 500.\r\n".encode()
        scene.receipt = _send(node, scene.ann, 1, scene.mail)
        scene.eml.write_bytes(scene.mail)
        node.aimx("audit", "prove", scene.eid)  # waits for the checkpoint
        shutil.copy(node.data / "audit.checkpoint", scene.kept)
        assert aimx(node.data, "audit", "export", str(scene.export)).code == 0
        _send(node, scene.ann, 40)
        size = int(scene.victim.signed.split("\n")[1])
        until(lambda: _cosigned(scene.victim) >= size, "a cosignature")
        until(lambda: len(node.bodies(auditor)) >= 2, "checkpoints by mail")
        mails = [mail.replace(b"\r\n", b"\n") for mail in node.bodies(auditor)]
        scene.mbox.write_bytes(b"".join(b"From node\n" + mail + b"\n" for mail in mails))
    return scene


def _vkey(node: NodeProcess) -> str:
    return (node.data / "audit.vkeys").read_text().split()[0]


def _asks(witness: NodeProcess) -> str:
    vkey = (witness.data / "witness.vkey").read_text().strip()
    return f'[audit.witness.peer]\nurl = "{witness.ready["http"]}"\nvkey = "{vkey}"\nca = "{witness.ready["ca"]}"\n'


def _send(node: NodeProcess, who: Account, times: int, octets: bytes = b"") -> str:
    said = b""
    with node.smtp(who) as client:
        for number in range(times):
            client.mail(who.address)
            client.rcpt(who.address)
            text = f"From: {who.address}\r\nTo: {who.address}\r\nSubject: {number}\r\n\r\nhello {number}\r\n"
            code, said = client.data(octets or text.encode())
            assert code == 250, said
    return said.decode()


def _cosigned(victim: Victim) -> int:
    if victim.url is None and not victim.anchors.file.exists():
        return 0
    ((size,),) = victim.anchors.look("SELECT coalesce(max(size), 0) FROM anchor WHERE kind = 'witness'")
    return int(size)


def until(happened: Callable[[], bool], what: str) -> None:
    """For what another process does and nothing announces: looked at, for a bounded time."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.05)


def started(data: Path) -> dict[str, str]:
    return dict(json.loads((data / "ready.json").read_text()))
