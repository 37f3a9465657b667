"""A-2: audit is aborted while it takes rows in, and leaves what is personal in them nowhere but in its table."""

import asyncio
import base64
import contextlib
import secrets
import signal
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from devstack.layout import State
from devstack.openbao import client
from libs.errors import PlexError
from plexsphere.audit.v1 import audit_pb2 as pb
from plexsphere.audit.v1 import audit_pb2_grpc as stubs
from tests.e2e.attacker import eventually, peer
from tests.e2e.crash import replica
from tests.e2e.scan import Needles, written
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

CALLS, EACH = 20, 64


@dataclass
class Planted:
    """A chain of its own, whose rows hold what can be searched for."""

    chain: str = field(default_factory=lambda: str(uuid.uuid4()))
    subject: str = field(default_factory=lambda: str(uuid.uuid4()))
    address: str = field(default_factory=lambda: "2001:db8:" + ":".join(secrets.token_hex(2) for _ in range(6)))
    agent: str = field(default_factory=lambda: "agent/" + secrets.token_hex(16))

    def decision(self) -> pb.AppendRequest:
        """Return one more decision about the subject."""
        occurred_at = Timestamp()
        occurred_at.GetCurrentTime()
        return pb.AppendRequest(
            domain_id=self.chain, idempotency_key=str(uuid.uuid4()), occurred_at=occurred_at, action="crash.tried",
            subject_id=self.subject, subject_kind="user", relation="read", object_type="crash", object_id="crash",
            reason=pb.REASON_GRANTED, client_ip=self.address, user_agent=self.agent,
        )  # fmt: skip

    async def values(self, world: World) -> dict[bytes, str]:
        """Return all that must be nowhere, by the name that a failure shows."""
        bao, dba = client(State(world.state), "operator"), await world.superuser()
        try:
            pepper = (await bao.read_kv(f"audit/{self.chain}/pepper"))[0]["pepper"]
            salts = await dba.fetch("SELECT salt FROM audit.personal WHERE chain = $1", self.chain)
        finally:
            await bao.close()
            await dba.close()
        known = {self.subject: "the subject", self.address: "the address", self.agent: "the user agent"}
        values = {value.encode(): name for value, name in known.items()}
        return values | {base64.b64decode(pepper): "the pepper"} | {row["salt"]: "a salt" for row in salts}


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV])
async def test_an_abort_with_rows_in_flight_leaves_no_value_anywhere(
    world: World, tmp_path: Path, number: signal.Signals
) -> None:
    planted = Planted()
    with replica(world, "audit", tmp_path) as one:
        async with peer(world, "audit", "identity", one.port) as opened:
            stub = stubs.AuditAppendServiceStub(opened)

            async def append(count: int = EACH) -> int:
                decisions = [planted.decision() for _ in range(count)]
                return len((await stub.AppendAll(pb.AppendAllRequest(decisions=decisions), timeout=20)).seqs)

            async def serves() -> bool:
                with contextlib.suppress(PlexError):
                    return bool(await append(1))
                return False

            await eventually(serves)
            appends = [asyncio.create_task(append()) for _ in range(CALLS)]
            await asyncio.wait(appends, return_when=asyncio.FIRST_COMPLETED)
            assert one.readable() == []
            appends += [asyncio.create_task(append()) for _ in range(CALLS)]
            await asyncio.wait(appends[CALLS:], return_when=asyncio.FIRST_COMPLETED)
            one.process.send_signal(number)
            answers = await asyncio.gather(*appends, return_exceptions=True)
        assert one.process.wait(10) == -number
    # Some were in the middle of it.
    assert any(isinstance(answer, PlexError) for answer in answers)
    assert one.cores() == []
    assert b"Fatal" not in one.log.read_bytes()
    values = await planted.values(world)
    # What was acknowledged is there.
    assert len(values) - 4 >= sum(answer for answer in answers if isinstance(answer, int)) > 0
    needles = Needles(values)
    found = {(name, place) for place, content in written(world.state) for name in needles.find(content)}
    assert found == set()
