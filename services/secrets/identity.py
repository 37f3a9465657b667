"""Relations and the fleet, as identity knows them."""

from uuid import UUID

from libs.errors import AuthzUnavailable, NotFound, PlexError
from libs.relations import Relations
from libs.rpc.channel import Peer
from plexsphere.identity.v1 import relations_pb2, relations_pb2_grpc
from services.secrets.model import Place, SecretRow

READER = "reader"


class IdentityRelations:
    """Answers and changes who may read what."""

    def __init__(self, peer: Peer) -> None:
        self._relations = Relations(peer)
        self._admin = relations_pb2_grpc.RelationsAdminServiceStub(peer)

    async def check(self, subject: str, permission: str, resource: str) -> str:
        """Return "granted", or the reason why not."""
        return (await self._relations.check(subject, permission, resource)).reason

    async def grant_reader(self, secret: SecretRow, node_id: UUID) -> None:
        """Let a node read a secret."""
        request = relations_pb2.WriteRelationRequest(
            subject=f"node:{node_id}", relation=READER, resource=secret.resource
        )
        try:
            await self._admin.WriteRelation(request)
        except PlexError as error:
            raise AuthzUnavailable(error.code) from error

    async def revoke_reader(self, secret: SecretRow, node_id: UUID) -> None:
        """Stop a node from reading a secret."""
        await self._delete(
            relations_pb2.DeleteRelationRequest(subject=f"node:{node_id}", relation=READER, resource=secret.resource)
        )

    async def readers(self, secret: SecretRow) -> list[UUID]:
        """Return the nodes that may read a secret."""
        request = relations_pb2.ListSubjectsRequest(resource=secret.resource, relation=READER)
        try:
            answer = await self._admin.ListSubjects(request)
        except PlexError as error:
            raise AuthzUnavailable(error.code) from error
        return [UUID(subject.removeprefix("node:")) for subject in answer.subjects]

    async def revoke_readers(self, secret: SecretRow) -> None:
        """Stop everybody from reading a secret."""
        await self._delete(relations_pb2.DeleteRelationRequest(resource=secret.resource))

    async def _delete(self, request: relations_pb2.DeleteRelationRequest) -> None:
        try:
            await self._admin.DeleteRelation(request)
        except NotFound:
            return
        except PlexError as error:
            raise AuthzUnavailable(error.code) from error


class IdentityFleet:
    """Answers where nodes and projects stand."""

    def __init__(self, peer: Peer) -> None:
        self._stub = relations_pb2_grpc.FleetServiceStub(peer)

    async def node(self, node_id: UUID) -> Place | None:
        """Return the project and Domain of a node."""
        try:
            found = await self._stub.LocateNode(relations_pb2.LocateNodeRequest(node_id=str(node_id)))
        except NotFound:
            return None
        return Place(UUID(found.project_id), UUID(found.domain_id))

    async def project(self, project_id: UUID) -> Place | None:
        """Return the Domain of a project."""
        try:
            found = await self._stub.LocateProject(relations_pb2.LocateProjectRequest(project_id=str(project_id)))
        except NotFound:
            return None
        return Place(UUID(found.project_id), UUID(found.domain_id))
