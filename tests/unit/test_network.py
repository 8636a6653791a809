"""Where a node goes for somebody: the Internet, by whatever spelling of an address, and nowhere inside."""

from ipaddress import ip_network

import pytest

from aimx.network import is_outside


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "169.254.169.254",
        "168.63.129.16",
        "192.0.0.192",
        "::ffff:10.0.0.1",
        "::127.0.0.1",  # IPv4-compatible
        "::ffff:0:169.254.169.254",  # IPv4-translated
        "64:ff9b::7f00:1",
        "64:ff9b:1::7f00:1",  # NAT64 of the network's own
        "2002:7f00:1::1",
        "fec0::1",
        "fd00:ec2::254",
        "fe80::1%lo",
    ],
)
def test_the_inside_is_not_gone_to_however_it_is_written(address: str) -> None:
    assert not is_outside(address)


def test_the_internet_is_gone_to_and_what_is_named() -> None:
    assert all(is_outside(address) for address in ("1.1.1.1", "2606:4700::1111", "64:ff9b::101:101"))
    assert is_outside("::ffff:10.0.0.1", [ip_network("10.0.0.0/8")])
    assert is_outside("fec0::1", [ip_network("fec0::/10")])
