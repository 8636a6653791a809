"""Dovecot from Debian as a mail store for Postfix (LMTP, Maildir) and as an IMAP server, in a folder of its own."""

import os
import pwd
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import processes
from bench.generator import Unavailable
from tests.node_process import Account

CONFIG = """\
base_dir = {folder}/run
state_dir = {folder}/run
log_path = {folder}/log
protocols = lmtp imap
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
mail_location = maildir:{folder}/mail/%n
first_valid_uid = 1
auth_username_format = %Ln
passdb {{
  driver = passwd-file
  args = {folder}/users
}}
userdb {{
  driver = passwd-file
  args = {folder}/users
}}
mail_max_userip_connections = 0
service lmtp {{
  unix_listener {folder}/lmtp {{
    mode = 0666
  }}
}}
service imap-login {{
  inet_listener imap {{
    address = 127.0.0.1
    port = {port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
"""


class Dovecot:
    def __init__(self, folder: Path, accounts: Sequence[Account]) -> None:
        if not Path("/usr/lib/dovecot/lmtp").exists() or not Path("/usr/lib/dovecot/imap").exists():
            raise Unavailable("Dovecot is not installed; apt-get install dovecot-lmtpd dovecot-imapd")
        self.folder, self.accounts = folder, accounts
        self.socket = folder / "lmtp"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self._user = pwd.getpwnam("nobody")
        (folder / "mail").mkdir(parents=True)
        for one in (folder, *folder.parents):
            if not one.stat().st_mode & 0o001:
                one.chmod(0o711)  # its processes, which are not root, must come in
        os.chown(folder / "mail", self._user.pw_uid, self._user.pw_gid)
        ids = f"{self._user.pw_uid}:{self._user.pw_gid}"
        (folder / "users").write_text(
            "".join(f"{a.name}:{{PLAIN}}x:{ids}::{folder}/mail/{a.name}::\n" for a in accounts)
        )
        (folder / "dovecot.conf").write_text(CONFIG.format(folder=folder, port=self.port))

    @property
    def imap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def version(self) -> str:
        return subprocess.run(["dovecot", "--version"], capture_output=True, text=True, check=True).stdout.split()[0]

    @contextmanager
    def running(self) -> Iterator[None]:
        self._process = subprocess.Popen(["dovecot", "-F", "-c", str(self.folder / "dovecot.conf")])
        try:
            limit = time.monotonic() + 20
            while not self.socket.exists():
                if time.monotonic() > limit or self._process.poll() is not None:
                    raise RuntimeError(f"Dovecot did not start: {(self.folder / 'log').read_text()[-2000:]}")
                time.sleep(0.02)
            yield
        finally:
            self._process.terminate()
            self._process.wait(20)

    def delivered(self) -> int:
        boxes = (self.folder / "mail" / a.name / "new" for a in self.accounts)
        return sum(len(os.listdir(new)) for new in boxes if new.exists())

    def memory_kib(self) -> int:
        return processes.memory_kib(self._process.pid)

    def cpu_s(self) -> float:
        return processes.cpu_s(self._process.pid)
