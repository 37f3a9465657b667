"""`plexctl audit`: list, show and erase here, the rest beside; what can be recomputed is, and not believed."""

import base64
import hashlib
from typing import Annotated

import typer

from cli import audit_proofs, audit_restore
from cli.audit_chain import Domain, path_of
from cli.audit_verify import verify
from cli.edge import EXIT_DIVERGED, edge, fail, say
from cli.output import Cursor, Json, Limit, emit, page
from libs.chain import entry_hash

audit_app = typer.Typer(no_args_is_help=True, help="The audit chain of a Domain, or of the platform.")
audit_restore.register(audit_app)

audit_app.command("verify")(verify)
audit_app.command("export")(audit_proofs.export)
audit_app.command("checkpoint")(audit_proofs.checkpoint)
audit_app.command("prove")(audit_proofs.prove)
audit_app.command("verify-proof")(audit_proofs.verify_proof)


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
    reply = edge().call("GET", path_of(domain_id) + "/entries", params=query)
    columns = ("seq", "occurred_at", "reason", "relation", "object.type", "object.id", "subject.pseudonym")
    emit(reply.json, as_json=as_json, columns=columns)


@audit_app.command("show")
def show(seq: int, domain_id: Domain = "", as_json: Json = False) -> None:
    """Show one entry, and recompute its hash from the bytes that were served."""
    answer = edge().call("GET", f"{path_of(domain_id)}/entries/{seq}").json
    proof = answer["proof"]
    canonical = base64.b64decode(proof["canonical_bytes"])
    own = entry_hash(bytes.fromhex(proof["prev_hash"]), hashlib.sha256(canonical).digest()).hex()
    emit(answer, as_json=as_json)
    if own != proof["entry_hash"]:
        fail(f"entry {seq} does not match its hash: computed {own}, served {proof['entry_hash']}", EXIT_DIVERGED)
    say(f"entry {seq}: hash recomputed, it matches")


@audit_app.command("erase")
def erase(identity_id: str, domain_id: Domain = "", as_json: Json = False) -> None:
    """Remove the personal data of one identity; the chain stays verifiable."""
    body = {"identity_id": identity_id}
    emit(edge().call("POST", path_of(domain_id) + "/erase-identity", body).json, as_json=as_json)
