"""`plexctl audit check-restore` and `acknowledge-restore`: straight to the audit service, as its operator.

The edge has no part in it: while audit refuses chains, the edge may be refused as well.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.edge import EXIT_DIVERGED, EXIT_USAGE, fail, say, write_private
from cli.output import Json, emit
from libs.custody import read_secret_file
from libs.tlog.signer import SignerKey, make_key, parse_signer
from libs.tlog.verify import NotProven

COLUMNS = ("chain", "anchored_size", "seq", "reason")

Address = Annotated[str, typer.Option(envvar="PLEX_AUDIT_ADDR", help="The audit service, host:port.")]
Certificate = Annotated[Path, typer.Option("--cert", envvar="PLEX_OPERATOR_CERT", help="The operator's certificate.")]
CertificateKey = Annotated[Path, typer.Option("--cert-key", envvar="PLEX_OPERATOR_KEY", help="The certificate's key.")]
Authority = Annotated[Path, typer.Option("--ca", envvar="PLEX_CA_FILE", help="The CA of the services.")]


def check_restore(
    address: Address,
    certificate: Certificate,
    certificate_key: CertificateKey,
    authority: Authority,
    statement: Annotated[Path | None, typer.Option(help="Write what would have to be signed to this file.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Also the chains that go on.")] = False,
    as_json: Json = False,
) -> None:
    """Hold each chain against its anchor; ends with 5 when one does not go on from it.

    Example: plexctl audit check-restore --statement restored.txt
    """
    from cli import audit_operator  # noqa: PLC0415 — see there

    found = audit_operator.check((address, certificate, certificate_key, authority), every=every)
    rows = [{name: _shown(one, name) for name in (*COLUMNS, "anchored_root", "entry_hash")} for one in found.chains]
    emit({"items": rows}, as_json=as_json, columns=COLUMNS)
    refused = sum(bool(one.reason) for one in found.chains)
    if not refused:
        say("every chain goes on from its anchor")
        return
    if statement is not None:
        statement.write_text(found.statement)
        say(f"what would have to be signed is in {statement}")
    fail(f"{refused} chains do not go on from their anchors; restore the right backup", EXIT_DIVERGED)


def acknowledge_restore(
    statement: Annotated[Path, typer.Argument(help="What `check-restore --statement` wrote.")],
    key: Annotated[Path, typer.Option(envvar="PLEX_RESTORE_KEY_FILE", help="Key that may acknowledge.")],
    address: Address,
    certificate: Certificate,
    certificate_key: CertificateKey,
    authority: Authority,
) -> None:
    """Sign that chains go on from what the database has, and send it: what was lost stays lost, and an entry says so.

    Example: plexctl audit acknowledge-restore restored.txt --key restore.key
    """
    from cli import audit_operator  # noqa: PLC0415 — see there

    try:
        note = _signer(key).seal(statement.read_text())
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{statement}: {type(error).__name__}", EXIT_USAGE)
    found = audit_operator.acknowledge((address, certificate, certificate_key, authority), note)
    for chain in found.chains:
        say(f"{chain} goes on")


def restore_key(
    name: Annotated[str, typer.Argument(help="Name of the key, without spaces and +, e.g. example.org/restore-1.")],
    key: Annotated[Path, typer.Option("--out", help="File for the private half; it must not exist.")],
) -> None:
    """Make a key that may acknowledge a restored database, and print what goes into `acknowledged_by` of audit.toml.

    Example: plexctl audit restore-key example.org/restore-1 --out restore.key
    """
    if key.exists():
        fail(f"{key} is there already", EXIT_USAGE)
    try:
        private, verifier = make_key(name)
    except NotProven as error:
        fail(str(error), EXIT_USAGE)
    with private:
        write_private(key, bytes(private.reveal()))
    print(verifier)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for name, command in (
        ("check-restore", check_restore), ("acknowledge-restore", acknowledge_restore), ("restore-key", restore_key),
    ):  # fmt: skip
        app.command(name)(command)


def _shown(chain: Any, name: str) -> str | int:
    value: str | int = getattr(chain, name)
    return value or ("goes on" if name == "reason" else value)


def _signer(path: Path) -> SignerKey:
    try:
        with read_secret_file(path) as content:
            return parse_signer(content)
    except (OSError, NotProven) as error:
        fail(f"{path}: {error if isinstance(error, NotProven) else type(error).__name__}", EXIT_USAGE)
