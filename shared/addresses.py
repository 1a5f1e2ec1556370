"""
Which IP addresses are public, which are cloud metadata services, and which hide another address. Pure.

`ipaddress.is_global` is not used: on Python 3.11 it calls multicast, NAT64, 6to4, fec0::/10 and ::127.0.0.1 global.
"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address

_NOT_PUBLIC_IPV4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # carrier-grade NAT
            "127.0.0.0/8",  # loopback
            "169.254.0.0/16",  # link-local
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # IETF protocol assignments
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112
            "192.52.193.0/24",  # AMT
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarking
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)
"""Source: IANA IPv4 Special-Purpose Address Registry."""

_GLOBAL_UNICAST = IPv6Network("2000::/3")
"""All that IANA has given out. Beyond it lie ::/96, NAT64, 5f00::/16, fc00::/7, fe80::/10, fec0::/10 and ff00::/8."""

_NOT_PUBLIC_IPV6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # IETF protocol assignments: Teredo, benchmarking, ORCHID
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4
            "2620:4f:8000::/48",  # AS112
            "3ffe::/16",  # 6bone, given back
            "3fff::/20",  # documentation
        ),
    )
)
"""Special ranges inside 2000::/3. Source: IANA IPv6 Special-Purpose Address Registry."""

_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        (
            "169.254.169.254",  # AWS, Azure, Google, DigitalOcean, Oracle, OpenStack
            "169.254.170.2",  # AWS ECS task credentials
            "169.254.170.23",  # AWS EKS pod identity
            "169.254.42.42",  # Scaleway
            "169.254.0.23",  # Tencent
            "100.100.100.200",  # Alibaba
            "168.63.129.16",  # Azure's wire server, a public address
            "192.0.0.192",  # Oracle
            "fd00:ec2::254",  # AWS
            "fd00:ec2::23",  # AWS EKS pod identity
            "fd20:ce::254",  # Google
            "fd00:42::42",  # Scaleway
            "fe80::a9fe:a9fe",  # OpenStack
        ),
    )
)
"""They hand out a machine's credentials to whoever asks from it."""

_NAT64 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
_TUNNELS_WITH_LAST_32_BITS = (IPv6Network("::/96"), IPv6Network("::ffff:0:0/96"), IPv6Network("::ffff:0:0:0/96"), *_NAT64)
_6TO4, _TEREDO = IPv6Network("2002::/16"), IPv6Network("2001::/32")
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})


def is_public(address: Address) -> bool:
    """Is it an address of the public internet, and no way around to another one?"""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_IPV4)
    return address in _GLOBAL_UNICAST and not any(address in network for network in _NOT_PUBLIC_IPV6) and embedded_ipv4(address) is None


def is_metadata(address: Address) -> bool:
    """Does a cloud hand out credentials there, directly or through a tunnel?"""
    inner = embedded_ipv4(address)
    # By number: a scope, as in fe80::a9fe:a9fe%eth0, makes an address unequal to itself.
    return type(address)(int(address)) in _METADATA or inner in _METADATA


def embedded_ipv4(address: Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address is translated or tunnelled to, if it is of such a kind."""
    bits = int(address)
    # :: and ::1 lie in ::/96 but are addresses of their own.
    if isinstance(address, IPv4Address) or bits <= 1:
        return None
    if any(address in network for network in _TUNNELS_WITH_LAST_32_BITS) or bits >> 32 & 0xFFFFFFFF in _ISATAP:
        return IPv4Address(bits & 0xFFFFFFFF)
    if address in _6TO4:
        return IPv4Address(bits >> 80 & 0xFFFFFFFF)
    if address in _TEREDO:
        return IPv4Address(~bits & 0xFFFFFFFF)
    return None
