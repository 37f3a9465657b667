"""A Domain's keys, those that sign its events and those that sign its sessions, and events that people publish."""

import base64
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from libs import errors
from libs.rpc.channel import Peer
from plexsphere.access.v1 import access_pb2, access_pb2_grpc
from plexsphere.mesh.v1 import mesh_pb2 as pb
from plexsphere.mesh.v1 import mesh_pb2_grpc as stubs
from services.gateway.answers import JSON, given, maybe, reply, when
from services.gateway.edge import Asked, Route

ACCEPTED = 202
WEEK_S = 7 * 24 * 3600
PUBLISH_S = 10.0
MESH, ACCESS = "mesh", "access"
OF_SESSIONS = "sek_"
WHAT_NODES_DO = (
    "Nodes that were told of another key follow it. Nodes that know only the revoked key refuse every event "
    "from now on and must register again."
)
WHAT_SESSIONS_DO = (
    "Tokens that the revoked key signed verify nowhere from now on; whoever needs a session issues another one."
)
Metadata = tuple[tuple[str, str], ...]
# An assertion is for one service; this gives the caller's for another one.
Vouch = Callable[[Asked, str], Awaitable[Metadata]]


class Mesh:
    """Handlers of the operations on signing keys and events."""

    def __init__(self, mesh: Peer, access: Peer, vouch: Vouch) -> None:
        self._stub = stubs.MeshAdminServiceStub(mesh)
        self._sessions = access_pb2_grpc.SessionKeysAdminServiceStub(access)
        self._vouch = vouch

    def routes(self) -> dict[str, Route]:
        """Return the handlers by operation."""
        return {
            "ListSigningKeys": Route(self.list_keys, MESH),
            "RotateSigningKey": Route(self.rotate, MESH),
            "RevokeSigningKey": Route(self.revoke, MESH),
            "PublishDomainEvent": Route(self.publish, MESH),
        }

    async def list_keys(self, asked: Asked) -> web.Response:
        """List a Domain's keys, those of events before those of sessions, each newest first."""
        domain_id = asked.path["id"]
        request = pb.ListSigningKeysRequest(domain_id=domain_id)
        answer = await self._stub.ListSigningKeys(request, metadata=asked.metadata)
        theirs = access_pb2.ListSessionKeysRequest(domain_id=domain_id)
        sessions = await self._sessions.ListSessionKeys(theirs, metadata=await self._vouch(asked, ACCESS))
        return reply({"items": [*(key(row) for row in answer.keys), *(key(row, "session") for row in sessions.keys)]})

    async def rotate(self, asked: Asked) -> web.Response:
        """Give a Domain a new event key, or a new session key."""
        domain_id, transition_s = asked.path["id"], asked.body.get("transition_seconds", WEEK_S)
        if asked.body.get("use") == "session":
            theirs = access_pb2.RotateSessionKeyRequest(domain_id=domain_id, transition_seconds=transition_s)
            vouched = await self._vouch(asked, ACCESS)
            session = await self._sessions.RotateSessionKey(theirs, metadata=vouched, timeout=PUBLISH_S)
            return reply(key(session.key, "session"))
        request = pb.RotateSigningKeyRequest(domain_id=domain_id, transition_seconds=transition_s)
        answer = await self._stub.RotateSigningKey(request, metadata=asked.metadata, timeout=PUBLISH_S)
        return reply(key(answer.key))

    async def revoke(self, asked: Asked) -> web.Response:
        """Revoke a key at once, and say what nodes must do."""
        if asked.path["key_id"].startswith(OF_SESSIONS):
            return await self._revoke_session_key(asked)
        request = pb.RevokeSigningKeyRequest(domain_id=asked.path["id"], kid=asked.path["key_id"])
        answer = await self._stub.RevokeSigningKey(request, metadata=asked.metadata, timeout=PUBLISH_S)
        found = {"revoked": key(answer.revoked), "current": key(answer.current), "nodes": WHAT_NODES_DO}
        return reply(found)

    async def _revoke_session_key(self, asked: Asked) -> web.Response:
        request = access_pb2.RevokeSessionKeyRequest(domain_id=asked.path["id"], kid=asked.path["key_id"])
        vouched = await self._vouch(asked, ACCESS)
        answer = await self._sessions.RevokeSessionKey(request, metadata=vouched, timeout=PUBLISH_S)
        revoked, current = key(answer.revoked, "session"), key(answer.current, "session")
        return reply({"revoked": revoked, "current": current, "nodes": WHAT_SESSIONS_DO})

    async def publish(self, asked: Asked) -> web.Response:
        """Publish an event for a Domain's nodes."""
        body = asked.body
        request = pb.PublishEventRequest(
            domain_id=asked.path["id"],
            type=body["type"],
            scope=body["scope"],
            payload_json=payload(body.get("payload", {})),
        )
        answer = await self._stub.PublishEvent(request, metadata=asked.metadata, timeout=PUBLISH_S)
        return reply({"id": answer.id, "sequence": answer.sequence}, ACCEPTED)


def payload(value: Any) -> str:
    """Write a payload as JSON text; raises EventNotSignable for what UTF-8 cannot carry."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise errors.EventNotSignable("the payload holds half of a surrogate pair") from None
    return text


def key(row: pb.SigningKey | access_pb2.SessionKey, use: str = "event") -> JSON:
    """Write a key."""
    status = "current"
    if row.HasField("revoked_at"):
        status = "revoked"
    elif row.HasField("expires_at"):
        status = "previous" if row.expires_at.ToNanoseconds() > time.time_ns() else "retired"
    return {
        "key_id": row.kid,
        "use": use,
        "public_key": base64.b64encode(row.public_key).decode(),
        "status": status,
        "created_at": when(row.created_at),
        **given(transition_expires=maybe(row, "expires_at"), revoked_at=maybe(row, "revoked_at")),
    }
