"""identity.DirectoryService: unpack, call the rule, pack."""

import datetime
from typing import Any, TypeAlias
from uuid import UUID

import grpc

from libs.errors import InvalidRequest
from plexsphere.identity.v1 import directory_pb2 as pb
from plexsphere.identity.v1 import directory_pb2_grpc
from services.identity import pack
from services.identity.bindings import Bindings
from services.identity.model import Reachability
from services.identity.service import Identity
from services.identity.sign_in_model import LEEWAY_S, Binding

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
NO_MEMBERSHIP = "no_rebac_membership"
UNSET = datetime.datetime.min.replace(tzinfo=datetime.UTC)


class DirectoryApi(directory_pb2_grpc.DirectoryServiceServicer):
    """Administration of Domains and what is in them."""

    def __init__(self, identity: Identity, bindings: Bindings) -> None:
        self._identity = identity
        self._bindings = bindings

    async def CreateDomain(self, request: pb.CreateDomainRequest, context: Context) -> pb.CreateDomainResponse:
        policy = pack.reachability(request.reachability) if request.HasField("reachability") else Reachability()
        row = await self._identity.create_domain(
            pack.caller(), request.name, request.slug, request.description, request.region, request.mesh_cidr, policy
        )
        return pb.CreateDomainResponse(domain=pack.domain(row))

    async def ListDomains(self, request: pb.ListDomainsRequest, context: Context) -> pb.ListDomainsResponse:
        rows, cursor, member = await self._identity.list_domains(pack.caller(), request.cursor, request.limit)
        return pb.ListDomainsResponse(
            domains=map(pack.domain, rows), next_cursor=cursor, empty_reason="" if member else NO_MEMBERSHIP
        )

    async def GetDomain(self, request: pb.GetDomainRequest, context: Context) -> pb.GetDomainResponse:
        row = await self._identity.get_domain(pack.caller(), UUID(request.domain_id))
        return pb.GetDomainResponse(domain=pack.domain(row))

    async def UpdateDomain(self, request: pb.UpdateDomainRequest, context: Context) -> pb.UpdateDomainResponse:
        changes = _present(request, "name", "description", "region", "mesh_cidr")
        if request.HasField("reachability"):
            changes["reachability"] = pack.reachability(request.reachability)
        row = await self._identity.update_domain(pack.caller(), UUID(request.domain_id), changes)
        return pb.UpdateDomainResponse(domain=pack.domain(row))

    async def DeleteDomain(self, request: pb.DeleteDomainRequest, context: Context) -> pb.DeleteDomainResponse:
        await self._identity.delete_domain(pack.caller(), UUID(request.domain_id))
        return pb.DeleteDomainResponse()

    async def CreateProject(self, request: pb.CreateProjectRequest, context: Context) -> pb.CreateProjectResponse:
        row = await self._identity.create_project(
            pack.caller(), UUID(request.domain_id), request.name, request.slug, request.description,
            request.sub_range_cidr,
        )  # fmt: skip
        return pb.CreateProjectResponse(project=pack.project(row))

    async def ListProjects(self, request: pb.ListProjectsRequest, context: Context) -> pb.ListProjectsResponse:
        domain_id = pack.optional_id(request.domain_id)
        rows, cursor, member = await self._identity.list_projects(
            pack.caller(), domain_id, request.cursor, request.limit
        )
        return pb.ListProjectsResponse(
            projects=map(pack.project, rows), next_cursor=cursor, empty_reason="" if member else NO_MEMBERSHIP
        )

    async def GetProject(self, request: pb.GetProjectRequest, context: Context) -> pb.GetProjectResponse:
        row = await self._identity.get_project(pack.caller(), UUID(request.project_id))
        return pb.GetProjectResponse(project=pack.project(row))

    async def UpdateProject(self, request: pb.UpdateProjectRequest, context: Context) -> pb.UpdateProjectResponse:
        changes = _present(request, "name", "description", "sub_range_cidr")
        if request.release_sub_range:
            if "sub_range_cidr" in changes:
                raise InvalidRequest("sub_range_cidr and release_sub_range contradict each other")
            changes["sub_range_cidr"] = ""
        row = await self._identity.update_project(pack.caller(), UUID(request.project_id), changes)
        return pb.UpdateProjectResponse(project=pack.project(row))

    async def DeleteProject(self, request: pb.DeleteProjectRequest, context: Context) -> pb.DeleteProjectResponse:
        await self._identity.delete_project(pack.caller(), UUID(request.project_id))
        return pb.DeleteProjectResponse()

    async def CreateResource(self, request: pb.CreateResourceRequest, context: Context) -> pb.CreateResourceResponse:
        row = await self._identity.create_resource(
            pack.caller(), UUID(request.project_id), request.origin, request.kind, request.external_ref
        )
        return pb.CreateResourceResponse(resource=pack.resource(row))

    async def ListResources(self, request: pb.ListResourcesRequest, context: Context) -> pb.ListResourcesResponse:
        rows, cursor = await self._identity.list_resources(
            pack.caller(), UUID(request.project_id), request.cursor, request.limit
        )
        return pb.ListResourcesResponse(resources=map(pack.resource, rows), next_cursor=cursor)

    async def GetResource(self, request: pb.GetResourceRequest, context: Context) -> pb.GetResourceResponse:
        row = await self._identity.get_resource(pack.caller(), UUID(request.resource_id))
        return pb.GetResourceResponse(resource=pack.resource(row))

    async def DeleteResource(self, request: pb.DeleteResourceRequest, context: Context) -> pb.DeleteResourceResponse:
        await self._identity.delete_resource(pack.caller(), UUID(request.resource_id))
        return pb.DeleteResourceResponse()

    async def ListNodes(self, request: pb.ListNodesRequest, context: Context) -> pb.ListNodesResponse:
        domain_id = pack.optional_id(request.domain_id)
        rows, cursor = await self._identity.list_nodes(pack.caller(), domain_id, request.cursor, request.limit)
        return pb.ListNodesResponse(nodes=map(pack.node, rows), next_cursor=cursor)

    async def IssueBootstrapToken(
        self, request: pb.IssueBootstrapTokenRequest, context: Context
    ) -> pb.IssueBootstrapTokenResponse:
        row, text = await self._identity.issue_token(
            pack.caller(), UUID(request.project_id), request.kind, request.env_prefix, request.ttl_seconds
        )
        return pb.IssueBootstrapTokenResponse(metadata=pack.token(row), token=text)

    async def ListBootstrapTokens(
        self, request: pb.ListBootstrapTokensRequest, context: Context
    ) -> pb.ListBootstrapTokensResponse:
        rows, cursor = await self._identity.list_tokens(
            pack.caller(), UUID(request.project_id), request.cursor, request.limit
        )
        return pb.ListBootstrapTokensResponse(tokens=map(pack.token, rows), next_cursor=cursor)

    async def GetBootstrapToken(
        self, request: pb.GetBootstrapTokenRequest, context: Context
    ) -> pb.GetBootstrapTokenResponse:
        row = await self._identity.get_token(pack.caller(), UUID(request.project_id), UUID(request.token_id))
        return pb.GetBootstrapTokenResponse(metadata=pack.token(row))

    async def RevokeBootstrapToken(
        self, request: pb.RevokeBootstrapTokenRequest, context: Context
    ) -> pb.RevokeBootstrapTokenResponse:
        await self._identity.revoke_token(pack.caller(), UUID(request.project_id), UUID(request.token_id))
        return pb.RevokeBootstrapTokenResponse()

    async def CreateIdpBinding(
        self, request: pb.CreateIdpBindingRequest, context: Context
    ) -> pb.CreateIdpBindingResponse:
        wanted = Binding(
            id=UUID(int=0),
            domain_id=pack.optional_id(request.domain_id),
            issuer=request.issuer,
            client_id=request.client_id,
            client_secret_ref=request.client_secret_ref,
            discovery_url=request.discovery_url,
            claim_mappings=dict(request.claim_mappings),
            required_acr=tuple(request.required_acr),
            required_amr=tuple(request.required_amr),
            jit_policy=request.jit_policy,
            status="active",
            alias=request.alias,
            primary=request.primary,
            created_at=UNSET,
            updated_at=UNSET,
            scopes=tuple(request.scopes),
            accepted_amr=tuple(request.accepted_amr),
            max_auth_age_s=request.max_auth_age_s,
            leeway_s=request.leeway_s if request.HasField("leeway_s") else LEEWAY_S,
            algorithms=tuple(request.algorithms),
        )
        return pb.CreateIdpBindingResponse(binding=pack.binding(await self._bindings.create(pack.caller(), wanted)))

    async def ListIdpBindings(self, request: pb.ListIdpBindingsRequest, context: Context) -> pb.ListIdpBindingsResponse:
        rows = await self._bindings.list(pack.caller(), pack.optional_id(request.domain_id))
        return pb.ListIdpBindingsResponse(bindings=map(pack.binding, rows))

    async def GetIdpBinding(self, request: pb.GetIdpBindingRequest, context: Context) -> pb.GetIdpBindingResponse:
        row = await self._bindings.get(pack.caller(), UUID(request.binding_id))
        return pb.GetIdpBindingResponse(binding=pack.binding(row))

    async def UpdateIdpBinding(
        self, request: pb.UpdateIdpBindingRequest, context: Context
    ) -> pb.UpdateIdpBindingResponse:
        decided_on = request.decided_on.ToDatetime(datetime.UTC) if request.HasField("decided_on") else None
        changes = pack.binding_changes(request)
        row = await self._bindings.update(pack.caller(), UUID(request.binding_id), changes, decided_on)
        return pb.UpdateIdpBindingResponse(binding=pack.binding(row))

    async def SetIdpBindingStatus(
        self, request: pb.SetIdpBindingStatusRequest, context: Context
    ) -> pb.SetIdpBindingStatusResponse:
        row = await self._bindings.set_status(pack.caller(), UUID(request.binding_id), request.status)
        return pb.SetIdpBindingStatusResponse(binding=pack.binding(row))

    async def DeleteIdpBinding(
        self, request: pb.DeleteIdpBindingRequest, context: Context
    ) -> pb.DeleteIdpBindingResponse:
        await self._bindings.delete(pack.caller(), UUID(request.binding_id))
        return pb.DeleteIdpBindingResponse()


def _present(request: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(request, name) for name in names if request.HasField(name)}
