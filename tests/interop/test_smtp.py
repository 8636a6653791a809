"""Other people's SMTP clients: swaks, msmtp, curl, openssl, smtplib, aiosmtplib. An absent program is skipped aloud."""

import asyncio
import email.message
import shutil
import smtplib
from collections.abc import Callable
from email.headerregistry import Address
from pathlib import Path

import aiosmtplib
import pytest

from tests.protocol.smtp_harness import DOMAIN, PASSWORD, Node, running

FROM, TO = f"planner@{DOMAIN}", f"critic@{DOMAIN}"
MAIL = f"From: {FROM}\r\nTo: {TO}\r\nSubject: interop\r\n\r\n.dot\r\n..\r\n" + "line\r\n" * 500


@pytest.fixture
def mail_file(tmp_path: Path) -> Path:
    path = tmp_path / "mail.eml"
    path.write_bytes(MAIL.encode())
    return path


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: this client is NOT tested here")
    return found


async def run(*command: object, stdin: bytes = b"", expect: int = 0) -> str:
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(stdin), 30)
    except TimeoutError:
        process.kill()
        raise
    text = said.decode(errors="replace")
    assert process.returncode == expect, text
    return text


def arrived(node: Node) -> str:
    (mail,) = node.mails
    assert mail.envelope.agent == FROM
    assert mail.envelope.recipients == (TO,)
    assert mail.envelope.tls == "TLSv1.3"
    return mail.content.decode()


SWAKS = ("--from", FROM, "--to", TO, "--auth-user", FROM, "--auth-password", PASSWORD, "--tls-verify")


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("pipelined", [False, True])
async def test_swaks_over_starttls(mechanism: str, pipelined: bool, mail_file: Path) -> None:
    swaks = program("swaks")
    async with running() as node:
        more = ["--pipeline"] if pipelined else []
        said = await run(
            swaks, "--server", node.smtp, "--tls", "--tls-ca-path", node.certificates.ca,
            *SWAKS, "--auth", mechanism, "--data", f"@{mail_file}", *more,
        )  # fmt: skip
        assert "~>" in said
        assert "\r\n\r\n.dot\r\n..\r\nline\r\n" in arrived(node)


async def test_swaks_over_implicit_tls() -> None:
    swaks = program("swaks")
    async with running() as node:
        await run(
            swaks, "--server", node.smtps, "--tls-on-connect", "--tls-ca-path", node.certificates.ca,
            *SWAKS, "--auth", "PLAIN", "--header", "Subject: hello",
        )  # fmt: skip
        assert "Subject: hello\r\n" in arrived(node)


async def test_swaks_hears_why_it_is_refused() -> None:
    swaks = program("swaks")
    async with running() as node:
        clear = await run(swaks, "--server", node.smtp, "--from", FROM, "--to", TO, expect=23)
        assert "530 5.7.0" in clear
        tls = ("--tls", "--tls-ca-path", node.certificates.ca)
        wrong = await run(
            swaks, "--server", node.smtp, *tls, "--from", FROM, "--to", TO,
            "--auth", "PLAIN", "--auth-user", FROM, "--auth-password", "wrong", expect=28,
        )  # fmt: skip
        assert "535 5.7.8" in wrong
        relayed = await run(swaks, "--server", node.smtp, *tls, *SWAKS, "--to", "x@gmail.example", expect=24)
        assert "550 5.7.1" in relayed


@pytest.mark.parametrize("mechanism", ["plain", "login", "scram-sha-256"])
async def test_msmtp(mechanism: str, mail_file: Path) -> None:
    msmtp = program("msmtp")
    offered = await run(msmtp, "--version")
    methods = offered.partition("authentication methods:")[2].strip().splitlines()[0].split()
    if mechanism not in methods:
        pytest.skip(f"this msmtp cannot {mechanism}: NOT tested here")
    async with running() as node:
        await run(
            msmtp, "--file=/dev/null", f"--host={node.smtp.host}", f"--port={node.smtp.port}", f"--from={FROM}",
            "--tls=on", "--tls-starttls=on", f"--tls-trust-file={node.certificates.ca}", f"--auth={mechanism}",
            f"--user={FROM}", f"--passwordeval=echo {PASSWORD}", TO,
            stdin=MAIL.replace("\r\n", "\n").encode(),
        )  # fmt: skip
        assert arrived(node).endswith(MAIL.partition("\r\n\r\n")[2])


