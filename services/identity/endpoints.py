"""The rules of where nodes are reached from outside, as they report it themselves."""

import datetime
import ipaddress
import re
from dataclasses import dataclass
from uuid import UUID, uuid5

from libs.clock import Clock
from libs.decision import Record
from libs.errors import EndpointClockSkew, EndpointUnparseable, TooMany
from libs.principal import Principal
from services.identity.authority import Gate
from services.identity.node_ports import NodeStore

SKEW = datetime.timedelta(seconds=60)
# How long a report counts. It is longer than the skew, so a report that passes the skew is newer than this as well.
FRESH_FOR = datetime.timedelta(minutes=5)
HOST_AND_PORT = re.compile(r"(?:\[([0-9a-fA-F:.]{2,45})\]|([A-Za-z0-9.-]{1,253})):([1-9][0-9]{0,4})")
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# Resolvers read such a last label as part of an address: 127.1 and 0x7f.1 are loopback.
NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
HIGHEST_PORT = 65535
SPACE = UUID("5b0f3c1e-8f63-5c0e-9d0b-0b7a4f2f6a52")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_endpoint(text: str) -> str:
    """Return host and port in one form; raises EndpointUnparseable for loopback and for what is no endpoint."""
    match = HOST_AND_PORT.fullmatch(text)
    if match is None or int(match[3]) > HIGHEST_PORT:
        raise EndpointUnparseable
    try:
        if match[1]:
            return f"[{_reachable(ipaddress.IPv6Address(match[1]))}]:{match[3]}"
        host = match[2].lower()
        if NUMERIC.fullmatch(host.rstrip(".").rpartition(".")[2]):
            return f"{_reachable(ipaddress.IPv4Address(host))}:{match[3]}"
    except ValueError:
        raise EndpointUnparseable from None
    return f"{_name(host)}:{match[3]}"


def _reachable(address: Address) -> Address:
    inner = getattr(address, "ipv4_mapped", None) or address
    # Connecting to the unspecified address reaches the own machine.
    if inner.is_loopback or inner.is_unspecified or inner.is_multicast:
        raise EndpointUnparseable
    return address


def _name(host: str) -> str:
    labels = host.removesuffix(".").split(".")
    if not all(LABEL.fullmatch(label) for label in labels) or labels[-1] == "localhost":
        raise EndpointUnparseable
    return ".".join(labels)


@dataclass(frozen=True)
class Endpoints:
    """Takes nodes' reports of where they are reached."""

    store: NodeStore
    gate: Gate
    clock: Clock

    async def report(
        self, principal: Principal, node_id: str, endpoint: str, nat_type: str, reported_at: datetime.datetime
    ) -> tuple[datetime.datetime, datetime.datetime]:
        """Take a report; returns when, and from when on it should have been repeated."""
        await self.gate.agent(principal, node_id, "node.endpoint")
        now = self.clock.now()
        if abs(now - reported_at) > SKEW:
            raise EndpointClockSkew
        try:
            await self.store.report_endpoint(UUID(node_id), parse_endpoint(endpoint), nat_type, reported_at, now)
        except TooMany as refused:
            await self.gate.audit.record(limited("endpoint", principal.domain_id, refused.code, now))
            raise
        return now, now + FRESH_FOR


def limited(what: str, domain_id: str, code: str, at: datetime.datetime) -> Record:
    """Return the row of refused changes: one for all of a Domain's in a minute, which each of them makes the same."""
    minute = at.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ")
    return Record(
        domain_id=domain_id,
        action=f"node.{what}_limited",
        relation="node-agent",
        object_type="domain",
        object_id=domain_id,
        reason="caveat_violation",
        context={what: [code], "minute": [minute]},
        idempotency_key=uuid5(SPACE, f"{domain_id}/{what}/{code}/{minute}"),
    )
