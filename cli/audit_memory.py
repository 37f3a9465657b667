"""What plexctl remembers of a chain: the newest checkpoint that it verified itself, and the key that signed it."""

import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cli.edge import EXIT_USAGE, credentials_file, fail, write_private
from libs.tlog.note import VerifierKey, parse_key
from libs.tlog.verify import NotProven
from libs.witness import Known, Witness


@dataclass(frozen=True)
class Remembered:
    """How far a chain was followed, and whom it was believed."""

    known: Known
    key: VerifierKey


def file_of(url: str, chain: str) -> Path:
    """Return where a chain of an edge is remembered, beside the credentials."""
    host = urlsplit(url).netloc.rpartition("@")[2].replace(":", "_").replace("/", "_")
    return credentials_file().parent / "checkpoints" / host / f"{chain}.json"


def recall(path: Path) -> Remembered | None:
    """Return what is remembered; ends the program where that cannot be read, for a new start would forget an alarm."""
    if not path.exists():
        return None
    try:
        kept = json.loads(path.read_text())
        parts = tuple(bytes.fromhex(part) for part in kept["parts"])
        known, key = Known(kept["size"], bytes.fromhex(kept["entry_hash"]), parts), parse_key(kept["key"])
        # Parts of another size are refused.
        Witness("", known)
    except (ValueError, KeyError, TypeError, NotProven):
        fail(f"{path} cannot be read; find out why before you remove it", EXIT_USAGE)
    return Remembered(known, key)


def remember(path: Path, remembered: Remembered) -> None:
    """Keep what was verified for the next time, readable by its owner only and replaced whole."""
    known = remembered.known
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    kept = {
        "size": known.size,
        "root": known.root.hex(),
        "entry_hash": known.entry_hash.hex(),
        "parts": [part.hex() for part in known.parts],
        "key": str(remembered.key),
    }
    write_private(path, json.dumps(kept).encode())
