"""`plexctl domain` and `plexctl project`."""

from typing import Annotated

import typer

from cli.edge import edge
from cli.output import Cursor, Json, Limit, emit, page
from cli.sign_in import stepping_up

domain_app = typer.Typer(no_args_is_help=True, help="Domains: the tenants.")
project_app = typer.Typer(no_args_is_help=True, help="Projects in a Domain.")


@domain_app.command("create")
def create_domain(
    name: str,
    slug: Annotated[str, typer.Option(help="Immutable short name.")],
    mesh_cidr: Annotated[str, typer.Option(help="Address range of the mesh, e.g. 10.80.0.0/16.")],
    description: str = "",
    as_json: Json = False,
) -> None:
    """Create a Domain.

    Example: plexctl domain create "Acme" --slug acme --mesh-cidr 10.80.0.0/16
    """
    body = {"name": name, "slug": slug, "mesh_cidr": mesh_cidr}
    if description:
        body["description"] = description
    emit(edge().call("POST", "/v1/domains", body).json, as_json=as_json)


@domain_app.command("list")
def list_domains(cursor: Cursor = "", limit: Limit = 50, as_json: Json = False) -> None:
    """List the Domains that you may read."""
    reply = edge().call("GET", "/v1/domains", params=page(cursor, limit))
    emit(reply.json, as_json=as_json, columns=("id", "slug", "name", "mesh_cidr"))


@domain_app.command("show")
def show_domain(domain_id: str, as_json: Json = False) -> None:
    """Show one Domain."""
    emit(edge().call("GET", f"/v1/domains/{domain_id}").json, as_json=as_json)


@domain_app.command("delete")
def delete_domain(domain_id: str) -> None:
    """Delete a Domain that is empty."""
    edge().call("DELETE", f"/v1/domains/{domain_id}")


@domain_app.command("bind-idp")
def bind_idp(
    domain_id: str,
    issuer: Annotated[str, typer.Option(help="Issuer identifier, exactly as the provider states it.")],
    client_id: Annotated[str, typer.Option(help="Client id at the provider.")],
    client_secret_ref: Annotated[
        str, typer.Option(help="Where the client secret is in OpenBao: kv/idp/<Domain's id>/<name>.")
    ],
    jit: Annotated[bool, typer.Option("--jit/--no-jit", help="Let people in who never were.")] = False,
    primary: Annotated[bool, typer.Option("--primary", help="First choice at sign-in.")] = False,
    as_json: Json = False,
) -> None:
    """Bind a Domain to its OpenID provider; the client secret stays in OpenBao."""
    body = {
        "domain_id": domain_id,
        "issuer": issuer,
        "client_id": client_id,
        "client_secret_ref": client_secret_ref,
        "discovery_url": issuer.removesuffix("/") + "/.well-known/openid-configuration",
        "jit_policy": "allow" if jit else "deny",
        "primary": primary,
    }
    emit(stepping_up("POST", "/v1/admin/idp", body).json, as_json=as_json)


@project_app.command("create")
def create_project(
    domain_id: str,
    name: str,
    slug: Annotated[str, typer.Option(help="Immutable short name.")],
    sub_range: Annotated[str, typer.Option(help="Its part of the Domain's address range.")] = "",
    as_json: Json = False,
) -> None:
    """Create a project in a Domain.

    Example: plexctl project create 0190… "Web" --slug web
    """
    body = {"domain_id": domain_id, "name": name, "slug": slug}
    if sub_range:
        body["sub_range_cidr"] = sub_range
    emit(edge().call("POST", "/v1/projects", body).json, as_json=as_json)


@project_app.command("list")
def list_projects(
    domain_id: Annotated[str, typer.Option("--domain", help="Only this Domain's.")] = "",
    cursor: Cursor = "",
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List the projects that you may read."""
    reply = edge().call("GET", "/v1/projects", params=page(cursor, limit, domain_id=domain_id))
    emit(reply.json, as_json=as_json, columns=("id", "slug", "name", "domain_id"))


@project_app.command("show")
def show_project(project_id: str, as_json: Json = False) -> None:
    """Show one project."""
    emit(edge().call("GET", f"/v1/projects/{project_id}").json, as_json=as_json)


@project_app.command("delete")
def delete_project(project_id: str) -> None:
    """Delete a project that is empty."""
    edge().call("DELETE", f"/v1/projects/{project_id}")
