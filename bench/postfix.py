"""Postfix from Debian, as it comes, delivering to Maildirs or by LMTP; all it has in one folder, loopback only.

Settings follow its defaults (postconf(5)); what differs is only what keeps it inside the folder and apart from a
Postfix that the machine may run.
"""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import processes
from bench.dovecot import Dovecot
from bench.generator import Unavailable
from tests.node_process import Account

MASTER = Path("/usr/lib/postfix/sbin/master")

MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
myhostname = bench.localhost
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = loopback-only
inet_protocols = ipv4
smtpd_relay_restrictions = permit_mynetworks, reject
virtual_mailbox_domains = fabric.local
virtual_mailbox_base = {folder}/mail
virtual_mailbox_maps = texthash:{folder}/config/mailboxes
virtual_minimum_uid = 1
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
alias_maps =
local_recipient_maps =
default_transport = error:this is a benchmark
relay_transport = error:this is a benchmark
maillog_file = {folder}/log/postfix
maillog_file_prefixes = {folder}
"""

SERVICES = """\
127.0.0.1:{port} inet  n       -       n       -       -       smtpd
cleanup   unix  n       -       n       -       0       cleanup
qmgr      unix  n       -       n       300     1       qmgr
rewrite   unix  -       -       n       -       -       trivial-rewrite
bounce    unix  -       -       n       -       0       bounce
defer     unix  -       -       n       -       0       bounce
trace     unix  -       -       n       -       0       bounce
proxymap  unix  -       -       n       -       -       proxymap
error     unix  -       -       n       -       -       error
retry     unix  -       -       n       -       -       error
virtual   unix  -       n       n       -       -       virtual
lmtp      unix  -       -       n       -       -       lmtp
anvil     unix  -       -       n       -       1       anvil
postlog   unix-dgram n  -       n       -       1       postlogd
"""


class Postfix:
    """A running Postfix with a Maildir for each of `accounts`."""

    name = "Postfix → Maildir"

    def __init__(self, folder: Path, accounts: Sequence[Account], store: Dovecot | None = None) -> None:
        """`store`: deliver to it by LMTP instead of writing Maildirs."""
        if not MASTER.exists():
            raise Unavailable("Postfix is not installed; apt-get install postfix (choose: no configuration)")
        if os.geteuid() != 0:
            raise Unavailable("Postfix starts as root only; run the benchmark as root")
        self._folder = folder
        self._config = folder / "config"
        self._mail = folder / "mail"
        self._accounts = accounts
        self._store = store
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._write()

    def _write(self) -> None:
        owner, user = pwd.getpwnam("postfix"), pwd.getpwnam("nobody")
        for part in ("config", "queue", "data", "mail", "log"):
            (self._folder / part).mkdir(parents=True)
        os.chown(self._folder / "data", owner.pw_uid, owner.pw_gid)
        os.chown(self._mail, user.pw_uid, user.pw_gid)
        for folder in (self._folder, *self._folder.parents):
            if not folder.stat().st_mode & 0o001:
                folder.chmod(0o711)  # Postfix's processes, which are not root, must come in
        values = {"folder": self._folder, "uid": user.pw_uid, "gid": user.pw_gid, "port": self.port}
        transport = f"virtual_transport = lmtp:unix:{self._store.socket}\n" if self._store else ""
        (self._config / "main.cf").write_text(MAIN.format(**values) + transport)
        (self._config / "master.cf").write_text(SERVICES.format(**values))
        (self._config / "mailboxes").write_text("".join(f"{a.address} {a.name}/\n" for a in self._accounts))

    @property
    def smtp(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def version(self) -> str:
        asked = ["postconf", "-c", str(self._config), "-h", "mail_version"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()

    @contextmanager
    def running(self) -> Iterator[None]:
        control = ["postfix", "-c", str(self._config)]
        done = subprocess.run([*control, "start"], capture_output=True, text=True, check=False, timeout=30)
        if done.returncode != 0:
            raise RuntimeError(f"Postfix did not start: {done.stdout}{done.stderr}")
        try:
            self._pid = int((self._folder / "queue/pid/master.pid").read_text())
            yield
        finally:
            subprocess.run([*control, "stop"], capture_output=True, check=False, timeout=30)

    def delivered(self) -> int:
        """Files in all Maildirs."""
        if self._store is not None:
            return self._store.delivered()
        return sum(len(os.listdir(new)) for a in self._accounts if (new := self._mail / a.name / "new").exists())

    def settled(self) -> bool:
        """Nothing is left to do for what was delivered."""
        return True

    def cpu_s(self) -> float:
        """Of Postfix, and of the store it delivers to."""
        return processes.cpu_s(self._pid) + (self._store.cpu_s() if self._store else 0.0)

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
