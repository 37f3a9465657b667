"""Where nodes say that they are reached: what is an endpoint, when it counts, and who may say so."""

from datetime import timedelta

import pytest

from libs.errors import (
    AuthzUnavailable,
    EndpointClockSkew,
    EndpointPeerGone,
    EndpointPeerNotFound,
    EndpointUnparseable,
    Forbidden,
    NodeIdMismatch,
    TooMany,
)
from libs.ids import uuid7
from services.identity.endpoints import FRESH_FOR, SKEW, Endpoints, parse_endpoint
from services.identity.tests.fakes import NOW, World, node_principal
from services.identity.tests.node_fakes import FakeNodes

pytestmark = pytest.mark.unit

GOOD = {
    "203.0.113.7:51820": "203.0.113.7:51820",
    "10.0.0.1:1": "10.0.0.1:1",
    "[2001:DB8::1]:65535": "[2001:db8::1]:65535",
    "[2001:db8:0:0:0:0:0:1]:80": "[2001:db8::1]:80",
    "Edge-A.Example.net:51820": "edge-a.example.net:51820",
    "edge.example.net.:443": "edge.example.net:443",
    "localhost.example:443": "localhost.example:443",
}
BAD = {
    "empty": "",
    "no port": "203.0.113.7",
    "empty port": "203.0.113.7:",
    "port zero": "203.0.113.7:0",
    "port with zeros": "203.0.113.7:0080",
    "port too high": "203.0.113.7:65536",
    "named port": "203.0.113.7:https",
    "port of other digits": "203.0.113.7:٤٤٣",
    "no host": ":443",
    "bare IPv6": "2001:db8::1:443",
    "loopback": "127.0.0.1:443",
    "all of loopback": "127.9.9.9:443",
    "loopback, IPv6": "[::1]:443",
    "loopback, mapped": "[::ffff:127.0.0.1]:443",
    "loopback by name": "localhost:443",
    "loopback by name, rooted": "LOCALHOST.:443",
    "below localhost": "a.localhost:443",
    "loopback, short": "127.1:443",
    "loopback as a number": "2130706433:443",
    "loopback in hex": "0x7f000001:443",
    "loopback in octal": "0177.0.0.1:443",
    "unspecified": "0.0.0.0:443",
    "unspecified, IPv6": "[::]:443",
    "multicast": "224.0.0.1:443",
    "zone": "[fe80::1%eth0]:443",
    "IPv4 in brackets": "[203.0.113.7]:443",
    "space": " 203.0.113.7:443",
    "new line": "203.0.113.7:443\n",
    "scheme": "udp://203.0.113.7:443",
    "user": "a@203.0.113.7:443",
    "empty label": "a..example:443",
    "hyphen first": "-a.example:443",
    "long label": f"{'a' * 64}.example:443",
    "long name": f"{'a.' * 130}example:443",
    "not ASCII": "Kelvin\u212a.example:443",
    "NUL": "a\0b:443",
}


@pytest.mark.parametrize("text", GOOD)
def test_an_endpoint_has_one_form(text: str) -> None:
    assert parse_endpoint(text) == GOOD[text]
    assert parse_endpoint(GOOD[text]) == GOOD[text]


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(EndpointUnparseable):
        parse_endpoint(text)


class Scene:
    """One node that may report."""

    def __init__(self) -> None:
        self.world, self.nodes = World(), FakeNodes()
        self.node_id = self.nodes.add(self.world.domain.id, NOW, b"k" * 32)
        this = f"node:{self.node_id}"
        self.world.authority.granted.add((this, "node-agent", this))
        self.endpoints = Endpoints(self.nodes, self.world.identity.gate, self.world.clock)
        self.principal = node_principal(self.node_id, self.world.domain.id)

    async def report(self, endpoint: str = "203.0.113.7:443", skew: timedelta = timedelta(0), path: str = "") -> object:
        at = self.world.clock.now() + skew
        return await self.endpoints.report(self.principal, path or str(self.node_id), endpoint, "full_cone", at)


async def test_a_report_is_taken_and_says_when_to_repeat_it() -> None:
    scene = Scene()
    for skew in (-SKEW, timedelta(0), SKEW):
        assert await scene.report(skew=skew) == (NOW, NOW + FRESH_FOR)
    assert scene.nodes.nodes[scene.node_id].peer.fallback_endpoint == "203.0.113.7:443"
    assert [event[0] for event in scene.nodes.events] == ["peer_endpoint_changed"]
    assert scene.world.audit.rows == []


@pytest.mark.parametrize("sign", [-1, 1])
async def test_a_report_of_another_time_is_refused_before_it_is_read(sign: int) -> None:
    scene = Scene()
    with pytest.raises(EndpointClockSkew):
        await scene.report("nonsense", sign * (SKEW + timedelta(microseconds=1)))
    with pytest.raises(EndpointUnparseable):
        await scene.report("nonsense")
    assert scene.nodes.events == []


async def test_who_may_not_is_refused_with_a_row() -> None:
    scene = Scene()
    with pytest.raises(NodeIdMismatch):
        await scene.report(path=str(uuid7()))
    scene.world.authority.granted.clear()
    with pytest.raises(Forbidden):
        await scene.report()
    assert [(row.action, row.context) for row in scene.world.audit.rows] == [
        ("node.endpoint", {"endpoint": ["node_id_mismatch"]}), ("node.endpoint", {}),
    ]  # fmt: skip
    scene.world.authority.refusal = AuthzUnavailable()
    with pytest.raises(AuthzUnavailable):
        await scene.report()
    assert scene.nodes.events == []


async def test_who_moves_all_the_time_is_refused_with_one_row_a_minute() -> None:
    scene = Scene()
    for port in range(1, 6):
        await scene.report(f"203.0.113.7:{port}")
    for port in (6, 7, 6):
        with pytest.raises(TooMany):
            await scene.report(f"203.0.113.7:{port}")
    scene.world.clock.advance(60)
    for port in range(10, 15):
        await scene.report(f"203.0.113.7:{port}")
    with pytest.raises(TooMany):
        await scene.report("203.0.113.7:15")
    rows = scene.world.audit.rows
    assert {(row.action, row.object_id) for row in rows} == {("node.endpoint_limited", str(scene.world.domain.id))}
    assert len(rows) == len({row.idempotency_key for row in rows}) == 2
    assert rows[-1].context == {"endpoint": ["rate_limited"], "minute": ["2026-05-01T12:01Z"]}


async def test_a_node_that_is_gone_is_told_apart_from_one_that_never_was() -> None:
    scene = Scene()
    scene.nodes.remove(scene.node_id)
    with pytest.raises(EndpointPeerGone):
        await scene.report()
    scene.nodes.gone.clear()
    with pytest.raises(EndpointPeerNotFound):
        await scene.report()
