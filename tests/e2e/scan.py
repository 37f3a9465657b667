"""Searches everything that a stack has written for everything that is secret, in every form it could have there."""

import base64
import json
import struct
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.e2e.seen import SHAPES
from tests.e2e.world import World

Word = Literal["I", "Q"]  # unsigned numbers of four and of eight bytes
ENCODERS = (base64.b64encode, base64.urlsafe_b64encode)


def forms(value: bytes) -> list[bytes]:
    """Return how a value may stand in a dump or a log: plain, hex, base64 and base64url at any offset."""
    found = [value, value.hex().encode(), value.hex().upper().encode()]
    for encode in ENCODERS:
        for offset in range(3):
            text = encode(b"\0" * offset + value)
            start, end = (0, 2, 3)[offset], -4 if (offset + len(value)) % 3 else None
            found.append(text[start:end])
    return found


class Needles:
    """A set of values, ready to be searched for in one pass over a file, however many they are.

    A form of 2n - 1 bytes holds n bytes at an address that n divides, wherever it lies. So it is enough to look each
    n-th address up among all pieces of n bytes of all forms, and to search in full for the few forms that are hit.
    """

    def __init__(self, values: Mapping[bytes, str]) -> None:
        """Cut all forms of the values, which have names, into pieces."""
        self._pieces: dict[Word, dict[int, set[bytes]]] = {"I": defaultdict(set), "Q": defaultdict(set)}
        self._names: dict[bytes, str] = {}
        for value, name in values.items():
            for form in forms(value):
                self._names.setdefault(form, name)
                code: Word = "Q" if len(form) >= 2 * struct.calcsize("Q") - 1 else "I"
                size = struct.calcsize(code)
                for at in range(size):
                    self._pieces[code][int.from_bytes(form[at : at + size], sys.byteorder)].add(form)

    def find(self, content: bytes) -> set[str]:
        """Return the names of the values that are in the content."""
        suspects: set[bytes] = set()
        for code, pieces in self._pieces.items():
            if not pieces:
                continue
            size = struct.calcsize(code)
            words = memoryview(content + bytes(-len(content) % size)).cast(code)
            # One look-up an address, in C and without a copy: `words` is any iterable here.
            suspects.update(*(pieces[hit] for hit in pieces.keys() & words))
        return {self._names[form] for form in suspects if form in content}


def key_files(state: Path) -> dict[bytes, str]:
    """Return the keys of a stack's state folder: as text, and the private number of what is PEM."""
    found: dict[bytes, str] = {}
    for path in sorted(one for folder in ("secrets", "pki") for one in (state / folder).iterdir()):
        content = path.read_bytes()
        if path.name.endswith(".jwks.json"):
            found |= {key["d"].encode(): path.name for key in json.loads(content)["keys"]}
        elif b"PRIVATE KEY-----" in content:
            key = load_pem_private_key(content, None)
            if isinstance(key, EllipticCurvePrivateKey):
                found[key.private_numbers().private_value.to_bytes(32, "big")] = path.name
            else:
                assert isinstance(key, Ed25519PrivateKey), path
                found[key.private_bytes_raw()] = path.name
            found[content.splitlines()[1]] = path.name
        elif path.suffix in {".key", ".secret"}:
            found[content.strip() or content] = path.name
    return found


def written(state: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every log, every trace, OpenBao's audit log and the store of JetStream."""
    for path in sorted((*state.glob("*.log"), *(state / "log").rglob("*"), *(state / "nats").rglob("*"))):
        if path.is_file():
            yield str(path.relative_to(state)), path.read_bytes()


async def search(world: World, values: Mapping[bytes, str]) -> list[str]:
    """Return which of the values, and which shapes of credentials, are in the database or in what was written."""
    needles = Needles(values)
    dump = await world.dump()
    assert len(dump) > 10_000, "the dump is suspiciously small"
    return [
        hit for place, content in [("pg_dump", dump), *written(world.state)] for hit in _hits(place, content, needles)
    ]


def _hits(place: str, content: bytes, needles: Needles) -> Iterable[str]:
    yield from (f"{name} is in {place}" for name in sorted(needles.find(content)))
    yield from (
        f"a credential by its shape ({match[:12].decode()}…) is in {place}" for match in set(SHAPES.findall(content))
    )
