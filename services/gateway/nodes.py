"""What nodes do themselves: register, heartbeat, ask for their state, report their endpoint, rotate their mesh key."""

import base64
import binascii
import json
import re
from typing import Any

from aiohttp import web

from libs import errors
from libs.rpc.channel import Peer
from plexsphere.identity.v1 import enrolment_pb2 as pb
from plexsphere.identity.v1 import enrolment_pb2_grpc as stubs
from services.gateway.answers import CREATED, JSON, given, maybe, reply, timestamp, when
from services.gateway.edge import Asked, Route

REGISTER_S = 15.0
HEX_CHECKSUM = re.compile(r"[0-9a-fA-F]{64}")
CHECKSUM_BYTES = 32
STATES = {
    pb.REACHABILITY_STATE_HEALTHY: "healthy",
    pb.REACHABILITY_STATE_STALE: "stale",
    pb.REACHABILITY_STATE_UNREACHABLE: "unreachable",
}


class Nodes:
    """Handlers of the nodes' own operations."""

    def __init__(self, identity: Peer) -> None:
        self._enrolment = stubs.EnrolmentServiceStub(identity)
        self._nodes = stubs.NodeServiceStub(identity)

    def routes(self) -> dict[str, Route]:
        """Return the handlers by operation."""
        return {
            "PostRegister": Route(self.register),
            "PostNodeHeartbeat": Route(self.heartbeat),
            "GetNodeState": Route(self.state),
            "PutNodeEndpoint": Route(self.endpoint),
            "PostKeysRotate": Route(self.rotate_keys),
            "RotateNodeSecretKey": Route(self.rotate_secret_key),
        }

    async def register(self, asked: Asked) -> web.Response:
        """Turn a bootstrap token into a node."""
        body = asked.body
        try:
            public_key = base64.b64decode(body["public_key"], validate=True)
        except binascii.Error:
            raise errors.PublicKeyInvalid from None
        request = pb.RegisterRequest(
            project_id=body["project_id"].lower(),
            resource_handle=body["resource_handle"],
            bootstrap_token=body["bootstrap_token"],
            nonce=body["nonce"],
            public_key=public_key,
            requested_resource_id=body.get("requested_resource_id", ""),
        )
        answer = await self._enrolment.Register(request, timeout=REGISTER_S)
        registered = {
            "node_id": answer.node_id,
            "mesh_ip": answer.mesh_ip,
            "signing_public_key": base64.b64encode(answer.signing_public_key).decode(),
            "signing_key_id": answer.signing_key_id,
            "nsk": base64.b64encode(answer.nsk).decode(),
            "peer_snapshot": [peer(row) for row in answer.peers],
            "domain_mesh_cidr": answer.domain_mesh_cidr,
        }
        return reply(registered, CREATED)

    async def heartbeat(self, asked: Asked) -> web.Response:
        """Take a sign of life."""
        body = asked.body
        request = pb.HeartbeatRequest(
            node_id=asked.path["id"],
            client_now=timestamp(body["client_now"]),
            binary_checksum=checksum(body["binary_checksum"]),
            binary_version=body["binary_version"],
            nat_summary_json=nat_summary(body["nat_summary"]),
        )
        answer = await self._nodes.Heartbeat(request, metadata=asked.metadata)
        return reply(
            {
                "accepted_at": when(answer.accepted_at),
                "reconcile": answer.reconcile,
                "rotate_keys": answer.rotate_keys,
            }
        )

    async def state(self, asked: Asked) -> web.Response:
        """Answer with all that the node should be; it is not behind the gate, so that nodes without events have it."""
        request = pb.GetStateRequest(node_id=asked.path["id"])
        answer = await self._nodes.GetState(request, metadata=asked.metadata)
        return reply(
            {
                "peers": [peer(row) for row in answer.peers],
                "policy": {
                    "revision_id": answer.policy.revision_id,
                    "fingerprint": base64.b64encode(answer.policy.fingerprint).decode(),
                    "rules": [],
                },
                # Nothing writes these yet; they are there, and empty.
                "bridge": {},
                "state": {"metadata": [], "data": [], "reports": []},
                "reports": {"metadata": [], "data": [], "reports": []},
                "reachability": reachability(answer.reachability),
            }
        )

    async def endpoint(self, asked: Asked) -> web.Response:
        """Take where the node is reached from outside."""
        body = asked.body
        request = pb.ReportEndpointRequest(
            node_id=asked.path["id"],
            endpoint=body["endpoint"],
            nat_type=body["nat_type"],
            reported_at=timestamp(body["reported_at"]),
        )
        answer = await self._nodes.ReportEndpoint(request, metadata=asked.metadata)
        return reply({"accepted_at": when(answer.accepted_at), "stale_after": when(answer.stale_after)})

    async def rotate_keys(self, asked: Asked) -> web.Response:
        """Put the node's new mesh key in force."""
        try:
            key = base64.b64decode(asked.body["new_public_key"], validate=True)
        except ValueError:
            raise errors.KeysRotateKeyInvalid from None
        request = pb.CompleteKeyRotationRequest(new_public_key=key)
        answer = await self._nodes.CompleteKeyRotation(request, metadata=asked.metadata)
        return reply(
            {"rotation_id": answer.rotation_id, "kid": answer.kid, "wrap_key_version": answer.wrap_key_version}
        )

    async def rotate_secret_key(self, asked: Asked) -> web.Response:
        """Give the node a fresh node key."""
        request = pb.RotateSecretKeyRequest(node_id=asked.path["id"])
        answer = await self._nodes.RotateSecretKey(request, metadata=asked.metadata)
        return reply(
            {
                "nsk": base64.b64encode(answer.nsk).decode(),
                "kid": answer.kid,
                "previous_valid_until": when(answer.previous_valid_until),
            }
        )


def checksum(text: str) -> bytes:
    """Read 32 bytes in base64 or as 64 hex digits; raises BinaryChecksumEmpty for anything else."""
    if HEX_CHECKSUM.fullmatch(text):
        return bytes.fromhex(text)
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise errors.BinaryChecksumEmpty from None
    if len(value) != CHECKSUM_BYTES:
        raise errors.BinaryChecksumEmpty
    return value


def nat_summary(value: Any) -> str:
    """Write what the node knows of its NAT; raises MalformedHeartbeat when it is too much."""
    text = json.dumps(value, separators=(",", ":"))
    if len(text) > 8192:  # noqa: PLR2004 — the field's limit in the proto
        raise errors.MalformedHeartbeat("nat_summary is too long")
    return text


def peer(row: pb.Peer) -> JSON:
    """Write a peer as a node sees it."""
    return {
        "node_id": row.node_id,
        "mesh_ip": row.mesh_ip,
        "public_key": base64.b64encode(row.public_key).decode(),
        **given(fallback_endpoint=row.fallback_endpoint),
    }


def reachability(row: pb.Reachability) -> JSON:
    """Write whether a node is heard of."""
    return {
        "state": STATES[row.state],
        **given(last_heartbeat_at=maybe(row, "last_heartbeat_at")),
        "changed_at": when(row.changed_at),
    }
