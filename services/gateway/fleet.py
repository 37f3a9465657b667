"""What operators do with the fleet: resources, bootstrap tokens, nodes and their mesh keys."""

import math

from aiohttp import web

from libs.rpc.channel import Peer
from plexsphere.identity.v1 import directory_pb2 as pb
from plexsphere.identity.v1 import directory_pb2_grpc as stubs
from plexsphere.identity.v1 import enrolment_pb2, enrolment_pb2_grpc
from services.gateway.answers import JSON, created, given, maybe, nothing, page, reply, when
from services.gateway.edge import Asked, Route
from services.gateway.nodes import reachability


class Fleet:
    """Handlers of the operations on resources, bootstrap tokens and nodes."""

    def __init__(self, identity: Peer) -> None:
        self._stub = stubs.DirectoryServiceStub(identity)
        self._nodes = enrolment_pb2_grpc.NodeAdminServiceStub(identity)

    def routes(self) -> dict[str, Route]:
        """Return the handlers by operation."""
        return {
            "CreateResource": Route(self.create_resource),
            "ListProjectResources": Route(self.list_resources),
            "GetResource": Route(self.get_resource),
            "DeleteResource": Route(self.delete_resource),
            "IssueBootstrapToken": Route(self.issue_token),
            "ListBootstrapTokens": Route(self.list_tokens),
            "GetBootstrapTokenMetadata": Route(self.get_token),
            "RevokeBootstrapToken": Route(self.revoke_token),
            "ListNodes": Route(self.list_nodes),
            "GetNodeReachability": Route(self.get_reachability),
            "PostNodeKeysRotate": Route(self.request_key_rotation),
            "GetNodeKeysRotatePreview": Route(self.preview_key_rotation),
            "RevokeNodeSecretKey": Route(self.revoke_secret_key),
        }

    async def create_resource(self, asked: Asked) -> web.Response:
        """Adopt a resource."""
        body = asked.body
        request = pb.CreateResourceRequest(
            project_id=asked.path["project_id"],
            origin=body["origin"],
            kind=body["kind"],
            external_ref=body.get("external_ref", ""),
        )
        answer = await self._stub.CreateResource(request, metadata=asked.metadata)
        return created(resource(answer.resource), f"/v1/resources/{answer.resource.id}")

    async def list_resources(self, asked: Asked) -> web.Response:
        """List a project's resources."""
        request = pb.ListResourcesRequest(
            project_id=asked.path["project_id"], cursor=asked.query.get("cursor", ""), limit=asked.query["limit"]
        )
        answer = await self._stub.ListResources(request, metadata=asked.metadata)
        return page([resource(row) for row in answer.resources], answer.next_cursor)

    async def get_resource(self, asked: Asked) -> web.Response:
        """Get a resource."""
        request = pb.GetResourceRequest(resource_id=asked.path["id"])
        answer = await self._stub.GetResource(request, metadata=asked.metadata)
        return reply(resource(answer.resource))

    async def delete_resource(self, asked: Asked) -> web.Response:
        """Delete a resource and deregister its node."""
        request = pb.DeleteResourceRequest(resource_id=asked.path["id"])
        await self._stub.DeleteResource(request, metadata=asked.metadata)
        return nothing()

    async def issue_token(self, asked: Asked) -> web.Response:
        """Issue a bootstrap token."""
        project_id, body = asked.path["project_id"], asked.body
        request = pb.IssueBootstrapTokenRequest(
            project_id=project_id,
            kind=body["kind"],
            env_prefix=body["env_prefix"],
            ttl_seconds=body["ttl_seconds"],
        )
        answer = await self._stub.IssueBootstrapToken(request, metadata=asked.metadata)
        issued = {
            "token_id": answer.metadata.id,
            "token": answer.token,
            "issued_at": when(answer.metadata.issued_at),
            "expires_at": when(answer.metadata.expires_at),
        }
        return created(issued, f"/v1/projects/{project_id}/bootstrap-tokens/{answer.metadata.id}")

    async def list_tokens(self, asked: Asked) -> web.Response:
        """List a project's bootstrap tokens."""
        request = pb.ListBootstrapTokensRequest(
            project_id=asked.path["project_id"], cursor=asked.query.get("cursor", ""), limit=asked.query["limit"]
        )
        answer = await self._stub.ListBootstrapTokens(request, metadata=asked.metadata)
        return page([token(row) for row in answer.tokens], answer.next_cursor)

    async def get_token(self, asked: Asked) -> web.Response:
        """Get what is known of a bootstrap token."""
        request = pb.GetBootstrapTokenRequest(project_id=asked.path["project_id"], token_id=asked.path["id"])
        answer = await self._stub.GetBootstrapToken(request, metadata=asked.metadata)
        return reply(token(answer.metadata))

    async def revoke_token(self, asked: Asked) -> web.Response:
        """Revoke an unused bootstrap token."""
        request = pb.RevokeBootstrapTokenRequest(project_id=asked.path["project_id"], token_id=asked.path["id"])
        await self._stub.RevokeBootstrapToken(request, metadata=asked.metadata)
        return nothing()

    async def list_nodes(self, asked: Asked) -> web.Response:
        """List nodes."""
        query = asked.query
        request = pb.ListNodesRequest(
            domain_id=query.get("domain_id", ""), cursor=query.get("cursor", ""), limit=query["limit"]
        )
        answer = await self._stub.ListNodes(request, metadata=asked.metadata)
        rows = [
            {
                "id": row.id,
                **given(name=row.name, kind=row.kind),
                "domain_id": row.domain_id,
                "created_at": when(row.created_at),
            }
            for row in answer.nodes
        ]
        return page(rows, answer.next_cursor)

    async def get_reachability(self, asked: Asked) -> web.Response:
        """Say whether a node is heard of."""
        request = enrolment_pb2.GetReachabilityRequest(node_id=asked.path["id"])
        answer = await self._nodes.GetReachability(request, metadata=asked.metadata)
        return reply(reachability(answer.reachability))

    async def request_key_rotation(self, asked: Asked) -> web.Response:
        """Ask a node for a new mesh key."""
        node_id = asked.path["id"]
        request = enrolment_pb2.RequestKeyRotationRequest(node_id=node_id)
        answer = await self._nodes.RequestKeyRotation(request, metadata=asked.metadata)
        # A node is one peer of the mesh, so both have one id.
        requested = {"rotation_id": answer.rotation_id, "peer_id": node_id, "already_pending": answer.already_pending}
        return reply(requested)

    async def preview_key_rotation(self, asked: Asked) -> web.Response:
        """Say whom a new mesh key of a node would affect."""
        node_id = asked.path["id"]
        request = enrolment_pb2.PreviewKeyRotationRequest(node_id=node_id)
        answer = await self._nodes.PreviewKeyRotation(request, metadata=asked.metadata)
        edges = [
            {
                "peer_node_id": row.node_id,
                "current_kid": row.kid,
                "current_wrap_key_version": row.wrap_key_version,
            }
            for row in answer.peers
        ]
        seconds = answer.estimated_duration.ToTimedelta().total_seconds()
        preview = {
            "node_id": node_id,
            "peer_id": node_id,
            "affected_peer_count": len(edges),
            "affected_edges": edges,
            "already_pending": answer.already_pending,
            "estimated_duration_seconds": math.ceil(seconds),
        }
        return reply(preview)

    async def revoke_secret_key(self, asked: Asked) -> web.Response:
        """End a node's keys."""
        request = enrolment_pb2.RevokeSecretKeyRequest(node_id=asked.path["id"])
        await self._nodes.RevokeSecretKey(request, metadata=asked.metadata)
        return nothing()


def resource(row: pb.Resource) -> JSON:
    """Write a resource."""
    return {
        "id": row.id,
        "project_id": row.project_id,
        "domain_id": row.domain_id,
        "kind": row.kind,
        **given(external_ref=row.external_ref),
        "origin": row.origin,
        "created_at": when(row.created_at),
        "updated_at": when(row.updated_at),
    }


def token(row: pb.BootstrapToken) -> JSON:
    """Write what is known of a bootstrap token."""
    return {
        "id": row.id,
        "project_id": row.project_id,
        "kind": row.kind,
        "env_prefix": row.env_prefix,
        "issued_at": when(row.issued_at),
        "expires_at": when(row.expires_at),
        **given(consumed_at=maybe(row, "consumed_at"), revoked_at=maybe(row, "revoked_at")),
        "issued_by_user_id": row.issued_by,
    }
