"""Which network an address lies in: who may come in, and where this node goes on others' behalf."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from aimx.config import IpNetwork

Address = IPv4Address | IPv6Address

NAT64 = IPv6Network("64:ff9b::/96")
"""RFC 6052: an IPv4 address is in the last four octets."""
GLOBAL_UNICAST = IPv6Network("2000::/3")
"""RFC 4291 §2.5.4: all of IPv6 that IANA hands out. Around it lie forms that carry IPv4 (RFC 4291 §2.5.5.1, RFC 2765
§2.1, RFC 8215) and site-local addresses (RFC 3879), which a router may know how to bring inside."""
CLOUD = frozenset({IPv4Address("168.63.129.16"), IPv4Address("192.0.0.192")})
"""Global by number, and yet the inside of a cloud: where Azure's and Oracle's virtual machines reach their host."""


def plain(address: str | Address) -> Address:
    """The address that is meant: of IPv6 that only carries IPv4 (mapped, 6to4, NAT64) the latter. Raises ValueError."""
    found = ip_address(address.partition("%")[0]) if isinstance(address, str) else address
    if isinstance(found, IPv4Address):
        return found
    if found in NAT64:
        return IPv4Address(int(found) & 0xFFFFFFFF)
    return found.ipv4_mapped or found.sixtofour or found


def contains(networks: Sequence[IpNetwork], address: str | Address) -> bool:
    """Whether the address lies in one of them."""
    found = plain(address)
    return any(found.version == network.version and found in network for network in networks)


def is_outside(address: str | Address, allowed: Sequence[IpNetwork] = ()) -> bool:
    """Whether this node may go there for somebody: to the Internet, and to networks that are named; not to loopback,
    private and link-local networks, nor where clouds keep their machines' credentials."""
    found = plain(address)
    is_inside = (isinstance(found, IPv6Address) and found not in GLOBAL_UNICAST) or found in CLOUD
    return (found.is_global and not found.is_multicast and not is_inside) or contains(allowed, found)
