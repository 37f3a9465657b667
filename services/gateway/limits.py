"""Per-address limits of this process: token buckets, refilled with time, that forget idle addresses."""

import asyncio
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from libs.errors import TokenUnknown, TooMany, Unauthenticated

MOST_ADDRESSES = 50_000
SECONDS_A_MINUTE = 60.0
SITE_PREFIX = 64
BAD_CREDENTIAL = (Unauthenticated, TokenUnknown)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def site(address: str) -> str:
    """Return what is limited: an IPv4 address, or the /64 of an IPv6 one, which a single client can fill."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:  # noqa: PLR2004 — the version of the protocol
        return address
    return str(ipaddress.ip_network((int(parsed), SITE_PREFIX), strict=False))


def client_address(remote: str, forwarded: str, proxies: Collection[Network]) -> str:
    """Return whose request it is: the last address in `X-Forwarded-For` that a trusted proxy did not write of another.

    A header counts only from a trusted proxy, and ends where it cannot be read.
    """
    address = plain(remote)
    for hop in reversed(forwarded.split(",")):
        if not trusted(address, proxies) or not (before := plain(hop.strip())):
            break
        address = before
    return address or remote


def plain(text: str) -> str:
    """Return an address in one form, that of IPv4 for a mapped one; nothing for what is none."""
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return ""
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def trusted(address: str, proxies: Collection[Network]) -> bool:
    """Whether an address is that of a proxy of ours."""
    return bool(address) and any(ipaddress.ip_address(address) in network for network in proxies)


class AddressLimited(TooMany):
    """What one address may do in a minute is spent."""


@dataclass
class Turns:
    """Guesses of one site: how many are under way, and how many of those and of the waiting there are."""

    held: int = 0
    known: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


@dataclass
class AddressLimit:
    """One limit; the least recently seen address is forgotten first, which only ever favours the client."""

    per_minute: int
    burst: int
    clock: Callable[[], float] = time.monotonic
    _left: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)
    _turns: dict[str, Turns] = field(default_factory=dict)

    def check(self, address: str) -> None:
        """Raise AddressLimited while nothing is left for the address."""
        left = self._tokens(site(address))
        if left < 1:
            wait = math.ceil((1 - left) * SECONDS_A_MINUTE / self.per_minute)
            raise AddressLimited("too many requests from this address", retry_after_s=max(1, wait))

    def spend(self, address: str) -> None:
        """Take one."""
        key = site(address)
        self._left[key] = (max(0.0, self._tokens(key) - 1), self.clock())
        self._left.move_to_end(key)
        while len(self._left) > MOST_ADDRESSES:
            self._left.popitem(last=False)

    def take(self, address: str) -> None:
        """Take one; raises AddressLimited when nothing is left."""
        self.check(address)
        self.spend(address)

    @asynccontextmanager
    async def guess(self, address: str) -> AsyncIterator[None]:
        """Hold one for the block, and spend it when the block finds that a credential is bad.

        No more are under way at once than are left. Who comes then waits for those: guessing in parallel gains nothing,
        and many clients behind one address lose nothing.
        """
        key = site(address)
        turns = self._turns.setdefault(key, Turns())
        turns.known += 1
        try:
            async with turns.changed:
                await turns.changed.wait_for(lambda: not turns.held or self._tokens(key) >= turns.held + 1)
                if not turns.held:
                    self.check(address)
                turns.held += 1
            try:
                yield
            except BAD_CREDENTIAL:
                self.spend(address)
                raise
            finally:
                turns.held -= 1
        finally:
            turns.known -= 1
            if not turns.known:
                del self._turns[key]
            async with turns.changed:
                turns.changed.notify()

    def _tokens(self, key: str) -> float:
        left, seen = self._left.get(key, (float(self.burst), self.clock()))
        return min(float(self.burst), left + (self.clock() - seen) * self.per_minute / SECONDS_A_MINUTE)
