"""API tokens, one's own and those that one administers, and tokens of service identities."""

import datetime as dt
import re
from email.utils import format_datetime

from aiohttp import web
from google.protobuf.timestamp_pb2 import Timestamp

from libs import errors
from libs.rpc.channel import Peer
from plexsphere.identity.v1 import tokens_pb2 as pb
from plexsphere.identity.v1 import tokens_pb2_grpc as stubs
from services.gateway.answers import CREATED, JSON, given, maybe, nothing, reply, when
from services.gateway.edge import Asked, Handler, Route

REFERENCE = re.compile(r"(user|service):[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
CLIENT_CREDENTIALS = "client_credentials"


class Tokens:
    """Handlers of the operations on tokens."""

    def __init__(self, identity: Peer) -> None:
        self._api_tokens = stubs.ApiTokenServiceStub(identity)
        self._service_tokens = stubs.ServiceTokenServiceStub(identity)

    def routes(self) -> dict[str, Route]:
        """Return the handlers by operation."""
        return {
            "PostAuthTokens": Route(self._issue(as_admin=False)),
            "GetAuthTokens": Route(self.list),
            "DeleteAuthTokenByID": Route(self._revoke(as_admin=False)),
            "PostAuthTokenRotate": Route(self._rotate(as_admin=False)),
            "PostAdminTokens": Route(self._issue(as_admin=True)),
            "GetAdminTokens": Route(self.list),
            "DeleteAdminTokenByID": Route(self._revoke(as_admin=True)),
            "PostAdminTokenRotate": Route(self._rotate(as_admin=True)),
            "PostAuthServiceToken": Route(self.exchange),
        }

    def _issue(self, *, as_admin: bool) -> Handler:
        async def issue(asked: Asked) -> web.Response:
            body = asked.body
            request = pb.IssueApiTokenRequest(
                identity_ref=reference(body["identity_ref"], errors.InvalidRequest),
                env_prefix=body["env_prefix"],
                ttl_seconds=body.get("ttl_seconds", 0),
                scope=body.get("scope", ()),
                as_admin=as_admin,
            )
            answer = await self._api_tokens.IssueApiToken(request, metadata=asked.metadata)
            sunset = {"Sunset": http_date(answer.metadata.expires_at)}
            return reply(plaintext(answer.metadata, answer.plaintext), CREATED, sunset)

        return issue

    async def list(self, asked: Asked) -> web.Response:
        """List somebody's live tokens; without `identity_ref` the caller's own."""
        whose = asked.query.get("identity_ref", "")
        request = pb.ListApiTokensRequest(identity_ref=whose and reference(whose, errors.InvalidQuery))
        answer = await self._api_tokens.ListApiTokens(request, metadata=asked.metadata)
        return reply([summary(row) for row in answer.tokens])

    def _revoke(self, *, as_admin: bool) -> Handler:
        async def revoke(asked: Asked) -> web.Response:
            request = pb.RevokeApiTokenRequest(token_id=asked.path["id"], as_admin=as_admin)
            await self._api_tokens.RevokeApiToken(request, metadata=asked.metadata)
            return nothing()

        return revoke

    def _rotate(self, *, as_admin: bool) -> Handler:
        async def rotate(asked: Asked) -> web.Response:
            request = pb.RotateApiTokenRequest(token_id=asked.path["id"], as_admin=as_admin)
            answer = await self._api_tokens.RotateApiToken(request, metadata=asked.metadata)
            deadline = {"rotation_deadline": when(answer.rotation_deadline)}
            # Of the old token (RFC 8594): this answer is the last that tells of its end.
            sunset = {"Sunset": http_date(answer.rotation_deadline)}
            return reply(plaintext(answer.metadata, answer.plaintext) | deadline, headers=sunset)

        return rotate

    async def exchange(self, asked: Asked) -> web.Response:
        """Exchange a service identity's secret for an access token."""
        body = asked.body
        if body["grant_type"] != CLIENT_CREDENTIALS:
            raise errors.NotProvisioned
        request = pb.IssueServiceTokenRequest(
            client_id=body.get("client_id", ""),
            client_secret=body.get("client_secret", ""),
            scope=body.get("scope", "").split(),
        )
        answer = await self._service_tokens.IssueServiceToken(request)
        return reply(
            {
                "access_token": answer.access_token,
                "token_type": "Bearer",
                "expires_in": answer.expires_in_s,
                **given(scope=" ".join(answer.scope)),
            }
        )


def reference(text: str, refusal: type[errors.PlexError]) -> str:
    """Return `user:<id>` or `service:<id>` in canonical form; raises the refusal for anything else."""
    if not REFERENCE.fullmatch(text.lower()):
        raise refusal("identity_ref must be user:<id> or service:<id>")
    return text.lower()


def http_date(at: Timestamp) -> str:
    """Write a time as header fields have it (RFC 9110, 5.6.7)."""
    return format_datetime(at.ToDatetime(dt.UTC), usegmt=True)


def plaintext(row: pb.ApiToken, text: str) -> JSON:
    """Write a new token; nowhere else is its text."""
    expires_at = when(row.expires_at)
    return {"id": row.id, "plaintext": text, "env_prefix": row.env_prefix, "expires_at": expires_at, **scope_of(row)}


def summary(row: pb.ApiToken) -> JSON:
    """Write what is known of a token."""
    return {
        "id": row.id,
        "env_prefix": row.env_prefix,
        **scope_of(row),
        **given(last_used_at=maybe(row, "last_used_at"), rotated_at=maybe(row, "rotated_at")),
        "created_at": when(row.created_at),
        "expires_at": when(row.expires_at),
    }


def scope_of(row: pb.ApiToken) -> JSON:
    """Write what a token is for at most; nothing where that is all that its owner may."""
    return {"scope": list(row.scope)} if row.narrowed else {}
