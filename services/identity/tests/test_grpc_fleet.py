"""What a machine that registers is answered."""

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest

from libs.custody import Secret
from libs.ids import uuid7
from plexsphere.identity.v1 import enrolment_pb2 as pb
from services.identity.enrolment import Enrolled, Wish
from services.identity.grpc_fleet import EnrolmentApi
from services.identity.model import Peer, Registered, SigningKey, Snapshot

pytestmark = pytest.mark.unit
NO_CONTEXT: Any = None


@dataclass
class Together:
    """Three machines that registered in one transaction."""

    ids: list[UUID] = field(default_factory=lambda: sorted(uuid7() for _ in range(3)))

    def __post_init__(self) -> None:
        self.snapshot = Snapshot(
            [Peer(one, f"10.0.0.{n}", bytes([n]) * 32, f"h:{n}") for n, one in enumerate(self.ids)]
        )
        self.coming = iter(self.ids)

    async def register(self, _: Wish) -> Enrolled:
        node = Registered(next(self.coming), "10.0.0.9", self.snapshot, "10.0.0.0/8")
        return Enrolled(node, SigningKey("kid", bytes(32)), Secret(b"k" * 32))


async def test_who_registers_together_is_told_of_the_others_and_not_of_itself() -> None:
    together = Together()
    api: Any = EnrolmentApi(together)  # type: ignore[arg-type]  # the rule's one method that is called
    for node_id in together.ids:
        answer: pb.RegisterResponse = await api.Register(pb.RegisterRequest(), NO_CONTEXT)
        assert (answer.node_id, answer.nsk, answer.domain_mesh_cidr) == (str(node_id), b"k" * 32, "10.0.0.0/8")
        assert [(peer.node_id, peer.mesh_ip, peer.public_key, peer.fallback_endpoint) for peer in answer.peers] == [
            (str(one), f"10.0.0.{n}", bytes([n]) * 32, f"h:{n}") for n, one in enumerate(together.ids) if one != node_id
        ]
