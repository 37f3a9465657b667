"""One fake a port, in memory; test_ports.py holds vault and store to the real ones' promises."""

import asyncio
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from libs.errors import PlexError
from services.mesh.model import PublicHalf, SigningKey


@dataclass
class FakeVault:
    """Public halves by Domain."""

    keys: dict[UUID, PublicHalf] = field(default_factory=dict)
    refusal: PlexError | None = None

    async def current(self, domain_id: UUID) -> PublicHalf | None:
        await asyncio.sleep(0)
        if self.refusal:
            raise self.refusal
        return self.keys.get(domain_id)

    async def create(self, domain_id: UUID) -> PublicHalf:
        await asyncio.sleep(0)
        return self.keys.setdefault(domain_id, PublicHalf(os.urandom(32), 1))


@dataclass
class FakeStore:
    """Rows by Domain and version."""

    rows: dict[tuple[UUID, int], SigningKey] = field(default_factory=dict)

    async def remember(self, domain_id: UUID, half: PublicHalf) -> SigningKey:
        made = SigningKey(half.kid, domain_id, half.public_key, half.version, datetime.now(UTC))
        return self.rows.setdefault((domain_id, half.version), made)


@dataclass
class FakeAudit:
    """Domains whose key was announced to the chain."""

    rows: list[UUID] = field(default_factory=list)
    refusal: PlexError | None = None

    async def record_creation(self, domain_id: UUID) -> None:
        if self.refusal:
            raise self.refusal
        self.rows.append(domain_id)
