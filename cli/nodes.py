"""`plexctl node`: what an operator prepares, and what a node itself does with its key file."""

import base64
import datetime as dt
import enum
import hashlib
import json
import sys
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cli.edge import EXIT_USAGE, EdgeClient, Refusal, edge, end, fail, say, write_private
from cli.output import Cursor, Json, Limit, emit, page
from cli.sign_in import stepping_up
from libs import nsk, seal
from libs.custody import Secret

node_app = typer.Typer(no_args_is_help=True, help="Nodes: adopt, watch, rotate keys; register and act as a node.")


class NatType(enum.StrEnum):
    """Kinds of NAT."""

    full_cone = enum.auto()
    restricted = enum.auto()
    port_restricted = enum.auto()
    symmetric = enum.auto()
    unknown = enum.auto()


class TokenKind(enum.StrEnum):
    """What a bootstrap token registers."""

    node = enum.auto()
    bridge = enum.auto()


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


@node_app.command("resources")
def resources(project_id: str, cursor: Cursor = "", limit: Limit = 50, as_json: Json = False) -> None:
    """List what a project has adopted."""
    reply = edge().call("GET", f"/v1/projects/{project_id}/resources", params=page(cursor, limit))
    emit(reply.json, as_json=as_json, columns=("id", "kind", "external_ref", "created_at"))


@node_app.command("remove")
def remove(resource_id: str) -> None:
    """Delete an adopted resource: its node's keys, relations and streams end, and its peers are told."""
    edge().call("DELETE", f"/v1/resources/{resource_id}")


@node_app.command("token")
def token(
    project_id: str,
    out: Annotated[Path, typer.Option(help="File of mode 0600 that takes the token.")],
    kind: Annotated[TokenKind, typer.Option(help="What may register with it.")] = TokenKind.node,
    ttl: Annotated[int, typer.Option(min=300, max=86400, help="Lifetime in seconds.")] = 3600,
    environment: Annotated[str, typer.Option("--env", help="Environment in its prefix.")] = "dev",
    as_json: Json = False,
) -> None:
    """Issue a bootstrap token; its text goes into a file and is never shown again.

    Example: plexctl node token 0190… --out bootstrap.token
    """
    body = {"kind": kind.value, "env_prefix": environment, "ttl_seconds": ttl}
    issued = edge().call("POST", f"/v1/projects/{project_id}/bootstrap-tokens", body).json
    write_private(out, issued.pop("token").encode())
    emit(issued | {"token_file": str(out)}, as_json=as_json)


@node_app.command("tokens")
def tokens(project_id: str, cursor: Cursor = "", limit: Limit = 50, as_json: Json = False) -> None:
    """List a project's bootstrap tokens, newest first; their texts are not kept anywhere."""
    reply = edge().call("GET", f"/v1/projects/{project_id}/bootstrap-tokens", params=page(cursor, limit))
    emit(reply.json, as_json=as_json, columns=("id", "kind", "expires_at", "consumed_at", "revoked_at"))


@node_app.command("revoke-token")
def revoke_token(project_id: str, token_id: str) -> None:
    """Revoke a bootstrap token that was not used yet."""
    edge().call("DELETE", f"/v1/projects/{project_id}/bootstrap-tokens/{token_id}")


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


@node_app.command("reachability")
def reachability(node_id: str, as_json: Json = False) -> None:
    """Say whether a node is heard of, and since when."""
    emit(edge().call("GET", f"/v1/nodes/{node_id}/reachability").json, as_json=as_json)


@node_app.command("rotate-key")
def rotate_key(
    node_id: str,
    preview: Annotated[bool, typer.Option("--preview", help="Only say which peers would be affected.")] = False,
    as_json: Json = False,
) -> None:
    """Ask a node for a new mesh key; `plexctl node new-key` is how the node answers.

    Example: plexctl node rotate-key 0190… --preview
    """
    path = f"/v1/nodes/{node_id}/keys/rotate"
    reply = edge().call("GET", path + "/preview") if preview else edge().call("POST", path)
    emit(reply.json, as_json=as_json)


@node_app.command("revoke-key")
def revoke_key(node_id: str) -> None:
    """End all node keys of a node at once; its resource may then be registered again, as the same node."""
    stepping_up("POST", f"/v1/nodes/{node_id}/secret-key/revoke")


