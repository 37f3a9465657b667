"""Unpacks requests, asks the rules, packs answers; decides nothing."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import grpc

from libs.custody import Secret
from libs.rpc.context import current_principal
from plexsphere.secrets.v1 import secrets_pb2 as pb
from plexsphere.secrets.v1 import secrets_pb2_grpc as stubs
from services.secrets.administration import SecretsAdmin
from services.secrets.service import Secrets

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class SecretsApi(stubs.SecretsServiceServicer):
    """Nodes' side."""

    rules: Secrets

    async def FetchNodeSecret(self, request: pb.FetchNodeSecretRequest, context: Context) -> pb.FetchNodeSecretResponse:
        """Read one secret for the node that asks."""
        with Secret(request.node_key) as key:
            sealed = await self.rules.fetch(
                current_principal(), UUID(request.node_id), request.name, request.version, key
            )
        return pb.FetchNodeSecretResponse(body=sealed.body, version=sealed.version, kid=sealed.kid)


@dataclass(frozen=True)
class SecretsAdminApi(stubs.SecretsAdminServiceServicer):
    """Operators' side."""

    rules: SecretsAdmin

    async def PutSecret(self, request: pb.PutSecretRequest, context: Context) -> pb.PutSecretResponse:
        """Write a new version."""
        project_id = UUID(request.project_id)
        with Secret(request.value) as value:
            version = await self.rules.put(
                current_principal(), project_id, request.name, value, request.expected_version
            )
        return pb.PutSecretResponse(version=version)

    async def ListSecrets(self, request: pb.ListSecretsRequest, context: Context) -> pb.ListSecretsResponse:
        """List names and current versions."""
        page = await self.rules.page(current_principal(), UUID(request.project_id), request.cursor, request.limit)
        rows = [pb.SecretRef(name=row.name, current_version=row.current_version) for row in page.rows]
        return pb.ListSecretsResponse(secrets=rows, next_cursor=page.following)

    async def DestroySecret(self, request: pb.DestroySecretRequest, context: Context) -> pb.DestroySecretResponse:
        """Destroy a secret with all its versions."""
        await self.rules.destroy(current_principal(), UUID(request.project_id), request.name)
        return pb.DestroySecretResponse()

    async def DestroySecretVersion(
        self, request: pb.DestroySecretVersionRequest, context: Context
    ) -> pb.DestroySecretVersionResponse:
        """Destroy one version."""
        project_id = UUID(request.project_id)
        await self.rules.destroy_version(current_principal(), project_id, request.name, request.version)
        return pb.DestroySecretVersionResponse()

    async def GrantReader(self, request: pb.GrantReaderRequest, context: Context) -> pb.GrantReaderResponse:
        """Let a node read a secret."""
        project_id, node_id = UUID(request.project_id), UUID(request.node_id)
        await self.rules.grant(current_principal(), project_id, request.name, node_id)
        return pb.GrantReaderResponse()

    async def RevokeReader(self, request: pb.RevokeReaderRequest, context: Context) -> pb.RevokeReaderResponse:
        """Stop a node from reading a secret."""
        project_id, node_id = UUID(request.project_id), UUID(request.node_id)
        await self.rules.revoke(current_principal(), project_id, request.name, node_id)
        return pb.RevokeReaderResponse()
