"""The body of a secret read: 12-byte nonce, ciphertext, 16-byte tag; AES-256-GCM (NIST SP 800-38D), no associated data.

Name, node, version and key id are not bound by the body: authorization and headers bind them.
"""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from libs.custody import Secret

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
LARGEST_CIPHERTEXT = 1024 * 1024


class SealError(ValueError):
    """A body that does not open; the message is its reason."""


def seal(key: Secret, plain: bytes | bytearray) -> bytes:
    """Encrypt under a node key with a random nonce; raises SealError over 1 MiB."""
    if len(key) != KEY_BYTES:
        raise SealError("key_length")
    if len(plain) > LARGEST_CIPHERTEXT:
        raise SealError("too_long")
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key.reveal()).encrypt(nonce, plain, None)


def unseal(key: Secret, body: bytes) -> bytes:
    """Decrypt a body; raises SealError with key_length, too_short, too_long or tag."""
    if len(key) != KEY_BYTES:
        raise SealError("key_length")
    if len(body) < NONCE_BYTES + TAG_BYTES:
        raise SealError("too_short")
    if len(body) > NONCE_BYTES + LARGEST_CIPHERTEXT + TAG_BYTES:
        raise SealError("too_long")
    try:
        return AESGCM(key.reveal()).decrypt(body[:NONCE_BYTES], body[NONCE_BYTES:], None)
    except InvalidTag:
        raise SealError("tag") from None
