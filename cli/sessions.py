"""`plexctl session`: privileged sessions; a refusal that asks for a stronger sign-in is followed there and back."""

import uuid
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.edge import EXIT_USAGE, edge, fail, write_private
from cli.output import Cursor, Json, Limit, emit, page
from cli.sign_in import stepping_up

session_app = typer.Typer(no_args_is_help=True, help="Privileged sessions on nodes.")

COLUMNS = ("id", "kind", "status", "identity_id", "resource_id", "expires_at")
OPERATOR_REQUEST = "operator_request"


class Reason(StrEnum):
    """Why a session is revoked."""

    operator_request = OPERATOR_REQUEST
    policy_violation = "policy_violation"
    identity_compromise = "identity_compromise"
    resource_decommissioned = "resource_decommissioned"


@session_app.command("issue")
def issue(
    project_id: str,
    resource_id: str,
    out: Annotated[Path, typer.Option(help="File of mode 0600 that takes the session's token.")],
    ssh: Annotated[str, typer.Option(help="A shell as this login name.")] = "",
    command: Annotated[list[str] | None, typer.Option(help="With --ssh: a command that may run; repeatable.")] = None,
    k8s: Annotated[str, typer.Option(help="The Kubernetes API as this user.")] = "",
    group: Annotated[list[str] | None, typer.Option(help="With --k8s: a group to impersonate; repeatable.")] = None,
    tcp: Annotated[str, typer.Option(help="A TCP port, as HOST:PORT.")] = "",
    ttl: Annotated[int, typer.Option(min=0, help="Lifetime in seconds; 0 for the Domain's default.")] = 0,
    as_json: Json = False,
) -> None:
    """Issue a session; when the Domain asks for a fresh, stronger sign-in, a code to approve is shown.

    Example: plexctl session issue 0190… 0191… --ssh root --out session.token
    """
    kind, target = _target(ssh, command or [], k8s, group or [], tcp)
    # The same key both times: whichever of the two arrives, there is one session.
    body: dict[str, Any] = {"resource_id": resource_id, "kind": kind, "target": target}
    body |= {"idempotency_key": str(uuid.uuid4())} | ({"requested_ttl_seconds": ttl} if ttl else {})
    issued = stepping_up("POST", f"/v1/projects/{project_id}/sessions", body).json
    write_private(out, str(issued.pop("token")).encode())
    emit(issued["session"] | {"token_file": str(out)}, as_json=as_json)


def _target(ssh: str, commands: list[str], k8s: str, groups: list[str], tcp: str) -> tuple[str, dict[str, Any]]:
    if sum(map(bool, (ssh, k8s, tcp))) != 1:
        fail("exactly one of --ssh, --k8s and --tcp is needed", EXIT_USAGE)
    if ssh:
        return "ssh", {"ssh": {"user": ssh, "allowed_commands": commands}}
    if k8s:
        return "k8s", {"k8s": {"user": k8s, "impersonate_groups": groups}}
    host, _, port = tcp.rpartition(":")
    if not host or not port.isdigit():
        fail("--tcp is HOST:PORT", EXIT_USAGE)
    return "tcp", {"tcp": {"host": host.strip("[]"), "port": int(port)}}


@session_app.command("list")
def list_sessions(
    project_id: str,
    status: Annotated[str, typer.Option(help="active, revoked or expired.")] = "",
    kind: Annotated[str, typer.Option(help="ssh, k8s or tcp.")] = "",
    cursor: Cursor = "",
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List a project's sessions, newest first."""
    query = page(cursor, limit, status=status, kind=kind)
    emit(edge().call("GET", f"/v1/projects/{project_id}/sessions", params=query).json, as_json=as_json, columns=COLUMNS)


@session_app.command("show")
def show(project_id: str, session_id: str, as_json: Json = False) -> None:
    """Show one session, without its token."""
    emit(edge().call("GET", f"/v1/projects/{project_id}/sessions/{session_id}").json, as_json=as_json)


@session_app.command("revoke")
def revoke(
    project_id: str,
    session_id: str,
    reason: Annotated[Reason, typer.Option(help="Why.")] = Reason.operator_request,
) -> None:
    """Revoke a session at once."""
    edge().call("POST", f"/v1/projects/{project_id}/sessions/{session_id}/revoke", {"revoke_reason": str(reason)})
