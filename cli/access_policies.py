"""`plexctl access-policy`: what a Domain asks before privileged sessions, and how often its secrets are read."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.edge import EXIT_USAGE, edge, fail
from cli.output import Json, emit
from cli.sign_in import stepping_up

access_policy_app = typer.Typer(
    no_args_is_help=True, help="What a Domain asks before privileged sessions, and how often its secrets are read."
)


@access_policy_app.command("show")
def show(domain_id: str, as_json: Json = False) -> None:
    """Show a Domain's policy; what it does not say is the platform's default."""
    emit(edge().call("GET", _path(domain_id)).json, as_json=as_json)


@access_policy_app.command("put")
def put(
    domain_id: str,
    file: Annotated[
        Path | None, typer.Option(exists=True, help="File with the policy as JSON; stdin without it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Replace a Domain's policy, all of it; it holds from the next session and the next read of a secret on.

    How often secrets are read: node_rate_per_minute and node_burst for each node, domain_rate_per_minute and
    domain_burst for all of them together; without them the platform's hold.

    Example: plexctl access-policy show 0190… --json > policy.json; plexctl access-policy put 0190… --file policy.json
    """
    try:
        policy = json.loads(file.read_bytes() if file else sys.stdin.buffer.read())
    except (ValueError, RecursionError):
        fail("the policy is not JSON", EXIT_USAGE)
    emit(stepping_up("PUT", _path(domain_id), policy).json, as_json=as_json)


def _path(domain_id: str) -> str:
    return f"/v1/domains/{domain_id}/access-policy"
