"""Dovecot from Debian as a mail store: own configuration in a folder, LMTP over TCP and a Unix socket."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop.programs import need
from tests.ports import free_port

CONFIG = """\
base_dir = {folder}/run
state_dir = {folder}/run
log_path = {folder}/log
protocols = lmtp
listen = 127.0.0.1
ssl = {ssl}
ssl_cert = <{folder}/chain.pem
ssl_key = <{folder}/key.pem
ssl_min_protocol = TLSv1.2
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
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {port}
  }}
  unix_listener {folder}/lmtp {{
    mode = 0666
  }}
}}
"""


class Dovecot:
    """A mailbox for `bob`. Its folder is not pytest's: that is closed to its processes, and too long for a socket."""

    def __init__(self, chain: Path, key: Path, *, tls: bool) -> None:
        need("dovecot")
        if not Path("/usr/lib/dovecot/lmtp").exists():
            pytest.skip("NOT TESTED: dovecot-lmtpd is not installed (see .ci/run)")
        if os.geteuid() != 0:
            pytest.skip("NOT TESTED: Dovecot starts as root only")
        self.folder = folder = Path(tempfile.mkdtemp(prefix="aimx-dovecot-"))
        folder.chmod(0o711)
        self.port = free_port()
        self.socket = folder / "lmtp"
        user = pwd.getpwnam("nobody")
        (folder / "mail").mkdir()
        os.chown(folder / "mail", user.pw_uid, user.pw_gid)
        (folder / "users").write_text(f"bob:{{PLAIN}}x:{user.pw_uid}:{user.pw_gid}::{folder}/mail/bob::\n")
        (folder / "chain.pem").write_bytes(chain.read_bytes())
        (folder / "key.pem").write_bytes(key.read_bytes())
        values = {"folder": folder, "port": self.port, "ssl": "yes" if tls else "no"}
        (folder / "dovecot.conf").write_text(CONFIG.format(**values))

    @contextmanager
    def running(self) -> Iterator["Dovecot"]:
        process = subprocess.Popen(
            ["dovecot", "-F", "-c", str(self.folder / "dovecot.conf")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            self._wait(process)
            yield self
        finally:
            process.terminate()
            process.wait(20)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        limit = time.monotonic() + 20
        while time.monotonic() < limit and process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5) as probe:
                    if probe.recv(3) == b"220":
                        return
            except OSError:
                time.sleep(0.02)
        log = self.folder / "log"
        raise AssertionError(f"Dovecot did not start: {log.read_text() if log.exists() else process.stdout}")

    def mails(self) -> list[bytes]:
        """What lies in bob's Maildir; line ends as on the wire."""
        box = self.folder / "mail" / "bob" / "new"
        found = sorted(box.iterdir()) if box.exists() else []
        return [path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") for path in found]

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
