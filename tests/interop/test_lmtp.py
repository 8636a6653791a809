"""AIMX hands mail over to a real Dovecot by LMTP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aimx.identity.certificate import Certificates
from aimx.message.header import HeaderBlock
from tests.interop.dovecot import Dovecot
from tests.protocol.test_lmtp import events, world
from tests.protocol.test_relay import nothing_waits, until


@pytest.fixture(params=["tcp", "tls", "unix"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Dovecot, dict[str, Any]]]:
    certificates = Certificates(tmp_path / "tls", ["localhost"])
    certificates.ensure()
    dovecot = Dovecot(certificates.chain, certificates.key, tls=request.param == "tls")
    settings: dict[str, dict[str, Any]] = {
        "tcp": {"host": "127.0.0.1", "port": dovecot.port, "tls": "none"},
        "tls": {"host": "localhost", "port": dovecot.port, "tls": "verify", "ca": str(certificates.ca)},
        "unix": {"socket": str(dovecot.socket)},
    }
    try:
        yield dovecot, settings[request.param]
    finally:
        dovecot.remove()


async def test_dovecot_takes_what_it_has_a_mailbox_for(tmp_path: Path, store: tuple[Dovecot, dict[str, Any]]) -> None:
    dovecot, settings = store
    async with world(tmp_path, **settings) as node:
        waiting = await node.send("ada", "bob@old.local", b"sent while it was away\r\n.\r\n", Subject="first")

        async def deferred() -> bool:
            return any(ev == "message.deferred" for ev, _ in await events(node, waiting))

        await until(deferred)
        with dovecot.running():
            await until(lambda: nothing_waits(node))
            await node.send("ada", ["bob@old.local", "ghost@old.local"], "grüße\r\n".encode(), Subject="second")
            await until(lambda: nothing_waits(node))
            found = {HeaderBlock.parse(mail)[0].get("Subject"): mail for mail in dovecot.mails()}
            assert found.keys() == {"first", "second"}
            assert found["first"].endswith(b"\r\n\r\nsent while it was away\r\n.\r\n")
            assert found["second"].endswith("\r\n\r\ngrüße\r\n".encode())
            assert b"Return-Path: <ada@fabric.local>\r\n" in found["first"]
            (notice,) = await node.inbox("ada")
            assert b"Final-Recipient: rfc822; ghost@old.local\r\n" in (notice.body or b"")
            assert b"Status: 5.1.1\r\n" in (notice.body or b"")
        if settings.get("tls") == "verify":
            assert node.spans.named("lmtp old")[-1].attributes["tls.protocol.version"] in ("TLSv1.2", "TLSv1.3")