@pytest.mark.parametrize("implicit", [False, True])
async def test_curl(implicit: bool, mail_file: Path) -> None:
    curl = program("curl")
    async with running() as node:
        url = f"smtps://{node.smtps}" if implicit else f"smtp://{node.smtp}"
        await run(
            curl, "-sS", "--ssl-reqd", "--cacert", node.certificates.ca, "--url", url, "-u", f"{FROM}:{PASSWORD}",
            "--mail-from", FROM, "--mail-rcpt", TO, "-T", mail_file,
        )  # fmt: skip
        assert arrived(node) == MAIL


async def test_curl_with_scram(mail_file: Path) -> None:
    curl = program("curl")
    if "scram" not in (await run(curl, "-V")).lower() and "gsasl" not in (await run(curl, "-V")).lower():
        pytest.skip("this curl cannot SCRAM: NOT tested here")
    async with running() as node:
        await run(
            curl, "-sS", "--cacert", node.certificates.ca, "--url", f"smtps://{node.smtps}", "-u", f"{FROM}:{PASSWORD}",
            "--login-options", "AUTH=SCRAM-SHA-256", "--mail-from", FROM, "--mail-rcpt", TO, "-T", mail_file,
        )  # fmt: skip
        assert arrived(node) == MAIL


async def in_thread(work: Callable[[], None]) -> None:
    await asyncio.wait_for(asyncio.to_thread(work), 30)


async def test_smtplib_both_ways() -> None:
    message = email.message.EmailMessage()
    message["From"], message["To"], message["Subject"] = FROM, TO, "ünïcode"
    message.set_content("ünïcode\n" * 3 + "x" * 3000 + "\n")

    async with running() as node:

        def send() -> None:
            with smtplib.SMTP(node.smtp.host, node.smtp.port, timeout=20) as client:
                client.starttls(context=node.trust())
                client.login(FROM, PASSWORD)
                client.send_message(message)
            with smtplib.SMTP_SSL(node.smtps.host, node.smtps.port, timeout=20, context=node.trust()) as client:
                client.login("planner", PASSWORD)
                assert client.sendmail(FROM, [TO], MAIL) == {}
                client.rset()
                assert client.sendmail(FROM, [TO], MAIL) == {}
                with pytest.raises(smtplib.SMTPSenderRefused):
                    client.sendmail(TO, [TO], MAIL)
                with pytest.raises(smtplib.SMTPRecipientsRefused):
                    client.sendmail(FROM, ["x@gmail.example"], MAIL)

        await in_thread(send)
        assert [mail.content.decode() == MAIL for mail in node.mails] == [False, True, True]


async def test_smtplib_with_an_address_beyond_ascii() -> None:
    message = email.message.EmailMessage()
    message["From"], message["To"] = FROM, Address("", "jürgen", DOMAIN)
    message.set_content("x\n")

    async with running() as node:

        def send() -> None:
            with smtplib.SMTP_SSL(node.smtps.host, node.smtps.port, timeout=20, context=node.trust()) as client:
                client.login(FROM, PASSWORD)
                client.send_message(message)

        await in_thread(send)
        assert node.mails[0].envelope.recipients == (f"jürgen@{DOMAIN}",)
        assert node.mails[0].envelope.protocol == "UTF8SMTPSA"


@pytest.mark.parametrize("implicit", [False, True])
async def test_aiosmtplib(implicit: bool) -> None:
    async with running() as node:
        endpoint = node.smtps if implicit else node.smtp
        async with aiosmtplib.SMTP(
            hostname=endpoint.host, port=endpoint.port, use_tls=implicit, start_tls=not implicit,
            tls_context=node.trust(), timeout=20,
        ) as client:  # fmt: skip
            await client.login(FROM, PASSWORD)
            errors, reply = await client.sendmail(FROM, [TO], MAIL)
            assert errors == {}
            assert "2.6.0" in reply
        assert arrived(node) == MAIL


async def test_openssl_sees_tls_1_3_and_nothing_older() -> None:
    openssl = program("openssl")
    async with running() as node:
        common = (openssl, "s_client", "-connect", node.smtp, "-starttls", "smtp", "-CAfile", node.certificates.ca)
        new = await run(*common, "-verify_return_error", stdin=b"QUIT\r\n")
        assert "TLSv1.3" in new
        assert "Verify return code: 0 (ok)" in new
        await run(*common, "-tls1_2", stdin=b"QUIT\r\n", expect=1)
