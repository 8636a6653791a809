"""Signing in, choosing a mailbox, reading and marking: dialogs as a client has them."""

import base64
import hashlib
import hmac
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.protocol.imap_world import ALICE, BOB, MESSAGE, PASSWORD, World, trusting, world


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def test_in_the_clear_only_what_leads_out_of_it_works(here: World) -> None:
    client = await here.clear()
    (capabilities,), _ = await client.ask(b"CAPABILITY")
    assert b" STARTTLS LOGINDISABLED" in capabilities
    assert b"AUTH=" not in capabilities
    for command in (b"LOGIN a b", b"AUTHENTICATE PLAIN", b"SELECT INBOX", b'LIST "" *'):
        assert (await client.ask(command))[1] == b"BAD STARTTLS first"
    await client.ok(b"NOOP")
    await client.ok(b"ID NIL")


async def test_starttls_forgets_what_was_pipelined_behind_it(here: World) -> None:
    client = await here.clear()
    client.send(b"a STARTTLS\r\nb NOOP\r\nc LOGOUT\r\n")
    _, tagged = await client.until(b"a")
    assert tagged.startswith(b"OK")
    await client.writer.start_tls(trusting(here.ca), server_hostname="127.0.0.1")
    untagged, tagged = await client.ask(b"CAPABILITY")
    assert tagged.startswith(b"OK")
    assert b"AUTH=PLAIN" in untagged[0]
    assert b"STARTTLS" not in untagged[0]
    await client.login()


@pytest.mark.parametrize("mechanism", [b"PLAIN", b"LOGIN"])
async def test_sign_in_with_and_without_an_initial_response(here: World, mechanism: bytes) -> None:
    if mechanism == b"PLAIN":
        answers = [b"\0" + ALICE.encode() + b"\0" + PASSWORD.encode()]
    else:
        answers = [ALICE.encode(), PASSWORD.encode()]
    for at_once in (True, False):
        client = await here.tls()
        waiting = [base64.b64encode(answer) for answer in answers]
        client.send(b"a AUTHENTICATE " + mechanism + (b" " + waiting.pop(0) if at_once else b"") + b"\r\n")
        while waiting:
            assert (await client.line()).startswith(b"+ ")
            client.send(waiting.pop(0) + b"\r\n")
        _, tagged = await client.until(b"a")
        assert tagged.startswith(b"OK [CAPABILITY IMAP4rev1 ")


async def test_sign_in_by_scram_never_shows_the_password(here: World) -> None:
    """RFC 5802 §5 from the client's side; the server proves itself too."""
    client = await here.tls()
    bare = b"n=alice,r=nonce"
    client.send(b"a AUTHENTICATE SCRAM-SHA-256 " + base64.b64encode(b"n,," + bare) + b"\r\n")
    first = base64.b64decode((await client.line()).removeprefix(b"+ "))
    nonce, salt, rounds = (part[2:] for part in first.split(b","))
    salted = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), base64.b64decode(salt), int(rounds))
    key = hmac.digest(salted, b"Client Key", "sha256")
    without_proof = b"c=biws,r=" + nonce
    message = b",".join((bare, first, without_proof))
    signature = hmac.digest(hashlib.sha256(key).digest(), message, "sha256")
    proof = base64.b64encode(bytes(a ^ b for a, b in zip(key, signature, strict=True)))
    client.send(base64.b64encode(without_proof + b",p=" + proof) + b"\r\n")
    final = base64.b64decode((await client.line()).removeprefix(b"+ "))
    expected = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), message, "sha256")
    assert final == b"v=" + base64.b64encode(expected)
    client.send(b"\r\n")
    assert (await client.until(b"a"))[1].startswith(b"OK [CAPABILITY")


