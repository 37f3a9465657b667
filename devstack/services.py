"""The six processes: their shipped settings files with this machine's addresses, their migrations, their health."""

import sys
from typing import Any

import aiohttp
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from devstack.layout import BACKENDS, ROOT, SERVICES, State
from devstack.process import Spec
from libs import settings, tls
from libs.rpc.channel import Peer

SHIPPED = ROOT / "deploy/config"
WITH_SCHEMA = ("identity", "access", "secrets", "mesh", "audit")
PORTS = {"postgres": 5432, "nats": 4222, "openbao": 8200, "spicedb": 50051, "oidc-a": 9443, "oidc-b": 9443}
OK = 200


def render(state: State, name: str) -> None:
    """Write the shipped file with what differs here: addresses, ports, the folders of certificates and secrets."""
    text = (SHIPPED / f"{name}.toml").read_text()
    replacements = {
        'host = "0.0.0.0"\nport = 8443': f'host = "127.0.0.1"\nport = {state.port(name) if name in SERVICES else 0}',
        'metrics_host = "0.0.0.0"\nmetrics_port = 9464': 'metrics_host = "127.0.0.1"\nmetrics_port = '
        + str(state.port(f"{name}-metrics") if name in SERVICES else 0),
        "https://edge.plexsphere.internal": state.edge_url,
        "/var/lib/plexsphere/": f"{state.folder}/",
        "/run/plexsphere/tls/": f"{state / 'pki'}/",
        "/run/plexsphere/secrets/": f"{state / 'secrets'}/",
        'environment = "prod"': 'environment = "dev"',
        "acknowledged_by = []": f'acknowledged_by = ["{(state / "pki/restore.vkey").read_text()}"]',
        "provider_networks = []": 'provider_networks = ["127.0.0.1/32"]',
        'trace_file = ""': f'trace_file = "{state / f"log/{name}.trace.jsonl"}"',
    }
    for other in SERVICES:
        replacements[f'"{other}:8443"'] = f'"127.0.0.1:{state.port(other)}"'
    for backend in BACKENDS:
        port = state.port(backend)
        replacements[f'"{backend}:{PORTS[backend]}"'] = f'"127.0.0.1:{port}"'
        replacements[f"//{backend}:{PORTS[backend]}"] = f"//127.0.0.1:{port}"
        replacements[f'host = "{backend}"\nport = {PORTS[backend]}'] = f'host = "127.0.0.1"\nport = {port}'
    for shipped, here in replacements.items():
        text = text.replace(shipped, here)
    (state / f"config/{name}.toml").write_text(text)


def migrate_command(state: State) -> list[str]:
    """Return the command that brings all schemas to their newest revision."""
    return [sys.executable, "-m", "libs.migrations", "--config", str(state / "config/migrate.toml"), *WITH_SCHEMA]


def probe_tls(state: State) -> settings.Tls:
    """Return the TLS identity that asks for health."""
    return settings.Tls(
        certificate_file=state / "pki/probe.crt", key_file=state / "pki/probe.key", ca_file=state / "pki/ca.crt"
    )


def spec(state: State, name: str) -> Spec:
    """Return a service's process; ready means that it serves and reaches everything that it depends on."""

    async def ready() -> None:
        if name == "gateway":
            await _edge_health(state)
            return
        peer = settings.Peer(address=f"127.0.0.1:{state.port(name)}", name=name)
        async with Peer(peer, probe_tls(state)) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
            if answer.status != health_pb2.HealthCheckResponse.SERVING:
                raise grpc.RpcError(f"{name} is not ready")

    command = [sys.executable, "-m", f"services.{name}", "--config", str(state / f"config/{name}.toml")]
    return Spec(name, command, ready)


async def _edge_health(state: State) -> None:
    context = tls.trusting(state / "pki/ca.crt")
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http,
        http.get(f"{state.edge_url}/v1/health", ssl=context) as answer,
    ):
        if answer.status != OK:
            raise aiohttp.ClientError(await answer.text())
