"""Identifiers: UUIDv7 (RFC 9562, 5.7), so that ids sort by the time that they were made."""

import os
import time
from uuid import UUID

VERSION = 7 << 76
VARIANT = 0b10 << 62


def uuid7() -> UUID:
    """Return a new UUIDv7: 48 bits of milliseconds, 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10))
    rand_a, rand_b = random >> 68, random & ((1 << 62) - 1)
    return UUID(int=(milliseconds << 80) | VERSION | (rand_a << 64) | VARIANT | rand_b)


def parse_uuid(text: str) -> UUID:
    """Read a UUID in its canonical lower-case form; raises ValueError for any other spelling."""
    value = UUID(text)
    if str(value) != text:
        raise ValueError("a UUID is written in lower case with hyphens")
    return value