async def test_a_cancelled_and_a_wrong_sign_in_leave_the_session_usable(here: World) -> None:
    client = await here.tls()
    client.send(b"a AUTHENTICATE PLAIN\r\n")
    assert await client.line() == b"+ "
    client.send(b"*\r\n")
    assert (await client.until(b"a"))[1] == b"BAD sign-in cancelled"
    assert (await client.ask(b"LOGIN alice wrong"))[1].startswith(b"NO [AUTHENTICATIONFAILED]")
    assert (await client.ask(b"LOGIN nobody wrong"))[1].startswith(b"NO [AUTHENTICATIONFAILED]")
    assert (await client.ask(b"AUTHENTICATE GSSAPI"))[1].startswith(b"NO [CANNOT]")
    await client.login()


async def test_select_tells_what_a_client_needs(here: World) -> None:
    await here.deliver()
    await here.deliver()
    client = await here.client(mailbox=None)
    untagged, tagged = await client.ask(b"SELECT inbox")
    assert tagged == b"OK [READ-WRITE] SELECT done"
    assert untagged[0] == rb"* FLAGS (\Answered \Deleted \Draft \Flagged \Seen $AimxDone)"
    assert untagged[1] == rb"* OK [PERMANENTFLAGS (\Answered \Deleted \Draft \Flagged \Seen $AimxDone \*)] kept"
    assert untagged[2:5] == [b"* 2 EXISTS", b"* 2 RECENT", b"* OK [UNSEEN 1] the first unseen"]
    assert untagged[5].startswith(b"* OK [UIDVALIDITY ")
    assert untagged[6] == b"* OK [UIDNEXT 3] next"
    # What was recent in one session is not in the next.
    other = await here.client(mailbox=None)
    assert b"* 0 RECENT" in await other.select()


async def test_examine_is_read_only(here: World) -> None:
    await here.deliver()
    client = await here.client(mailbox=None)
    untagged, tagged = await client.ask(b"EXAMINE INBOX")
    assert tagged == b"OK [READ-ONLY] EXAMINE done"
    assert b"* OK [PERMANENTFLAGS ()] kept" in untagged
    assert (await client.ask(rb"STORE 1 +FLAGS (\Seen)"))[1].startswith(b"NO [READ-ONLY]")
    assert (await client.ask(b"EXPUNGE"))[1].startswith(b"NO [READ-ONLY]")
    assert await client.ok(b"FETCH 1 (BODY[TEXT])") == [b"* 1 FETCH (BODY[TEXT] {14}\r\nHow are you?\r\n)"]
    assert await client.ok(b"FETCH 1 (FLAGS)") == [rb"* 1 FETCH (FLAGS (\Recent))"]


async def test_a_failed_select_leaves_nothing_selected(here: World) -> None:
    client = await here.client()
    assert (await client.ask(b"SELECT Nowhere"))[1].startswith(b"NO [NONEXISTENT]")
    assert (await client.ask(b"FETCH 1 FLAGS"))[1] == b"BAD select a mailbox first"


async def test_fetch_of_a_message_sets_seen_and_says_so(here: World) -> None:
    await here.deliver()
    client = await here.client()
    assert await client.ok(b"FETCH 1 (UID RFC822.SIZE BODY[])") == [
        b"* 1 FETCH (UID 1 RFC822.SIZE %d BODY[] {%d}\r\n%b)" % (len(MESSAGE), len(MESSAGE), MESSAGE),
        rb"* 1 FETCH (FLAGS (\Recent \Seen))",
    ]
    assert await client.ok(b"FETCH 1 RFC822.TEXT") == [b"* 1 FETCH (RFC822.TEXT {14}\r\nHow are you?\r\n)"]


