"""What `helm test` sees of a release, from a pod beside it: `checks.py healthy|wrong-caller|missing-port|network`.

Runs in the gateway's image, with the certificate of `probe`, who may ask for health and nothing else.
"""

import argparse
import asyncio
import base64
import ssl
import sys
import uuid
from pathlib import Path

import aiohttp
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

# For each service a method that `probe` is not in the caller list of.
CLOSED = {
    "identity": "/plexsphere.identity.v1.RelationsService/Check",
    "access": "/plexsphere.access.v1.AccessService/IssueSession",
    "secrets": "/plexsphere.secrets.v1.SecretsService/FetchNodeSecret",
    "mesh": "/plexsphere.mesh.v1.PublishService/Publish",
    "audit": "/plexsphere.audit.v1.AuditAppendService/Append",
}
WITHIN_S = 5.0
OK, NOT_PROVISIONED = 200, 501


class Wrong(Exception):
    """What was seen is not what must be."""


class Release:
    """Where the processes are, and the certificate that is shown to them."""

    def __init__(self, folder: Path, places: dict[str, str], edge: str, bearer: Path) -> None:
        self.folder = folder
        self.places = places
        self.edge = edge
        self.bearer = bearer

    def at(self, name: str) -> str:
        """Return the address of a process."""
        return self.places.get(name, f"{name}:8443")

    def channel(self, name: str, *, certificate: bool = True) -> grpc.aio.Channel:
        """Open a channel to a service, with the certificate of `probe` or with none."""
        own = [(self.folder / f"probe.{kind}").read_bytes() for kind in ("key", "crt")] if certificate else [None, None]
        credentials = grpc.ssl_channel_credentials((self.folder / "ca.crt").read_bytes(), *own)
        return grpc.aio.secure_channel(self.at(name), credentials, options=[("grpc.ssl_target_name_override", name)])

    async def ask(self, address: str, path: str, bearer: str = "") -> tuple[int, str]:
        """Ask an edge; returns the status and the code of the problem."""
        # A certificate for the public is of a public CA.
        trust = None if self.edge else self.folder / "ca.crt"
        name = self.edge or "gateway"
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        context, timeout = ssl.create_default_context(cafile=trust), aiohttp.ClientTimeout(total=4 * WITHIN_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.get(f"https://{address}{path}", ssl=context, server_hostname=name, headers=headers) as answer,
        ):
            body = await answer.json(content_type=None) if answer.content_type.endswith("json") else {}
            return answer.status, str(body.get("code", ""))


async def healthy(release: Release) -> None:
    """Every process is ready, and the edge serves."""
    for name in CLOSED:
        async with release.channel(name) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=WITHIN_S)
            if answer.status != health_pb2.HealthCheckResponse.SERVING:
                raise Wrong(f"{name} is not ready")
    status, _ = await release.ask(release.at("gateway"), "/v1/health")
    if status != OK:
        raise Wrong(f"the edge's health is {status}")


async def refusal(channel: grpc.aio.Channel, method: str) -> grpc.StatusCode:
    """Call a method, and return what it was refused with."""
    try:
        await channel.unary_unary(method)(b"", timeout=WITHIN_S)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def wrong_caller(release: Release) -> None:
    """A certificate of ours that is not in the caller list is refused, and so is who shows none."""
    for name, method in CLOSED.items():
        for certificate, wanted in ((True, grpc.StatusCode.PERMISSION_DENIED), (False, grpc.StatusCode.UNAVAILABLE)):
            async with release.channel(name, certificate=certificate) as channel:
                seen = await refusal(channel, method)
            if seen is not wanted:
                raise Wrong(f"{name} answered {seen.name} to {'probe' if certificate else 'nobody'}")


async def missing_port(release: Release) -> None:
    """An edge that lacks one of the five ports delivers nothing: 501 for a node that is what it says."""
    bearer = await asyncio.to_thread(release.bearer.read_text)
    packed = bearer.strip().split("_", 2)[2]
    node = uuid.UUID(bytes=base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4))[:16])
    status, code = await release.ask(release.at("lacking"), f"/v1/nodes/{node}/events", bearer.strip())
    if (status, code) != (NOT_PROVISIONED, "signed_event_bus_not_provisioned"):
        raise Wrong(f"an edge without a port answered {status} {code}")


async def network(release: Release) -> None:
    """A pod that is nobody's peer reaches the edge, and no service behind it."""
    await connected(release.at("gateway"))
    for name in CLOSED:
        try:
            await connected(release.at(name))
        except OSError:
            continue
        raise Wrong(f"{name} can be reached from a pod that has no business with it")


async def connected(address: str) -> None:
    """Raise OSError unless a connection is made in time."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(WITHIN_S):
        _, writer = await asyncio.open_connection(host, int(port))
    writer.close()


CHECKS = {"healthy": healthy, "wrong-caller": wrong_caller, "missing-port": missing_port, "network": network}


def main() -> None:
    """Run one check; a failed one ends with status 1 and says what was seen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("check", choices=CHECKS)
    parser.add_argument("--tls", type=Path, default=Path("/run/plexsphere/tls"), help="folder with probe.* and ca.crt")
    parser.add_argument("--at", action="append", default=[], metavar="NAME=HOST:PORT", help="where a process is")
    parser.add_argument("--edge", default="", help="name of the edge, where its certificate is of a public CA")
    parser.add_argument("--bearer", type=Path, default=Path("/run/plexsphere/bearer/bearer"), help="of a node")
    asked = parser.parse_args()
    release = Release(asked.tls, dict(one.split("=", 1) for one in asked.at), asked.edge, asked.bearer)
    try:
        asyncio.run(CHECKS[asked.check](release))
    except (Wrong, OSError, grpc.RpcError, aiohttp.ClientError) as error:
        sys.exit(f"{asked.check}: {type(error).__name__} {error}")
    print(f"{asked.check}: ok")


if __name__ == "__main__":
    main()
