"""Which URLs and addresses a provider may have; and that no socket is opened to any other."""

import ipaddress
import socket

import pytest

from services.identity.egress import allowed, is_endpoint, is_issuer, only_to

pytestmark = pytest.mark.unit

REFUSED = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254",
    "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1",
    "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
    # In other clothes: a local translator (RFC 8215), IPv4-compatible, 6to4, Teredo, site-local.
    "64:ff9b:1::a9fe:a9fe", "::10.0.0.1", "2002:a9fe:a9fe::", "2001:0:a9fe:a9fe::1", "fec0::1",
    # Metadata and platform services of clouds; networks for documentation, benchmarks and later.
    "192.0.0.192", "168.63.129.16", "100.100.100.200", "192.0.2.1", "192.88.99.1", "198.18.0.1", "203.0.113.1",
    "240.0.0.1", "100::1", "2001:db8::1", "3fff::1", "4000::1", "5f00::1", "::ffff:0:a00:1",
]  # fmt: skip


@pytest.mark.parametrize("address", REFUSED)
def test_an_address_inside_is_refused_unless_it_is_listed(address: str) -> None:
    assert not allowed(ipaddress.ip_address(address), [])
    other = ipaddress.ip_network("198.51.100.0/24")
    assert not allowed(ipaddress.ip_address(address), [other])


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101", "11.0.0.1"])
def test_an_address_of_the_internet_is_allowed(address: str) -> None:
    assert allowed(ipaddress.ip_address(address), [])


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203"])
def test_a_listed_network_is_allowed_and_its_neighbour_is_not(address: str) -> None:
    assert allowed(ipaddress.ip_address(address), [ipaddress.ip_network("10.1.2.0/24")])
    assert not allowed(ipaddress.ip_address(address), [ipaddress.ip_network("10.1.3.0/24")])


def test_no_socket_is_opened_to_what_is_refused() -> None:
    info = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 443))
    with pytest.raises(OSError, match="provider_networks"):
        only_to([])(info)
    only_to([ipaddress.ip_network("127.0.0.1/32")])(info).close()
    scoped = (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("fe80::1%eth0", 443))
    with pytest.raises(OSError, match="provider_networks"):
        only_to([])(scoped)


@pytest.mark.parametrize(
    ("url", "endpoint", "issuer"),
    [
        ("https://op.example", True, True),
        ("https://op.example:8443/tenant/a", True, True),
        ("https://op.example/token?policy=a", True, False),
        ("https://op.example?", True, False),
        ("https://op.example#", False, False),
        ("https://op.example/#a", False, False),
        ("https://user@op.example", False, False),
        ("https://user:word@op.example", False, False),
        ("https://@op.example", False, False),
        ("http://op.example", False, False),
        ("HTTPS://op.example", True, True),
        ("https://", False, False),
        ("https:///path", False, False),
        ("https://op.example:0", False, False),
        ("https://op.example:port", False, False),
        ("https://[::1", False, False),
        ("op.example", False, False),
        ("", False, False),
        # What a parser drops or reads as another character.
        ("https://op.example\n", False, False),
        ("https://op.exam\tple", False, False),
        (" https://op.example", False, False),
        ("https://op.example/\x00", False, False),
        ("https://op.example/a b", False, False),
        ("https://op.example\\.evil.example", False, False),
        ("https://op\u3002example", False, False),
        ("https://op.example/\u202egpj", False, False),
    ],
)
def test_what_a_url_may_be(url: str, endpoint: bool, issuer: bool) -> None:  # noqa: FBT001 — a table's columns
    assert (is_endpoint(url), is_issuer(url)) == (endpoint, issuer)
    assert not is_endpoint(None)
