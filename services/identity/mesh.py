"""The Domains' event keys, which mesh holds."""

import asyncio
from uuid import UUID

from libs.rpc.channel import Peer
from libs.together import Together
from plexsphere.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from services.identity.model import SigningKey


class MeshKeys:
    """Asks mesh; many who want one Domain's key at once ask together."""

    def __init__(self, peer: Peer) -> None:
        self._stub = mesh_pb2_grpc.SigningKeysServiceStub(peer)
        self._asking = Together(self._ask)

    async def ensure(self, domain_id: UUID) -> SigningKey:
        """Return the current key, made when there is none."""
        return await self._asking.ask(domain_id)

    async def _ask(self, domain_ids: list[UUID]) -> list[SigningKey | Exception]:
        once = dict.fromkeys(domain_ids)
        answers = await asyncio.gather(*map(self._ask_for, once), return_exceptions=True)
        found = dict(zip(once, answers, strict=True))
        return [found[domain_id] for domain_id in domain_ids]  # type: ignore[misc]  # nothing here is cancelled alone

    async def _ask_for(self, domain_id: UUID) -> SigningKey:
        answer = await self._stub.EnsureSigningKey(mesh_pb2.EnsureSigningKeyRequest(domain_id=str(domain_id)))
        return SigningKey(answer.key.kid, answer.key.public_key)
