"""Rows that are recorded at the same time go to audit together; each caller gets its own answer."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from libs.audit import AuditClient
from libs.decision import Record
from libs.errors import AuditDiverged, AuditUnavailable, InvalidRequest, Unavailable
from libs.rpc.channel import Peer
from plexsphere.audit.v1 import audit_pb2

pytestmark = pytest.mark.unit


@dataclass
class FakeAudit:
    """The audit service: objects that it cannot read, and how long it takes."""

    unreadable: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    down: bool = False
    calls: list[list[str]] = field(default_factory=list)
    may: asyncio.Event = field(default_factory=asyncio.Event)

    def unary_unary(self, method: str, *_: Any, **__: Any) -> Callable[..., Any]:
        async def call(request: Any, *, timeout: float) -> Any:  # noqa: ASYNC109 — gRPC's own
            rows = list(request.decisions) if method.endswith("All") else [request]
            self.calls.append([row.object_id for row in rows])
            await self.may.wait()
            if self.down:
                raise Unavailable
            if any(row.object_id in self.unreadable for row in rows):
                raise InvalidRequest
            if any(row.object_id in self.refused for row in rows):
                raise AuditDiverged
            if method.endswith("All"):
                return audit_pb2.AppendAllResponse(seqs=[int(row.object_id) for row in rows])
            return audit_pb2.AppendResponse(seq=int(request.object_id))

        return call


async def recorded(audit: FakeAudit, ids: range) -> list[int | BaseException]:
    """Record rows at the same time, the first of which holds the others up."""
    client = AuditClient(cast("Peer", audit))
    rows = [Record("", "node.register", "register", "node", str(one), "granted") for one in ids]
    asked = [asyncio.ensure_future(client.record(row)) for row in rows]
    await asyncio.sleep(0.01)
    audit.may.set()
    return await asyncio.gather(*asked, return_exceptions=True)


async def test_what_comes_while_a_call_is_under_way_goes_together_and_each_gets_its_own_sequence() -> None:
    audit = FakeAudit()
    assert await recorded(audit, range(1, 101)) == list(range(1, 101))
    assert [len(rows) for rows in audit.calls] == [64, 36]


@pytest.mark.parametrize("audit", [FakeAudit(unreadable={"3"}), FakeAudit(refused={"3"})], ids=["unread", "refused"])
async def test_one_that_is_not_taken_takes_no_other_with_it(audit: FakeAudit) -> None:
    answers = await recorded(audit, range(1, 6))
    assert [type(answer) for answer in answers] == [int, int, AuditUnavailable, int, int]


async def test_without_audit_nobody_may_go_on() -> None:
    answers = await recorded(FakeAudit(down=True), range(1, 6))
    assert {type(answer) for answer in answers} == {AuditUnavailable}


async def test_who_waits_too_long_behind_others_may_not_go_on() -> None:
    audit = FakeAudit()
    client = AuditClient(cast("Peer", audit))
    row = Record("", "node.register", "register", "node", "1", "granted")
    first = asyncio.ensure_future(client.record(row))
    await asyncio.sleep(0)
    for waiting in (first, client.record(row)):
        with pytest.raises(AuditUnavailable):
            await waiting
    audit.may.set()
    # And nothing is left behind.
    assert await client.record(row) == 1
