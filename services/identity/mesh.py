"""The Domains' event keys, which mesh holds."""

from uuid import UUID

from libs.rpc.channel import Peer
from plexsphere.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from services.identity.model import SigningKey


class MeshKeys:
    """Asks mesh."""

    def __init__(self, peer: Peer) -> None:
        self._stub = mesh_pb2_grpc.SigningKeysServiceStub(peer)

    async def ensure(self, domain_id: UUID) -> SigningKey:
        """Return the current key, made when there is none."""
        answer = await self._stub.EnsureSigningKey(mesh_pb2.EnsureSigningKeyRequest(domain_id=str(domain_id)))
        return SigningKey(answer.key.kid, answer.key.public_key)
