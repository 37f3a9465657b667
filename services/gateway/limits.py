"""Per-address limits of this process: token buckets, refilled with time, that forget idle addresses."""

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from libs.errors import TooMany

MOST_ADDRESSES = 50_000
SECONDS_A_MINUTE = 60.0
SITE_PREFIX = 64


def site(address: str) -> str:
    """Return what is limited: an IPv4 address, or the /64 of an IPv6 one, which a single client can fill."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:  # noqa: PLR2004 — the version of the protocol
        return address
    return str(ipaddress.ip_network((int(parsed), SITE_PREFIX), strict=False))


@dataclass
class AddressLimit:
    """One limit; the least recently seen address is forgotten first, which only ever favours the client."""

    per_minute: int
    burst: int
    clock: Callable[[], float] = time.monotonic
    _left: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def check(self, address: str) -> None:
        """Raise TooMany while nothing is left for the address."""
        left = self._tokens(site(address))
        if left < 1:
            wait = math.ceil((1 - left) * SECONDS_A_MINUTE / self.per_minute)
            raise TooMany("too many requests from this address", retry_after_s=max(1, wait))

    def spend(self, address: str) -> None:
        """Take one."""
        key = site(address)
        self._left[key] = (max(0.0, self._tokens(key) - 1), self.clock())
        self._left.move_to_end(key)
        while len(self._left) > MOST_ADDRESSES:
            self._left.popitem(last=False)

    def take(self, address: str) -> None:
        """Take one; raises TooMany when nothing is left."""
        self.check(address)
        self.spend(address)

    def _tokens(self, key: str) -> float:
        left, seen = self._left.get(key, (float(self.burst), self.clock()))
        return min(float(self.burst), left + (self.clock() - seen) * self.per_minute / SECONDS_A_MINUTE)
