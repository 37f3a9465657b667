"""Signed notes with Ed25519 (c2sp.org/signed-note): a text, an empty line, signature lines."""

import base64
import binascii
import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from libs.tlog.verify import NotProven

ED25519 = b"\x01"
ID_BYTES, KEY_BYTES, SIGNATURE_BYTES = 4, 32, 64
# The sixteen signatures that everybody must accept fit, also those of post-quantum schemes.
LARGEST, MOST_SIGNATURES = 128 * 1024, 32
DASH = "\u2014 "


@dataclass(frozen=True)
class VerifierKey:
    """A key that is trusted under a name."""

    name: str
    public_key: bytes

    def __post_init__(self) -> None:
        """Refuse a name that a signature line could not hold, and what is no key."""
        if not self.name or "+" in self.name or any(one.isspace() or one < " " for one in self.name):
            raise NotProven("the name of the key has a form that is not allowed")
        if len(self.public_key) != KEY_BYTES:
            raise NotProven("the key is not Ed25519")

    @property
    def id(self) -> bytes:
        """The four bytes that stand before a signature."""
        named = self.name.encode() + b"\n" + ED25519 + self.public_key
        return hashlib.sha256(named).digest()[:ID_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(ED25519 + self.public_key).decode()}"

    def line(self, signature: bytes) -> str:
        """Return the signature line of a note."""
        return f"{DASH}{self.name} {base64.b64encode(self.id + signature).decode()}\n"

    def verify(self, text: str, signature: bytes) -> None:
        """Return if the signature is this key's; raises NotProven otherwise."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, text.encode())
        except InvalidSignature:
            raise NotProven("the signature is not the key's") from None


def parse_key(text: str) -> VerifierKey:
    """Read a verifier key, `name+id+key`; raises NotProven for anything else."""
    name, _, rest = text.partition("+")
    shown, _, encoded = rest.partition("+")
    raw = from_base64(encoded)
    if raw[:1] != ED25519:
        raise NotProven("the key is not Ed25519")
    key = VerifierKey(name, raw[1:])
    if shown != key.id.hex():
        raise NotProven("the key has another id")
    return key


def seal_note(text: str, key: VerifierKey, signature: bytes) -> str:
    """Return the note of a text and its signature; raises NotProven for a signature that is not the key's."""
    key.verify(text, signature)
    return f"{text}\n{key.line(signature)}"


def open_note(note: str, keys: Collection[VerifierKey]) -> str:
    """Return the text of a note that one of the keys signed; raises NotProven otherwise.

    Signatures of others are ignored, as the format asks; a false one under a trusted key's name and id is not.
    """
    if len(note.encode("utf-8", "surrogatepass")) > LARGEST:
        raise NotProven("the note is too large")
    if any(one < " " and one != "\n" for one in note) or any("\ud800" <= one <= "\udfff" for one in note):
        raise NotProven("the note holds characters that are not allowed")
    text, gap, tail = note.rpartition("\n\n")
    if not gap or not tail.endswith("\n"):
        raise NotProven("the note has no signatures")
    text += "\n"
    lines = tail[:-1].split("\n")
    if len(lines) > MOST_SIGNATURES:
        raise NotProven("the note has too many signatures")
    known = {(key.name, key.id): key for key in keys}
    signed = False
    for name, signature in map(_signature, lines):
        key = known.get((name, signature[:ID_BYTES]))
        if key is not None:
            key.verify(text, signature[ID_BYTES:])
            signed = True
    if not signed:
        raise NotProven("nobody who is trusted signed the note")
    return text


def _signature(line: str) -> tuple[str, bytes]:
    name, gap, encoded = line.removeprefix(DASH).partition(" ")
    signature = from_base64(encoded)
    if not line.startswith(DASH) or not gap or len(signature) <= ID_BYTES:
        raise NotProven("a signature line is not one")
    if not name or "+" in name or any(one.isspace() for one in name):
        raise NotProven("the name of the key has a form that is not allowed")
    return name, signature


def from_base64(text: str) -> bytes:
    """Read standard base64 (RFC 4648 4) in its one right form; raises NotProven otherwise."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NotProven("base64 is not right") from None
    if base64.b64encode(raw).decode() != text:
        # Loose bits at the end would be a second form of the same bytes.
        raise NotProven("base64 is not right")
    return raw
