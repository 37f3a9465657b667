"""The Domains' event keys, which mesh holds."""

from uuid import UUID

from libs.rpc.channel import Peer
from libs.together import Each, Together
from plexsphere.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from services.identity.model import SigningKey


class MeshKeys:
    """Asks mesh; many who want one Domain's key at once ask together, and wait for no other Domain's."""

    def __init__(self, peer: Peer) -> None:
        self._stub = mesh_pb2_grpc.SigningKeysServiceStub(peer)
        self._asking: Each[UUID, Together[UUID, SigningKey]] = Each(lambda _: Together(self._ask))

    async def ensure(self, domain_id: UUID) -> SigningKey:
        """Return the current key, made when there is none."""
        return await self._asking[domain_id].ask(domain_id)

    async def _ask(self, askers: list[UUID]) -> list[SigningKey]:
        answer = await self._stub.EnsureSigningKey(mesh_pb2.EnsureSigningKeyRequest(domain_id=str(askers[0])))
        return [SigningKey(answer.key.kid, answer.key.public_key)] * len(askers)
