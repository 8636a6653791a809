"""A domain's MTA-STS policy is fetched by HTTPS, kept as long as it says, and honoured (RFC 8461)."""

import asyncio
import gzip
import ssl
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_network
from pathlib import Path

import pytest

from aimx.delivery import mta_sts
from aimx.delivery.mta_sts import Policies, Policy, parse
from aimx.delivery.mx import Resolver
from aimx.identity.certificate import Certificates
from tests.outside import MailServer, Zone, name_server
from tests.protocol.test_relay import HERE, deferred, until, world

LOOPBACK = [ip_network("127.0.0.0/8")]
TEXT = "version: STSv1\r\nmode: {mode}\r\nmx: {mx}\r\nmax_age: 86400\r\n"
ZONE: Zone = {
    **HERE,
    "_mta-sts.b.example": {"TXT": ['"v=STSv1; id=1;"']},
    "mta-sts.b.example": {"A": ["127.0.0.1"]},
}


class Site:
    """The policy's web server."""

    def __init__(self, text: str, status: str = "200 OK") -> None:
        self.text, self.status = text, status
        self.asked: list[bytes] = []

    @asynccontextmanager
    async def serving(self, context: ssl.SSLContext, patch: pytest.MonkeyPatch) -> AsyncIterator["Site"]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            head = f"HTTP/1.1 {self.status}\r\nContent-Type: text/plain\r\nContent-Length: {len(self.text)}\r\n"
            writer.write(f"{head}Location: https://b.example/\r\nConnection: close\r\n\r\n{self.text}".encode())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
        patch.setattr(mta_sts, "PORT", server.sockets[0].getsockname()[1])
        try:
            yield self
        finally:
            server.close()


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    made = Certificates(tmp_path / "other-tls", ["mx.b.example", "mta-sts.b.example"])
    made.ensure()
    return made


@asynccontextmanager
async def policies(ca: Path, zone: Zone) -> AsyncIterator[tuple[Policies, Zone]]:
    async with name_server(zone) as (server, address):
        resolver = Resolver([address], LOOPBACK, [])
        resolver._resolver.cache = None
        made = Policies(resolver, ca=str(ca))
        yield made, server.zone
        await made.close()


