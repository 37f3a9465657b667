"""Stand-ins of audit's ports, for unit tests of its rules; test_ports.py holds them to the real ones' promises."""

import datetime
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from uuid import UUID

from libs.chain import GENESIS
from libs.custody import Secret
from libs.decision import Decision
from services.audit.entry import link
from services.audit.model import Draft, Filter, Head, Stored


@dataclass
class FakeChains:
    """Chains in memory; appends and reads."""

    rows: dict[str, list[Stored]] = field(default_factory=lambda: defaultdict(list))
    keys: dict[UUID, int] = field(default_factory=dict)
    erased: dict[tuple[str, str], datetime.datetime] = field(default_factory=dict)

    async def append(self, entry: Draft) -> int:
        decision = entry.decision
        if decision.idempotency_key not in self.keys:
            row = link([entry], await self.head(decision.chain))[0]
            self.rows[decision.chain].append(
                Stored(
                    decision.chain, row.seq, row.prev_hash, row.entry_hash, row.canonical, decision.occurred_at,
                    entry.pseudonym, decision.relation, decision.object_type, decision.object_id, decision.reason,
                    decision.correlation_id, decision.context, entry.salt, decision.subject_id, decision.subject_kind,
                    decision.client_ip, decision.user_agent,
                )
            )  # fmt: skip
            self.keys[decision.idempotency_key] = row.seq
        return self.keys[decision.idempotency_key]

    async def head(self, chain: str) -> Head:
        rows = self.rows[chain]
        return Head(rows[-1].seq, rows[-1].entry_hash) if rows else Head(0, GENESIS)

    async def page(self, chain: str, wanted: Filter, below: int, limit: int) -> list[Stored]:
        found = [row for row in reversed(self.rows[chain]) if row.seq < below]
        found = [row for row in found if wanted.reason in {"", row.reason}]
        return [row for row in found if wanted.object_type in {"", row.object_type}][:limit]

    async def get(self, chain: str, seq: int) -> Stored | None:
        return next((row for row in self.rows[chain] if row.seq == seq), None)

    async def walk(self, chain: str, first: int, last: int) -> AsyncIterator[Stored]:
        for row in self.rows[chain]:
            if first <= row.seq <= last:
                yield row

    async def erase(self, chain: str, pseudonyms: list[str], at: datetime.datetime) -> datetime.datetime:
        for name in pseudonyms:
            self.erased.setdefault((chain, name), at)
        self.rows[chain] = [
            replace(row, salt=None, subject_id="", subject_kind="", client_ip="", user_agent="")
            if row.pseudonym in pseudonyms
            else row
            for row in self.rows[chain]
        ]
        return self.erased[chain, pseudonyms[0]]

    async def erased_at(self, chain: str, pseudonym: str) -> datetime.datetime | None:
        return self.erased.get((chain, pseudonym))


class FakePeppers:
    """A pepper a chain."""

    async def pepper(self, chain: str) -> Secret:
        return Secret(chain.encode().ljust(32, b"\0")[:32])


@dataclass
class FakeRelations:
    """Grants what it was told to grant."""

    granted: set[tuple[str, str]] = field(default_factory=set)

    async def check(self, subject: str, permission: str, resource: str) -> Decision:
        return Decision("granted" if (permission, resource) in self.granted else "out_of_scope")
