"""MTA-STS (RFC 8461): a domain says over HTTPS which hosts take its mail, and that they do so only under TLS.

A policy is fetched when the domain's DNS record names a new one, and kept for as long as it says, in memory: after a
restart it is fetched again. While it cannot be fetched the one we have goes on to count (§5.1).
"""

import asyncio
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import httpx

from aimx.delivery.dialogue import verified
from aimx.delivery.mx import NoWay, Resolver

log = logging.getLogger("aimx.delivery")

PORT = 443
"""§3.3. Another in tests only."""
MAX_POLICY = 64 * 1024
MAX_AGE = 31_557_600
"""Seconds; §3.2."""
FETCH_WITHIN = 15.0
MAX_KNOWN = 10_000
AFTER_FAILURE = 300.0
"""Seconds without another try where a policy could not be fetched."""

Mode = Literal["enforce", "testing", "none"]

_ID = re.compile(r"v=STSv1\s*;\s*id=([A-Za-z0-9]{1,32})\s*(?:;.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Policy:
    mode: Mode
    hosts: tuple[str, ...]
    """Lower case; one may begin with `*.`."""
    max_age: float

    def allows(self, host: str) -> bool:
        """§4.1: a wildcard stands for exactly one label."""
        return any(host == each or (each[:2] == "*." and host.partition(".")[2] == each[2:]) for each in self.hosts)


@dataclass(slots=True)
class _Known:
    id: str
    policy: Policy | None
    until: float


class Policies:
    """One for a node; on the event loop only."""

    def __init__(
        self,
        resolver: Resolver,
        *,
        ca: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ca`: PEM file to believe instead of the system's authorities."""
        self._resolver = resolver
        self._clock = clock
        self._ca = ca
        self._client: httpx.AsyncClient | None = None
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def policy(self, domain: str) -> Policy | None:
        """What counts now for mail to `domain`; None: nothing, as with most."""
        if domain.startswith("["):
            return None
        try:  # RFC 8461 §3.1 by the name that DNS knows, as MX records are asked for
            domain = domain if domain.isascii() else domain.encode("idna").decode()
        except UnicodeError:
            return None
        records = [match[1] for text in await self._resolver.text(f"_mta-sts.{domain}") if (match := _ID.match(text))]
        known, now = self._known.get(domain), self._clock()
        if known is not None and now >= known.until:
            known = None
        if len(records) != 1 or (known is not None and known.id == records[0]):  # §3.1: several are none
            return known.policy if known else None
        fetched = await self._fetch(domain)
        if fetched is None:
            if known is None:
                self._keep(domain, _Known(records[0], None, now + AFTER_FAILURE))
                return None
            return known.policy
        self._keep(domain, _Known(records[0], fetched, now + fetched.max_age))
        return fetched

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _fetch(self, domain: str) -> Policy | None:
        """§3.3: by HTTPS only, with a good certificate, no redirects, small. The address is one that mail may go to."""
        host = f"mta-sts.{domain}"
        if self._client is None:
            # Nothing is kept: a connection was verified for one domain, and two may name the same address.
            once = httpx.Limits(max_keepalive_connections=0)
            self._client = httpx.AsyncClient(
                verify=verified(self._ca), timeout=FETCH_WITHIN, trust_env=False, limits=once
            )
        try:
            async with asyncio.timeout(FETCH_WITHIN):
                body = await self._ask(self._client, host)
        except (NoWay, httpx.HTTPError, OSError) as error:  # also TimeoutError
            log.info("no MTA-STS policy", extra={"event": "mta_sts.failed", "error": type(error).__name__})
            return None
        return None if body is None else parse(body.decode("utf-8", "replace"))

    async def _ask(self, client: httpx.AsyncClient, host: str) -> bytes | None:
        """The octets as they come, never unpacked: a little of gzip can be very much. None: no policy."""
        address = (await self._resolver.addresses(host))[0]
        url = httpx.URL(scheme="https", host=address, port=PORT, path="/.well-known/mta-sts.txt")
        headers = {"Host": host, "Accept-Encoding": "identity"}
        async with client.stream("GET", url, headers=headers, extensions={"sni_hostname": host}) as response:
            if response.status_code != 200 or "Content-Encoding" in response.headers:
                return None
            body = b""
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > MAX_POLICY:
                    return None
        return body

    def _keep(self, domain: str, known: _Known) -> None:
        self._known[domain] = known
        self._known.move_to_end(domain)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)


def parse(text: str) -> Policy | None:
    """§3.2: `key: value` lines; of a key that may come once the first counts. None: no valid policy."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip().lower(), []).append(value.strip())
    hosts = tuple(host.lower().removesuffix(".") for host in found.get("mx", ()))
    mode, age = found.get("mode", [""])[0], found.get("max_age", [""])[0]
    if found.get("version", [""])[0] != "STSv1" or not re.fullmatch(r"[0-9]{1,10}", age):
        return None
    match mode:
        case "enforce" | "testing" if hosts:
            return Policy(mode, hosts, float(min(int(age), MAX_AGE)))
        case "none":
            return Policy(mode, hosts, float(min(int(age), MAX_AGE)))
        case _:
            return None
