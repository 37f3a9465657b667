"""Secrets: nodes read them sealed, operators write, grant and destroy them and never read them."""

import re

from aiohttp import web

from libs import errors, nsk
from libs.rpc.channel import Peer
from plexsphere.secrets.v1 import secrets_pb2 as pb
from plexsphere.secrets.v1 import secrets_pb2_grpc as stubs
from services.gateway.answers import nothing, page, reply
from services.gateway.document import OCTETS
from services.gateway.edge import Asked, Handler, Route

READ_S = 10.0
VERSION = re.compile(r'"?([0-9]{1,9})"?')
# Longer than the name of any secret, and short enough to be sent.
LONGEST_ASKED = 64


async def not_provisioned(_: Asked) -> web.StreamResponse:
    """Refuse: this deployment has no secrets."""
    raise errors.SecretsNotProvisioned


class Secrets:
    """Handlers of the operations on secrets."""

    def __init__(self, secrets: Peer | None) -> None:
        """Without the service behind them, all of them refuse."""
        self._provisioned = secrets is not None
        if secrets is not None:
            self._reads = stubs.SecretsServiceStub(secrets)
            self._admin = stubs.SecretsAdminServiceStub(secrets)

    def routes(self) -> dict[str, Route]:
        """Return the handlers by operation."""
        handlers: dict[str, Handler] = {
            "GetNodeSecret": self.fetch,
            "ListProjectSecrets": self.list_secrets,
            "PutProjectSecret": self.put,
            "DestroyProjectSecret": self.destroy,
            "DestroyProjectSecretVersion": self.destroy_version,
            "GrantProjectSecretReader": self.grant,
            "RevokeProjectSecretReader": self.revoke,
        }
        if not self._provisioned:
            handlers = dict.fromkeys(handlers, not_provisioned)
        return {name: Route(handler, "secrets", self._provisioned) for name, handler in handlers.items()}

    async def fetch(self, asked: Asked) -> web.Response:
        """Hand a node a secret as it came: encrypted under the node's own key."""
        with nsk.parse_header(asked.http.headers.get("Authorization", "")).key as key:
            request = pb.FetchNodeSecretRequest(
                node_id=asked.path["id"],
                name=asked.path["name"][:LONGEST_ASKED],
                version=asked.query.get("version", 0),
                node_key=bytes(key.reveal()),
            )
            answer = await self._reads.FetchNodeSecret(request, metadata=asked.metadata, timeout=READ_S)
        headers = {
            "X-Plexsphere-Secret-Version": str(answer.version),
            "X-Plexsphere-Secret-KID": answer.kid,
            "Cache-Control": "no-store",
            "Accept-Ranges": "none",
        }
        return web.Response(body=answer.body, headers=headers, content_type=OCTETS)

    async def list_secrets(self, asked: Asked) -> web.Response:
        """List names and current versions."""
        request = pb.ListSecretsRequest(
            project_id=asked.path["project_id"], cursor=asked.query.get("cursor", ""), limit=asked.query["limit"]
        )
        answer = await self._admin.ListSecrets(request, metadata=asked.metadata)
        rows = [{"name": row.name, "current_version": row.current_version} for row in answer.secrets]
        return page(rows, answer.next_cursor)

    async def put(self, asked: Asked) -> web.Response:
        """Write a version."""
        expected = VERSION.fullmatch(asked.http.headers.get("If-Match", ""))
        name = asked.path["name"]
        if expected is None:
            raise errors.PreconditionFailed("If-Match must hold the current version; 0 creates")
        request = pb.PutSecretRequest(
            project_id=asked.path["project_id"], name=name, value=bytes(asked.body), expected_version=int(expected[1])
        )
        answer = await self._admin.PutSecret(request, metadata=asked.metadata, timeout=READ_S)
        status = 201 if answer.version == 1 else 200
        written = {"name": name, "current_version": answer.version}
        return reply(written, status, {"ETag": f'"{answer.version}"'})

    async def destroy(self, asked: Asked) -> web.Response:
        """Destroy a secret with all its versions."""
        request = pb.DestroySecretRequest(project_id=asked.path["project_id"], name=asked.path["name"])
        await self._admin.DestroySecret(request, metadata=asked.metadata, timeout=READ_S)
        return nothing()

    async def destroy_version(self, asked: Asked) -> web.Response:
        """Destroy one version."""
        path = asked.path
        request = pb.DestroySecretVersionRequest(
            project_id=path["project_id"], name=path["name"], version=path["version"]
        )
        await self._admin.DestroySecretVersion(request, metadata=asked.metadata, timeout=READ_S)
        return nothing()

    async def grant(self, asked: Asked) -> web.Response:
        """Let a node read a secret."""
        path = asked.path
        request = pb.GrantReaderRequest(project_id=path["project_id"], name=path["name"], node_id=path["node_id"])
        await self._admin.GrantReader(request, metadata=asked.metadata, timeout=READ_S)
        return nothing()

    async def revoke(self, asked: Asked) -> web.Response:
        """Stop a node from reading a secret."""
        path = asked.path
        request = pb.RevokeReaderRequest(project_id=path["project_id"], name=path["name"], node_id=path["node_id"])
        await self._admin.RevokeReader(request, metadata=asked.metadata, timeout=READ_S)
        return nothing()
