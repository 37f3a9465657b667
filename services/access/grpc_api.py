"""Unpacks requests, asks the rules, packs answers; decides nothing."""

import datetime
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from uuid import UUID

import grpc
from google.protobuf.json_format import MessageToDict, ParseDict

from libs.canon import jcs
from libs.clock import Clock
from libs.errors import InvalidRequest
from libs.rpc.context import current_principal
from plexsphere.access.v1 import access_pb2 as pb
from plexsphere.access.v1 import access_pb2_grpc as stubs
from services.access.activity import Activity
from services.access.keys import SessionKeys
from services.access.model import Session, SessionKey, Wish
from services.access.service import Access

Context = grpc.aio.ServicerContext[Any, Any]


def wish(request: pb.IssueSessionRequest) -> Wish:
    """Unpack what a caller asks for, and digest what makes two requests the same."""
    target = MessageToDict(request.target, preserving_proto_field_name=True)
    said = [request.project_id, request.resource_id, request.kind, target, request.requested_ttl_seconds]
    key = request.idempotency_key.encode()
    return Wish(
        UUID(request.project_id), UUID(request.resource_id), request.kind, target, request.requested_ttl_seconds,
        hashlib.sha256(key).digest() if key else None, hashlib.sha256(jcs(said)).digest(),
    )  # fmt: skip


def said(report: str) -> Mapping[str, Any]:
    """Unpack what a node says; raises InvalidRequest unless it is an object."""
    try:
        members = json.loads(report or "{}")
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict):
        raise InvalidRequest("the report is not a JSON object")
    return members


def pack(session: Session, at: datetime.datetime) -> pb.Session:
    """Pack a session as it stands at a time."""
    packed = pb.Session(
        id=str(session.id), project_id=str(session.project_id), domain_id=str(session.domain_id),
        resource_id=str(session.resource_id), identity_id=str(session.identity_id), kind=session.kind,
        status=session.status(at), revoke_reason=session.revoke_reason,
        target=ParseDict(dict(session.target), pb.Target()),
    )  # fmt: skip
    packed.issued_at.FromDatetime(session.issued_at)
    packed.expires_at.FromDatetime(session.expires_at)
    packed.last_active_at.FromDatetime(session.last_active_at)
    if session.revoked_at is not None:
        packed.revoked_at.FromDatetime(session.revoked_at)
    return packed


def pack_key(key: SessionKey) -> pb.SessionKey:
    """Pack a session key."""
    packed = pb.SessionKey(kid=key.kid, public_key=key.public_key)
    packed.created_at.FromDatetime(key.created_at)
    if key.expires_at is not None:
        packed.expires_at.FromDatetime(key.expires_at)
    if key.revoked_at is not None:
        packed.revoked_at.FromDatetime(key.revoked_at)
    return packed


@dataclass(frozen=True)
class AccessApi(stubs.AccessServiceServicer):
    """Operators' side."""

    rules: Access
    clock: Clock

    async def IssueSession(self, request: pb.IssueSessionRequest, context: Context) -> pb.IssueSessionResponse:
        """Issue a session."""
        issued = await self.rules.issue(current_principal(), wish(request))
        return pb.IssueSessionResponse(session=pack(issued.session, self.clock.now()), token=issued.token)

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Context) -> pb.ListSessionsResponse:
        """List a project's sessions."""
        identity_id = UUID(request.identity_id) if request.identity_id else None
        page = await self.rules.page(
            current_principal(), UUID(request.project_id), request.status, request.kind, identity_id, request.cursor,
            request.limit,
        )  # fmt: skip
        now = self.clock.now()
        return pb.ListSessionsResponse(sessions=[pack(row, now) for row in page.rows], next_cursor=page.following)

    async def GetSession(self, request: pb.GetSessionRequest, context: Context) -> pb.GetSessionResponse:
        """Get one session."""
        session = await self.rules.get(current_principal(), UUID(request.project_id), UUID(request.session_id))
        return pb.GetSessionResponse(session=pack(session, self.clock.now()))

    async def RevokeSession(self, request: pb.RevokeSessionRequest, context: Context) -> pb.RevokeSessionResponse:
        """Revoke a session."""
        project_id, session_id = UUID(request.project_id), UUID(request.session_id)
        await self.rules.revoke(current_principal(), project_id, session_id, request.reason)
        return pb.RevokeSessionResponse()

    async def AttachSession(self, request: pb.AttachSessionRequest, context: Context) -> NoReturn:
        """Refuse to attach."""
        await self.rules.attach(current_principal(), UUID(request.project_id), UUID(request.session_id))


@dataclass(frozen=True)
class AccessNodeApi(stubs.AccessNodeServiceServicer):
    """Nodes' side."""

    rules: Activity

    async def ReportActivity(self, request: pb.ReportActivityRequest, context: Context) -> pb.ReportActivityResponse:
        """Take what happened in a session."""
        node_id, session_id = UUID(request.node_id), UUID(request.session_id)
        await self.rules.report(current_principal(), node_id, session_id, request.kind, said(request.report))
        return pb.ReportActivityResponse()


@dataclass(frozen=True)
class SessionKeysApi(stubs.SessionKeysServiceServicer):
    """Public halves, for everybody."""

    keys: SessionKeys

    async def ListVerifyingKeys(
        self, request: pb.ListVerifyingKeysRequest, context: Context
    ) -> pb.ListVerifyingKeysResponse:
        """List the keys that verify now."""
        keys = await self.keys.published(UUID(request.domain_id))
        return pb.ListVerifyingKeysResponse(keys=map(pack_key, keys))


@dataclass(frozen=True)
class SessionKeysAdminApi(stubs.SessionKeysAdminServiceServicer):
    """Operators' side of the keys."""

    keys: SessionKeys

    async def ListSessionKeys(self, request: pb.ListSessionKeysRequest, context: Context) -> pb.ListSessionKeysResponse:
        """List a Domain's keys."""
        keys = await self.keys.list_all(current_principal(), UUID(request.domain_id))
        return pb.ListSessionKeysResponse(keys=map(pack_key, keys))

    async def RotateSessionKey(
        self, request: pb.RotateSessionKeyRequest, context: Context
    ) -> pb.RotateSessionKeyResponse:
        """Rotate a Domain's key."""
        transition = datetime.timedelta(seconds=request.transition_seconds)
        key = await self.keys.rotate(current_principal(), UUID(request.domain_id), transition)
        return pb.RotateSessionKeyResponse(key=pack_key(key))

    async def RevokeSessionKey(
        self, request: pb.RevokeSessionKeyRequest, context: Context
    ) -> pb.RevokeSessionKeyResponse:
        """Revoke a key."""
        revoked, current = await self.keys.revoke(current_principal(), UUID(request.domain_id), request.kid)
        return pb.RevokeSessionKeyResponse(revoked=pack_key(revoked), current=pack_key(current))