@node_app.command("register")
def register(
    project_id: str,
    handle: Annotated[str, typer.Option(help="The adopted resource: its id or its name elsewhere.")],
    token_file: Annotated[Path, typer.Option(exists=True, help="File with the bootstrap token.")],
    key_file: KeyFile,
    as_json: Json = False,
) -> None:
    """Register this machine as a node and keep its keys in a file of mode 0600."""
    private_key = new_key()
    body = {
        "project_id": project_id,
        "resource_handle": handle,
        "bootstrap_token": token_file.read_text().strip(),
        "nonce": str(uuid.uuid4()),
        "public_key": public_half(private_key),
    }
    answer = edge(anonymous=True).call("POST", "/v1/register", body).json
    kept = {
        "node_id": answer["node_id"],
        "nsk": answer.pop("nsk"),
        "mesh_private_key": private_key,
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
        "client_now": now(),
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


@node_app.command("state")
def state(key_file: KeyFile, as_json: Json = False) -> None:
    """Show what the node should be: its peers, its policy, whether it is heard of."""
    node_id, _, client, _ = as_node(key_file)
    emit(client.call("GET", f"/v1/nodes/{node_id}/state").json, as_json=as_json)


@node_app.command("endpoint")
def endpoint(
    endpoint: Annotated[str, typer.Argument(help="host:port at which peers reach the node.")],
    key_file: KeyFile,
    nat_type: Annotated[NatType, typer.Option(help="What kind of NAT the node is behind.")] = NatType.unknown,
    as_json: Json = False,
) -> None:
    """Report, as the node, where it is reached from outside.

    Example: plexctl node endpoint 203.0.113.7:51820 --key-file node.key
    """
    node_id, _, client, _ = as_node(key_file)
    body = {"endpoint": endpoint, "nat_type": nat_type.value, "reported_at": now()}
    emit(client.call("PUT", f"/v1/nodes/{node_id}/endpoint", body).json, as_json=as_json)


@node_app.command("new-key")
def new_mesh_key(key_file: KeyFile, as_json: Json = False) -> None:
    """Bring, as the node, the new mesh key that an operator asked for; safe to repeat."""
    _, _, client, kept = as_node(key_file)
    # Kept before it is sent: should the answer be lost, the same key gets its receipt.
    fresh = kept.get("next_mesh_private_key") or new_key()
    keep(key_file, next_mesh_private_key=fresh)
    try:
        receipt = client.attempt("POST", "/v1/keys/rotate", {"new_public_key": public_half(fresh)}).json
    except Refusal as refusal:
        if refusal.code != "keys_rotate_public_key_unchanged":
            end(refusal)
        # It went into force, its receipt was lost, and one more was asked for since.
        keep(key_file, mesh_private_key=fresh, next_mesh_private_key="")
        new_mesh_key(key_file, as_json)
        return
    keep(key_file, mesh_private_key=fresh, next_mesh_private_key="")
    say(f"the new key is in {key_file}")
    emit(receipt, as_json=as_json)


@node_app.command("renew-key")
def renew_key(key_file: KeyFile, as_json: Json = False) -> None:
    """Get a fresh node key; the one in the file counts for ten minutes more. Safe to repeat."""
    node_id, _, client, _ = as_node(key_file)
    answer = client.call("POST", f"/v1/nodes/{node_id}/secret-key/rotate").json
    keep(key_file, nsk=answer.pop("nsk"))
    say(f"the new key is in {key_file}")
    emit(answer, as_json=as_json)


def now() -> str:
    """Return this machine's time, RFC 3339."""
    return dt.datetime.now(dt.UTC).isoformat().replace("+00:00", "Z")


def new_key() -> str:
    """Return a new X25519 private key, base64."""
    return base64.b64encode(X25519PrivateKey.generate().private_bytes_raw()).decode()


def public_half(private_key: str) -> str:
    """Return the public half of a private key, both base64."""
    private = X25519PrivateKey.from_private_bytes(base64.b64decode(private_key))
    return base64.b64encode(private.public_key().public_bytes_raw()).decode()


def keep(key_file: Path, **changes: Any) -> dict[str, Any]:
    """Change members of a key file and return all of them."""
    kept: dict[str, Any] = json.loads(key_file.read_text()) | changes
    write_private(key_file, json.dumps(kept).encode())
    return kept


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
