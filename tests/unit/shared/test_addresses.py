"""Public means public: no reserved range, and no IPv6 spelling of one, counts as the internet."""

from __future__ import annotations

import ipaddress

import pytest

from shared.addresses import embedded_ipv4, is_metadata, is_public

NOT_PUBLIC = [
    "0.0.0.0",  # noqa: S104 - refused here, not bound
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.127.255.254",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.1.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:0:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::a00:1",
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::1",
    "3ffe::1",
    "3fff::1",
    "3fff:fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "2a00:1450::5efe:a00:1",
    "2a00:1450::200:5efe:a00:1",
]
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "100.63.255.255",
    "100.128.0.1",
    "172.15.0.1",
    "172.32.0.1",
    "192.0.1.1",
    "198.17.0.1",
    "198.20.0.1",
    "223.255.255.255",
]
PUBLIC_IPV6 = ["2606:4700:4700::1111", "2a00:1450:4001:81b::200e", "2001:4860:4860::8888", "2400:cb00::1"]


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_reserved_ranges_are_not_public(text: str) -> None:
    """Private, local, reserved, translated and tunnelled addresses are no way out."""
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", PUBLIC + PUBLIC_IPV6)
def test_the_internet_is_public(text: str) -> None:
    """Ordinary servers, also next door to reserved ranges, can be reached."""
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "text",
    [
        "169.254.169.254",
        "100.100.100.200",
        "168.63.129.16",
        "fd00:ec2::254",
        "fe80::a9fe:a9fe%eth0",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "2001:0:4136:e378:8000:63bf:5601:5601",
    ],
)
def test_metadata_services_are_known_in_every_spelling(text: str) -> None:
    """A cloud's credentials server is recognised as itself and behind every kind of tunnel."""
    assert is_metadata(ipaddress.ip_address(text))


def test_loopback_hides_nothing() -> None:
    """::1 lies in the range of IPv4-compatible addresses but is no IPv4 address."""
    assert embedded_ipv4(ipaddress.ip_address("::1")) is None
    assert str(embedded_ipv4(ipaddress.ip_address("::2.3.4.5"))) == "2.3.4.5"
