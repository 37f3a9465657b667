"""`plexctl node`: what an operator prepares, and what a node itself does with its key file."""

import base64
import datetime as dt
import hashlib
import json
import sys
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cli.edge import EXIT_USAGE, EdgeClient, edge, fail, say, write_private
from cli.output import emit
from cli.tenancy import Cursor, Json, Limit, page
from libs import nsk, seal
from libs.custody import Secret

node_app = typer.Typer(no_args_is_help=True, help="Nodes: adopt, register, read as a node.")

KeyFile = Annotated[Path, typer.Option("--key-file", help="File of mode 0600 with the node's id and keys.")]


@node_app.command("adopt")
def adopt(
    project_id: str,
    kind: Annotated[str, typer.Option(help="What kind of thing it is.")] = "server",
    ref: Annotated[str, typer.Option(help="Its name elsewhere; the node registers with it.")] = "",
    as_json: Json = False,
) -> None:
    """Adopt a resource into a project, so that a node can register for it."""
    body = {"origin": "adopted", "kind": kind}
    if ref:
        body["external_ref"] = ref
    emit(edge().call("POST", f"/v1/projects/{project_id}/resources", body).json, as_json=as_json)


@node_app.command("token")
def token(
    project_id: str,
    out: Annotated[Path, typer.Option(help="File of mode 0600 that takes the token.")],
    ttl: Annotated[int, typer.Option(min=300, max=86400, help="Lifetime in seconds.")] = 3600,
    environment: Annotated[str, typer.Option("--env", help="Environment in its prefix.")] = "dev",
    as_json: Json = False,
) -> None:
    """Issue a bootstrap token; its text goes into a file and is never shown again.

    Example: plexctl node token 0190… --out bootstrap.token
    """
    body = {"kind": "node", "env_prefix": environment, "ttl_seconds": ttl}
    issued = edge().call("POST", f"/v1/projects/{project_id}/bootstrap-tokens", body).json
    write_private(out, issued.pop("token").encode())
    emit(issued | {"token_file": str(out)}, as_json=as_json)


@node_app.command("list")
def list_nodes(
    domain_id: Annotated[str, typer.Option("--domain", help="Only this Domain's.")] = "",
    cursor: Cursor = "",
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List the nodes that you may observe."""
    reply = edge().call("GET", "/v1/nodes", params=page(cursor, limit, domain_id=domain_id))
    emit(reply.json, as_json=as_json, columns=("id", "name", "kind", "domain_id", "created_at"))


@node_app.command("register")
def register(
    project_id: str,
    handle: Annotated[str, typer.Option(help="The adopted resource: its id or its name elsewhere.")],
    token_file: Annotated[Path, typer.Option(exists=True, help="File with the bootstrap token.")],
    key_file: KeyFile,
    as_json: Json = False,
) -> None:
    """Register this machine as a node and keep its keys in a file of mode 0600."""
    private_key = X25519PrivateKey.generate()
    body = {
        "project_id": project_id,
        "resource_handle": handle,
        "bootstrap_token": token_file.read_text().strip(),
        "nonce": str(uuid.uuid4()),
        "public_key": base64.b64encode(private_key.public_key().public_bytes_raw()).decode(),
    }
    answer = edge(anonymous=True).call("POST", "/v1/register", body).json
    kept = {
        "node_id": answer["node_id"],
        "nsk": answer.pop("nsk"),
        "mesh_private_key": base64.b64encode(private_key.private_bytes_raw()).decode(),
        "signing_key_id": answer["signing_key_id"],
        "signing_public_key": answer["signing_public_key"],
    }
    write_private(key_file, json.dumps(kept).encode())
    say(f"registered; keys are in {key_file}")
    emit(answer, as_json=as_json)


@node_app.command("heartbeat")
def heartbeat(key_file: KeyFile, as_json: Json = False) -> None:
    """Send one sign of life as the node."""
    node_id, _, client, _ = as_node(key_file)
    body: dict[str, Any] = {
        "client_now": dt.datetime.now(dt.UTC).isoformat().replace("+00:00", "Z"),
        "binary_checksum": base64.b64encode(hashlib.sha256(Path(sys.argv[0]).read_bytes()).digest()).decode(),
        "binary_version": "plexctl",
        "nat_summary": {},
    }
    emit(client.call("POST", f"/v1/nodes/{node_id}/heartbeat", body).json, as_json=as_json)


@node_app.command("fetch")
def fetch(
    name: str,
    key_file: KeyFile,
    version: Annotated[int, typer.Option(min=0, help="Version; 0 for the current one.")] = 0,
) -> None:
    """Read a secret as the node and write its value to stdout.

    Example: plexctl node fetch db-password --key-file node.key > password
    """
    node_id, key, client, _ = as_node(key_file)
    query = {"version": str(version)} if version else None
    reply = client.call("GET", f"/v1/nodes/{node_id}/secrets/{name}", params=query)
    say(f"version {reply.headers['X-Plexsphere-Secret-Version']} under {reply.headers['X-Plexsphere-Secret-KID']}")
    with key:
        sys.stdout.buffer.write(seal.unseal(key, reply.body))


def as_node(key_file: Path) -> tuple[str, Secret, EdgeClient, dict[str, str]]:
    """Return a node's id, its key, the edge as it speaks to it, and whatever else its key file holds."""
    try:
        kept = json.loads(key_file.read_text())
        node_id, key = uuid.UUID(kept["node_id"]), base64.b64decode(kept["nsk"], validate=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(f"{key_file} is not a node's key file: {type(error).__name__}", EXIT_USAGE)
    secret = Secret(key)
    found = edge(anonymous=True)
    bearer = nsk.format_bearer("plexctl", node_id, secret)
    return str(node_id), secret, EdgeClient(found.url, found.ca_file, bearer), kept
