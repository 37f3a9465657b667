"""People and service identities of a Domain."""

from aiohttp import web

from libs.rpc.channel import Peer
from plexsphere.identity.v1 import tokens_pb2 as pb
from plexsphere.identity.v1 import tokens_pb2_grpc as stubs
from services.gateway.answers import JSON, created, given, maybe, nothing, page, reply, when
from services.gateway.edge import Asked, Route


class People:
    """Handlers of the operations on identities."""

    def __init__(self, identity: Peer) -> None:
        self._stub = stubs.PeopleServiceStub(identity)

    def routes(self) -> dict[str, Route]:
        """Return the handlers by operation."""
        return {
            "ListIdentities": Route(self.list),
            "GetIdentity": Route(self.get),
            "CreateServiceIdentity": Route(self.create),
            "DeleteServiceIdentity": Route(self.delete),
        }

    async def list(self, asked: Asked) -> web.Response:
        """List identities."""
        query = asked.query
        request = pb.ListIdentitiesRequest(
            domain_id=asked.path["id"],
            kind=query.get("kind", ""),
            cursor=query.get("cursor", ""),
            limit=query["limit"],
        )
        answer = await self._stub.ListIdentities(request, metadata=asked.metadata)
        return page([summary(row) for row in answer.identities], answer.next_cursor)

    async def get(self, asked: Asked) -> web.Response:
        """Get an identity."""
        request = pb.GetIdentityRequest(domain_id=asked.path["id"], identity_id=asked.path["principal_id"])
        row = (await self._stub.GetIdentity(request, metadata=asked.metadata)).identity
        personal = given(external_subject=row.external_subject, email=row.email)
        return reply(summary(row) | personal | {"updated_at": when(row.updated_at)})

    async def create(self, asked: Asked) -> web.Response:
        """Create a service identity."""
        body, domain_id = asked.body, asked.path["id"]
        request = pb.CreateServiceIdentityRequest(
            domain_id=domain_id,
            display_name=body["display_name"],
            subject=body["subject"],
            audience=body["audience"],
            federation_kind=body["federation_kind"],
        )
        row = (await self._stub.CreateServiceIdentity(request, metadata=asked.metadata)).identity
        return created(summary(row), f"/v1/domains/{domain_id}/identities/{row.id}")

    async def delete(self, asked: Asked) -> web.Response:
        """Delete a service identity."""
        request = pb.DeleteServiceIdentityRequest(domain_id=asked.path["id"], identity_id=asked.path["principal_id"])
        await self._stub.DeleteServiceIdentity(request, metadata=asked.metadata)
        return nothing()


def summary(row: pb.Identity) -> JSON:
    """Write an identity without what is personal."""
    return {
        "id": row.id,
        "kind": row.kind,
        "domain_id": row.domain_id,
        "display_name": row.display_name,
        "external_subject_pseudonym": row.external_subject_pseudonym,
        **given(last_sign_in_at=maybe(row, "last_sign_in_at")),
        "created_at": when(row.created_at),
    }
