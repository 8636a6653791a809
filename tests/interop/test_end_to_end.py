"""Mail goes in with one of other people's programs and is read with another, through a real node."""

import re

import pytest

from tests.interop.programs import READERS, SENDERS, crlf, curl_imap, maildir, mbsync, need

BODY = (
    "Dear critic,\r\n\r\n.a line that begins with a dot\r\n..and one with two\r\nFrom here on nothing is special.\r\n"
    "täglich Grüße: ünïcødé\r\n\r\nThe end.\r\n"
)

PAIRS = [
    ("swaks-starttls", "curl"),
    ("swaks-pipeline", "imaplib"),
    ("swaks-smtps-login", "mbsync"),
    ("msmtp", "mutt"),
    ("curl", "fetchmail"),
    ("mutt", "neomutt"),
    ("neomutt", "getmail"),
    ("smtplib", "mbsync"),
    ("aiosmtplib", "curl"),
    ("smtplib", "getmail"),
]


def test_every_program_is_in_a_pair():
    assert {sender for sender, _ in PAIRS} == set(SENDERS)
    assert {reader for _, reader in PAIRS} == set(READERS)


@pytest.mark.parametrize(("sender", "reader"), PAIRS, ids=lambda name: name)
def test_what_one_program_sends_another_reads(node, new_agent, tmp_path, sender, reader):
    planner, critic = new_agent("planner"), new_agent("critic")
    subject = f"{sender} to {reader}"
    message = (
        f"From: {planner.address}\r\nTo: {critic.address}\r\nSubject: {subject}\r\nX-Workflow-ID: wf-interop\r\n"
        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    ).encode() + BODY.encode()
    folder = tmp_path / "out"
    folder.mkdir()
    SENDERS[sender](node, folder, planner, critic, message)
    folder = tmp_path / "in"
    folder.mkdir()
    (got,) = READERS[reader](node, folder, critic)
    head, _, body = got.partition(b"\r\n\r\n")
    # A line "From …" in a file of messages gets a ">", and some programs put a line end after the last one.
    assert body.replace(b"\r\n>From ", b"\r\nFrom ").rstrip(b"\r\n") == BODY.encode().rstrip(b"\r\n")
    assert re.search(rb"(?m)^Subject: " + subject.encode(), head)
    assert re.search(rb"(?m)^X-Agent-ID: " + planner.name.encode() + rb"\r$", head)
    assert re.search(rb"(?m)^traceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-0[13]\r$", head)
    assert re.search(rb"(?m)^Message-ID:\s+<\S+>\r?$", head, re.IGNORECASE)


def test_mbsync_keeps_two_sides_the_same(node, new_agent, tmp_path):
    need("mbsync")
    planner, critic = new_agent("planner"), new_agent("critic")
    for number in range(3):
        text = f"From: {planner.address}\r\nTo: {critic.address}\r\nSubject: far {number}\r\n\r\nHello.\r\n"
        SENDERS["smtplib"](node, tmp_path, planner, critic, text.encode())
    assert len(mbsync(node, tmp_path, critic)) == 3
    inbox = tmp_path / "local/INBOX"
    # Here: one more, one deleted, one answered. There: one flagged.
    (inbox / "new/1.near").write_bytes(b"From: critic@fabric.local\nSubject: near\n\nWritten here.\n")
    first, second, third = sorted(
        (inbox / "new").glob("*,U=*"), key=lambda path: int(path.name.rpartition("U=")[2].partition(":")[0])
    )
    first.unlink()
    second.rename(inbox / "cur" / (second.name.partition(":")[0] + ":2,RS"))
    with node.imap(critic) as client:
        client.store("3", "+FLAGS", "(\\Flagged)")
        client.create("Notes/deep")
        client.append("Notes/deep", None, None, b"Subject: note\r\n\r\nkept\r\n")
    mbsync(node, tmp_path, critic)
    with node.imap(critic) as client:
        _, answer = client.fetch("1:*", "(FLAGS BODY.PEEK[HEADER.FIELDS (Subject)])")
        far = sorted(
            (part[1].split(b":")[1].strip(), b"\\Answered" in part[0], b"\\Flagged" in part[0])
            for part in answer
            if isinstance(part, tuple)
        )
    assert far == [(b"far 1", True, False), (b"far 2", False, True), (b"near", False, False)]
    assert any(
        third.name.partition(":")[0] in path.name and "F" in path.name.rpartition(",")[2]
        for path in (inbox / "cur").iterdir()
    )
    assert [b"kept" in message for message in maildir(tmp_path / "local/Notes/deep")] == [True]
    # A third run finds nothing to do.
    before = node.bodies(critic), sorted(path.name for path in inbox.glob("[cn]*/*"))
    mbsync(node, tmp_path, critic)
    assert (node.bodies(critic), sorted(path.name for path in inbox.glob("[cn]*/*"))) == before


def test_curl_lists_searches_appends_and_moves(node, new_agent, tmp_path):
    need("curl")
    critic = new_agent("critic")
    note = tmp_path / "note"
    note.write_bytes(b"Subject: by curl\r\n\r\nappended\r\n")
    curl_imap(node, critic, "INBOX", "-T", str(note))
    listed = curl_imap(node, critic, "", "-X", 'LIST "" "*"')
    assert b"INBOX" in listed
    assert b"\\Sent" in listed
    assert curl_imap(node, critic, "INBOX", "-X", "SEARCH SUBJECT curl").split() == [b"*", b"SEARCH", b"1"]
    assert curl_imap(node, critic, "INBOX", "-X", "SEARCH FLAGGED").split() == [b"*", b"SEARCH"]
    curl_imap(node, critic, "INBOX", "-X", "STORE 1 +FLAGS (\\Flagged)")
    assert curl_imap(node, critic, "INBOX", "-X", "SEARCH FLAGGED").split() == [b"*", b"SEARCH", b"1"]
    curl_imap(node, critic, "INBOX", "-X", "UID MOVE 1 Archive")
    assert curl_imap(node, critic, "Archive;MAILINDEX=1").endswith(crlf(note.read_bytes()))
