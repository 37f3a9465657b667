"""`plexctl idp`: which OpenID providers a Domain, or the platform, believes, and what of them."""

from typing import Annotated, Any

import typer

from cli.edge import EXIT_USAGE, edge, fail
from cli.output import Json, emit
from cli.sign_in import stepping_up

idp_app = typer.Typer(no_args_is_help=True, help="Bindings to OpenID providers; `plexctl domain bind-idp` makes one.")


@idp_app.command("list")
def list_bindings(
    domain_id: Annotated[str, typer.Option("--domain", help="This Domain's; without it, the platform's.")] = "",
    as_json: Json = False,
) -> None:
    """List bindings, the first choice first."""
    path = "/v1/admin/idp" if domain_id else "/v1/admin/platform-idp"
    reply = edge().call("GET", path, params={"domain_id": domain_id} if domain_id else {})
    emit(reply.json, as_json=as_json, columns=("id", "alias", "issuer", "status", "primary", "jit_policy"))


@idp_app.command("show")
def show(binding_id: str, as_json: Json = False) -> None:
    """Show one binding; of its client secret only where it is."""
    emit(edge().call("GET", f"/v1/admin/idp/{binding_id}").json, as_json=as_json)


@idp_app.command("set")
def change(
    binding_id: str,
    alias: Annotated[str | None, typer.Option(help="Its name at sign-in.")] = None,
    jit: Annotated[bool | None, typer.Option("--jit/--no-jit", help="Let people in who never were.")] = None,
    primary: Annotated[bool | None, typer.Option("--primary/--no-primary", help="First choice at sign-in.")] = None,
    required_acr: Annotated[str | None, typer.Option(help="Any one of these classes, separated by spaces.")] = None,
    required_amr: Annotated[str | None, typer.Option(help="All of these methods, separated by spaces.")] = None,
    accepted_amr: Annotated[str | None, typer.Option(help="No methods but these, separated by spaces.")] = None,
    scopes: Annotated[str | None, typer.Option(help="What is asked for besides openid, separated by spaces.")] = None,
    algorithms: Annotated[str | None, typer.Option(help="What may sign an id_token, separated by spaces.")] = None,
    max_auth_age: Annotated[int | None, typer.Option(min=0, help="Oldest login in seconds; 0 for any.")] = None,
    leeway: Annotated[int | None, typer.Option(min=0, max=60, help="Seconds that its clock may be off.")] = None,
    decided_on: Annotated[str, typer.Option(help="Refuse unless `updated_at` is still this.")] = "",
    as_json: Json = False,
) -> None:
    """Change a binding; what is not named stays. An empty text empties a list.

    Example: plexctl idp set 0190… --max-auth-age 3600 --accepted-amr "pwd otp"
    """
    changes: dict[str, Any] = {
        "alias": alias,
        "jit_policy": None if jit is None else "allow" if jit else "deny",
        "primary": primary,
        "max_auth_age_seconds": max_auth_age,
        "clock_leeway_seconds": leeway,
    }
    lists = {
        "required_acr": required_acr,
        "required_amr": required_amr,
        "accepted_amr": accepted_amr,
        "scopes": scopes,
        "id_token_algorithms": algorithms,
    }
    changes |= {name: text if text is None else text.split() for name, text in lists.items()}
    body = {name: value for name, value in changes.items() if value is not None}
    if not body:
        fail("nothing to change; see `plexctl idp set --help`", EXIT_USAGE)
    body |= {"updated_at": decided_on} if decided_on else {}
    emit(stepping_up("PATCH", f"/v1/admin/idp/{binding_id}", body).json, as_json=as_json)


@idp_app.command("deactivate")
def deactivate(binding_id: str) -> None:
    """Let nobody in any more, and end at once what its people hold; what they may do stays."""
    stepping_up("PATCH", f"/v1/admin/idp/{binding_id}/status", {"status": "deactivated"})


@idp_app.command("activate")
def activate(binding_id: str) -> None:
    """Let people in again."""
    stepping_up("PATCH", f"/v1/admin/idp/{binding_id}/status", {"status": "active"})


@idp_app.command("remove")
def remove(binding_id: str) -> None:
    """Remove a binding with its people, what they hold and what they may do."""
    stepping_up("DELETE", f"/v1/admin/idp/{binding_id}")
