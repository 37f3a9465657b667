"""The `plexctl` command."""

import typer

from cli import (
    access_policies,
    audit,
    conformance,
    dev,
    events,
    idp,
    nodes,
    relations,
    secrets,
    sessions,
    sign_in,
    tenancy,
    tokens,
)
from cli.edge import EXIT_CODES

app = typer.Typer(
    name="plexctl",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback with locals could show a token
    help="Plexsphere's security core from the command line. Data goes to stdout, messages to stderr.",
    epilog=EXIT_CODES,
)
app.command("login")(sign_in.login)
app.command("logout")(sign_in.logout)
app.command("whoami")(sign_in.whoami)
app.add_typer(tenancy.domain_app, name="domain")
app.add_typer(access_policies.access_policy_app, name="access-policy")
app.add_typer(idp.idp_app, name="idp")
app.add_typer(tenancy.project_app, name="project")
app.add_typer(nodes.node_app, name="node")
app.add_typer(events.events_app, name="events")
app.add_typer(secrets.secret_app, name="secret")
app.add_typer(sessions.session_app, name="session")
app.add_typer(relations.relation_app, name="relation")
app.add_typer(tokens.token_app, name="token")
app.add_typer(tokens.identity_app, name="identity")
app.add_typer(tokens.service_app, name="service")
app.add_typer(audit.audit_app, name="audit")
app.add_typer(conformance.app, name="conformance")
app.add_typer(dev.app, name="dev")


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
