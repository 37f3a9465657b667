"""One fake a port of the directory and enrolment rules, in memory."""

import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from libs.access_policy import AccessPolicy
from libs.clock import FixedClock
from libs.counted import Counted
from libs.cursor import Cursors
from libs.custody import Secret
from libs.decision import Decision, Record
from libs.errors import PlexError, Stale, TokenConsumed
from libs.ids import uuid7
from libs.principal import Principal
from libs.step_up import Login
from services.identity.authority import Gate
from services.identity.enrolment import Enrolment
from services.identity.model import (
    BootstrapToken,
    Caller,
    Candidate,
    Domain,
    InForce,
    NodePlace,
    NodeSummary,
    Project,
    Reachability,
    Registered,
    Resource,
    SessionTerms,
    SigningKey,
    Snapshot,
    Tuple,
    WrappedKey,
)
from services.identity.node_model import Wanted
from services.identity.schema import PLATFORM
from services.identity.service import Identity

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
MESH_IP, MESH_CIDR = "10.1.0.1", "10.1.0.0/16"


def signed_in(domain_id: str = "", **login: Any) -> Caller:
    """Return somebody who has just signed in."""
    known: dict[str, Any] = {"believed": True, "auth_time": int(time.time())}
    return Caller("user", str(uuid7()), "session", domain_id, Login(**(known | login)))


@dataclass
class FakeAuthority:
    """Who is granted what; anything else has a reason. Notes what happens in `trace`."""

    trace: list[str]
    granted: set[tuple[str, str, str]] = field(default_factory=set)
    conditional: set[tuple[str, str, str]] = field(default_factory=set)
    reason: str = "out_of_scope"
    refusal: PlexError | None = None
    revoked: list[Tuple] = field(default_factory=list)

    async def decide(self, subject: str, permission: str, resource: str) -> Decision:
        self.trace.append("relation")
        if self.refusal:
            raise self.refusal
        return Decision("granted" if (subject, permission, resource) in self.granted else self.reason)

    async def decide_all(self, questions: list[tuple[str, str, str]]) -> list[Decision]:
        return [await self.decide(*question) for question in questions]

    async def decide_from(self, questions: list[tuple[str, str, str]], addresses: list[str]) -> list[Decision]:
        return await self.decide_all(questions)

    async def unconditional(self, questions: list[tuple[str, str, str]]) -> bool:
        return not self.conditional.intersection(questions)

    async def visible(self, subject: str, permission: str, kind: str, scope: str) -> list[str] | None:
        if (subject, permission, scope) in self.granted:
            return None
        return [
            resource.partition(":")[2]
            for who, name, resource in self.granted
            if (who, name) == (subject, permission) and resource.startswith(f"{kind}:")
        ]

    async def deliver(self) -> None:
        self.trace.append("deliver")

    async def revoke(self, rows: list[Tuple]) -> None:
        self.trace.append("revoke")
        self.revoked += rows


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


@dataclass
class FakeSigningKeys:
    """A key a Domain."""

    trace: list[str]
    refusal: PlexError | None = None

    async def ensure(self, domain_id: UUID) -> SigningKey:
        self.trace.append("signing_key")
        if self.refusal:
            raise self.refusal
        return SigningKey(f"evk_{domain_id.hex}", domain_id.bytes * 2)


@dataclass
class FakeWrapper:
    """Ciphertext that tells what it is bound to, and remembers the key for the test alone."""

    trace: list[str]
    keys: dict[str, bytes] = field(default_factory=dict)
    refusal: PlexError | None = None

    async def wrap(self, domain_id: UUID, node_id: UUID, kid: str, key: Secret) -> str:
        self.trace.append("wrap")
        if self.refusal:
            raise self.refusal
        text = f"vault:v1:{domain_id}/{node_id}/{kid}"
        self.keys[text] = bytes(key.reveal())
        return text


