"""Other people's programs read, mark, move and append mail through this server: curl, mbsync, mutt, neomutt, fetchmail,
getmail, Python's imaplib and aioimaplib. A program that is not there is skipped, and said so.
"""

import asyncio
import imaplib
import os
import shutil
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aioimaplib
import pytest

from tests.protocol.imap_world import ALICE, MESSAGE, PASSWORD, World, trusting, world

LIMIT = 40.0
"""Seconds a program may take."""
MULTIPART = (
    b"From: Carol <carol@fabric.local>\r\nTo: alice@fabric.local\r\nSubject: parts\r\nMIME-Version: 1.0\r\n"
    b"Message-ID: <parts@fabric.local>\r\nDate: Mon, 2 Feb 2026 10:00:00 +0000\r\n"
    b'Content-Type: multipart/mixed; boundary="==b"\r\n\r\n--==b\r\nContent-Type: text/plain\r\n\r\nsee below\r\n'
    b'--==b\r\nContent-Type: application/json\r\nContent-Disposition: attachment; filename="a.json"\r\n\r\n{"a":1}\r\n'
    b"--==b--\r\n"
)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


def needs(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed: its interoperation is NOT tested here")
    return path


async def run(
    program: str, *arguments: str, home: Path, codes: tuple[int, ...] = (0,), terminal: bool = False
) -> bytes:
    """What it printed, both streams. It has an empty home and a terminal if it needs one."""
    command = [needs(program), *arguments]
    if terminal:
        quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in command)
        command = [needs("script"), "-qec", quoted, "/dev/null"]
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment,
        cwd=home,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), LIMIT)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode in codes, said.decode("utf-8", "replace")
    return said


