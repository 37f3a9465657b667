"""Checks of nodes that meet go to identity together; nobody gets another's answer, or one from before he asked."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from libs import relations
from libs.errors import AuthzUnavailable, Unavailable
from libs.relations import Relations
from libs.rpc.channel import Peer
from plexsphere.identity.v1 import relations_pb2 as pb

pytestmark = pytest.mark.unit

GRANTED, UNKNOWN = pb.VERDICT_GRANTED, pb.VERDICT_UNSPECIFIED


@dataclass
class FakeIdentity:
    """Identity: what it grants, what it cannot say, and how long it takes."""

    granted: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    down: bool = False
    calls: list[list[str]] = field(default_factory=list)
    may: asyncio.Event = field(default_factory=asyncio.Event)

    def unary_unary(self, method: str, *_: Any, **__: Any) -> Callable[..., Any]:
        async def call(request: Any, *, timeout: float) -> Any:  # noqa: ASYNC109 — gRPC's own
            bulk = method.endswith("BulkCheck")
            asked = [one.subject for one in (request.checks if bulk else [request])]
            self.calls.append(asked)
            answers = [pb.CheckResponse(verdict=self._verdict(one)) for one in asked]
            await self.may.wait()
            if self.down:
                raise Unavailable
            return pb.BulkCheckResponse(results=answers) if bulk else answers[0]

        return call

    unary_stream = unary_unary

    def _verdict(self, subject: str) -> "pb.Verdict.ValueType":
        if subject in self.unknown:
            return UNKNOWN
        return GRANTED if subject in self.granted else pb.VERDICT_OUT_OF_SCOPE


async def asked(identity: FakeIdentity, subjects: list[str]) -> list[str]:
    """Ask at the same time, the first of which holds the others up."""
    client = Relations(cast("Peer", identity))
    checks = [asyncio.ensure_future(client.check(one, "read", "secret:1")) for one in subjects]
    await asyncio.sleep(0.01)
    identity.may.set()
    answers = await asyncio.gather(*checks, return_exceptions=True)
    return [one.code if isinstance(one, AuthzUnavailable) else cast("Any", one).reason for one in answers]


async def test_checks_of_nodes_that_meet_go_together_and_each_gets_its_own_answer() -> None:
    identity = FakeIdentity(granted={"node:1", "node:3"}, unknown={"node:4"})
    reasons = await asked(identity, [f"node:{number}" for number in range(5)])
    assert reasons == ["out_of_scope", "granted", "out_of_scope", "granted", "authz_unavailable"]
    assert identity.calls == [[f"node:{number}" for number in range(5)]]


async def test_people_are_asked_about_one_by_one() -> None:
    identity = FakeIdentity(granted={"user:1"})
    assert await asked(identity, ["user:1", "user:2"]) == ["granted", "out_of_scope"]
    assert identity.calls == [["user:1"], ["user:2"]]


async def test_who_asks_after_a_revocation_is_not_answered_by_a_call_from_before_it() -> None:
    identity = FakeIdentity(granted={"node:1"})
    client = Relations(cast("Peer", identity))
    before = asyncio.ensure_future(client.check("node:1", "read", "secret:1"))
    await asyncio.sleep(0.01)
    identity.granted.clear()
    after = asyncio.ensure_future(client.check("node:1", "read", "secret:1"))
    await asyncio.sleep(0.01)
    identity.may.set()
    assert ((await before).reason, (await after).reason) == ("granted", "out_of_scope")


async def test_without_identity_nobody_is_denied_or_granted() -> None:
    identity = FakeIdentity(granted={"node:1"}, down=True)
    assert await asked(identity, ["node:1", "node:2"]) == ["authz_unavailable"] * 2


async def test_who_waits_too_long_behind_others_hears_that_relations_are_missing() -> None:
    identity = FakeIdentity(granted={"node:1"})
    client = Relations(cast("Peer", identity))
    checks = [asyncio.ensure_future(client.check("node:1", "read", "secret:1")) for _ in range(2)]
    async with asyncio.timeout(relations.DEADLINE_S + 1):
        answers = await asyncio.gather(*checks, return_exceptions=True)
    assert [type(one) for one in answers] == [AuthzUnavailable] * 2
    identity.may.set()
    assert (await client.check("node:1", "read", "secret:1")).granted
