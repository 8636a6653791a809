"""Postfix from Debian as a mail host of the outside world: own configuration and queue in a folder, loopback only."""

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.ports import free_port

MASTER = Path("/usr/lib/postfix/sbin/master")

MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
myhostname = mx.b.example
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = loopback-only
inet_protocols = ipv4
smtpd_relay_restrictions = {may_relay}
smtpd_tls_security_level = {smtpd_tls}
transport_maps = {transport_maps}
smtp_tls_security_level = {smtp_tls}
smtpd_tls_cert_file = {folder}/config/chain.pem
smtpd_tls_key_file = {folder}/config/key.pem
virtual_mailbox_domains = b.example
virtual_mailbox_base = {folder}/mail
virtual_mailbox_maps = texthash:{folder}/config/mailboxes
virtual_minimum_uid = 1
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
alias_maps =
local_recipient_maps =
default_transport = error:the end of this world
relay_transport = error:the end of this world
maillog_file = {folder}/log/postfix
maillog_file_prefixes = {folder}
"""

SERVICES = """\
127.0.0.1:{port} inet  n       -       n       -       -       smtpd
tlsmgr    unix  -       -       n       1000?   1       tlsmgr
cleanup   unix  n       -       n       -       0       cleanup
qmgr      unix  n       -       n       300     1       qmgr
rewrite   unix  -       -       n       -       -       trivial-rewrite
bounce    unix  -       -       n       -       0       bounce
defer     unix  -       -       n       -       0       bounce
trace     unix  -       -       n       -       0       bounce
proxymap  unix  -       -       n       -       -       proxymap
error     unix  -       -       n       -       -       error
smtp      unix  -       -       n       -       -       smtp
retry     unix  -       -       n       -       -       error
virtual   unix  -       n       n       -       -       virtual
anvil     unix  -       -       n       -       1       anvil
postlog   unix-dgram n  -       n       -       1       postlogd
"""


class Postfix:
    """Takes mail for `bob@b.example`, under TLS only; with `onward` (HOST:PORT of our MX) also, from loopback, mail for
    `fabric.local`, which it brings there. Its folder is not pytest's: that is closed to its processes."""

    def __init__(self, chain: Path, key: Path, *, onward: str = "", smtp_tls: str = "encrypt") -> None:
        if not MASTER.exists():
            pytest.skip("NOT TESTED: Postfix is not installed (see .ci/run)")
        if os.geteuid() != 0:
            pytest.skip("NOT TESTED: Postfix starts as root only")
        self.folder = folder = Path(tempfile.mkdtemp(prefix="aimx-postfix-"))
        folder.chmod(0o711)
        self.port = free_port()
        owner, user = pwd.getpwnam("postfix"), pwd.getpwnam("nobody")
        for part in ("config", "queue", "data", "mail", "log"):
            (folder / part).mkdir(parents=True)
        os.chown(folder / "data", owner.pw_uid, owner.pw_gid)
        os.chown(folder / "mail", user.pw_uid, user.pw_gid)
        host, _, port = onward.rpartition(":")
        values = {
            "folder": folder,
            "uid": user.pw_uid,
            "gid": user.pw_gid,
            "port": self.port,
            "may_relay": "permit_mynetworks, reject" if onward else "reject_unauth_destination",
            "smtpd_tls": "may" if onward else "encrypt",
            "transport_maps": f"inline:{{{{fabric.local=smtp:[{host}]:{port}}}}}" if onward else "",
            "smtp_tls": smtp_tls,
        }
        (folder / "config" / "main.cf").write_text(MAIN.format(**values))
        (folder / "config" / "master.cf").write_text(SERVICES.format(**values))
        (folder / "config" / "mailboxes").write_text("bob@b.example bob/\n")
        (folder / "config" / "chain.pem").write_bytes(chain.read_bytes())
        (folder / "config" / "key.pem").write_bytes(key.read_bytes())

    @contextmanager
    def running(self) -> Iterator["Postfix"]:
        control = ["postfix", "-c", str(self.folder / "config")]
        done = subprocess.run([*control, "start"], capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, f"Postfix did not start: {done.stdout}{done.stderr}"
        try:
            yield self
        finally:
            subprocess.run([*control, "stop"], capture_output=True, check=False, timeout=30)
            shutil.rmtree(self.folder, ignore_errors=True)

    async def mails(self, count: int) -> list[bytes]:
        """What lies in bob's Maildir, once it is so many; line ends as on the wire."""
        box = self.folder / "mail" / "bob" / "new"
        async with asyncio.timeout(20):
            while not box.exists() or len(os.listdir(box)) < count:
                await asyncio.sleep(0.02)
        return [path.read_bytes().replace(b"\n", b"\r\n") for path in box.iterdir()]