def write(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


async def subjects(world: World, mailbox: bytes = b"INBOX") -> int:
    client = await world.client(mailbox=None)
    (exists,) = [line for line in await client.select(mailbox) if line.endswith(b" EXISTS")]
    await client.close()
    return int(exists.split()[1])


async def test_curl_fetches_searches_appends_and_lists(here: World, tmp_path: Path) -> None:
    await here.deliver(MESSAGE)
    await here.deliver(MULTIPART)
    url = f"imaps://{here.imaps}"
    common = ("-sS", "--cacert", str(here.ca), "-u", f"{ALICE}:{PASSWORD}")
    assert await run("curl", *common, f"{url}/INBOX;MAILINDEX=2", home=tmp_path) == MULTIPART
    assert await run("curl", *common, f"{url}/INBOX;UID=1;SECTION=TEXT", home=tmp_path) == b"How are you?\r\n"
    said = await run("curl", *common, "-X", "SEARCH SEEN", f"{url}/INBOX", home=tmp_path)
    assert said == b"* SEARCH 1 2\r\n"
    assert b"Archive" in await run("curl", *common, f"{url}/", home=tmp_path)
    (tmp_path / "new.eml").write_bytes(MESSAGE)
    await run("curl", *common, "-T", str(tmp_path / "new.eml"), f"{url}/Drafts", home=tmp_path)
    assert await subjects(here, b"Drafts") == 1
    # STARTTLS, and SCRAM by curl's own choice.
    plain = ("-sS", "--ssl-reqd", "--cacert", str(here.ca), "-u", f"{ALICE}:{PASSWORD}")
    assert await run("curl", *plain, f"imap://{here.imap}/INBOX;MAILINDEX=2", home=tmp_path) == MULTIPART


async def test_mbsync_syncs_both_ways(here: World, tmp_path: Path) -> None:
    await here.deliver(MESSAGE)
    await here.deliver(MULTIPART)
    port = here.imaps.port  # these two want a name, not an address, in the certificate
    maildir = tmp_path / "mail"
    maildir.mkdir()
    config = write(
        tmp_path / "mbsyncrc",
        f"IMAPStore far\nHost localhost\nPort {port}\nUser {ALICE}\nPass {PASSWORD}\nSSLType IMAPS\n"
        f"CertificateFile {here.ca}\n\n"
        f"MaildirStore near\nPath {maildir}/\nInbox {maildir}/INBOX\nSubFolders Verbatim\n\n"
        "Channel all\nFar :far:\nNear :near:\nPatterns *\nCreate Both\nExpunge Both\nSyncState *\n",
    )
    await run("mbsync", "-c", config, "-a", home=tmp_path)
    fetched = sorted((maildir / "INBOX" / "new").iterdir())
    assert len(fetched) == 2
    # Marked, removed and written here: all of it arrives there.
    seen = maildir / "INBOX" / "cur" / (fetched[0].name.partition(":")[0] + ":2,FS")
    fetched[0].rename(seen)
    fetched[1].rename(maildir / "INBOX" / "cur" / (fetched[1].name.partition(":")[0] + ":2,T"))
    (maildir / "Drafts" / "new" / "1.2.3").write_bytes(MESSAGE.replace(b"\r\n", b"\n"))
    await run("mbsync", "-c", config, "-a", home=tmp_path)
    client = await here.client()
    (line,) = await client.ok(b"FETCH 1:* (FLAGS)")
    assert b"\\Flagged" in line
    assert b"\\Seen" in line
    assert await subjects(here, b"Drafts") == 1


@pytest.mark.parametrize("program", ["mutt", "neomutt"])
async def test_mutt_saves_and_deletes(here: World, tmp_path: Path, program: str) -> None:
    await here.deliver(MESSAGE)
    await here.deliver(MULTIPART)
    await here.deliver(MESSAGE)
    config = write(
        tmp_path / "muttrc",
        f"set folder=imaps://{here.imaps}/\nset spoolfile=imaps://{here.imaps}/INBOX\nset imap_user={ALICE}\n"
        f"set imap_pass={PASSWORD}\nset certificate_file={here.ca}\nset ssl_force_tls=yes\nset ssl_starttls=no\n"
        "set confirmappend=no\nset delete=yes\nset quit=yes\nset move=no\nset wait_key=no\nset sort=mailbox-order\n"
        "set header_cache=\nset ssl_verify_host=no\n",
    )
    push = "<first-entry><display-message><exit><save-message>=Archive<enter>"
    push += "<next-entry><delete-message><sync-mailbox><quit>"
    await run(program, "-n", "-F", config, "-e", f'push "{push}"', home=tmp_path, terminal=True)
    assert await subjects(here, b"Archive") == 1
    assert await subjects(here) < 3


async def test_fetchmail_collects_and_removes(here: World, tmp_path: Path) -> None:
    await here.deliver(MESSAGE)
    await here.deliver(MULTIPART)
    port = here.imaps.port
    box = tmp_path / "box"
    config = write(
        tmp_path / "fetchmailrc",
        f'poll localhost protocol imap port {port} user "{ALICE}" password "{PASSWORD}" ssl sslcertck'
        f' sslcertfile {here.ca} no rewrite mda "cat >> {box}"\n',
    )
    await run("fetchmail", "-f", config, "--nosyslog", "--pidfile", str(tmp_path / "pid"), "-v", home=tmp_path)
    collected = box.read_bytes()
    assert b"How are you?" in collected
    assert b'{"a":1}' in collected
    assert await subjects(here) == 0


async def test_getmail_collects(here: World, tmp_path: Path) -> None:
    await here.deliver(MESSAGE)
    await here.deliver(MULTIPART)
    host, port = here.imaps
    box = tmp_path / "box"
    script = write(tmp_path / "keep", f"#!/bin/sh\ncat >> {box}\n")
    (tmp_path / "keep").chmod(0o700)
    config = write(
        tmp_path / "getmailrc",
        f"[retriever]\ntype = SimpleIMAPSSLRetriever\nserver = {host}\nport = {port}\nusername = {ALICE}\n"
        f"password = {PASSWORD}\nca_certs = {here.ca}\n\n[destination]\ntype = MDA_external\npath = {script}\n"
        "allow_root_commands = true\n\n"
        "[options]\ndelete = true\n",
    )
    await run("getmail", f"--getmaildir={tmp_path}", "-r", config, home=tmp_path)
    assert b"How are you?" in box.read_bytes()
    assert b'{"a":1}' in box.read_bytes()
    assert await subjects(here) == 0


async def test_imaplib_does_all_it_can(here: World) -> None:
    await here.deliver(MESSAGE)
    await here.deliver(MULTIPART)

    def dialog() -> None:
        with imaplib.IMAP4(*here.imap) as box:
            box.starttls(trusting(here.ca))
            box.login(ALICE, PASSWORD)
            assert box.select() == ("OK", [b"2"])
            assert box.search(None, "SUBJECT", "parts") == ("OK", [b"2"])
            status, data = box.fetch("1:2", "(UID RFC822)")
            assert status == "OK"
            assert [item[1] for item in data if isinstance(item, tuple)] == [MESSAGE, MULTIPART]
            status, data = box.uid("fetch", "2", "(BODYSTRUCTURE)")
            assert b'("APPLICATION" "JSON"' in data[0]
            assert box.append("Archive", "(\\Seen)", imaplib.Time2Internaldate(0), MESSAGE)[0] == "OK"
            assert box.copy("1", "Archive")[0] == "OK"
            assert box.uid("MOVE", "2", "Archive")[0] == "OK"
            assert box.status("Archive", "(MESSAGES UNSEEN)")[1] == [b"Archive (MESSAGES 3 UNSEEN 0)"]
            assert box.store("1", "+FLAGS", "\\Deleted")[0] == "OK"
            assert box.expunge()[1][-1] == b"1"
            assert box.create("Work/Sub")[0] == box.rename("Work", "Play")[0] == box.delete("Play/Sub")[0] == "OK"
            assert box.namespace()[1] == [b'(("" "/")) NIL NIL']
            assert box.unselect()[0] == "OK"

    await asyncio.to_thread(dialog)


async def test_aioimaplib_idles(here: World) -> None:
    client = aioimaplib.IMAP4_SSL(*here.imaps, ssl_context=ssl.create_default_context(cafile=here.ca))
    await client.wait_hello_from_server()
    assert (await client.login(ALICE, PASSWORD)).result == "OK"
    assert (await client.select()).result == "OK"
    idle = await client.idle_start(timeout=30)
    await here.deliver(MESSAGE)
    assert b"1 EXISTS" in await client.wait_server_push(10)
    client.idle_done()
    await asyncio.wait_for(idle, 10)
    assert (await client.fetch("1", "(BODY.PEEK[TEXT])")).result == "OK"
    await client.logout()
