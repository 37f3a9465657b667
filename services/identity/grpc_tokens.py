"""identity.ApiTokenService, ServiceTokenService and PeopleService: unpack, call the rule, pack."""

import datetime
from typing import Any, TypeAlias
from uuid import UUID

import grpc

from libs.rpc.context import current_principal
from plexsphere.identity.v1 import tokens_pb2 as pb
from plexsphere.identity.v1 import tokens_pb2_grpc as stubs
from services.identity import pack
from services.identity.api_tokens import ApiTokens
from services.identity.people import People
from services.identity.service_tokens import ServiceTokens
from services.identity.token_model import ApiToken, Identity, ServiceIdentity

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
UNSET = datetime.datetime.min.replace(tzinfo=datetime.UTC)


def token(row: ApiToken) -> pb.ApiToken:
    """Pack what is known of a token."""
    return pb.ApiToken(
        id=str(row.id), env_prefix=row.env_prefix, scope=row.scope or (), narrowed=row.scope is not None,
        created_at=pack.timestamp(row.created_at), expires_at=pack.timestamp(row.expires_at),
        last_used_at=pack.timestamp(row.last_used_at), rotated_at=pack.timestamp(row.rotated_at),
    )  # fmt: skip


class ApiTokenApi(stubs.ApiTokenServiceServicer):
    """API tokens."""

    def __init__(self, tokens: ApiTokens) -> None:
        self._tokens = tokens

    async def IssueApiToken(self, request: pb.IssueApiTokenRequest, context: Context) -> pb.IssueApiTokenResponse:
        row, text = await self._tokens.issue(
            current_principal(), request.identity_ref, request.env_prefix, request.ttl_seconds,
            tuple(request.scope) or None, as_admin=request.as_admin,
        )  # fmt: skip
        return pb.IssueApiTokenResponse(metadata=token(row), plaintext=text)

    async def ListApiTokens(self, request: pb.ListApiTokensRequest, context: Context) -> pb.ListApiTokensResponse:
        rows = await self._tokens.list(current_principal(), request.identity_ref)
        return pb.ListApiTokensResponse(tokens=map(token, rows))

    async def RevokeApiToken(self, request: pb.RevokeApiTokenRequest, context: Context) -> pb.RevokeApiTokenResponse:
        await self._tokens.revoke(current_principal(), UUID(request.token_id), as_admin=request.as_admin)
        return pb.RevokeApiTokenResponse()

    async def RotateApiToken(self, request: pb.RotateApiTokenRequest, context: Context) -> pb.RotateApiTokenResponse:
        row, text, deadline = await self._tokens.rotate(
            current_principal(), UUID(request.token_id), as_admin=request.as_admin
        )
        return pb.RotateApiTokenResponse(
            metadata=token(row), plaintext=text, rotation_deadline=pack.timestamp(deadline)
        )


class ServiceTokenApi(stubs.ServiceTokenServiceServicer):
    """Lets service identities in."""

    def __init__(self, tokens: ServiceTokens) -> None:
        self._tokens = tokens

    async def IssueServiceToken(
        self, request: pb.IssueServiceTokenRequest, context: Context
    ) -> pb.IssueServiceTokenResponse:
        text, lifetime, scope = await self._tokens.issue(request.client_id, request.client_secret, tuple(request.scope))
        return pb.IssueServiceTokenResponse(
            access_token=text, expires_in_s=max(1, int(lifetime.total_seconds())), scope=scope or ()
        )


class PeopleApi(stubs.PeopleServiceServicer):
    """People and service identities of a Domain."""

    def __init__(self, people: People) -> None:
        self._people = people

    async def ListIdentities(self, request: pb.ListIdentitiesRequest, context: Context) -> pb.ListIdentitiesResponse:
        rows, cursor = await self._people.list(
            pack.caller(), UUID(request.domain_id), request.kind, request.cursor, request.limit
        )
        return pb.ListIdentitiesResponse(identities=map(self._summary, rows), next_cursor=cursor)

    async def GetIdentity(self, request: pb.GetIdentityRequest, context: Context) -> pb.GetIdentityResponse:
        row, personal = await self._people.get(pack.caller(), UUID(request.domain_id), UUID(request.identity_id))
        packed = self._summary(row)
        if personal:
            packed.external_subject, packed.email = row.subject, row.email
        return pb.GetIdentityResponse(identity=packed)

    async def CreateServiceIdentity(
        self, request: pb.CreateServiceIdentityRequest, context: Context
    ) -> pb.CreateServiceIdentityResponse:
        wanted = ServiceIdentity(
            UUID(int=0), UUID(request.domain_id), request.display_name, request.subject, request.audience,
            request.federation_kind, UNSET,
        )  # fmt: skip
        row = await self._people.create(pack.caller(), wanted)
        return pb.CreateServiceIdentityResponse(identity=self._summary(row))

    async def DeleteServiceIdentity(
        self, request: pb.DeleteServiceIdentityRequest, context: Context
    ) -> pb.DeleteServiceIdentityResponse:
        await self._people.delete(pack.caller(), UUID(request.domain_id), UUID(request.identity_id))
        return pb.DeleteServiceIdentityResponse()

    def _summary(self, row: Identity) -> pb.Identity:
        return pb.Identity(
            id=str(row.id), kind=row.kind, domain_id=str(row.domain_id), display_name=row.display_name,
            external_subject_pseudonym=self._people.pseudonym(row),
            last_sign_in_at=pack.timestamp(row.last_sign_in_at), created_at=pack.timestamp(row.created_at),
            updated_at=pack.timestamp(row.updated_at),
        )  # fmt: skip