@dataclass
class FakeStore:
    """The directory."""

    trace: list[str]
    domain_rows: dict[UUID, Domain] = field(default_factory=dict)
    project_rows: dict[UUID, Project] = field(default_factory=dict)
    resource_rows: dict[UUID, Resource] = field(default_factory=dict)
    token_rows: dict[UUID, BootstrapToken] = field(default_factory=dict)
    place_rows: dict[UUID, NodePlace] = field(default_factory=dict)
    tuples: list[Tuple] = field(default_factory=list)
    gone: set[UUID] = field(default_factory=set)

    async def registered(self, node_id: UUID) -> bool:
        return node_id not in self.gone

    async def create_domain(self, domain: Domain, tuples: list[Tuple]) -> None:
        self._write("create_domain", tuples)
        self.domain_rows[domain.id] = domain

    async def domain(self, domain_id: UUID) -> Domain | None:
        return self.domain_rows.get(domain_id)

    async def domains(self, after: UUID, limit: int, among: list[UUID] | None) -> list[Domain]:
        rows = (row for row in self.domain_rows.values() if row.id > after and (among is None or row.id in among))
        return sorted(rows, key=lambda row: row.id)[:limit]

    async def update_domain(self, domain_id: UUID, changes: dict[str, Any], at: datetime) -> Domain | None:
        self._write("update_domain")
        self.domain_rows[domain_id] = replace(self.domain_rows[domain_id], **changes, updated_at=at)
        return self.domain_rows[domain_id]

    async def delete_domain(self, domain_id: UUID) -> list[Tuple] | None:
        self._write("delete_domain")
        return self._gone(f"domain:{domain_id}") if self.domain_rows.pop(domain_id, None) else None

    async def create_project(self, project: Project, tuples: list[Tuple]) -> None:
        self._write("create_project", tuples)
        self.project_rows[project.id] = project

    async def project(self, project_id: UUID) -> Project | None:
        return self.project_rows.get(project_id)

    async def projects(
        self, domain_id: UUID | None, after: UUID, limit: int, among: list[UUID] | None
    ) -> list[Project]:
        rows = (row for row in self.project_rows.values() if row.id > after and domain_id in {None, row.domain_id})
        rows = (row for row in rows if among is None or row.id in among)
        return sorted(rows, key=lambda row: row.id)[:limit]

    async def update_project(self, project_id: UUID, changes: dict[str, Any], at: datetime) -> Project | None:
        self._write("update_project")
        self.project_rows[project_id] = replace(self.project_rows[project_id], **changes, updated_at=at)
        return self.project_rows[project_id]

    async def delete_project(self, project_id: UUID) -> list[Tuple] | None:
        self._write("delete_project")
        return self._gone(f"project:{project_id}") if self.project_rows.pop(project_id, None) else None

    async def create_resource(self, resource: Resource, tuples: list[Tuple]) -> None:
        self._write("create_resource", tuples)
        self.resource_rows[resource.id] = resource

    async def resource(self, resource_id: UUID) -> Resource | None:
        return self.resource_rows.get(resource_id)

    async def resources(self, project_id: UUID, after: UUID, limit: int) -> list[Resource]:
        rows = (row for row in self.resource_rows.values() if row.project_id == project_id and row.id > after)
        return sorted(rows, key=lambda row: row.id)[:limit]

    async def delete_resource(self, resource_id: UUID, at: datetime) -> list[Tuple]:
        self._write("delete_resource")
        self.resource_rows.pop(resource_id, None)
        return self._gone(f"resource:{resource_id}")

    async def nodes(
        self, domain_id: UUID | None, after: UUID, limit: int, among: list[UUID] | None
    ) -> list[NodeSummary]:
        return []

    async def place(self, node_id: UUID) -> NodePlace | None:
        return next(iter(await self.places([node_id])), None)

    async def places(self, node_ids: list[UUID]) -> list[NodePlace]:
        return [self.place_rows[node_id] for node_id in node_ids if node_id in self.place_rows]

    async def add_token(self, token: BootstrapToken) -> None:
        self._write("add_token")
        self.token_rows[token.id] = token

    async def token(self, project_id: UUID, token_id: UUID) -> BootstrapToken | None:
        return self.token_rows.get(token_id)

    async def tokens(self, project_id: UUID, after: UUID, limit: int) -> list[BootstrapToken]:
        return sorted(self.token_rows.values(), key=lambda row: row.id, reverse=True)[:limit]

    async def revoke_token(self, project_id: UUID, token_id: UUID, at: datetime) -> bool | None:
        self._write("revoke_token")
        token = self.token_rows.get(token_id)
        if token is None or token.consumed_at or token.revoked_at:
            return None if token is None else False
        self.token_rows[token_id] = replace(token, revoked_at=at)
        return True

    def _write(self, what: str, tuples: list[Tuple] | None = None) -> None:
        self.trace.append(what)
        self.tuples += tuples or []

    def _gone(self, name: str) -> list[Tuple]:
        gone = [row for row in self.tuples if name in {row.resource, row.subject}]
        self.tuples = [row for row in self.tuples if row not in gone]
        return gone


