"""Whom DNS names for a domain, and where they are (RFC 5321 §5.1, RFC 7505).

The rules, in order:

1. An address literal (`[192.0.2.1]`) is its own host.
2. MX records, by preference, those of equal preference in random order. A CNAME is followed by the resolver.
3. A single MX `.` means that the domain takes no mail (RFC 7505): `5.1.10`.
4. No MX, but the domain exists: it is its own host (implicit MX).
5. If one of the hosts is ourselves, it and all of no better preference are left out; is none left, mail would loop.
6. Of each host, its AAAA and A addresses; one in a loopback, private or otherwise special network is left out unless
   the settings allow that network: what a stranger's DNS says must not make us talk to our own insides.
"""

import asyncio
import random
import socket
from collections.abc import Collection, Sequence
from ipaddress import ip_address
from typing import NamedTuple

import dns.asyncresolver
import dns.exception
import dns.nameserver
import dns.resolver
from dns.rdtypes.ANY.MX import MX as MxRecord

from aimx.config import IpNetwork
from aimx.delivery.transport import Later, Never
from aimx.delivery.verdict import unreachable
from aimx.network import Address, is_outside

MAX_HOSTS = 10
MAX_ADDRESSES = 10
"""Looked at of what a domain names; its owner may have written hundreds."""
ANSWER_WITHIN = 10.0
CACHED = 10_000


class Host(NamedTuple):
    name: str
    preference: int


class NoWay(Exception):
    """There is no host to go to, now or ever."""

    def __init__(self, result: Later | Never) -> None:
        super().__init__(result.text)
        self.result = result


class Resolver:
    """Asks DNS; answers are kept as long as they are good for."""

    def __init__(self, nameservers: Sequence[str], allowed: Collection[IpNetwork], own_names: Collection[str]) -> None:
        """`nameservers`: `ADDRESS` or `ADDRESS:PORT`; none: the system's. `own_names`: what this node is called."""
        self._resolver = _system() if not nameservers else dns.asyncresolver.Resolver(configure=False)
        self._resolver.cache = dns.resolver.LRUCache(CACHED)
        self._resolver.lifetime = ANSWER_WITHIN
        if nameservers:
            self._resolver.nameservers = [_nameserver(each) for each in nameservers]
        self._allowed = tuple(allowed)
        self._own = frozenset(name.lower() for name in own_names)

    async def hosts(self, domain: str) -> list[Host]:
        """In the order in which they are to be tried. Raises NoWay."""
        if domain.startswith("["):
            return [Host(domain, 0)]
        try:
            name = domain.encode("idna").decode() if not domain.isascii() else domain
            answer = await self._resolver.resolve(name, "MX", raise_on_no_answer=False)
        except dns.resolver.NXDOMAIN:
            raise NoWay(Never("dns.nxdomain", "5.1.2", f"there is no domain {domain}")) from None
        except (UnicodeError, dns.exception.SyntaxError, dns.name.LabelTooLong, dns.name.EmptyLabel):
            raise NoWay(Never("dns.name", "5.1.2", f"{domain} is no name that DNS could know")) from None
        except dns.exception.DNSException as error:
            raise NoWay(_dns_failed(domain, error)) from None
        records = [record for record in answer if isinstance(record, MxRecord)]
        found = [Host(record.exchange.to_text(omit_final_dot=True).lower(), record.preference) for record in records]
        if len(found) == 1 and found[0].name in ("", ".", "@"):
            raise NoWay(Never("dns.null-mx", "5.1.10", f"{domain} takes no mail (its DNS says so)"))
        return self._without_us(domain, ordered(found)) if found else [Host(name, 0)]

    def _without_us(self, domain: str, found: list[Host]) -> list[Host]:
        best = min((host.preference for host in found if host.name in self._own), default=None)
        if best is not None:
            found = [host for host in found if host.preference < best]
            if not found:
                raise NoWay(
                    Never("dns.loop", "5.4.6", f"DNS names this node for {domain}, which it does not serve: a loop")
                )
        return found[:MAX_HOSTS]

    async def addresses(self, host: str) -> list[str]:
        """Of one host, IPv6 and IPv4 by turns. Raises NoWay when there is none that may be used."""
        if host.startswith("["):
            literal = _literal(host)
            if literal is None:
                raise NoWay(Never("dns.literal", "5.1.2", f"{host} is no address"))
            found: list[Address] = [literal]
        else:
            found = await self._look_up(host)
        usable = [str(address) for address in found if is_outside(address, self._allowed)][:MAX_ADDRESSES]
        if not usable:
            raise NoWay(Never("dns.forbidden", "5.4.4", f"{host} lies in a network to which this node does not send"))
        return usable

    async def text(self, name: str) -> list[str]:
        """TXT records; none when there are none or DNS does not answer."""
        try:
            answer = await self._resolver.resolve(name, "TXT", raise_on_no_answer=False)
        except dns.exception.DNSException:
            return []
        return [b"".join(record.strings).decode("utf-8", "replace") for record in answer]

    async def _look_up(self, host: str) -> list[Address]:
        found: dict[str, list[Address]] = {"AAAA": [], "A": []}
        failure: Later | None = None
        for kind, addresses in found.items():
            try:
                answer = await self._resolver.resolve(host, kind, raise_on_no_answer=False)
                addresses += [ip_address(record.address) for record in answer]
            except dns.resolver.NXDOMAIN:
                break
            except dns.exception.DNSException as error:
                failure = _dns_failed(host, error)
        mixed = [each for pair in zip(found["AAAA"], found["A"], strict=False) for each in pair]
        mixed += found["AAAA"][len(mixed) // 2 :] + found["A"][len(mixed) // 2 :]
        if not mixed:
            raise NoWay(failure or Never("dns.no-address", "5.4.4", f"DNS has no address for {host}"))
        return mixed


async def system_addresses(host: str) -> list[str]:
    """Of a host that the settings name: as the system knows it, in whatever network. Raises NoWay."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        raise NoWay(unreachable("dns.failed", f"{host} is not known here", host, "4.4.3")) from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _system() -> dns.asyncresolver.Resolver:
    """As the system is set up; where it is not, every question is answered with "later"."""
    try:
        return dns.asyncresolver.Resolver()
    except dns.resolver.NoResolverConfiguration:
        return dns.asyncresolver.Resolver(configure=False)


def ordered(hosts: Sequence[Host]) -> list[Host]:
    """By preference; equals at random, so that the load is spread (RFC 5321 §5.1)."""
    mixed = random.sample(hosts, len(hosts))
    return sorted(mixed, key=lambda host: host.preference)


def _dns_failed(name: str, error: dns.exception.DNSException) -> Later:
    slow = isinstance(error, dns.exception.Timeout)
    # About our DNS rather than about the destination, but trying that one again at once would help as little.
    return unreachable("dns.timeout" if slow else "dns.failed", f"DNS does not answer for {name}", status="4.4.3")


def _literal(text: str) -> Address | None:
    try:
        return ip_address(text.strip("[]").lower().removeprefix("ipv6:"))  # RFC 5321 §4.1.3
    except ValueError:
        return None


def _nameserver(text: str) -> dns.nameserver.Nameserver:
    address, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or (":" in address.strip("[]") and not address.startswith("[")):
        return dns.nameserver.Do53Nameserver(text.strip("[]"))
    return dns.nameserver.Do53Nameserver(address.strip("[]"), int(port))
