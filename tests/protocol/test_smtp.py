"""SMTP on the wire: dialogs over real sockets and real TLS, on uvloop."""

import asyncio
import base64
import hashlib
import hmac

import pytest

from aimx.identity import scram
from aimx.intake.envelope import Reply
from aimx.store.contract import Agent
from tests.protocol.smtp_harness import DOMAIN, PASSWORD, Wire, running

MESSAGE = b"From: planner@fabric.local\r\nSubject: x\r\n\r\nhello\r\n"
SENDER = f"MAIL FROM:<planner@{DOMAIN}>"
RECIPIENT = f"RCPT TO:<critic@{DOMAIN}>"


def encoded(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


PLAIN = encoded(f"\0planner\0{PASSWORD}")


async def test_a_mail_over_tls_is_handed_over_whole() -> None:
    async with running() as node:
        wire = await node.signed_in()
        assert (await wire.mail(MESSAGE)).startswith("250 2.6.0")
        await wire.say("QUIT", 221, "2.0.0")
        assert await wire.closed() == b""
        (mail,) = node.mails
        assert mail.content == MESSAGE
        assert mail.envelope.agent == mail.envelope.sender == f"planner@{DOMAIN}"
        assert mail.envelope.recipients == (f"critic@{DOMAIN}",)
        assert (mail.envelope.protocol, mail.envelope.tls) == ("ESMTPSA", "TLSv1.3")
        assert mail.envelope.helo == "client.example"
        assert [event.name for event in mail.envelope.events] == ["smtp.auth"]


async def test_what_is_offered_before_and_after_tls() -> None:
    async with running() as node:
        clear, secure = await node.wire(tls=False), await node.wire()
        before = await clear.say("EHLO x", 250)
        after = await secure.say("EHLO x", 250)
        both = {"PIPELINING", "SIZE 52428800", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN"}
        assert {line[4:] for line in before[1:]} == both | {"STARTTLS"}
        assert {line[4:] for line in after[1:]} == both | {"AUTH SCRAM-SHA-256 PLAIN LOGIN", "MT-PRIORITY", "HELP"}


async def test_a_reply_of_many_lines_comes_in_one_piece() -> None:
    async with running() as node:
        wire = await node.wire(tls=False)
        await wire.send(b"EHLO x\r\n")
        first = await asyncio.wait_for(wire.reader.read(65536), 5)
        assert first.count(b"\r\n") == 8


@pytest.mark.parametrize("line", ["HELO x", "AUTH PLAIN " + PLAIN, SENDER, RECIPIENT, "DATA", "RSET", "VRFY x", "HELP"])
async def test_in_the_clear_nothing_else_works(line: str) -> None:
    async with running() as node:
        wire = await node.wire(tls=False)
        await wire.say("EHLO x", 250)
        await wire.say("NOOP", 250, "2.0.0")
        await wire.say(line, 530, "5.7.0")
        await wire.say("QUIT", 221)


async def test_a_pipelined_session_is_answered_in_order() -> None:
    async with running() as node:
        node.intake.unknown.add(f"nobody@{DOMAIN}")
        wire = await node.signed_in()
        await wire.send(f"{SENDER}\r\nRCPT TO:<nobody@{DOMAIN}>\r\n{RECIPIENT}\r\nNOOP\r\nBOGUS\r\nDATA\r\n".encode())
        for code, enhanced in (
            (250, "2.1.0"),
            (550, "5.1.1"),
            (250, "2.1.5"),
            (250, "2.0.0"),
            (500, "5.5.1"),
            (354, ""),
        ):
            await wire.expect(code, enhanced)
        await wire.send(MESSAGE + f".\r\n{SENDER}\r\n{RECIPIENT}\r\nDATA\r\n".encode())
        for code in (250, 250, 250, 354):
            await wire.expect(code)
        await wire.send(MESSAGE + b".\r\nQUIT\r\n")
        await wire.expect(250)
        await wire.expect(221)
        assert [mail.content for mail in node.mails] == [MESSAGE, MESSAGE]
        assert [event.name for event in node.mails[0].envelope.events] == ["smtp.auth", "smtp.recipient_refused"]
        assert node.mails[1].envelope.events == []


@pytest.mark.parametrize(
    ("lines", "code", "enhanced"),
    [
        ([RECIPIENT], 503, "5.5.1"),
        (["DATA"], 503, "5.5.1"),
        ([SENDER, "DATA"], 503, "5.5.1"),
        ([SENDER, SENDER], 503, "5.5.1"),
        ([SENDER, RECIPIENT, "RSET", "DATA"], 503, "5.5.1"),
        ([SENDER, RECIPIENT, "EHLO again", "DATA"], 503, "5.5.1"),
        ([SENDER, RECIPIENT, "DATA now"], 501, "5.5.4"),
        (["AUTH PLAIN " + PLAIN], 503, "5.5.1"),
        (["STARTTLS"], 503, "5.5.1"),
        (["EHLO"], 501, "5.5.4"),
        (["RSET x"], 501, "5.5.4"),
        (["MAIL TO:<a@b>"], 501, "5.5.4"),
        (["MAIL FROM:planner@fabric.local"], 501, "5.1.3"),
        (["MAIL FROM:<planner>"], 501, "5.1.3"),
        ([SENDER + " SIZE=99999999999"], 552, "5.3.4"),
        ([SENDER + " SIZE=x"], 501, "5.5.4"),
        ([SENDER + " BODY=BINARYMIME"], 501, "5.5.4"),
        ([SENDER + " MT-PRIORITY=10"], 501, "5.5.4"),
        ([SENDER + " HOLDFOR=9"], 555, "5.5.4"),
        ([SENDER, "RCPT TO:<>"], 501, "5.1.3"),
        ([SENDER, RECIPIENT + " RRVS=x"], 555, "5.5.4"),
        ([SENDER, "RCPT TO:<x@gmail.example>"], 550, "5.7.1"),
        ([SENDER, "RCPT TO:<@fabric.local:x@gmail.example>"], 550, "5.7.1"),
        ([SENDER, "RCPT TO:<x%gmail.example@other.example>"], 550, "5.7.1"),
        ([f"MAIL FROM:<critic@{DOMAIN}>"], 550, "5.7.1"),
        (["MAIL FROM:<>"], 550, "5.7.1"),
        (["MAIL FROM:<planner@elsewhere.example>"], 550, "5.7.1"),
        (["MAIL FROM:<j\u00fcrgen@fabric.local>"], 553, "5.6.7"),
        ([SENDER, "RCPT TO:<j\u00fcrgen@fabric.local>"], 553, "5.6.7"),
        (["EXPN list"], 502, "5.5.1"),
        (["VRFY"], 501, "5.5.4"),
        (["VRFY planner"], 252, "2.5.0"),
        (["HELP"], 214, "2.0.0"),
        ([""], 500, "5.5.1"),
        (["N\u00d6\u00d6P"], 500, "5.5.1"),
        (["NOOP \u00e4"], 500, "5.5.2"),
        (["NOOP " + "x" * 506], 500, "5.5.6"),
        (["NOOP " + "x" * 12_500], 500, "5.5.6"),
    ],
)
async def test_what_is_wrong_is_said_and_the_session_goes_on(lines: list[str], code: int, enhanced: str) -> None:
    async with running() as node:
        wire = await node.signed_in()
        for line in lines[:-1]:
            await wire.say(line, 250)
        await wire.say(lines[-1], code, enhanced)
        await wire.say("RSET", 250)
        assert (await wire.mail()).startswith("250")


async def test_an_invalid_utf8_address_is_refused() -> None:
    async with running() as node:
        wire = await node.signed_in()
        await wire.say(b"MAIL FROM:<pl\xe4nner@fabric.local> SMTPUTF8", 500, "5.5.2")


async def test_without_signing_in_nothing_is_sent() -> None:
    async with running() as node:
        wire = await node.wire()
        await wire.say(SENDER, 530, "5.7.0")
        await wire.say("EHLO x", 250)
        await wire.say(SENDER, 530, "5.7.0")


async def test_parameters_reach_the_envelope() -> None:
    async with running() as node:
        wire = await node.signed_in()
        await wire.say(SENDER + " SIZE=100 BODY=8BITMIME SMTPUTF8 MT-PRIORITY=-3 AUTH=<>", 250)
        await wire.say("RCPT TO:<j\u00fcrgen@fabric.local>", 250)
        await wire.say(RECIPIENT.lower(), 250)
        await wire.say(RECIPIENT, 250)
        await wire.say("DATA", 354)
        await wire.send(b"Subject: \xc3\xbc\r\n\r\n.\r\n")
        await wire.expect(250)
        envelope = node.mails[0].envelope
        assert envelope.recipients == (f"jürgen@{DOMAIN}", f"critic@{DOMAIN}"), "the same one twice is one"
        assert (envelope.priority, envelope.protocol) == (-3, "UTF8SMTPSA")


async def test_dots_and_eight_bits_come_through_untouched() -> None:
    content = b"Subject: x\r\n\r\n.\r\n..\r\n.x\r\n\xff\xfe" + bytes(range(1, 10)) + b"\r\n\r\n"
    async with running() as node:
        wire = await node.signed_in()
        await wire.say(SENDER, 250)
        await wire.say(RECIPIENT, 250)
        await wire.say("DATA", 354)
        for octet in content.replace(b"\r\n.", b"\r\n..") + b".\r\n":
            wire.writer.write(bytes([octet]))
        await wire.expect(250)
        assert node.mails[0].content == content


# ── smuggling ──

SMUGGLED = f"\r\n{SENDER}\r\n{RECIPIENT}\r\nDATA\r\nSubject: evil\r\n\r\nevil\r\n".encode()
ENDS = [
    b"\n.\n", b"\n.\r\n", b"\n.\r", b"\r.\r", b"\r.\n", b"\r.\r\n", b"\r\n.\n", b"\r\n.\r", b"\r\n.\r\r\n",
    b"\r\n\0.\r\n", b"\r\n.\0\r\n", b"\n\r.\n\r", b"\n\n.\n\n",
]  # fmt: skip


@pytest.mark.parametrize("end", ENDS, ids=repr)
async def test_no_mail_is_smuggled_in_another(end: bytes) -> None:
    async with running() as node:
        wire = await node.signed_in()
        reply = await wire.mail(MESSAGE + end + SMUGGLED)
        assert reply.startswith("554 5.6.0")
        assert node.mails == []
        assert (await wire.mail(MESSAGE)).startswith("250"), "one refusal, and both sides agree where they are"
        assert len(node.mails) == 1


async def test_who_ends_a_mail_wrongly_and_waits_gets_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimx.smtp.server.DRAIN_FOR", 0.1)
    async with running() as node:
        wire = await node.signed_in()
        await wire.say(SENDER, 250)
        await wire.say(RECIPIENT, 250)
        await wire.say("DATA", 354)
        await wire.send(b"Subject: x\n\nhello\n.\n")
        assert "bare LF" in (await wire.expect(554, "5.6.0"))[0]
        assert await wire.closed() == b""
        assert node.mails == []


@pytest.mark.parametrize("line", [b"NOOP\nNOOP\r\n", b"NOOP\rNOOP\r\n", b"NO\0OP\r\n", b"NOOP\n"])
async def test_faulty_command_lines_are_refused(line: bytes) -> None:
    async with running() as node:
        wire = await node.signed_in()
        await wire.send(line)
        await wire.expect(500, "5.5.2")


# ── STARTTLS ──


async def starttls(wire: Wire, node_trust: object) -> None:
    await wire.say("EHLO x", 250)
    await wire.say("STARTTLS", 220, "2.0.0")
    await wire.writer.start_tls(node_trust, server_hostname="localhost")  # type: ignore[arg-type]


async def test_a_mail_over_starttls() -> None:
    async with running() as node:
        wire = await node.wire(tls=False)
        await starttls(wire, node.trust())
        await wire.say("AUTH PLAIN " + PLAIN, 503, "5.5.1")  # RFC 3207 §4.2: the EHLO in the clear is forgotten
        await wire.say("EHLO x", 250)
        await wire.say("AUTH PLAIN " + PLAIN, 235)
        assert (await wire.mail(MESSAGE)).startswith("250")
        assert node.mails[0].envelope.tls == "TLSv1.3"


async def test_what_is_pipelined_after_starttls_is_thrown_away() -> None:
    async with running() as node:
        wire = await node.wire(tls=False)
        await wire.say("EHLO x", 250)
        await wire.send(b"STARTTLS\r\nEHLO injected\r\nNOOP\r\nMAIL FROM:<ev")
        await wire.expect(220)
        await wire.writer.start_tls(node.trust(), server_hostname="localhost")
        await wire.send(b"il>\r\n")
        await wire.expect(500, "5.5.1")
        await wire.say("AUTH PLAIN " + PLAIN, 503, "5.5.1")
        await wire.say("NOOP", 250)


async def test_rubbish_instead_of_a_handshake_ends_the_connection_only() -> None:
    async with running() as node:
        other = await node.signed_in()
        wire = await node.wire(tls=False)
        await wire.say("EHLO x", 250)
        await wire.say("STARTTLS", 220)
        await wire.send(b"EHLO still in the clear\r\nNOOP\r\n" * 20)
        assert b"250" not in await wire.closed()
        reader, writer = await asyncio.open_connection(*node.smtps)
        writer.write(b"EHLO x\r\n" * 20)
        assert b"250" not in await asyncio.wait_for(reader.read(), 5)
        writer.close()
        assert (await other.mail()).startswith("250")


# ── signing in ──


async def test_every_mechanism_signs_in() -> None:
    async with running() as node:
        wire = await node.wire()
        await wire.say("EHLO x", 250)
        await wire.say("AUTH PLAIN", 334)
        await wire.say(PLAIN, 235, "2.7.0")
        wire = await node.wire()
        await wire.say("EHLO x", 250)
        assert (await wire.say("AUTH LOGIN", 334))[0] == "334 " + encoded("Username:")
        assert (await wire.say(encoded("planner"), 334))[0] == "334 " + encoded("Password:")
        await wire.say(encoded(PASSWORD), 235, "2.7.0")
        wire = await node.wire()
        await wire.say("EHLO x", 250)
        await wire.say("AUTH LOGIN " + encoded(f"planner@{DOMAIN}"), 334)
        await wire.say(encoded(PASSWORD), 235)
        wire = await node.wire()
        await wire.say("EHLO x", 250)
        first = b"n,,n=planner,r=abcdef"
        challenge = (await wire.say("AUTH scram-sha-256 " + encoded(first), 334))[0][4:]
        final = scram_final(PASSWORD, first, base64.b64decode(challenge))
        verdict = (await wire.say(encoded(final), 334))[0][4:]
        assert base64.b64decode(verdict).startswith(b"v=")
        await wire.say("", 235, "2.7.0")
        assert (await wire.mail()).startswith("250")


@pytest.mark.parametrize(
    ("lines", "code", "enhanced"),
    [
        (["AUTH PLAIN " + encoded("\0planner\0wrong")], 535, "5.7.8"),
        (["AUTH PLAIN " + encoded("\0nobody\0wrong")], 535, "5.7.8"),
        (["AUTH PLAIN " + encoded(f"critic\0planner\0{PASSWORD}")], 535, "5.7.8"),
        (["AUTH PLAIN ="], 501, "5.5.2"),
        (["AUTH PLAIN !!!"], 501, "5.5.2"),
        (["AUTH PLAIN", "*"], 501, "5.7.0"),
        (["AUTH PLAIN", ""], 501, "5.5.2"),
        (["AUTH PLAIN", "QUIT"], 501, "5.5.2"),
        (["AUTH PLAIN", "x" * 13_000], 500, "5.5.6"),
        (["AUTH LOGIN", encoded("planner"), encoded("wrong")], 535, "5.7.8"),
        (["AUTH SCRAM-SHA-256 " + encoded("n,,n=planner,r=abc"), encoded("c=biws,r=abc,p=AAAA")], 535, "5.7.8"),
        (["AUTH SCRAM-SHA-256 " + encoded("nonsense")], 501, "5.5.2"),
        (["AUTH CRAM-MD5"], 504, "5.5.4"),
        (["AUTH"], 504, "5.5.4"),
    ],
)
async def test_a_failed_sign_in_is_told_and_can_be_tried_again(lines: list[str], code: int, enhanced: str) -> None:
    async with running() as node:
        wire = await node.wire()
        await wire.say("EHLO x", 250)
        for line in lines[:-1]:
            await wire.say(line, 334)
        await wire.say(lines[-1], code, enhanced)
        await wire.say(SENDER, 530)
        await wire.say("AUTH PLAIN " + PLAIN, 235)


async def test_after_three_failures_the_session_ends_and_after_ten_the_account_rests() -> None:
    async with running() as node:
        wrong = "AUTH PLAIN " + encoded("\0planner\0wrong")
        answers: list[str] = []
        for _ in range(5):
            wire = await node.wire()
            await wire.say("EHLO x", 250)
            for _ in range(3):
                await wire.send(wrong.encode() + b"\r\n")
                answers.append((await wire.reply())[0][:9])
            await wire.expect(421, "4.7.0")
            assert await wire.closed() == b""
        assert answers == ["535 5.7.8"] * 10 + ["454 4.7.0"] * 5
        wire = await node.wire()
        await wire.say("EHLO x", 250)
        await wire.say("AUTH PLAIN " + PLAIN, 454, "4.7.0")
        await wire.say("AUTH PLAIN " + encoded(f"\0critic\0{PASSWORD}"), 235)


@pytest.mark.parametrize("change", ["disabled", "removed", "password"])
async def test_who_is_disabled_sends_no_more_in_an_open_session(change: str) -> None:
    async with running() as node:
        wire = await node.signed_in()
        assert (await wire.mail()).startswith("250")
        address = f"planner@{DOMAIN}"
        if change == "removed":
            del node.store.known[address]
            for callback in node.store.callbacks:
                callback()
        elif change == "disabled":
            node.store.put(Agent(address, node.store.known[address].credential, 0, disabled=True))
        else:
            node.store.put(Agent(address, scram.derive("another"), 0))
        await wire.say(SENDER, 421, "4.7.0")
        assert await wire.closed() == b""


# ── what intake says, and our own failures ──


async def test_intakes_refusal_is_passed_on_in_clean_lines() -> None:
    async with running() as node:
        wire = await node.signed_in()
        node.intake.answer = Reply(554, "5.4.6", "a loop:\r\n250 OK \u00e9" + " word" * 200)
        await wire.say(SENDER, 250)
        await wire.say(RECIPIENT, 250)
        await wire.say("DATA", 354)
        await wire.send(MESSAGE + b".\r\n")
        lines = await wire.expect(554, "5.4.6")
        assert all(line.startswith(("554-5.4.6 ", "554 5.4.6 ")) for line in lines)
        assert "".join(line[10:] for line in lines) == "a loop:??250 OK ?" + " word" * 200
        node.intake.answer = Reply(250, "2.6.0", "x")
        assert (await wire.mail()).startswith("250")


async def test_our_failure_is_temporary_and_tells_no_secrets() -> None:
    async with running() as node:
        wire = await node.signed_in()
        node.intake.error = OSError("disk full at /very/secret/path")
        assert await wire.mail() == "451 4.3.0 something failed here; try again"
        node.intake.error = None
        assert (await wire.mail()).startswith("250")


async def test_a_store_that_fails_in_the_middle_of_a_large_mail() -> None:
    async with running() as node:
        wire = await node.signed_in()
        node.store.unavailable = True
        reply = await wire.mail(MESSAGE + b"x" * 900 + b"\r\n" + (b"y" * 70 + b"\r\n") * 20_000)
        assert reply == "451 4.3.0 something failed here; try again"
        node.store.unavailable = False
        assert (await wire.mail()).startswith("250")


async def test_intake_hears_of_mails_refused_before_it_saw_them() -> None:
    async with running() as node:
        node.intake.unknown.add(f"nobody@{DOMAIN}")
        for end in ("RSET", "EHLO again", "QUIT"):
            wire = await node.signed_in()
            await wire.say(SENDER, 250)
            await wire.say(f"RCPT TO:<nobody@{DOMAIN}>", 550)
            await wire.say(end, 221 if end == "QUIT" else 250)
            envelope, reply = node.intake.turned_away.pop()
            assert (envelope.recipients, reply.code) == ((), 550)
            assert envelope.events[-1].attributes == {"code": 550, "enhanced": "5.1.1"}
        wire = await node.signed_in()
        await wire.mail(b"bare\nLF\r\n")
        envelope, reply = node.intake.turned_away.pop()
        assert (envelope.recipients, reply.code) == ((f"critic@{DOMAIN}",), 554)
        await wire.say(SENDER, 250)
        await wire.say(RECIPIENT, 250)
        await wire.say("RSET", 250)
        assert node.intake.turned_away == []


async def test_a_large_mail_goes_to_the_store_in_parts() -> None:
    async with running(byte_budget=1 << 20) as node:
        wire = await node.signed_in()
        content = MESSAGE + (b"0123456789" * 7 + b"\r\n") * 100_000
        assert (await wire.mail(content)).startswith("250")
        assert node.mails[0].content == content


def scram_final(password: str, first: bytes, server_first: bytes) -> bytes:
    nonce, salt, rounds = (part[2:] for part in server_first.split(b","))
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(rounds))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    without = b"c=biws,r=" + nonce
    signature = hmac.digest(
        hashlib.sha256(client_key).digest(), first[3:] + b"," + server_first + b"," + without, "sha256"
    )
    return without + b",p=" + base64.b64encode(bytes(a ^ b for a, b in zip(client_key, signature, strict=True)))


async def test_sessions_side_by_side_do_not_mix() -> None:
    async with running() as node:

        async def converse(n: int) -> None:
            wire = await node.signed_in("planner")
            for m in range(5):
                content = f"Subject: {n}-{m}\r\n\r\n".encode() + f"{n} {m}\r\n".encode() * 200
                assert (await wire.mail(content, f"a{n}@{DOMAIN}")).startswith("250")
            await wire.say("QUIT", 221)

        await asyncio.gather(*(converse(n) for n in range(30)))
        assert len(node.mails) == 150
        for mail in node.mails:
            n = mail.envelope.recipients[0].partition("@")[0][1:]
            subject, _, body = mail.content.partition(b"\r\n\r\n")
            assert subject.startswith(f"Subject: {n}-".encode())
            assert set(body.split(b"\r\n")[:-1]) == {subject[9:].replace(b"-", b" ")}
