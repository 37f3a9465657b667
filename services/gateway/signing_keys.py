"""Operators' side of the event bus: a Domain's signing keys, and events that people publish."""

import base64
import json
import time
from typing import Any

from aiohttp import web

from libs import errors
from libs.rpc.channel import Peer
from plexsphere.mesh.v1 import mesh_pb2 as pb
from plexsphere.mesh.v1 import mesh_pb2_grpc as stubs
from services.gateway.answers import JSON, given, maybe, reply, when
from services.gateway.edge import Asked, Route

ACCEPTED = 202
WEEK_S = 7 * 24 * 3600
PUBLISH_S = 10.0
MESH = "mesh"
WHAT_NODES_DO = (
    "Nodes that were told of another key follow it. Nodes that know only the revoked key refuse every event "
    "from now on and must register again."
)


class Mesh:
    """Handlers of the operations on signing keys and events."""

    def __init__(self, mesh: Peer) -> None:
        self._stub = stubs.MeshAdminServiceStub(mesh)

    def routes(self) -> dict[str, Route]:
        """Return the handlers by operation."""
        return {
            "ListSigningKeys": Route(self.list_keys, MESH),
            "RotateSigningKey": Route(self.rotate, MESH),
            "RevokeSigningKey": Route(self.revoke, MESH),
            "PublishDomainEvent": Route(self.publish, MESH),
        }

    async def list_keys(self, asked: Asked) -> web.Response:
        """List a Domain's keys, newest first."""
        request = pb.ListSigningKeysRequest(domain_id=asked.path["id"])
        answer = await self._stub.ListSigningKeys(request, metadata=asked.metadata)
        return reply({"items": [key(row) for row in answer.keys]})

    async def rotate(self, asked: Asked) -> web.Response:
        """Give a Domain a new event key."""
        request = pb.RotateSigningKeyRequest(
            domain_id=asked.path["id"], transition_seconds=asked.body.get("transition_seconds", WEEK_S)
        )
        answer = await self._stub.RotateSigningKey(request, metadata=asked.metadata, timeout=PUBLISH_S)
        return reply(key(answer.key))

    async def revoke(self, asked: Asked) -> web.Response:
        """Revoke a key at once, and say what nodes must do."""
        request = pb.RevokeSigningKeyRequest(domain_id=asked.path["id"], kid=asked.path["key_id"])
        answer = await self._stub.RevokeSigningKey(request, metadata=asked.metadata, timeout=PUBLISH_S)
        found = {"revoked": key(answer.revoked), "current": key(answer.current), "nodes": WHAT_NODES_DO}
        return reply(found)

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


def key(row: pb.SigningKey) -> JSON:
    """Write a key."""
    status = "current"
    if row.HasField("revoked_at"):
        status = "revoked"
    elif row.HasField("expires_at"):
        status = "previous" if row.expires_at.ToNanoseconds() > time.time_ns() else "retired"
    return {
        "key_id": row.kid,
        "use": "event",
        "public_key": base64.b64encode(row.public_key).decode(),
        "status": status,
        "created_at": when(row.created_at),
        **given(transition_expires=maybe(row, "expires_at"), revoked_at=maybe(row, "revoked_at")),
    }