async def test_fetch_of_every_item(here: World) -> None:
    await here.deliver()
    client = await here.client()
    (line,) = await client.ok(b"FETCH 1 FULL")
    assert line.startswith(rb"* 1 FETCH (FLAGS (\Recent) INTERNALDATE ")
    assert line.endswith(
        b'RFC822.SIZE %d ENVELOPE (NIL "hello" ((NIL NIL "carol" "fabric.local")) ((NIL NIL "carol" "fabric.local")) '
        b'((NIL NIL "carol" "fabric.local")) ((NIL NIL "alice" "fabric.local")) NIL NIL NIL NIL) '
        b'BODY ("TEXT" "PLAIN" ("CHARSET" "US-ASCII") NIL NIL "7BIT" 14 1))' % len(MESSAGE)
    )
    asked = (
        b"FETCH 1 (BODY.PEEK[HEADER.FIELDS (SUBJECT X-None)] BODY.PEEK[HEADER.FIELDS.NOT (subject to)]"
        b" BODY.PEEK[1]<4.3> BODY.PEEK[1.MIME] BODY.PEEK[2] BODY.PEEK[]<900.10> RFC822.HEADER)"
    )
    (line,) = await client.ok(asked)
    header = MESSAGE[:-14]
    assert line == (
        b"* 1 FETCH (BODY[HEADER.FIELDS (SUBJECT X-None)] {18}\r\nSubject: hello\r\n\r\n"
        b" BODY[HEADER.FIELDS.NOT (subject to)] {28}\r\nFrom: carol@fabric.local\r\n\r\n"
        b" BODY[1]<4> {3}\r\nare BODY[1.MIME] {%d}\r\n%b BODY[2] NIL BODY[]<900> {0}\r\n"
        b" RFC822.HEADER {%d}\r\n%b)" % (len(header), header, len(header), header)
    )


async def test_store_answers_with_the_flags_and_silent_does_not(here: World) -> None:
    for _ in range(3):
        await here.deliver()
    client = await here.client()
    assert await client.ok(rb"STORE 1:2 +FLAGS (\Flagged $aimxdone Blue)") == [
        rb"* 1 FETCH (FLAGS (\Flagged \Recent $AimxDone Blue))",
        rb"* 2 FETCH (FLAGS (\Flagged \Recent $AimxDone Blue))",
    ]
    assert await client.ok(rb"UID STORE 2 -FLAGS \Flagged") == [rb"* 2 FETCH (UID 2 FLAGS (\Recent $AimxDone Blue))"]
    assert await client.ok(rb"STORE 1:* FLAGS.SILENT (\Answered)") == []
    assert await client.ok(b"NOOP") == []
    assert await client.ok(b"FETCH 1:* FLAGS") == [
        rb"* %d FETCH (FLAGS (\Answered \Recent))" % number for number in (1, 2, 3)
    ]


async def test_append_says_where_and_copy_and_move_too(here: World) -> None:
    client = await here.client()
    tagged = await client.append(MESSAGE, flags=rb'(\Seen Red) "17-Jul-1996 02:44:25 -0700" ')
    assert tagged.startswith(b"OK [APPENDUID ")
    assert tagged.split(b"]")[0].endswith(b" 1")
    (line,) = await client.ok(b"FETCH 1 (FLAGS INTERNALDATE BODY.PEEK[TEXT])")
    assert rb'(FLAGS (\Recent \Seen Red) INTERNALDATE "17-Jul-1996 09:44:25 +0000" BODY[TEXT] {14}' in line
    assert (await client.append(MESSAGE, b"Nowhere")).startswith(b"NO [TRYCREATE]")
    _, tagged = await client.ask(b"COPY 1 Archive")
    assert tagged.startswith(b"OK [COPYUID ")
    assert tagged.endswith(b" 1 1] COPY done")
    assert (await client.ask(b"COPY 1 Nowhere"))[1].startswith(b"NO [TRYCREATE]")
    untagged, tagged = await client.ask(b"MOVE 1 Archive")
    assert tagged == b"OK MOVE done"
    assert untagged[0].startswith(b"* OK [COPYUID ")
    assert untagged[1:] == [b"* 1 EXPUNGE"]
    assert b"* 2 EXISTS" in await client.select(b"Archive")


