"""One fake a port, in memory; test_ports.py holds those that rules depend on to the real ones' promises."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from libs.access_policy import SecretLimits
from libs.custody import Secret
from libs.decision import GRANTED, Record
from libs.errors import InvalidCursor, PlexError, PreconditionFailed, SecretVersionNotFound
from libs.ids import uuid7
from libs.principal import Principal
from services.secrets.administration import SecretsAdmin
from services.secrets.model import Place, SecretRow
from services.secrets.service import Secrets
from services.secrets.tally import Tally

KEY = bytes(range(32))
KID = "nsk_" + "0" * 32


@dataclass
class FakeLimiter:
    """Grants until it is told what to raise."""

    trace: list[str]
    refusal: PlexError | None = None
    charged: list[tuple[UUID, UUID, SecretLimits]] = field(default_factory=list)

    async def spend(self, node_id: UUID, domain_id: UUID, said: SecretLimits) -> None:
        self.trace.append("limits")
        if self.refusal:
            raise self.refusal
        self.charged.append((node_id, domain_id, said))


@dataclass
class FakeStore:
    """Rows by id."""

    trace: list[str] = field(default_factory=list)
    rows: dict[UUID, SecretRow] = field(default_factory=dict)
    refusal: PlexError | None = None
    idle: timedelta = timedelta()
    told: list[tuple[UUID, str]] = field(default_factory=list)
    notes: dict[UUID, tuple[list[UUID], str]] = field(default_factory=dict)

    async def find(self, project_id: UUID, name: str) -> SecretRow | None:
        self.trace.append("metadata")
        if self.refusal:
            raise self.refusal
        return next((row for row in self.rows.values() if (row.project_id, row.name) == (project_id, name)), None)

    async def begin_put(self, row: SecretRow, expected_version: int) -> bool:
        self.trace.append("begin_put")
        there = next((r for r in self.rows.values() if (r.project_id, r.name) == (row.project_id, row.name)), None)
        if there is None and expected_version == 0:
            there = row
        if there is None or there.id != row.id or there.current_version != expected_version or there.destroying:
            return False
        self.rows[row.id] = replace(there, pending_version=expected_version + 1)
        return True

    async def settle(self, row: SecretRow, version: int, readers: Sequence[UUID]) -> None:
        self.trace.append("settle")
        if (now := self.rows.get(row.id)) is not None:
            pending = None if now.pending_version is None or now.pending_version <= version else now.pending_version
            if version > now.current_version:
                self._tell(readers, "secret_updated")
            self.rows[row.id] = replace(now, current_version=max(now.current_version, version), pending_version=pending)

    async def note(self, row: SecretRow, readers: Sequence[UUID], reason: str) -> UUID:
        self.trace.append("note")
        self.notes[note := uuid7()] = (list(readers), reason)
        return note

    async def tell(self, note: UUID) -> None:
        self.trace.append("tell")
        if note in self.notes:
            self._tell(*self.notes.pop(note))

    async def untold(self, idle: timedelta) -> list[UUID]:
        self.idle = idle
        return list(self.notes)

    def _tell(self, readers: Sequence[UUID], reason: str) -> None:
        self.told += [(node_id, reason) for node_id in readers]

    async def unsettled(self, project_id: UUID | None, idle: timedelta) -> list[SecretRow]:
        # Nothing ages here; a test may look at what was asked for.
        self.idle = idle
        begun = (row for row in self.rows.values() if row.pending_version or row.destroying)
        return [row for row in begun if project_id in {None, row.project_id}]

    async def page(self, project_id: UUID, after: str, count: int) -> list[SecretRow]:
        rows = (row for row in self.rows.values() if row.project_id == project_id and row.visible and row.name > after)
        return sorted(rows, key=lambda row: row.name)[:count]

    async def begin_destroy(self, row: SecretRow, readers: Sequence[UUID]) -> None:
        self.trace.append("begin_destroy")
        if not self.rows[row.id].destroying:
            self._tell(readers, "secret_destroyed")
        self.rows[row.id] = replace(self.rows[row.id], destroying=True)

    async def remove(self, secret_id: UUID) -> None:
        if secret_id in self.rows and self.rows[secret_id].destroying:
            del self.rows[secret_id]


@dataclass
class FakeVault:
    """Values by secret and version; a destroyed one is None."""

    trace: list[str] = field(default_factory=list)
    values: dict[UUID, list[bytes | None]] = field(default_factory=dict)
    refusal: PlexError | None = None
    before: Callable[[str], None] = lambda _: None
    handed: list[Secret] = field(default_factory=list)

    async def read(self, row: SecretRow, version: int) -> Secret:
        self.trace.append("vault")
        if self.refusal:
            raise self.refusal
        versions = self.values.get(row.id, [])
        value = versions[version - 1] if 1 <= version <= len(versions) else None
        if value is None:
            raise SecretVersionNotFound
        self.handed.append(Secret(value))
        return self.handed[-1]

    async def write(self, row: SecretRow, value: Secret, expected_version: int) -> int:
        self.trace.append("vault_write")
        self.before("write")
        if self.refusal:
            raise self.refusal
        versions = self.values.setdefault(row.id, [])
        if len(versions) != expected_version:
            raise PreconditionFailed
        versions.append(bytes(value.reveal()))
        return len(versions)

    async def current_version(self, row: SecretRow) -> int:
        return len(self.values.get(row.id, []))

    async def destroy_version(self, row: SecretRow, version: int) -> None:
        self.trace.append("vault_destroy_version")
        if self.refusal:
            raise self.refusal
        self.values[row.id][version - 1] = None

    async def destroy(self, row: SecretRow) -> None:
        self.trace.append("vault_destroy")
        if self.refusal:
            raise self.refusal
        self.values.pop(row.id, None)


@dataclass
class FakeRelations:
    """Who is granted what; anything else has a reason."""

    trace: list[str]
    granted: set[tuple[str, str, str]] = field(default_factory=set)
    reason: str = "out_of_scope"
    refusal: PlexError | None = None
    unwritable: PlexError | None = None

    async def check(self, subject: str, permission: str, resource: str) -> str:
        self.trace.append("relation")
        if self.refusal:
            raise self.refusal
        return GRANTED if (subject, permission, resource) in self.granted else self.reason

    def _check(self) -> None:
        if self.unwritable:
            raise self.unwritable

    async def grant_reader(self, secret: SecretRow, node_id: UUID) -> None:
        self.trace.append("grant")
        self._check()
        self.granted.add((f"node:{node_id}", "read", secret.resource))

    async def revoke_reader(self, secret: SecretRow, node_id: UUID) -> None:
        self.trace.append("revoke")
        self._check()
        self.granted.discard((f"node:{node_id}", "read", secret.resource))

    async def readers(self, secret: SecretRow) -> list[UUID]:
        if self.refusal:
            raise self.refusal
        found = [who for who, _, what in self.granted if what == secret.resource]
        return [UUID(who.removeprefix("node:")) for who in found if who.startswith("node:")]

    async def revoke_readers(self, secret: SecretRow) -> None:
        self.trace.append("revoke_readers")
        self.granted = {grant for grant in self.granted if grant[2] != secret.resource}


@dataclass
class FakeFleet:
    """Nodes and projects."""

    nodes: dict[UUID, Place] = field(default_factory=dict)
    projects: dict[UUID, Place] = field(default_factory=dict)

    async def node(self, node_id: UUID) -> Place | None:
        return self.nodes.get(node_id)

    async def project(self, project_id: UUID) -> Place | None:
        return self.projects.get(project_id)


@dataclass
class FakeAudit:
    """The rows."""

    trace: list[str]
    rows: list[Record] = field(default_factory=list)
    refusal: PlexError | None = None

    async def record(self, record: Record) -> int:
        self.trace.append("audit")
        if self.refusal:
            raise self.refusal
        self.rows.append(record)
        return len(self.rows)


class FakeCursors:
    """Cursors that can be read."""

    def seal(self, of: str, caller: str, position: dict[str, Any]) -> str:
        return f"{of}|{caller}|{position['name']}"

    def open(self, of: str, caller: str, cursor: str) -> dict[str, Any]:
        if not cursor.startswith(f"{of}|{caller}|"):
            raise InvalidCursor
        return {"name": cursor.rsplit("|", 1)[1]}


@dataclass
class World:
    """A project with one node, one operator and one granted secret, and the rules on top of fakes."""

    def __post_init__(self) -> None:
        self.trace: list[str] = []
        self.domain, self.project, self.node = uuid7(), uuid7(), uuid7()
        self.place = Place(self.project, self.domain)
        self.row = SecretRow(uuid7(), self.domain, self.project, "db-password", current_version=2)
        self.caller = Principal(
            str(self.node),
            "node",
            "node_key",
            domain_id=str(self.domain),
            node_id=str(self.node),
            project_id=str(self.project),
            nsk_kid=KID,
            secret_limits=SecretLimits(node_burst=3),
            nsk_digest=hashlib.sha256(KEY).hexdigest(),
        )
        self.operator = Principal(str(uuid7()), "user", "session", domain_id=str(self.domain))
        self.limits = FakeLimiter(self.trace)
        self.store = FakeStore(self.trace, {self.row.id: self.row})
        self.vault = FakeVault(self.trace, {self.row.id: [b"one", b"two"]})
        self.relations = FakeRelations(self.trace)
        self.audit = FakeAudit(self.trace)
        self.fleet = FakeFleet({self.node: self.place}, {self.project: self.place})
        resource = f"project:{self.project}"
        self.relations.granted = {
            (f"node:{self.node}", "read", self.row.resource),
            (self.operator.reference, "manage", resource),
            (self.operator.reference, "read", resource),
        }
        self.reads = Secrets(self.limits, self.store, self.relations, self.audit, self.vault, Tally())
        self.admin = SecretsAdmin(self.fleet, self.store, self.relations, self.audit, self.vault, FakeCursors())
