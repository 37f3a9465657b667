"""`plexctl audit`: list, show, verify and erase; the proof of an entry is recomputed here, not believed."""

import base64
import hashlib
from typing import Annotated

import typer

from cli import audit_restore
from cli.edge import EXIT_DIVERGED, edge, fail, say
from cli.output import Cursor, Json, Limit, emit, page
from libs.chain import entry_hash

audit_app = typer.Typer(no_args_is_help=True, help="The audit chain of a Domain, or of the platform.")
audit_restore.register(audit_app)

Domain = Annotated[str, typer.Option("--domain", help="The Domain; without it the platform's chain.")]


def _chain(domain_id: str) -> str:
    return f"/v1/domains/{domain_id}/audit" if domain_id else "/v1/platform/audit"


@audit_app.command("list")
def list_entries(
    domain_id: Domain = "",
    reason: Annotated[str, typer.Option(help="granted, insufficient_relation, …")] = "",
    object_type: Annotated[str, typer.Option(help="Type of the object, e.g. secret.")] = "",
    correlation_id: Annotated[str, typer.Option(help="Correlation id of a request.")] = "",
    cursor: Cursor = "",
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List entries, newest first.

    Example: plexctl audit list --domain 0190… --object-type secret --reason insufficient_relation
    """
    query = page(cursor, limit, reason=reason, object_type=object_type, correlation_id=correlation_id)
    reply = edge().call("GET", _chain(domain_id) + "/entries", params=query)
    columns = ("seq", "occurred_at", "reason", "relation", "object.type", "object.id", "subject.pseudonym")
    emit(reply.json, as_json=as_json, columns=columns)


@audit_app.command("show")
def show(seq: int, domain_id: Domain = "", as_json: Json = False) -> None:
    """Show one entry, and recompute its hash from the bytes that were served."""
    answer = edge().call("GET", f"{_chain(domain_id)}/entries/{seq}").json
    proof = answer["proof"]
    canonical = base64.b64decode(proof["canonical_bytes"])
    own = entry_hash(bytes.fromhex(proof["prev_hash"]), hashlib.sha256(canonical).digest()).hex()
    emit(answer, as_json=as_json)
    if own != proof["entry_hash"]:
        fail(f"entry {seq} does not match its hash: computed {own}, served {proof['entry_hash']}", EXIT_DIVERGED)
    say(f"entry {seq}: hash recomputed, it matches")


@audit_app.command("verify")
def verify(
    domain_id: Domain = "",
    from_seq: Annotated[int, typer.Option("--from", min=1, help="First entry.")] = 1,
    to_seq: Annotated[int, typer.Option("--to", min=0, help="Last entry; 0 for the newest.")] = 0,
    as_json: Json = False,
) -> None:
    """Recompute a chain; ends with 5 when an entry is not as it was written."""
    body = {"from_seq": from_seq} | ({"to_seq": to_seq} if to_seq else {})
    answer = edge().call("POST", _chain(domain_id) + "/verify", body).json
    emit(answer, as_json=as_json)
    if not answer["ok"]:
        fail(f"the chain diverges at entry {answer.get('divergent_seq')}", EXIT_DIVERGED)


@audit_app.command("erase")
def erase(identity_id: str, domain_id: Domain = "", as_json: Json = False) -> None:
    """Remove the personal data of one identity; the chain stays verifiable."""
    body = {"identity_id": identity_id}
    emit(edge().call("POST", _chain(domain_id) + "/erase-identity", body).json, as_json=as_json)