async def test_expunge_and_close(here: World) -> None:
    for _ in range(5):
        await here.deliver()
    client = await here.client()
    await client.ok(rb"STORE 2,4,5 +FLAGS.SILENT (\Deleted)")
    assert await client.ok(b"UID EXPUNGE 4:5") == [b"* 5 EXPUNGE", b"* 4 EXPUNGE"]
    assert await client.ok(b"EXPUNGE") == [b"* 2 EXPUNGE"]
    assert await client.ok(b"UID SEARCH ALL") == [b"* SEARCH 1 3"]
    await client.ok(rb"STORE 1 +FLAGS.SILENT (\Deleted)")
    assert await client.ok(b"CLOSE") == []
    assert b"* 1 EXISTS" in await client.select()
    await client.ok(rb"STORE 1 +FLAGS.SILENT (\Deleted)")
    await client.ok(b"UNSELECT")
    assert b"* 1 EXISTS" in await client.select()


async def test_no_agent_sees_anothers_mail(here: World) -> None:
    await here.deliver(to=BOB)
    client = await here.client(ALICE, None)
    assert b"* 0 EXISTS" in await client.select()
    for name in (b"bob@fabric.local", b"../bob/INBOX", b"INBOX/../bob"):
        assert (await client.ask(b"SELECT " + name))[1].startswith(b"NO")


async def test_search_of_every_key(here: World) -> None:
    await here.deliver(MESSAGE)
    await here.deliver(
        b"From: =?utf-8?q?J=C3=BCrgen?= <j@x.org>\r\nDate: Mon, 2 Feb 2026 23:59:00 -0800\r\nSubject: Invoice\r\n"
        b"Content-Transfer-Encoding: base64\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
        + base64.b64encode("Straße über Brücke".encode())
    )
    await here.deliver(b"Subject: big\r\nCc: z@z\r\n\r\n" + b"x" * 400_000 + b" needle " + b"y" * 1000)
    client = await here.client()
    await client.ok(rb"STORE 2 +FLAGS.SILENT (\Flagged Blue)")
    for keys, expected in {
        b"ALL": b" 1 2 3",
        b"1,3": b" 1 3",
        b"UID 2:*": b" 2 3",
        b"NOT 1": b" 2 3",
        b"FLAGGED": b" 2",
        b"UNFLAGGED UNDELETED": b" 1 3",
        b"KEYWORD blue": b" 2",
        b"UNKEYWORD Blue": b" 1 3",
        b"NEW": b" 1 2 3",
        b"OLD": b"",
        b"OR FLAGGED SUBJECT HELLO": b" 1 2",
        b"(OR (FLAGGED) (NOT UID 1)) SMALLER 5000": b" 2",
        b"LARGER 5000": b" 3",
        b'HEADER Cc ""': b" 3",
        b"FROM carol": b" 1",
        b"TO alice": b" 1",
        b"CC z@Z": b" 3",
        b"CHARSET UTF-8 FROM {7+}\r\nJ\xc3\x9crGEN": b" 2",
        b"SENTON 2-Feb-2026": b" 2",
        b"SENTSINCE 3-Feb-2026": b"",
        b"SENTBEFORE 3-Feb-2026": b" 2",
        b"SINCE 1-Jan-2020 BEFORE 1-Jan-2020": b"",
        b"SINCE 1-Jan-2020": b" 1 2 3",
        b"ON 1-Jan-2020": b"",
        b'BODY "how are"': b" 1",
        b"BODY subject": b"",
        b"TEXT subject": b" 1 2 3",
        b"BODY NEEDLE": b" 3",
        b"BODY nothing-like-it": b"",
        b"CHARSET UTF-8 BODY {7+}\r\nSTRA\xc3\x9fE": b" 2",
        b"CHARSET UTF-8 TEXT {7+}\r\nBr\xc3\xbccke": b" 2",
        b"NOT TEXT alice": b" 2 3",
    }.items():
        assert await client.ok(b"SEARCH " + keys) == [b"* SEARCH" + expected], keys
    assert await client.ok(b"UID SEARCH 3") == [b"* SEARCH 3"]
    assert (await client.ask(b"SEARCH CHARSET KOI8-R ALL"))[1].startswith(b"NO [BADCHARSET (US-ASCII UTF-8)]")
    assert (await client.ask(b"SEARCH 9"))[1].startswith(b"BAD")
