"""What a divergence means, in words and as a table of what was expected and what was found."""

import base64
import hashlib
import json
from typing import Any

import rfc8785
from rich.console import Console
from rich.table import Table

from libs.chain import Divergence, entry_hash
from libs.export import Exported

ZEROS = "0" * 64
SHORT = 16
# Those that speak of one entry, which can be shown.
OF_ENTRY = {"link", "hash", "content", "columns", "anchor"}
MEANINGS = {
    "form": "what stands where entry {seq} should be cannot be read",
    "incomplete": "it breaks off before entry {seq}: it is not whole",
    "gap": "entry {seq} is missing: something else stands in its place, or nothing",
    "link": "entry {seq} does not follow the one before it: one of the two was replaced, or some between them removed",
    "hash": "entry {seq} is not what was written: its bytes do not have the hash that it was chained with",
    "content": "what stands at entry {seq} says that it belongs elsewhere: it was moved, or is another chain's",
    "root": "the entries fit each other and are not those that were signed for: one of {since} to {seq} was replaced, "
    "and every hash after it recomputed",
    "truncated": "the chain ends before entry {seq}, which was signed for: its tail was cut off, or left out",
    "older": "the checkpoint is older than what was verified before: the chain, or what is shown of it, was set back",
    "fork": "two signed checkpoints of {seq} entries differ: there are two histories",
    "note": "what is archived from entry {seq} on has no checkpoint over it that the key signed",
    "columns": "entry {seq} has other columns, or another personal record, than its bytes speak of",
    "anchor": "audit's own verification, which knows what was anchored, diverges at entry {seq}",
}


def meaning(found: Divergence, since: int) -> str:
    """Say in words what was found; entries before `since` are proven."""
    return MEANINGS[found.kind].format(seq=found.seq, since=since)


def show(found: Divergence, entry: Exported | None, answer: Any) -> None:
    """Print what was expected and what was found on stderr: hashes, and the fields of the entry where they are known.

    `answer` is the entry as the edge shows it, from the columns of the database, or nothing.
    """
    if answer:
        proof = answer["proof"]
        before, own = (bytes.fromhex(proof[name]) for name in ("prev_hash", "entry_hash"))
        entry = Exported(found.seq, before, own, base64.b64decode(proof["canonical_bytes"]))
    table = Table("", "expected", "found", box=None, pad_edge=False, header_style="bold")
    table.add_row("hash", short(found.expected_hash), short(found.observed_hash))
    if entry and entry.seq == found.seq and found.kind in OF_ENTRY:
        for row in differences(entry, answer):
            table.add_row(*row)
    Console(stderr=True, highlight=False, soft_wrap=True).print(table)


def differences(entry: Exported, answer: Any) -> list[tuple[str, str, str]]:
    """Return the fields that differ between the bytes and the columns of an entry, or all that is known of it.

    What has the hash that the entry was chained with is what was expected; where neither has, nobody knows.
    """
    try:
        content = json.loads(entry.canonical)
    except (ValueError, RecursionError):
        content = {}
    by_bytes = _flat(content if isinstance(content, dict) else {})
    if not answer:
        return [(name, "", value) for name, value in by_bytes.items()]
    columns = _columns(answer["entry"], content)
    by_columns = _flat(columns)
    rebuilt = entry_hash(entry.prev_hash, hashlib.sha256(rfc8785.dumps(columns)).digest())
    expected, observed = (by_columns, by_bytes) if rebuilt == entry.entry_hash else (by_bytes, by_columns)
    names = [name for name in {**expected, **observed} if expected.get(name) != observed.get(name)]
    return [(name, expected.get(name, ""), observed.get(name, "")) for name in names]


def short(value: str) -> str:
    """Shorten a hash for a person."""
    if not value or value == ZEROS:
        return "none"
    return value[:SHORT] + "…"


def _columns(entry: Any, content: Any) -> dict[str, Any]:
    """Return the bytes' members as the columns have them; what only the bytes hold is theirs."""
    kept = {name: content.get(name) for name in ("chain", "commitment", "v")}
    plain = {name: entry[name] for name in ("correlation_id", "occurred_at", "reason", "relation", "seq", "object")}
    return {**kept, **plain, "decision": entry["decision"], "subject": {"pseudonym": entry["subject"]["pseudonym"]}}


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, member in value.items():
        if isinstance(member, dict):
            found |= _flat(member, f"{prefix}{name}.")
        else:
            found[prefix + name] = member if isinstance(member, str) else json.dumps(member)
    return found
