"""The relay transport: to whom DNS names for a domain, to a smarthost, or to another AIMX node, by SMTP (RFC 5321).

Servers are tried one after another until one has said yes or no to the message; what it says is a verdict, and no
further one is asked. A server that cannot be talked to, or refuses us before MAIL, is passed over.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import cache
from pathlib import Path

from aimx.config import MX, Peer, RelayTls, Settings, Smarthost
from aimx.delivery import egress, trace
from aimx.delivery.dialogue import ENCRYPTION, Login, Server, verified
from aimx.delivery.handover import hand_over
from aimx.delivery.mta_sts import Policies, Policy
from aimx.delivery.mx import NoWay, Resolver, system_addresses
from aimx.delivery.pool import Pool
from aimx.delivery.transport import Later, Never, Parcel, Result
from aimx.telemetry.span import CLIENT, Span

log = logging.getLogger("aimx.delivery")

MAX_TRIES = 5
"""Servers in one attempt (RFC 5321 §5.1 asks for at least two)."""


class Relay:
    """A carrier. One for a node."""

    name = "relay"

    def __init__(self, settings: Settings, credentials: tuple[Path, Path] | None = None) -> None:
        """`credentials`: certificate chain and key that this node shows to its peers."""
        relay = settings.relay
        self._settings = relay
        self._peers = settings.peers
        self._credentials = credentials
        self._domain = settings.domains[0]
        own = relay.host_name or self._domain
        self._resolver = Resolver(relay.nameservers, relay.allow_networks, {*settings.domains, own})
        self._policies = Policies(self._resolver, ca=None if relay.ca is None else str(relay.ca))
        self._pool = Pool(own, relay.connections, relay.idle_timeout)
        self._verified = cache(verified)
        self._peer_context = cache(self._trusting)

    async def carry(self, parcel: Parcel, span: Span) -> Result:
        """See `Carrier`. The span of the dialogue is `relay mx`, or has the smarthost's or peer's name."""
        via = parcel.via or MX
        with span.child(f"relay {via}", CLIENT) as talk:
            result = await self._carry(parcel, via, talk)
            trace.smtp_said(talk, result)
        return result

    async def close(self) -> None:
        await asyncio.gather(self._pool.close(), self._policies.close())

    async def _carry(self, parcel: Parcel, via: str, talk: Span) -> Result:
        """Server by server. The last failure is what is said of all; while one may come back it is not for ever."""
        self._prepare(parcel, via, talk)
        # Not for ever: the settings can be mended, or take a restart.
        result: Result = Later("no-way", "4.3.5", f"the node has no relay and no peer called {via!r}")
        tries, hope = 0, False
        try:
            async with aclosing(self._servers(parcel, via)) as servers:
                async for server in servers:
                    if isinstance(server, Later | Never):
                        result = result if hope and isinstance(server, Never) else server
                        hope = hope or isinstance(server, Later)
                        continue
                    tries, hope = tries + 1, True
                    result = await hand_over(self._pool, server, parcel, talk, peer=via in self._peers)
                    passed_over = isinstance(result, Later) and result.everybody
                    if not passed_over or tries == MAX_TRIES:
                        return result
        except NoWay as error:
            return error.result
        return result

    def _prepare(self, parcel: Parcel, via: str, talk: Span) -> None:
        if via in self._peers:
            egress.add_hop(parcel.header, talk.context, self._domain, via)
        else:
            egress.strip(parcel.header, trace=self._settings.trace_headers)

    # ── whom to talk to ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _servers(self, parcel: Parcel, via: str) -> AsyncGenerator[Server | Later | Never]:
        """In the order in which they are to be tried; a result in the place of one that may not be. Raises NoWay."""
        if via in self._peers:
            peer = self._peers[via]
            context = self._peer_context(via)
            for address in await system_addresses(peer.host or ""):
                yield Server(peer.host or "", address, peer.port, "must", context)
        elif via in self._settings.smarthosts:
            for server in await self._smarthost(self._settings.smarthosts[via]):
                yield server
        elif via == MX:
            async for found in self._by_dns(parcel.address.rpartition("@")[2]):
                yield found

    async def _smarthost(self, smarthost: Smarthost) -> list[Server]:
        login = None
        if smarthost.user is not None and smarthost.password_file is not None:
            secret = await asyncio.to_thread(smarthost.password_file.read_text)
            login = Login(smarthost.user, secret.partition("\n")[0].rstrip("\r"))
        context = self._context(smarthost.tls, smarthost.ca)
        encryption = ENCRYPTION[smarthost.tls]
        return [
            Server(smarthost.host, address, smarthost.port, encryption, context, smarthost.implicit_tls, login=login)
            for address in await system_addresses(smarthost.host)
        ]

    async def _by_dns(self, domain: str) -> AsyncIterator[Server | Later | Never]:
        policy = await self._policies.policy(domain) if self._settings.mta_sts else None
        level = self._settings.tls
        enforced = policy is not None and policy.mode == "enforce"
        if enforced:
            level = "verify"  # RFC 8461 §4.2
        context = self._context(level, self._settings.ca)
        for host in await self._resolver.hosts(domain):
            if enforced and policy is not None and not policy.allows(host.name):
                text = f"{host.name} is not among the hosts that the policy of {domain} names"
                yield Later("mta-sts", "4.7.1", text, host=host.name)
                continue
            _note_test(policy, host.name)
            try:
                addresses = await self._resolver.addresses(host.name)
            except NoWay as error:
                yield error.result
                continue
            for address in addresses:
                yield Server(host.name, address, self._settings.port, ENCRYPTION[level], context)

    def _context(self, level: RelayTls, ca: Path | None) -> ssl.SSLContext | None:
        return self._verified(None if ca is None else str(ca)) if level == "verify" else None

    def _trusting(self, name: str) -> ssl.SSLContext:
        """TLS 1.3 with one peer: its authority or certificate is all that is believed, and we show ours."""
        peer: Peer = self._peers[name]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # who holds a key under this one authority is the peer, whatever its host is
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(peer.ca)
        if self._credentials is not None:
            context.load_cert_chain(*self._credentials)
        return context


def _note_test(policy: Policy | None, host: str) -> None:
    if policy is not None and policy.mode == "testing" and not policy.allows(host):
        log.info("an MX is not in the domain's MTA-STS policy (testing)", extra={"event": "mta_sts.testing"})