@dataclass
class FakeEnrolmentStore:
    """Registration on the directory's rows."""

    directory: FakeStore
    trace: list[str]
    refusal: PlexError | None = None
    nodes: dict[UUID, Candidate] = field(default_factory=dict)
    keys: list[WrappedKey] = field(default_factory=list)
    heartbeats: list[tuple[Any, ...]] = field(default_factory=list)
    pending: set[UUID] = field(default_factory=set)
    of_resources: dict[UUID, tuple[UUID, bool]] = field(default_factory=dict)

    async def find_token(self, selector: str) -> BootstrapToken | None:
        return next((row for row in self.directory.token_rows.values() if row.selector == selector), None)

    async def domain_of(self, project_id: UUID) -> UUID | None:
        project = self.directory.project_rows.get(project_id)
        return project.domain_id if project else None

    async def find_resource(self, project_id: UUID, handle: str) -> Resource | None:
        rows = (row for row in self.directory.resource_rows.values() if row.project_id == project_id)
        return next((row for row in rows if handle in {str(row.id), row.external_ref}), None)

    async def node_of(self, resource: Resource, public_key: bytes) -> tuple[UUID | None, bool, bool]:
        node_id, keyed = self.of_resources.get(resource.id, (None, False))
        return node_id, keyed, any(one != node_id and row.public_key == public_key for one, row in self.nodes.items())

    async def register(self, token: BootstrapToken, resource: Resource, node: Candidate, at: datetime) -> Registered:
        self.trace.append("register")
        if self.refusal:
            raise self.refusal
        current = self.directory.token_rows[token.id]
        if current.consumed_at:
            raise TokenConsumed
        self.directory.token_rows[token.id] = replace(
            current, consumed_at=at, nonce=node.nonce, public_key=node.public_key, node_id=node.node_id
        )
        self.nodes[node.node_id] = node
        self.of_resources[resource.id] = (node.node_id, True)
        self.keys.append(node.key)
        return Registered(node.node_id, MESH_IP, Snapshot([]), MESH_CIDR)

    async def replace_key(self, token: BootstrapToken, resource: Resource, key: WrappedKey, at: datetime) -> Registered:
        self.trace.append("replace_key")
        assert token.node_id is not None
        self.keys.append(key)
        return Registered(token.node_id, MESH_IP, Snapshot([]), MESH_CIDR)

    async def heartbeat(
        self, node_id: UUID, checksum: bytes, version: str, nat_summary: str, at: datetime
    ) -> Wanted | None:
        self.heartbeats.append((node_id, checksum, version, nat_summary, at))
        return Wanted(node_id in self.pending, reconcile=False) if node_id in self.nodes else None


class World:
    """A Domain with a project and a resource, its owner, and the rules on top of fakes."""

    def __init__(self) -> None:
        self.trace: list[str] = []
        self.clock = FixedClock(NOW)
        self.owner, self.stranger = signed_in(), signed_in()
        self.domain = Domain(uuid7(), "Acme", "acme", "", "", MESH_CIDR, Reachability(), NOW, NOW)
        self.project = Project(uuid7(), self.domain.id, "Web", "web", "", "", NOW, NOW)
        self.resource = Resource(uuid7(), self.project.id, self.domain.id, "server", "edge-a", "adopted", NOW, NOW)
        self.store = FakeStore(self.trace)
        self.store.domain_rows[self.domain.id] = self.domain
        self.store.project_rows[self.project.id] = self.project
        self.store.resource_rows[self.resource.id] = self.resource
        self.authority, self.audit = FakeAuthority(self.trace), FakeAudit(self.trace)
        for permission in ("manage", "read", "deploy", "observe"):
            for target in (f"domain:{self.domain.id}", f"project:{self.project.id}", f"resource:{self.resource.id}"):
                self.authority.granted.add((self.owner.reference, permission, target))
        self.authority.granted.add((self.owner.reference, "manage", PLATFORM))
        self.keys, self.wrapper = FakeSigningKeys(self.trace), FakeWrapper(self.trace)
        gate = Gate(self.authority, Counted(self.audit, self.clock), self.store)
        cursors = Cursors(Secret(b"k" * 32))
        self.identity = Identity(self.store, gate, self.keys, cursors, self.clock)
        self.enrolled = FakeEnrolmentStore(self.store, self.trace)
        self.enrolment = Enrolment(self.enrolled, gate, self.keys, self.wrapper, self.clock)

    async def token(self, kind: str = "node", ttl_s: float = 900) -> str:
        """Issue a bootstrap token and forget what that left in the trace."""
        _, text = await self.identity.issue_token(self.owner, self.project.id, kind, "dev", ttl_s)
        self.trace.clear()
        self.audit.rows.clear()
        return text


def node_principal(node_id: UUID, domain_id: UUID) -> Principal:
    """A node as its bearer was verified."""
    return Principal(str(node_id), "node", "node_key", domain_id=str(domain_id), node_id=str(node_id))


@dataclass
class FakePolicyStore:
    """Access policies, and what the binding of whoever asks asks for."""

    trace: list[str]
    policies: dict[UUID, AccessPolicy] = field(default_factory=dict)
    binding_acr: tuple[str, ...] = ()
    bindings_acr: tuple[tuple[str, ...], ...] = ()

    async def access_policy(self, domain_id: UUID) -> AccessPolicy | None:
        return self.policies.get(domain_id)

    async def in_force(self, domain_id: UUID, identity_id: UUID) -> InForce:
        bindings = self.bindings_acr or ((self.binding_acr,) if self.binding_acr else ())
        return InForce(self.policies.get(domain_id, AccessPolicy()), self.binding_acr, bindings)

    async def put_access_policy(
        self, domain_id: UUID, before: AccessPolicy, policy: AccessPolicy, at: datetime
    ) -> None:
        if self.policies.get(domain_id, AccessPolicy()) != before:
            raise Stale
        self.trace.append("put")
        self.policies[domain_id] = policy

    async def session_terms(self, asked: list[tuple[UUID, UUID]]) -> list[SessionTerms | None]:
        raise NotImplementedError

    async def ended_sign_ins(self, sign_in_ids: list[UUID]) -> list[UUID]:
        raise NotImplementedError
