"""`plexctl relation`: who has which role on what, and whether SpiceDB agrees."""

from typing import Annotated

import typer

from cli.edge import EXIT_DIVERGED, EXIT_REFUSED, EXIT_USAGE, edge, fail
from cli.output import Cursor, Json, Limit, emit, page
from cli.sign_in import stepping_up

relation_app = typer.Typer(no_args_is_help=True, help="Roles: who may do what, on what.")

TUPLES = "/v1/authz/relation-tuples"


@relation_app.command("list")
def list_tuples(project_id: str, cursor: Cursor = "", limit: Limit = 50, as_json: Json = False) -> None:
    """List a project's roles; those of its Domain and the platform as well, where you manage them."""
    reply = edge().call("GET", TUPLES, params=page(cursor, limit, project_id=project_id))
    emit(
        reply.json, as_json=as_json, columns=("id", "resource", "relation", "subject", "caveat_name", "caveat_context")
    )


@relation_app.command("add")
def add(
    project_id: Annotated[str, typer.Argument(help="The project, or any project of the Domain.")],
    resource: Annotated[str, typer.Argument(help="On what: project:<id>, domain:<id>, resource:<id>, node:<id>.")],
    relation: Annotated[str, typer.Argument(help="The role, e.g. viewer.")],
    subject: Annotated[str, typer.Argument(help="Who: user:<id> or service:<id>.")],
    until: Annotated[str, typer.Option(help="Only before this time, e.g. 2030-01-01T00:00:00Z.")] = "",
    network: Annotated[str, typer.Option(help="Only from this address range, e.g. 192.0.2.0/24.")] = "",
    as_json: Json = False,
) -> None:
    """Give a role.

    Example: plexctl relation add 0190… project:0190… viewer user:0190… --until 2030-01-01T00:00:00Z
    """
    if until and network:
        fail("--until and --network exclude each other", EXIT_USAGE)
    body: dict[str, object] = {"resource": resource, "relation": relation, "subject": subject}
    if until:
        body |= {"caveat_name": "expires", "caveat_context": {"until": until}}
    if network:
        body |= {"caveat_name": "from_network", "caveat_context": {"network": network}}
    emit(stepping_up("POST", TUPLES, body, params={"project_id": project_id}).json, as_json=as_json)


@relation_app.command("remove")
def remove(tuple_id: str) -> None:
    """Take a role away; nobody has it once this has answered."""
    stepping_up("DELETE", f"{TUPLES}/{tuple_id}")


@relation_app.command("check")
def check(subject: str, relation: str, resource: str, as_json: Json = False) -> None:
    """Ask whether somebody has a permission; exits 1 when not.

    Example: plexctl relation check user:0190… manage project:0190…
    """
    body = {"subject": subject, "relation": relation, "resource": resource}
    answer = edge().call("POST", "/v1/authz/check", body).json
    emit(answer, as_json=as_json)
    if answer["decision"] != "allowed":
        raise typer.Exit(EXIT_REFUSED)


@relation_app.command("reconcile")
def reconcile(
    repair: Annotated[bool, typer.Option("--repair", help="Correct SpiceDB; the tuple table is the truth.")] = False,
    as_json: Json = False,
) -> None:
    """Compare SpiceDB with the tuple table; exits 5 when they differ and nothing was corrected."""
    answer = edge().call("POST", "/v1/platform/relations/reconcile", {"repair": repair}).json
    emit(answer, as_json=as_json)
    if answer["total"] and not repair:
        raise typer.Exit(EXIT_DIVERGED)
