"""`plexctl audit export`, `checkpoint`, `prove` and `verify-proof`: what an auditor keeps, and checks anywhere."""

import base64
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cli.audit_chain import PLATFORM, Domain, Key, alarm, given_key, opened, path_of, shown_progress, trusted
from cli.audit_memory import file_of, recall
from cli.edge import EXIT_UNAVAILABLE, EXIT_USAGE, EdgeClient, edge, fail, say
from cli.output import Json, emit
from libs.chain import entry_hash
from libs.export import Head, NotAnExport, is_end, read_head
from libs.tlog.note import VerifierKey
from libs.tlog.proof import Proof, parse_proof
from libs.tlog.verify import NotProven

Out = Annotated[Path | None, typer.Option("--out", "-o", dir_okay=False, help="File to write; stdout without it.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


def export(
    domain_id: Domain = "",
    from_seq: Annotated[int, typer.Option("--from", min=1, help="First entry.")] = 1,
    to_seq: Annotated[int, typer.Option("--to", min=0, help="Last entry; 0 for the newest.")] = 0,
    out: Out = None,
    force: Force = False,
) -> None:
    """Write entries as they are stored, with the newest checkpoint; they hold nothing personal.

    The file is there when all of it is. Check it anywhere with `plexctl audit verify --file`.

    Example: plexctl audit export --domain 0190… -o chain.ndjson
    """
    if out:
        _require_free(out, force=force)
    params = {"from": str(from_seq)} | ({"to": str(to_seq)} if to_seq else {})
    lines = edge().lines("GET", path_of(domain_id) + "/export", params=params)
    first = next(lines, b"")
    try:
        head = read_head(first)
    except NotAnExport as error:
        alarm(f"this is no export: {error}")
    if out is None:
        for line in _whole(first, lines, head):
            sys.stdout.buffer.write(line)
        return
    scratch = out.with_name(f".{out.name}.part")
    scratch.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.writelines(_whole(first, lines, head))
            file.flush()
            os.fsync(file.fileno())
        _put(scratch, out, force=force)
    finally:
        scratch.unlink(missing_ok=True)
    say(f"entries {head.first} to {head.last} are in {out}")


def _whole(first: bytes, lines: Iterator[bytes], head: Head) -> Iterator[bytes]:
    """Yield the lines of an export; ends the program when the last one is not there."""
    yield first
    entries = 0
    with shown_progress("exporting", max(0, head.last - head.first + 1)) as looked:
        for line in lines:
            yield line
            if is_end(line, entries):
                return
            entries += 1
            looked(entries)
    fail("the export broke off", EXIT_UNAVAILABLE)


def checkpoint(domain_id: Domain = "", key: Key = "", out: Out = None, force: Force = False) -> None:
    """Print the newest signed checkpoint as a note to keep, and on stderr the key that it verifies with."""
    _, trust, note = _newest(domain_id, key)
    _write(note, out, force=force)
    say(f"key: {trust}")


def prove(
    seq: Annotated[int, typer.Argument(min=1)],
    domain_id: Domain = "",
    key: Key = "",
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write the proof that an entry is in the newest checkpoint (C2SP tlog-proof), verified here before it is.

    Example: plexctl audit prove 17 --domain 0190… -o 17.tlog-proof
    """
    client, trust, note = _newest(domain_id, key)
    size = opened(note, trust).size
    if seq > size:
        fail(f"the newest checkpoint has {size} entries; entry {seq} is in the next one", EXIT_UNAVAILABLE)
    shown = client.call("GET", f"{path_of(domain_id)}/entries/{seq}").json["proof"]
    content = hashlib.sha256(base64.b64decode(shown["canonical_bytes"])).digest()
    own = entry_hash(bytes.fromhex(shown["prev_hash"]), content)
    answer = client.call("GET", path_of(domain_id) + "/proof", params={"seq": str(seq), "size": str(size)}).json
    text = answer["tlog_proof"]
    found = verified(text, own, trust)
    if found.index != seq - 1:
        alarm(f"the proof is of entry {found.index + 1}")
    if out:
        _write(text, out, force=force)
    value = {"ok": True, "seq": seq, "size": size, "entry_hash": own.hex(), "key": str(trust)}
    emit(value if out else value | {"tlog_proof": text}, as_json=as_json)


def verify_proof(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    entry: Annotated[str, typer.Option(help="Hash of the entry, 64 hex digits, as `audit prove` prints it.")],
    key: Annotated[str, typer.Option(help="The key that signs its checkpoints (NAME+ID+KEY), from elsewhere.")],
    as_json: Json = False,
) -> None:
    """Verify a proof without the edge; ends with 5 when it proves nothing.

    Example: plexctl audit verify-proof 17.tlog-proof --entry 9f86… --key plexsphere/audit/0190…+…
    """
    trust = given_key(key, key.partition("+")[0].rpartition("/")[2])
    try:
        own = bytes.fromhex(entry)
    except ValueError:
        fail("the hash of the entry is none", EXIT_USAGE)
    found = verified(file.read_text(), own, trust)
    size = opened(found.note, trust).size
    emit({"ok": True, "seq": found.index + 1, "size": size, "chain": trust.name.rpartition("/")[2]}, as_json=as_json)


def verified(text: str, entry: bytes, key: VerifierKey) -> Proof:
    """Return a proof that proves the entry; anything else is an alarm."""
    try:
        found = parse_proof(text)
        found.verify(entry, key.name, [key])
    except NotProven as error:
        alarm(f"the proof proves nothing: {error}")
    return found


def _newest(domain_id: str, key: str) -> tuple[EdgeClient, VerifierKey, str]:
    client, chain = edge(), domain_id or PLATFORM
    shown = client.call("GET", path_of(domain_id) + "/checkpoint").json
    trust, source = trusted(key, recall(file_of(client.url, chain)), shown["key"], chain)
    opened(shown["note"], trust)
    if source == "shown":
        say(f"the key is believed because the edge shows it; compare it with what runs the log says: {trust}")
    return client, trust, shown["note"]


def _write(text: str, out: Path | None, *, force: bool) -> None:
    if out is None:
        print(text, end="")
        return
    _require_free(out, force=force)
    scratch = out.with_name(f".{out.name}.part")
    scratch.write_text(text)
    _put(scratch, out, force=force)
    scratch.unlink(missing_ok=True)


def _require_free(out: Path, *, force: bool) -> None:
    if out.exists() and not force:
        fail(f"{out} is there already; --force replaces it", EXIT_USAGE)


def _put(scratch: Path, out: Path, *, force: bool) -> None:
    """Give a whole file its name, which nobody else may have taken meanwhile."""
    if force:
        scratch.replace(out)
        return
    try:
        out.hardlink_to(scratch)
    except FileExistsError:
        fail(f"{out} is there already; --force replaces it", EXIT_USAGE)
