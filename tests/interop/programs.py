"""Other people's mail programs, each as one function: send this, or read what is there.

`SENDERS` and `READERS` hold them by name. A sender gets a whole message (CRLF) and submits it; a reader returns the
messages of the INBOX as octets. A program that is not installed skips its tests, and says so.
"""

import asyncio
import mailbox
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import aiosmtplib
import pytest

from tests.node_process import Account, NodeProcess

PATIENCE_S = 30

Sender = Callable[[NodeProcess, Path, Account, Account, bytes], None]
Reader = Callable[[NodeProcess, Path, Account], list[bytes]]


def need(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"NOT TESTED: {program} is not installed (see .ci/run)")
    return found


def run(*command: str, stdin: bytes = b"", **options: object) -> subprocess.CompletedProcess[bytes]:
    """Runs a program that must succeed."""
    need(command[0])
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, f"{shlex.join(command)}: {done.returncode}\n{said}"
    return done


def on_terminal(command: str, folder: Path) -> None:
    """Runs a full-screen program on a pseudo-terminal."""
    need("script")
    run(
        "script",
        "-qec",
        command,
        "/dev/null",
        env={"TERM": "xterm", "LC_ALL": "C.UTF-8", "HOME": str(folder), "PATH": "/usr/bin:/bin"},
    )


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


# ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def swaks(*options: str, door: str, mechanism: str) -> Sender:
    def send(node: NodeProcess, folder: Path, who: Account, to: Account, message: bytes) -> None:
        host, port = node.endpoint(door)
        # --data replaces all of the message; swaks wants LF and sends CRLF.
        data = written(folder / "data", message.replace(b"\r\n", b"\n").decode() + "\n")
        command = ["swaks", "--server", host, "--port", str(port), "--from", who.address, "--to", to.address]
        command += ["--auth", mechanism, "--auth-user", who.address, "--auth-password", who.password]
        done = run(*command, "--tls-ca-path", node.ready["ca"], "--tls-verify", *options, "--data", f"@{data}")
        assert b"TLSv1.3" in done.stdout

    return send


def msmtp(node: NodeProcess, folder: Path, who: Account, to: Account, message: bytes) -> None:
    host, port = node.endpoint("smtp")
    command = ["msmtp", f"--host={host}", f"--port={port}", f"--from={who.address}", "--tls=on", "--auth=plain"]
    command += [f"--tls-trust-file={node.ready['ca']}", f"--user={who.address}", f"--passwordeval=echo {who.password}"]
    run(*command, to.address, stdin=message.replace(b"\r\n", b"\n"))


def curl(node: NodeProcess, folder: Path, who: Account, to: Account, message: bytes) -> None:
    host, port = node.endpoint("smtps")
    path = folder / "message"
    path.write_bytes(message)
    command = ["curl", "-sS", "--cacert", node.ready["ca"], "-u", f"{who.address}:{who.password}"]
    run(*command, "--mail-from", who.address, "--mail-rcpt", to.address, "-T", str(path), f"smtps://{host}:{port}")


def smtplib(node: NodeProcess, folder: Path, who: Account, to: Account, message: bytes) -> None:
    with node.smtp(who) as client:
        assert client.sendmail(who.address, [to.address], message) == {}


def aiosmtplib_(node: NodeProcess, folder: Path, who: Account, to: Account, message: bytes) -> None:
    host, port = node.endpoint("smtp")
    errors, _ = asyncio.run(
        aiosmtplib.send(
            message,
            sender=who.address,
            recipients=[to.address],
            hostname=host,
            port=port,
            start_tls=True,
            tls_context=node.tls(),
            username=who.address,
            password=who.password,
        )
    )
    assert errors == {}


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def imaplib(node: NodeProcess, folder: Path, who: Account) -> list[bytes]:
    return node.bodies(who)


def curl_imap(node: NodeProcess, who: Account, url: str, *options: str) -> bytes:
    host, port = node.endpoint("imaps")
    command = ["curl", "-sS", "--cacert", node.ready["ca"], "-u", f"{who.address}:{who.password}", *options]
    return run(*command, f"imaps://{host}:{port}/{url}").stdout


def curl_read(node: NodeProcess, folder: Path, who: Account) -> list[bytes]:
    found = curl_imap(node, who, "INBOX", "-X", "SEARCH ALL").split()
    assert found[:2] == [b"*", b"SEARCH"]
    return [curl_imap(node, who, f"INBOX;MAILINDEX={number.decode()}") for number in found[2:]]


def mbsync_config(node: NodeProcess, folder: Path, who: Account) -> Path:
    _, port = node.endpoint("imaps")
    (folder / "local").mkdir(exist_ok=True)
    return written(
        folder / "mbsyncrc",
        f"""\
IMAPAccount aimx
Host localhost
Port {port}
User {who.address}
Pass {who.password}
SSLType IMAPS
CertificateFile {node.ready["ca"]}
AuthMechs *

IMAPStore far
Account aimx

MaildirStore near
Path {folder}/local/
Inbox {folder}/local/INBOX
SubFolders Verbatim

Channel all
Far :far:
Near :near:
Patterns *
Create Both
Remove Both
Expunge Both
SyncState *
""",
    )


def mbsync(node: NodeProcess, folder: Path, who: Account) -> list[bytes]:
    run("mbsync", "-c", str(mbsync_config(node, folder, who)), "-a")
    return maildir(folder / "local/INBOX")