async def test_a_policy_is_fetched_once_and_again_when_dns_names_a_new_one(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(TEXT.format(mode="enforce", mx="*.b.example"))
    async with (
        site.serving(certificates.server_context(), monkeypatch),
        policies(certificates.ca, dict(ZONE)) as (known, zone),
    ):
        for _ in range(3):
            assert await known.policy("b.example") == Policy("enforce", ("*.b.example",), 86400.0)
        assert len(site.asked) == 1
        assert site.asked[0].startswith(b"GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: mta-sts.b.example\r\n")
        site.text = TEXT.format(mode="none", mx="*.b.example")
        zone["_mta-sts.b.example"] = {"TXT": ['"v=STSv1; id=2"']}
        assert (await known.policy("b.example")).mode == "none"  # type: ignore[union-attr]
        site.status = "500 Broken"
        zone["_mta-sts.b.example"] = {"TXT": ['"v=STSv1; id=3"']}
        assert (await known.policy("b.example")).mode == "none", "what we have goes on to count"  # type: ignore[union-attr]
        del zone["_mta-sts.b.example"]
        assert (await known.policy("b.example")) is not None, "also when somebody takes the record away"


async def test_a_domain_beyond_ascii_has_its_policy_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "xn--bcher-kva.example"
    made = Certificates(tmp_path / "other-tls", [f"mta-sts.{name}"])
    made.ensure()
    zone = {f"_mta-sts.{name}": ZONE["_mta-sts.b.example"], f"mta-sts.{name}": ZONE["mta-sts.b.example"]}
    site = Site(TEXT.format(mode="enforce", mx=f"mx.{name}"))
    async with site.serving(made.server_context(), monkeypatch), policies(made.ca, zone) as (known, _):
        assert await known.policy("b\u00fccher.example") == Policy("enforce", (f"mx.{name}",), 86400.0)
        assert await known.policy("b\u00fccher..example") is None


@pytest.mark.parametrize("status", ["301 Moved", "404 Not Found"])
async def test_nothing_but_a_plain_answer_is_a_policy(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    site = Site(TEXT.format(mode="enforce", mx="x"), status)
    async with (
        site.serving(certificates.server_context(), monkeypatch),
        policies(certificates.ca, dict(ZONE)) as (known, _),
    ):
        assert await known.policy("b.example") is None
        assert await known.policy("b.example") is None
        assert len(site.asked) == 1, "a failure is remembered for a while"


async def test_a_certificate_of_somebody_else_is_not_believed(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Certificates(tmp_path / "liar", ["mta-sts.b.example"])
    other.ensure()
    site = Site(TEXT.format(mode="none", mx="x"))
    async with (
        site.serving(other.server_context(), monkeypatch),
        policies(certificates.ca, dict(ZONE)) as (known, _),
    ):
        assert await known.policy("b.example") is None


async def test_a_connection_to_one_domain_proves_nothing_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes DNS answers for somebody else has a good certificate only of his own."""
    own = Certificates(tmp_path / "own", ["mta-sts.evil.example"])
    own.ensure()
    text, asked = TEXT.format(mode="none", mx="x"), []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, OSError):
            while question := await reader.readuntil(b"\r\n\r\n"):
                asked.append(question)
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=own.server_context())
    monkeypatch.setattr(mta_sts, "PORT", server.sockets[0].getsockname()[1])
    zone = {
        **ZONE,
        "_mta-sts.evil.example": {"TXT": ['"v=STSv1; id=1;"']},
        "mta-sts.evil.example": {"A": ["127.0.0.1"]},
    }
    async with server, policies(own.ca, zone) as (known, _):
        assert await known.policy("evil.example") is not None
        assert await known.policy("b.example") is None
        assert len(asked) == 1


@pytest.mark.parametrize("body", ["bomb", "trickle"])
async def test_a_policy_costs_little_memory_and_time(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.setattr(mta_sts, "FETCH_WITHIN", 0.5)
    bomb = gzip.compress(TEXT.format(mode="none", mx="x").encode() + bytes(32 << 20))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await reader.readuntil(b"\r\n\r\n")
            head = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n" if body == "bomb" else "HTTP/1.1 200 OK\r\n"
            writer.write(f"{head}Connection: close\r\n\r\n".encode())
            if body == "bomb":
                writer.write(bomb)
            for _ in range(20 if body == "trickle" else 0):
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.1)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=certificates.server_context())
    monkeypatch.setattr(mta_sts, "PORT", server.sockets[0].getsockname()[1])
    async with server, policies(certificates.ca, dict(ZONE)) as (known, _), asyncio.timeout(5):
        tracemalloc.start()
        try:
            assert await known.policy("b.example") is None
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    ("mode", "mx", "tls", "arrives"),
    [
        ("enforce", "mx.b.example", True, True),
        ("enforce", "*.b.example", True, True),
        ("enforce", "other.example", True, False),
        ("enforce", "mx.b.example", False, False),
        ("testing", "other.example", False, True),
        ("none", "mx.b.example", False, True),
    ],
)
async def test_a_policy_is_honoured(
    tmp_path: Path,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    mx: str,
    tls: bool,
    arrives: bool,
) -> None:
    server = MailServer(context=certificates.server_context() if tls else None)
    site = Site(TEXT.format(mode=mode, mx=mx))
    relay = {"ca": str(certificates.ca)}
    async with (
        site.serving(certificates.server_context(), monkeypatch),
        world(tmp_path, server, dict(ZONE), relay) as w,
    ):
        answer = await w.node.send("ada", "bob@b.example")
        if arrives:
            await server.until(1)
        else:
            await until(lambda: deferred(w, answer))
            assert not server.mails


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("version: STSv1\nmode: enforce\nmx: a.example\nmx: *.B.example\nmax_age: 1", ("a.example", "*.b.example")),
        ("version: STSv1\nmode: enforce\nmax_age: 1", None),
        ("version: STSv2\nmode: none\nmax_age: 1", None),
        ("version: STSv1\nmode: enforced\nmx: a\nmax_age: 1", None),
        ("version: STSv1\nmode: enforce\nmx: a\nmax_age: -1", None),
        ("<html>", None),
    ],
)
def test_policies_are_read_strictly(text: str, policy: tuple[str, ...] | None) -> None:
    found = parse(text)
    assert (found.hosts if found else None) == policy


def test_a_wildcard_is_one_label() -> None:
    policy = Policy("enforce", ("*.b.example",), 1)
    assert policy.allows("mx.b.example")
    assert not policy.allows("a.mx.b.example")
    assert not policy.allows("b.example")
