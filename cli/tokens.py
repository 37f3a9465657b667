"""`plexctl token`, `identity` and `service`: API tokens, who is in a Domain, and machines' accounts."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.edge import edge, write_private
from cli.output import Cursor, Json, Limit, emit, page
from cli.sign_in import stepping_up

token_app = typer.Typer(no_args_is_help=True, help="API tokens, yours and those that you administer.")
identity_app = typer.Typer(no_args_is_help=True, help="People and service identities of a Domain.")
service_app = typer.Typer(no_args_is_help=True, help="Service identities: accounts of machines.")

Out = Annotated[Path, typer.Option(help="File of mode 0600 that takes the token.")]
Owner = Annotated[str, typer.Option("--for", help="user:ID or service:ID, as who manages its Domain.")]
Admin = Annotated[bool, typer.Option("--admin", help="Somebody else's, as who manages their Domain.")]
Scope = Annotated[list[str] | None, typer.Option(help="Permission that it is for; may be repeated. Default: all.")]
COLUMNS = ("id", "scope", "created_at", "expires_at", "last_used_at", "rotated_at")


class IdentityKind(StrEnum):
    """Who is listed."""

    user = "user"
    service = "service-identity"


class Federation(StrEnum):
    """How a service identity proves who it is."""

    api_token = "api_token"  # noqa: S105 — the name of a kind
    oidc_cc = "oidc_cc"
    spiffe_svid = "spiffe_svid"


def _keep(issued: dict[str, Any], member: str, out: Path, *, as_json: bool) -> None:
    write_private(out, str(issued.pop(member)).encode())
    emit(issued | {"token_file": str(out)}, as_json=as_json)


@token_app.command("issue")
def issue(
    out: Out,
    owner: Owner = "",
    scope: Scope = None,
    ttl: Annotated[int, typer.Option(min=1, max=31_536_000, help="Lifetime in seconds.")] = 90 * 24 * 3600,
    environment: Annotated[str, typer.Option("--env", help="Environment of the deployment.")] = "dev",
    as_json: Json = False,
) -> None:
    """Issue an API token; its text goes into a file and is never shown again.

    Example: plexctl token issue --scope read --out ci.token
    """
    client = edge()
    who = client.call("GET", "/v1/auth/whoami").json
    reference = owner or f"{who['principal_type']}:{who['subject']}"
    body = {"identity_ref": reference, "env_prefix": environment, "ttl_seconds": ttl}
    path = "/v1/admin/tokens" if owner else "/v1/auth/tokens"
    _keep(stepping_up("POST", path, body | ({"scope": scope} if scope else {})).json, "plaintext", out, as_json=as_json)


@token_app.command("list")
def list_tokens(owner: Owner = "", as_json: Json = False) -> None:
    """List live API tokens, newest first; their texts are not kept anywhere."""
    path, params = ("/v1/admin/tokens", {"identity_ref": owner}) if owner else ("/v1/auth/tokens", {})
    emit(edge().call("GET", path, params=params).json, as_json=as_json, columns=COLUMNS)


@token_app.command("revoke")
def revoke(token_id: str, admin: Admin = False) -> None:
    """End an API token at once, and all service tokens that came of it."""
    edge().call("DELETE", f"/v1/{'admin' if admin else 'auth'}/tokens/{token_id}")


@token_app.command("rotate")
def rotate(token_id: str, out: Out, admin: Admin = False, as_json: Json = False) -> None:
    """Issue a successor; the old token lives on for a day at most."""
    answer = stepping_up("POST", f"/v1/{'admin' if admin else 'auth'}/tokens/{token_id}/rotate")
    _keep(answer.json, "plaintext", out, as_json=as_json)


@identity_app.command("list")
def list_identities(
    domain_id: str,
    kind: Annotated[IdentityKind | None, typer.Option(help="Only these.")] = None,
    cursor: Cursor = "",
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List the people and service identities of a Domain."""
    params = page(cursor, limit, kind=kind.value if kind else "")
    reply = edge().call("GET", f"/v1/domains/{domain_id}/identities", params=params)
    emit(reply.json, as_json=as_json, columns=("id", "kind", "display_name", "last_sign_in_at", "created_at"))


@identity_app.command("show")
def show_identity(domain_id: str, identity_id: str, as_json: Json = False) -> None:
    """Show one; what is personal only to who manages the Domain."""
    emit(edge().call("GET", f"/v1/domains/{domain_id}/identities/{identity_id}").json, as_json=as_json)


@service_app.command("create")
def create_service(
    domain_id: str,
    name: str,
    subject: Annotated[str, typer.Option(help="What it is called where it comes from.")],
    audience: Annotated[str, typer.Option(help="Audience that its proof is for.")] = "plexsphere",
    federation: Annotated[Federation, typer.Option(help="How it proves who it is.")] = Federation.api_token,
    as_json: Json = False,
) -> None:
    """Create a service identity; it may do nothing until a relation says so.

    Example: plexctl service create 0190… "CI" --subject ci
    """
    body = {"display_name": name, "subject": subject, "audience": audience, "federation_kind": federation.value}
    emit(stepping_up("POST", f"/v1/domains/{domain_id}/service-identities", body).json, as_json=as_json)


@service_app.command("delete")
def delete_service(domain_id: str, identity_id: str) -> None:
    """Delete a service identity; its tokens and relations are gone at once."""
    stepping_up("DELETE", f"/v1/domains/{domain_id}/service-identities/{identity_id}")


@service_app.command("token")
def service_token(
    identity_id: str,
    secret_file: Annotated[Path, typer.Option(help="File with an API token of it.")],
    out: Out,
    scope: Scope = None,
    as_json: Json = False,
) -> None:
    """Exchange a service identity's API token for a token of fifteen minutes."""
    body = {"grant_type": "client_credentials", "client_id": identity_id, "client_secret": secret_file.read_text()}
    body |= {"scope": " ".join(scope)} if scope else {}
    answer = edge(anonymous=True).call("POST", "/v1/auth/service/token", body)
    _keep(answer.json, "access_token", out, as_json=as_json)
