"""Where identity lets itself be sent by whoever binds a provider: HTTPS, and addresses of the internet only.

An administrator of a Domain chooses these URLs, and the network around identity is not theirs to look into.
"""

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# RFC 6052, 2.1.
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# RFC 3986, 2: what a parser would drop, or read as another character, is in no URL.
URL = re.compile(r"[!-\[\]-~]+")
# The special-purpose registries of IANA (RFC 6890) as a list of our own: what Python takes for global differs from one
# patch to the next, and has holes. Of IPv6 nothing outside of 2000::/3 is the internet.
INSIDE = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/3", "::/3", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "4000::/2", "8000::/1",
        # A public address that leads to the host itself in Azure.
        "168.63.129.16/32",
    )
)  # fmt: skip


def is_endpoint(url: object) -> bool:
    """Whether something is an absolute https URL without credentials in it and without a fragment."""
    try:
        parts = urlsplit(url) if isinstance(url, str) and URL.fullmatch(url) else None
        # Reading the port is what checks it.
        return (
            parts is not None
            and (parts.scheme, parts.fragment) == ("https", "")
            and bool(parts.hostname and "@" not in parts.netloc and parts.port != 0 and "#" not in str(url))
        )
    except ValueError:
        return False


def is_issuer(url: str) -> bool:
    """Whether a text can be an issuer identifier, which has no query either (OpenID Connect Discovery 1.0, 3)."""
    return is_endpoint(url) and "?" not in url


def allowed(address: Address, networks: Iterable[Network]) -> bool:
    """Whether an address is one of the internet, or in a network that the operator listed."""
    if (inner := _inside(address)) is not None:
        return allowed(inner, networks)
    if any(address in network for network in networks):
        return True
    return not any(address in network for network in INSIDE)


def _inside(address: Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address in IPv6's clothes, if it is one."""
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    translated = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None
    return address.ipv4_mapped or translated


def only_to(networks: Iterable[Network]) -> Callable[..., socket.socket]:
    """Return what makes the sockets of a connector: none to an address that is not allowed.

    It sees the address that is connected to, whatever a name said a moment before.
    """
    listed = tuple(networks)

    def open_socket(info: tuple[int, int, int, str, tuple[str, int]]) -> socket.socket:
        family, kind, protocol, _, (host, *_) = info
        if not allowed(ipaddress.ip_address(host.partition("%")[0]), listed):
            raise OSError("providers may not be at this address; see provider_networks")
        return socket.socket(family, kind, protocol)

    return open_socket
