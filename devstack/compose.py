"""Makes what docker-compose.yml mounts: `python -m devstack.compose [--observability]`.

A folder for each container with the certificates and files that it names and no others, and its settings: the files
that ship, with this machine's edge.
"""

import argparse
import json
import os
import re
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Any

from devstack import nats as broker
from devstack import openbao, pki
from devstack.layout import CLIENT_ID, ROOT, SERVICES, State, write_private

EDGE = "https://localhost:8443"
OIDC_NETWORK = "10.213.9.0/24"
MORE = ("otel", "prometheus", "grafana")
DATA = ("postgres", "nats", "openbao", "audit", "prometheus", "grafana")
PASSWORDS = ("postgres.password", "grafana.password")
INSIDE = "/run/plexsphere"
# What a container is given besides what its settings name: certificates, then secrets.
GIVEN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "postgres": (("postgres",), ("postgres.password",)),
    "nats": (("nats",), ()),
    "openbao": (("openbao",), ("openbao-seal.key",)),
    "spicedb": (("spicedb",), ("spicedb.key",)),
    "oidc-a": (("oidc-a",), ("oidc-a.secret", "oidc-a.jwks.json")),
    "otel": (("otel",), ()),
    "prometheus": (("prometheus",), ()),
    "grafana": (("grafana",), ("grafana.password",)),
}
# Whoever starts containers as root does not run them as root.
UNPRIVILEGED = 10001
JSON = dict[str, Any]


def settings(name: str, *, observability: bool) -> str:
    """Return the settings file that ships, with what is otherwise in these containers."""
    text = (ROOT / f"deploy/config/{name}.toml").read_text()
    for shipped, here in {
        "https://edge.plexsphere.internal": EDGE,
        'environment = "prod"': 'environment = "dev"',
        "provider_networks = []": f'provider_networks = ["{OIDC_NETWORK}"]',
        'otlp_endpoint = ""': f'otlp_endpoint = "{"https://otel:4317" if observability else ""}"',
    }.items():
        text = text.replace(shipped, here)
    return text


def bao(state: State, *, operator: bool = False) -> JSON:
    """Return OpenBao's configuration: the embedded stack's, but for places, and for the operator's role."""
    text = json.dumps(openbao.configuration(state))
    for here, inside in {
        f"127.0.0.1:{state.port('openbao-cluster')}": "0.0.0.0:8201",
        f"https://127.0.0.1:{state.port('openbao')}": "https://openbao:8200",
        f"127.0.0.1:{state.port('openbao')}": "0.0.0.0:8200",
        str(state / "openbao/raft"): "/var/lib/plexsphere",
        str(state / "log/openbao-audit.log"): "/var/lib/plexsphere/audit.log",
        str(state / "pki"): f"{INSIDE}/tls",
        str(state / "secrets"): f"{INSIDE}/secrets",
    }.items():
        text = text.replace(here, inside)
    found: JSON = json.loads(text)
    found["cluster_addr"] = "https://openbao:8201"
    requests = found["initialize"][0]["setup"]["request"]
    requests = [one for one in requests if operator or not next(iter(one)).endswith("-operator")]
    lent = {"client_secret": state.secret("oidc-a.secret"), "client_id": CLIENT_ID}
    requests.append({"idp": {"operation": "update", "path": "kv/data/idp/platform/oidc-a", "data": {"data": lent}}})
    found["initialize"][0]["setup"]["request"] = requests
    return found


def nats(*, operator: bool = False) -> str:
    """Return the broker's configuration."""
    text = (ROOT / "deploy/nats/nats.conf").read_text()
    superuser = broker.SUPERUSER if operator else ""
    wanted = {"LISTEN": "0.0.0.0:4222", "STORE": "/var/lib/plexsphere", "TLS": f"{INSIDE}/tls", "SUPERUSER": superuser}
    wanted |= {"NAME": "plexsphere"}
    for name, value in wanted.items():
        text = text.replace(f"@{name}@", value)
    return text


def spicedb(state: State) -> str:
    """Return SpiceDB's settings, the preshared key among them."""
    mine = f"{INSIDE}/tls/spicedb"
    store = f"sslmode=verify-full&sslrootcert={INSIDE}/tls/ca.crt&sslcert={mine}.crt&sslkey={mine}.key"
    return "\n".join([
        f"SPICEDB_GRPC_PRESHARED_KEY={state.secret('spicedb.key')}",
        f"SPICEDB_GRPC_TLS_CERT_PATH={mine}.crt", f"SPICEDB_GRPC_TLS_KEY_PATH={mine}.key",
        "SPICEDB_DATASTORE_ENGINE=postgres", f"SPICEDB_DATASTORE_CONN_URI=postgres://spicedb@postgres:5432/spicedb?{store}",
        "SPICEDB_HTTP_ENABLED=false", "SPICEDB_METRICS_ENABLED=false", "SPICEDB_TELEMETRY_ENDPOINT=", "",
    ])  # fmt: skip


