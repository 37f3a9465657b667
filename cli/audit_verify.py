"""`plexctl audit verify`: what a chain is made of is recomputed here, from the edge, a file or the archive."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import obstore
import typer
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from cli import audit_words
from cli.audit_chain import (
    PLATFORM,
    CheckpointFile,
    Domain,
    Key,
    alarm,
    given_key,
    opened,
    path_of,
    shown_progress,
    trusted,
)
from cli.audit_memory import Remembered, file_of, recall, remember
from cli.edge import EXIT_UNAVAILABLE, EXIT_USAGE, EdgeClient, Refusal, edge, fail, say
from cli.output import Json, emit
from libs.archive import LARGEST, newest
from libs.chain import Divergence
from libs.export import Head, NotAnExport, read_head
from libs.tlog.checkpoint import Checkpoint
from libs.tlog.note import VerifierKey
from libs.witness import Witness

ZEROS = "0" * 64


@dataclass(frozen=True)
class Judged:
    """What a verification came to."""

    witness: Witness
    first: int
    found: Divergence | None = None
    key: VerifierKey | None = None
    key_from: str = ""
    # The entry as the edge shows it, where it was asked.
    answer: Any = None


def verify(
    domain_id: Domain = "",
    full: Annotated[bool, typer.Option("--full", help="Look at all entries, also those verified before.")] = False,
    file: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="An export, without the edge.")] = None,
    archive: Annotated[str, typer.Option(help="The archive's folder or URL, without the edge.")] = "",
    key: Key = "",
    checkpoint: CheckpointFile = None,
    as_json: Json = False,
) -> None:
    """Recompute a chain here and hold it against what was signed; ends with 5 when it is not as it was written.

    What was verified is remembered: the next time only newer entries are looked at, and they must go on from there.

    Example: plexctl audit verify --domain 0190… --archive /var/lib/plexsphere/audit --key plexsphere/audit/0190…+…
    """
    if file and archive:
        fail("either --file or --archive", EXIT_USAGE)
    note = checkpoint.read_text() if checkpoint else ""
    if archive:
        judged = of_archive(archive, domain_id or PLATFORM, key, note)
    elif file:
        judged = of_file(file, domain_id, key, note)
    else:
        judged = of_edge(domain_id, key, note, full=full or bool(note))
    emit(report(judged), as_json=as_json)
    if judged.found:
        audit_words.show(judged.found, judged.witness.entry, judged.answer)
        alarm(audit_words.meaning(judged.found, judged.witness.proven.size + 1))


def report(judged: Judged) -> dict[str, Any]:
    """Return a verdict as it is printed."""
    witness, found = judged.witness, judged.found
    divergence: dict[str, Any] = {}
    if found:
        divergence = {
            "divergent_seq": found.seq,
            "expected_hash": found.expected_hash,
            "observed_hash": found.observed_hash,
            "kind": found.kind,
            "meaning": audit_words.meaning(found, witness.proven.size + 1),
        }
    signed = {"signed_to": witness.proven.size, "root": witness.proven.root.hex(), "key": str(judged.key or "")}
    counted = {"chain": witness.chain, "first": judged.first, "last": witness.size}
    return {"ok": not found, **divergence, **counted, **signed, "key_from": judged.key_from}


# The edge -------------------------------------------------------------------------------------------------------------


def of_edge(domain_id: str, key: str, note: str, *, full: bool) -> Judged:
    """Verify what the edge shows, from what is remembered on, and remember it."""
    client, chain = edge(), domain_id or PLATFORM
    kept = file_of(client.url, chain)
    remembered = recall(kept)
    witness = Witness(chain, remembered.known if remembered and not full else None)
    begin = witness.size
    lines = client.lines("GET", path_of(domain_id) + "/export", params={"from": str(begin + 1)})
    head = _head(next(lines, b""))
    if (head.chain, head.first) != (chain, begin + 1):
        alarm("the edge shows something else than what was asked for")
    judged = Judged(witness, begin + 1)
    if head.note:
        trust, source = trusted(key, remembered, head.key, chain)
        judged = replace(judged, key=trust, key_from=source)
    elif remembered:
        alarm(f"{remembered.known.size} entries were signed for, and nothing of it is shown")
    found = _expect(judged, head, remembered, note) or _follow(judged, head, lines)
    if found and found.kind == "incomplete":
        fail("the export broke off: nothing is known of what came after", EXIT_UNAVAILABLE)
    found = found or _asked(client, domain_id, begin + 1)
    if found:
        shown = _shown(client, domain_id, found.seq) if found.kind in audit_words.OF_ENTRY else None
        return replace(judged, found=found, answer=shown)
    if judged.key and witness.proven.size:
        remember(kept, Remembered(witness.proven, judged.key))
    if judged.key_from == "shown":
        say(f"the key is believed because it came first; compare it with what runs the log says: {judged.key}")
    return judged


def _expect(judged: Judged, head: Head, remembered: Remembered | None, note: str) -> Divergence | None:
    """Have the chain held against what is remembered, kept and shown."""
    witness, key = judged.witness, judged.key
    if key is None:
        return None
    shown = opened(head.note, key)
    if remembered and shown.size < remembered.known.size:
        return Divergence(shown.size + 1, remembered.known.root.hex(), shown.root.hex(), "older")
    wanted = [opened(note, key)] if note else []
    if remembered and witness.size == 0:
        wanted.append(Checkpoint(key.name, remembered.known.size, remembered.known.root))
    found = next((one for one in map(witness.expect, [*wanted, shown]) if one), None)
    if not found and head.last < witness.size:
        return Divergence(head.last + 1, witness.before.hex(), "", "truncated")
    return found


def _follow(judged: Judged, head: Head, lines: Iterator[bytes]) -> Divergence | None:
    begin = head.first - 1
    with shown_progress("recomputing", max(0, head.last - begin), begin) as looked:
        return judged.witness.lines(lines, head.last, looked)


def _asked(client: EdgeClient, domain_id: str, first: int) -> Divergence | None:
    """Have audit verify the same itself: it sees the columns, too, and holds all against the anchor."""
    last: dict[str, Any] = {}
    lines = client.lines("POST", path_of(domain_id) + "/verify/stream", {"from_seq": first})
    with shown_progress("asking audit", 0) as looked:
        for line in lines:
            last = json.loads(line)
            looked(last.get("looked_at", 0))
    if "ok" not in last:
        fail("audit's own verification broke off", EXIT_UNAVAILABLE)
    if last["ok"]:
        return None
    kind = "columns" if last["observed_hash"] == ZEROS else "anchor"
    return Divergence(last["divergent_seq"], last["expected_hash"], last["observed_hash"], kind)


def _shown(client: EdgeClient, domain_id: str, seq: int) -> Any:
    try:
        return client.attempt("GET", f"{path_of(domain_id)}/entries/{seq}").json
    except Refusal:
        return None


# Without the edge -----------------------------------------------------------------------------------------------------


def of_file(file: Path, domain_id: str, key: str, note: str) -> Judged:
    """Verify an export."""
    with file.open("rb") as lines:
        head = _head(lines.readline())
        if domain_id and head.chain != domain_id:
            fail(f"the export is of {head.chain}", EXIT_USAGE)
        if head.first != 1:
            fail(f"the export begins at entry {head.first}: nothing that was signed can be held against it", EXIT_USAGE)
        judged = Judged(Witness(head.chain), 1)
        if head.note:
            trust, source = trusted(key, None, head.key, head.chain)
            judged = replace(judged, key=trust, key_from=source)
            if source == "shown":
                say(f"the key came with the export, so whoever made that up made up this, too; give --key: {trust}")
        elif key or note:
            alarm("the export has no checkpoint")
        found = _expect(judged, head, None, note) or _follow(judged, head, lines)
    return replace(judged, found=found)


def of_archive(url: str, chain: str, key: str, note: str) -> Judged:
    """Verify the archive of a chain from its objects alone."""
    if not key:
        fail("whose signature is believed? give --key", EXIT_USAGE)
    trust = given_key(key, chain)
    witness = Witness(chain)
    names, objects = _objects(url, chain)
    found = witness.expect(opened(note, trust)) if note else None
    with shown_progress("recomputing", len(names)) as looked:
        found = found or witness.segments(objects, [trust], looked)
    return Judged(witness, 1, found, trust, "given")


def _objects(url: str, chain: str) -> tuple[list[str], Iterator[bytes]]:
    """Return the names of a chain's objects, and their contents; folder and object store are read alike."""
    try:
        store = from_url(url) if "://" in url else LocalStore(url)
        found = [str(entry["path"]) for batch in obstore.list(store, f"{chain}/") for entry in batch]
    except (BaseError, OSError, ValueError) as error:
        fail(f"the archive cannot be read: {type(error).__name__}", EXIT_UNAVAILABLE)
    names = newest(found, chain)
    if not names:
        fail(f"there is nothing of {chain} in the archive", EXIT_USAGE)
    return names, (_content(store, name) for name in names)


def _content(store: Any, name: str) -> bytes:
    try:
        answer = obstore.get(store, name)
        return bytes(answer.bytes()) if answer.meta["size"] <= LARGEST else b""
    except (BaseError, OSError) as error:
        fail(f"{name} of the archive cannot be read: {type(error).__name__}", EXIT_UNAVAILABLE)


def _head(line: bytes) -> Head:
    try:
        return read_head(line)
    except NotAnExport as error:
        alarm(f"this is no export: {error}")
