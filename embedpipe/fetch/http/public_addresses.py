"""Public IP addresses: the only ones that fetch connects to by default.

The lists are our own, from IANA's registries of special-purpose addresses, because `ipaddress.is_global` differs
between Python versions.
"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

_V4_REFUSED = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # carrier-grade NAT; one cloud's metadata
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # another cloud's metadata, at a seemingly public address
            "169.254.0.0/16",  # link-local; most clouds' metadata
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays, withdrawn
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarking
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)
# Only global unicast is public: loopback, unique-local, link-local and multicast are outside of it.
_V6_UNICAST = IPv6Network("2000::/3")
_V6_REFUSED = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID
            "2001:db8::/32",  # documentation
            "3fff::/20",  # documentation
        ),
    )
)
# IPv6 addresses that embed an IPv4 one: the prefix, and the number of bits after it.
_V6_CARRIERS = (
    (IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (IPv6Network("2002::/16"), 80),  # 6to4
)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether `address` is publicly reachable; IPv4 embedded in IPv6 is judged by the IPv4 address."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _V4_REFUSED)
    for carrier, bits_behind in _V6_CARRIERS:
        if address in carrier:
            return is_public(IPv4Address((int(address) >> bits_behind) & 0xFFFFFFFF))
    return address in _V6_UNICAST and not any(address in network for network in _V6_REFUSED)


def spelled_by(host: str) -> IPv4Address | IPv6Address | None:
    """Parse `host` as an address, in any notation that the C library's inet_aton accepts (2130706433, 0x7f.1)."""
    try:
        return ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        pass
    pieces = host.split(".")
    try:
        numbers = [int(p, 16 if p[:2] == "0x" else 8 if len(p) > 1 and p[0] == "0" else 10) for p in pieces]
    except ValueError:
        return None
    tail_bytes = 5 - len(numbers)
    if (
        not 1 <= tail_bytes <= 4
        or any(not 0 <= n < 256 for n in numbers[:-1])
        or not 0 <= numbers[-1] < 256**tail_bytes
    ):
        return None
    head = b"".join(n.to_bytes(1, "big") for n in numbers[:-1])
    return IPv4Address(head + numbers[-1].to_bytes(tail_bytes, "big"))