def provider(state: State) -> JSON:
    """Return the OpenID provider's settings, and make its keys where there are none."""
    from devstack import oidc  # noqa: PLC0415 — wants Node's package, which only who runs a provider has

    oidc.prepare(state, "oidc-a")
    found: JSON = json.loads((state / "config/oidc-a.json").read_text())
    for name in ("redirect_uris", "post_logout_redirect_uris"):
        found[name] = [url.replace(state.edge_url, EDGE) for url in found[name]]
    return found | {
        "issuer": "https://oidc-a:9443", "host": "0.0.0.0", "port": 9443,  # noqa: S104 — in a network of its own
        "certificate": f"{INSIDE}/tls/oidc-a.crt", "key": f"{INSIDE}/tls/oidc-a.key",
        "jwks": f"{INSIDE}/secrets/oidc-a.jwks.json", "client_secret_file": f"{INSIDE}/secrets/oidc-a.secret",
        "backchannel_logout_uri": "https://gateway:8443/v1/auth/backchannel-logout",
    }  # fmt: skip


def give(state: State, folder: Path, certificates: tuple[str, ...], files: tuple[str, ...]) -> None:
    """Copy what one container may see into its folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("tls", "secrets"):
        (folder / name).mkdir(parents=True)
    for name in ("ca.crt", *(f"{one}.{kind}" for one in certificates for kind in ("crt", "key"))):
        write_private(folder / "tls" / name, (state / f"pki/{name}").read_bytes())
    for name in files:
        write_private(folder / "secrets" / name, (state / f"secrets/{name}").read_bytes())


def prepare(folder: Path, *, observability: bool = False, operator: bool = False) -> None:
    """Make the folder; certificates, keys and data that are there are kept.

    `operator` lets the superuser's certificate into OpenBao and NATS: for attacks and tests only.
    """
    state, config = State(folder / "state"), folder / "config"
    state.prepare()
    for name in PASSWORDS:
        if not (state / f"secrets/{name}").exists():
            write_private(state / f"secrets/{name}", secrets.token_urlsafe(24).encode())
    pki.prepare(state, MORE)
    config.mkdir(parents=True, exist_ok=True)
    for name in DATA:
        (folder / "data" / name).mkdir(parents=True, exist_ok=True)
    wanted = dict(GIVEN)
    for name in (*SERVICES, "migrate"):
        text = settings(name, observability=observability)
        write_private(config / f"{name}.toml", text.encode())
        named = {kind: re.findall(rf"{INSIDE}/{kind}/([a-z0-9.-]+)", text) for kind in ("tls", "secrets")}
        leaves = sorted({file.removesuffix(".crt") for file in named["tls"] if file.endswith(".crt")} - {"ca"})
        wanted["migrator" if name == "migrate" else name] = (tuple(leaves), tuple(sorted(set(named["secrets"]))))
    write_private(config / "oidc-a.json", json.dumps(provider(state), indent=1).encode())
    write_private(config / "openbao.json", json.dumps(bao(state, operator=operator), indent=1).encode())
    write_private(config / "nats.conf", nats(operator=operator).encode())
    write_private(config / "spicedb.env", spicedb(state).encode())
    for name, (certificates, files) in wanted.items():
        give(state, folder / name, certificates, files)
    _hand_over(folder)


def _hand_over(folder: Path) -> None:
    """Make the files those of the user that containers run as, and tell Compose who that is."""
    user, group = (UNPRIVILEGED, UNPRIVILEGED) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    revision, created = _commit()
    (folder / "compose.env").write_text(
        f"PLEX_UID={user}\nPLEX_GID={group}\nPLEX_COMPOSE={folder}\nPLEX_OIDC_NETWORK={OIDC_NETWORK}\n"
        f"PLEX_REVISION={revision}\nPLEX_CREATED={created}\n"
    )
    if os.geteuid() == 0:
        for path in folder.rglob("*"):
            if (folder / "state") not in (path, *path.parents):
                os.chown(path, user, group)


def _commit() -> tuple[str, str]:
    """Return the commit that is checked out and its time, for the labels of images."""
    asked = subprocess.run(
        ["git", "log", "-1", "--format=%H %cI"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    revision, _, created = asked.stdout.strip().partition(" ")
    return (revision, created) if created else ("unknown", "1970-01-01T00:00:00Z")


def main() -> None:
    """Make build/compose, and say what comes next."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=ROOT / "build/compose")
    parser.add_argument("--observability", action="store_true", help="send spans to the collector of that profile")
    asked = parser.parse_args()
    prepare(asked.folder.resolve(), observability=asked.observability)
    print(f"docker compose --env-file {asked.folder}/compose.env up --build --wait")  # noqa: T201 — the next command


if __name__ == "__main__":
    main()
