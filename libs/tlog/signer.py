"""Keys that sign notes: a name and an Ed25519 key, in the form that other tools for signed notes read and write."""

import base64
import os
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.custody import Secret
from libs.tlog.note import ED25519, KEY_BYTES, VerifierKey, from_base64, seal_note
from libs.tlog.verify import NotProven

PREFIX = b"PRIVATE+KEY+"


@dataclass(frozen=True)
class SignerKey:
    """The private half of a verifier key."""

    verifier: VerifierKey
    _private: Ed25519PrivateKey = field(repr=False)

    def seal(self, text: str) -> str:
        """Return a text as a note that this key signed."""
        return seal_note(text, self.verifier, self._private.sign(text.encode()))


def make_key(name: str) -> tuple[Secret, VerifierKey]:
    """Return a fresh key as a file holds it, and its public half; raises NotProven for a name that cannot be."""
    seed = os.urandom(KEY_BYTES)
    verifier = _verifier(name, seed)
    text = f"{name}+{verifier.id.hex()}+{base64.b64encode(ED25519 + seed).decode()}\n"
    return Secret(PREFIX + text.encode()), verifier


def parse_signer(content: Secret) -> SignerKey:
    """Read what `make_key` made; raises NotProven for anything else, and says nothing of it."""
    try:
        text = bytes(content.reveal()).removesuffix(b"\n").decode()
    except UnicodeDecodeError:
        raise NotProven("the key is not one that signs notes") from None
    name, _, rest = text.removeprefix(PREFIX.decode()).partition("+")
    shown, _, encoded = rest.partition("+")
    raw = from_base64(encoded)
    if not text.startswith(PREFIX.decode()) or raw[:1] != ED25519 or len(raw) != 1 + KEY_BYTES:
        raise NotProven("the key is not one that signs notes")
    verifier = _verifier(name, raw[1:])
    if shown != verifier.id.hex():
        raise NotProven("the key has another id")
    return SignerKey(verifier, Ed25519PrivateKey.from_private_bytes(raw[1:]))


def _verifier(name: str, seed: bytes) -> VerifierKey:
    return VerifierKey(name, Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw())
