"""Identity provider bindings of Domains and of the platform."""

from typing import Any

from aiohttp import web

from libs.rpc.channel import Peer
from plexsphere.identity.v1 import directory_pb2 as pb
from plexsphere.identity.v1 import directory_pb2_grpc as stubs
from services.gateway.answers import JSON, created, given, nothing, reply, timestamp, when
from services.gateway.edge import Asked, Route

# A provider is asked for its discovery document and its keys.
PROVIDER_S = 18.0
# Members of a binding that are lists, and what ours are called behind the edge.
TEXTS = ("required_acr", "required_amr", "scopes", "accepted_amr", "algorithms")
BEHIND = {
    "max_auth_age_seconds": "max_auth_age_s",
    "clock_leeway_seconds": "leeway_s",
    "id_token_algorithms": "algorithms",
}


class Bindings:
    """Handlers of the operations on bindings."""

    def __init__(self, identity: Peer) -> None:
        self._stub = stubs.DirectoryServiceStub(identity)

    def routes(self) -> dict[str, Route]:
        """Return the handlers by operation."""
        return {
            "PostAdminIdP": Route(self.create),
            "PostAdminPlatformIdP": Route(self.create_for_platform),
            "GetAdminIdPList": Route(self.list),
            "GetAdminPlatformIdPList": Route(self.list),
            "GetAdminIdPByID": Route(self.get),
            "PatchAdminIdP": Route(self.update),
            "PatchAdminIdPStatus": Route(self.set_status),
            "DeleteAdminIdPByID": Route(self.delete),
        }

    async def create(self, asked: Asked) -> web.Response:
        """Bind a Domain to an OpenID provider."""
        return await self._create(asked, behind(asked.body))

    async def create_for_platform(self, asked: Asked) -> web.Response:
        """Bind the platform to an OpenID provider."""
        # Members that the operation does not know are ignored, these two of the other one among them.
        ignored = {"domain_id", "primary"}
        body = {name: value for name, value in asked.body.items() if name not in ignored}
        return await self._create(asked, behind(body))

    async def _create(self, asked: Asked, body: JSON) -> web.Response:
        known = {name: body[name] for name in pb.CreateIdpBindingRequest.DESCRIPTOR.fields_by_name if name in body}
        request = pb.CreateIdpBindingRequest(**known)
        answer = await self._stub.CreateIdpBinding(request, metadata=asked.metadata, timeout=PROVIDER_S)
        return created(binding(answer.binding), f"/v1/admin/idp/{answer.binding.id}")

    async def get(self, asked: Asked) -> web.Response:
        """Get a binding."""
        request = pb.GetIdpBindingRequest(binding_id=asked.path["id"])
        answer = await self._stub.GetIdpBinding(request, metadata=asked.metadata)
        return reply(binding(answer.binding))

    async def update(self, asked: Asked) -> web.Response:
        """Change a binding."""
        body = behind(asked.body)
        request = pb.UpdateIdpBindingRequest(binding_id=asked.path["id"])
        if "updated_at" in body:
            request.decided_on.CopyFrom(timestamp(body.pop("updated_at")))
        if "claim_mappings" in body:
            request.claim_mappings.SetInParent()
            request.claim_mappings.values.update(body.pop("claim_mappings"))
        for name in TEXTS:
            if name in body:
                getattr(request, name).CopyFrom(pb.Texts(values=body.pop(name)))
        request.MergeFrom(pb.UpdateIdpBindingRequest(**body))
        answer = await self._stub.UpdateIdpBinding(request, metadata=asked.metadata, timeout=PROVIDER_S)
        return reply(binding(answer.binding))

    async def set_status(self, asked: Asked) -> web.Response:
        """Activate or deactivate a binding."""
        request = pb.SetIdpBindingStatusRequest(binding_id=asked.path["id"], status=asked.body["status"])
        answer = await self._stub.SetIdpBindingStatus(request, metadata=asked.metadata)
        return reply(binding(answer.binding))

    async def delete(self, asked: Asked) -> web.Response:
        """Delete a binding."""
        request = pb.DeleteIdpBindingRequest(binding_id=asked.path["id"])
        await self._stub.DeleteIdpBinding(request, metadata=asked.metadata)
        return nothing()

    async def list(self, asked: Asked) -> web.Response:
        """List a Domain's bindings, or the platform's."""
        request = pb.ListIdpBindingsRequest(domain_id=asked.query.get("domain_id", ""))
        answer = await self._stub.ListIdpBindings(request, metadata=asked.metadata)
        return reply([binding(row) for row in answer.bindings])


def behind(body: JSON) -> dict[str, Any]:
    """Return a body with its members called as they are behind the edge."""
    named = {BEHIND.get(name, name): value for name, value in body.items()}
    return named | ({"domain_id": named["domain_id"].lower()} if "domain_id" in named else {})


def binding(row: pb.IdpBinding) -> JSON:
    """Write a binding."""
    return {
        "id": row.id,
        **given(domain_id=row.domain_id, alias=row.alias, claim_mappings=dict(row.claim_mappings)),
        "issuer": row.issuer,
        "client_id": row.client_id,
        "client_secret_ref": row.client_secret_ref,
        "discovery_url": row.discovery_url,
        "required_acr": list(row.required_acr),
        "required_amr": list(row.required_amr),
        "jit_policy": row.jit_policy,
        "status": row.status,
        "primary": row.primary,
        "created_at": when(row.created_at),
        "updated_at": when(row.updated_at),
        "scopes": list(row.scopes),
        "accepted_amr": list(row.accepted_amr),
        "max_auth_age_seconds": row.max_auth_age_s,
        "clock_leeway_seconds": row.leeway_s,
        "id_token_algorithms": list(row.algorithms),
    }
