"""`plexctl secret`: values go in by file or stdin and never come back to an operator."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.edge import edge
from cli.output import Cursor, Json, Limit, emit, page

secret_app = typer.Typer(no_args_is_help=True, help="Secrets of a project; write-only for operators.")


@secret_app.command("put")
def put(
    project_id: str,
    name: str,
    file: Annotated[Path | None, typer.Option(exists=True, help="File with the value; stdin without it.")] = None,
    expect: Annotated[int, typer.Option(min=0, help="Version that is current now; 0 to create.")] = 0,
    as_json: Json = False,
) -> None:
    """Write a new version of a secret.

    Example: openssl rand 32 | plexctl secret put 0190… db-password
    """
    value = file.read_bytes() if file else sys.stdin.buffer.read()
    headers = {"If-Match": str(expect), "Content-Type": "application/octet-stream"}
    reply = edge().call("PUT", f"/v1/projects/{project_id}/secrets/{name}", value, headers=headers)
    emit(reply.json, as_json=as_json)


@secret_app.command("list")
def list_secrets(project_id: str, cursor: Cursor = "", limit: Limit = 50, as_json: Json = False) -> None:
    """List names and current versions."""
    reply = edge().call("GET", f"/v1/projects/{project_id}/secrets", params=page(cursor, limit))
    emit(reply.json, as_json=as_json, columns=("name", "current_version"))


@secret_app.command("grant")
def grant(project_id: str, name: str, node_id: str) -> None:
    """Let a node read a secret."""
    edge().call("PUT", f"/v1/projects/{project_id}/secrets/{name}/readers/{node_id}")


@secret_app.command("revoke")
def revoke(project_id: str, name: str, node_id: str) -> None:
    """Stop a node from reading a secret; no read succeeds once this has answered."""
    edge().call("DELETE", f"/v1/projects/{project_id}/secrets/{name}/readers/{node_id}")


@secret_app.command("destroy")
def destroy(
    project_id: str,
    name: str,
    version: Annotated[int, typer.Option(min=0, help="Destroy one version; 0 for all of them.")] = 0,
) -> None:
    """Destroy a secret, or one version of it; there is no way back."""
    path = f"/v1/projects/{project_id}/secrets/{name}"
    edge().call("DELETE", f"{path}/versions/{version}" if version else path)
