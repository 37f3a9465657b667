"""Where nodes and projects stand, as identity knows them."""

from uuid import UUID

from libs.errors import NotFound
from libs.rpc.channel import Peer
from plexsphere.identity.v1 import relations_pb2, relations_pb2_grpc


class IdentityFleet:
    """Asks identity."""

    def __init__(self, peer: Peer) -> None:
        self._stub = relations_pb2_grpc.FleetServiceStub(peer)

    async def domain_of(self, scope: str) -> UUID | None:
        """Return the Domain of `node:<id>` or `project:<id>`; None when there is no such thing."""
        kind, _, identifier = scope.partition(":")
        try:
            if kind == "node":
                node = await self._stub.LocateNode(relations_pb2.LocateNodeRequest(node_id=identifier))
                return UUID(node.domain_id)
            project = await self._stub.LocateProject(relations_pb2.LocateProjectRequest(project_id=identifier))
            return UUID(project.domain_id)
        except NotFound:
            return None
