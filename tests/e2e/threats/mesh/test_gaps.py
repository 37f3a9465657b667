"""F-1: what the broker loses before a gateway has read it comes from the log, however much it is."""

import pytest

from libs.ids import uuid7
from plexsphere.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from tests.e2e.attacker import STREAM, peer
from tests.e2e.freeze import frozen
from tests.e2e.threats.mesh.conftest import Arena

pytestmark = pytest.mark.e2e

# Together more than one answer of gRPC may hold.
EVENTS, SIZE = 100, 55_000


async def test_a_gap_that_no_answer_can_hold_is_filled_all_the_same(arena: Arena) -> None:
    before = await arena.refused()
    async with arena.listen() as node, peer(arena.world, "mesh", "identity") as mesh:
        await node.until(await arena.publish())
        ids = [str(uuid7()) for _ in range(EVENTS)]
        async with frozen(arena.world, "gateway"):
            for identifier in ids:
                await mesh_pb2_grpc.PublishServiceStub(mesh).Publish(
                    mesh_pb2.PublishRequest(
                        domain_id=arena.domain,
                        id=identifier,
                        type="action_request",
                        scope=arena.scope,
                        payload_json=f'{{"a":"{"x" * SIZE}"}}',
                    )
                )
            # Deleted at once, so that the keeper, who looks at any time, finds one gap.
            await arena.broker.api(f"STREAM.PURGE.{STREAM}", {"filter": f"events.{arena.domain}.>"})
        for identifier in ids:
            await node.until(identifier, 60)
        last_one = await arena.publish()
        await node.until(last_one)
    assert {one.verdict for one in node.heard} == {"ok"}
    assert len(node.ids) == len(node.heard)
    # Forgeries of other tests may still be counted; nothing of mesh's own may be taken for a replay or a change.
    refused = await arena.refused() - before
    assert not refused.keys() & {"nonce_unknown", "nonce_altered", "nonce_pending", "too_long", "unread"}
