"""Privileged sessions: operators issue, list and revoke them, nodes report on those that they host."""

import base64
import json
from typing import Any

from aiohttp import web

from libs import errors
from libs.rpc.channel import Peer
from plexsphere.access.v1 import access_pb2 as pb
from plexsphere.access.v1 import access_pb2_grpc as stubs
from services.gateway.answers import JSON, created, given, maybe, nothing, page, reply, when
from services.gateway.edge import Asked, Route

ACCESS = "access"
# Issuing asks five others.
ISSUE_S = 10.0
LONGEST_TTL = 2**31 - 1
KINDS = ("ssh", "k8s", "tcp")


class Sessions:
    """Handlers of the operations on sessions."""

    def __init__(self, access: Peer) -> None:
        self._stub = stubs.AccessServiceStub(access)
        self._nodes = stubs.AccessNodeServiceStub(access)
        self._keys = stubs.SessionKeysServiceStub(access)

    def routes(self) -> dict[str, Route]:
        """Return the handlers by operation."""
        return {
            "IssueSession": Route(self.issue, ACCESS),
            "ListSessions": Route(self.list_sessions, ACCESS),
            "GetSession": Route(self.get, ACCESS),
            "RevokeSession": Route(self.revoke, ACCESS),
            "AttachSession": Route(self.attach, ACCESS),
            "PostNodeSessionCallback": Route(self.report, ACCESS),
            "GetDomainJwks": Route(self.jwks, ACCESS),
        }

    async def issue(self, asked: Asked) -> web.Response:
        """Issue a session; its token is in this answer only."""
        body, project_id = asked.body, asked.path["project_id"]
        request = pb.IssueSessionRequest(
            project_id=project_id,
            resource_id=body["resource_id"].lower(),
            kind=body["kind"],
            target=target(body["target"]),
            requested_ttl_seconds=min(body.get("requested_ttl_seconds", 0), LONGEST_TTL),
            idempotency_key=body.get("idempotency_key", ""),
        )
        answer = await self._stub.IssueSession(request, metadata=asked.metadata, timeout=ISSUE_S)
        shown = session(answer.session)
        issued = {"session_id": shown["id"], "token": answer.token, "expires_at": shown["expires_at"], "session": shown}
        return created(issued, f"/v1/projects/{project_id}/sessions/{shown['id']}")

    async def list_sessions(self, asked: Asked) -> web.Response:
        """List a project's sessions."""
        query = asked.query
        request = pb.ListSessionsRequest(
            project_id=asked.path["project_id"],
            status=query.get("status", ""),
            kind=query.get("kind", ""),
            identity_id=query.get("identity_id", ""),
            cursor=query.get("cursor", ""),
            limit=query["limit"],
        )
        answer = await self._stub.ListSessions(request, metadata=asked.metadata)
        return page([session(row) for row in answer.sessions], answer.next_cursor)

    async def get(self, asked: Asked) -> web.Response:
        """Get one session, without its token."""
        answer = await self._stub.GetSession(pb.GetSessionRequest(**asked.path), metadata=asked.metadata)
        return reply(session(answer.session))

    async def revoke(self, asked: Asked) -> web.Response:
        """Revoke a session."""
        request = pb.RevokeSessionRequest(**asked.path, reason=asked.body["revoke_reason"])
        await self._stub.RevokeSession(request, metadata=asked.metadata)
        return nothing()

    async def attach(self, asked: Asked) -> web.StreamResponse:
        """Refuse to attach, and say what is in the way."""
        headers = asked.http.headers
        upgrade = "upgrade" in headers.get("Connection", "").lower()
        if not upgrade or headers.get("Upgrade", "").lower() != "websocket":
            raise errors.UpgradeRequired
        await self._stub.AttachSession(pb.AttachSessionRequest(**asked.path), metadata=asked.metadata)
        raise errors.AttachNotProvisioned

    async def report(self, asked: Asked) -> web.Response:
        """Take what a node says of a session."""
        told = [kind for kind in KINDS if kind in asked.body]
        if len(told) != 1:
            raise errors.InvalidRequest("exactly one of ssh, k8s and tcp is needed")
        request = pb.ReportActivityRequest(
            node_id=asked.path["id"], session_id=asked.path["session_id"], kind=told[0],
            report=json.dumps(asked.body[told[0]]),
        )  # fmt: skip
        await self._nodes.ReportActivity(request, metadata=asked.metadata)
        return nothing()

    async def jwks(self, asked: Asked) -> web.Response:
        """Publish the keys that verify a Domain's session tokens (RFC 7517)."""
        answer = await self._keys.ListVerifyingKeys(pb.ListVerifyingKeysRequest(domain_id=asked.path["id"]))
        return reply({"keys": [jwk(row) for row in answer.keys]})


def target(body: Any) -> pb.Target:
    """Read a target; raises InvalidTarget unless it has exactly one variant."""
    told = [kind for kind in KINDS if kind in body]
    if len(told) != 1:
        raise errors.InvalidTarget("exactly one of ssh, k8s and tcp is needed")
    variant = body[told[0]]
    if told[0] == "ssh":
        return pb.Target(ssh=pb.SshTarget(user=variant["user"], allowed_commands=variant.get("allowed_commands", ())))
    if told[0] == "k8s":
        groups = variant.get("impersonate_groups", ())
        return pb.Target(k8s=pb.KubernetesTarget(user=variant["user"], impersonate_groups=groups))
    return pb.Target(tcp=pb.TcpTarget(host=variant["host"], port=variant["port"]))


def written(row: pb.Target) -> JSON:
    """Write a target."""
    if row.HasField("ssh"):
        return {"ssh": {"user": row.ssh.user, **given(allowed_commands=list(row.ssh.allowed_commands))}}
    if row.HasField("k8s"):
        return {"k8s": {"user": row.k8s.user, **given(impersonate_groups=list(row.k8s.impersonate_groups))}}
    return {"tcp": {"host": row.tcp.host, "port": row.tcp.port}}


def session(row: pb.Session) -> JSON:
    """Write a session."""
    return {
        "id": row.id,
        "project_id": row.project_id,
        "domain_id": row.domain_id,
        "resource_id": row.resource_id,
        "identity_id": row.identity_id,
        "kind": row.kind,
        "status": row.status,
        "issued_at": when(row.issued_at),
        "expires_at": when(row.expires_at),
        "last_active_at": when(row.last_active_at),
        **given(revoked_at=maybe(row, "revoked_at"), revoke_reason=row.revoke_reason),
        "target": written(row.target),
    }


def jwk(row: pb.SessionKey) -> dict[str, str]:
    """Write a key as verifiers read it (RFC 7517, RFC 8037)."""
    x = base64.urlsafe_b64encode(row.public_key).decode().rstrip("=")
    return {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": row.kid, "alg": "EdDSA", "use": "sig"}