def maildir(path: Path) -> list[bytes]:
    """The messages of a Maildir, with CRLF again: a file has what its system calls a line."""
    box = mailbox.Maildir(path, create=False)
    return [crlf(box.get_bytes(key)) for key in box.keys()]  # noqa: SIM118 — a mailbox iterates over messages


def crlf(message: bytes) -> bytes:
    return message.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def muttrc(node: NodeProcess, folder: Path, who: Account) -> Path:
    _, imaps = node.endpoint("imaps")
    _, smtps = node.endpoint("smtps")
    user = who.address.replace("@", "%40")
    return written(
        folder / "muttrc",
        f"""\
set certificate_file="{node.ready["ca"]}"
set ssl_force_tls=yes
set ssl_verify_host=yes
set imap_user="{who.address}"
set imap_pass="{who.password}"
set folder="imaps://localhost:{imaps}/"
set spoolfile="imaps://localhost:{imaps}/INBOX"
set smtp_url="smtps://{user}@localhost:{smtps}/"
set smtp_pass="{who.password}"
set smtp_authenticators="plain"
set from="{who.address}"
set use_from=yes
set use_envelope_from=yes
set copy=no
set record=""
set mbox_type=Maildir
set confirmappend=no
set confirmcreate=no
set delete=yes
set move=no
set mark_old=no
set wait_key=no
set sleep_time=0
set charset=utf-8
set send_charset=utf-8
set header_cache="{folder}/cache"
""",
    )


def mutt(program: str) -> Reader:
    def read(node: NodeProcess, folder: Path, who: Account) -> list[bytes]:
        need(program)
        out = folder / "saved"
        keys = f"<tag-pattern>~A<enter><tag-prefix><copy-message>{out}<enter><quit>"
        on_terminal(f"{program} -n -F {muttrc(node, folder, who)} -e 'push \"{keys}\"'", folder)
        return maildir(out)

    return read


def mutt_send(node: NodeProcess, folder: Path, who: Account, to: Account, message: bytes) -> None:
    environ = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    draft = message.replace(b"\r\n", b"\n")
    run("mutt", "-n", "-F", str(muttrc(node, folder, who)), "-H", "-", stdin=draft, env=environ)


def neomutt_send(node: NodeProcess, folder: Path, who: Account, to: Account, message: bytes) -> None:
    """It takes no draft from a script: it gets the subject, a header of ours and the body."""
    environ = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    head, _, body = message.decode().partition("\r\n\r\n")
    given = dict(line.split(": ", 1) for line in head.split("\r\n"))
    header = f"my_hdr X-Workflow-ID: {given['X-Workflow-ID']}"
    options = ("-n", "-F", str(muttrc(node, folder, who)), "-e", header, "-s", given["Subject"])
    run("neomutt", *options, "--", to.address, stdin=body.replace("\r\n", "\n").encode(), env=environ)


def fetchmail(node: NodeProcess, folder: Path, who: Account) -> list[bytes]:
    _, port = node.endpoint("imaps")
    out = folder / "fetched"
    out.mkdir()
    rc = written(
        folder / "fetchmailrc",
        f"""\
set no bouncemail
poll localhost protocol IMAP port {port} auth password
  user "{who.address}" password "{who.password}"
  ssl sslcertck sslcertfile "{node.ready["ca"]}"
  keep fetchall no rewrite no mimedecode
  mda "cat > $(mktemp -p {out})"
""",
    )
    environ = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "FETCHMAILHOME": str(folder)}
    files = ("--idfile", str(folder / "ids"), "--pidfile", str(folder / "pid"))
    run("fetchmail", "-f", str(rc), "--nodetach", "--nosyslog", *files, env=environ)
    return [crlf(path.read_bytes()) for path in out.iterdir()]


def getmail(node: NodeProcess, folder: Path, who: Account) -> list[bytes]:
    _, port = node.endpoint("imaps")
    out = folder / "got"
    out.mkdir()
    rc = written(
        folder / "getmailrc",
        f"""\
[retriever]
type = SimpleIMAPSSLRetriever
server = localhost
port = {port}
username = {who.address}
password = {who.password}
ca_certs = {node.ready["ca"]}

[destination]
type = MDA_external
path = /bin/sh
arguments = ("-c", "cat > $(mktemp -p {out})")
allow_root_commands = true

[options]
read_all = true
delivered_to = false
received = false
verbose = 2
""",
    )
    run("getmail", f"--getmaildir={folder}", f"--rcfile={rc}", env={"HOME": str(folder), "PATH": "/usr/bin:/bin"})
    return [crlf(path.read_bytes()) for path in out.iterdir()]


SENDERS: dict[str, Sender] = {
    "swaks-starttls": swaks("--tls", door="smtp", mechanism="PLAIN"),
    "swaks-pipeline": swaks("--tls", "--pipeline", door="smtp", mechanism="PLAIN"),
    "swaks-smtps-login": swaks("--tls-on-connect", door="smtps", mechanism="LOGIN"),
    "msmtp": msmtp,
    "curl": curl,
    "mutt": mutt_send,
    "neomutt": neomutt_send,
    "smtplib": smtplib,
    "aiosmtplib": aiosmtplib_,
}
READERS: dict[str, Reader] = {
    "imaplib": imaplib,
    "curl": curl_read,
    "mbsync": mbsync,
    "mutt": mutt("mutt"),
    "neomutt": mutt("neomutt"),
    "fetchmail": fetchmail,
    "getmail": getmail,
}
