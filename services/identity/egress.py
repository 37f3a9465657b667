"""Where identity lets itself be sent by whoever binds a provider: HTTPS, and addresses of the internet only.

An administrator of a Domain chooses these URLs, and the network around identity is not theirs to look into.
"""

import ipaddress
import socket
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# RFC 6052, 2.1.
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_endpoint(url: object) -> bool:
    """Whether something is an absolute https URL without credentials in it and without a fragment."""
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
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
    return address.is_global and not address.is_multicast


def _inside(address: Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address in IPv6's clothes, if it is one."""
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    translated = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None
    return address.ipv4_mapped or address.sixtofour or translated


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
