"""What identity knows of Domains and what is in them; keys and tokens only as hashes and ciphertext."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from libs.access_policy import AccessPolicy
from libs.step_up import Login


@dataclass(frozen=True)
class Caller:
    """Who asks for something, as `<kind>:<id>` and its parts, with what kind of credential, and of which Domain."""

    kind: str
    subject: str
    credential: str = ""
    domain_id: str = ""
    login: Login = field(default_factory=Login)

    @property
    def reference(self) -> str:
        """The caller as relations name it."""
        return f"{self.kind}:{self.subject}"


@dataclass(frozen=True)
class Reachability:
    """When a silent node counts as stale or unreachable, in seconds."""

    heartbeat_interval_s: float = 30.0
    stale_after_s: float = 90.0
    unreachable_after_s: float = 300.0

    def valid(self) -> bool:
        """Whether each bound is beyond the one before it."""
        return 0 < self.heartbeat_interval_s < self.stale_after_s < self.unreachable_after_s


@dataclass(frozen=True)
class Domain:
    """A tenant."""

    id: UUID
    name: str
    slug: str
    description: str
    region: str
    mesh_cidr: str
    reachability: Reachability
    created_at: datetime.datetime
    updated_at: datetime.datetime


@dataclass(frozen=True)
class Project:
    """A project in a Domain."""

    id: UUID
    domain_id: UUID
    name: str
    slug: str
    description: str
    sub_range_cidr: str
    created_at: datetime.datetime
    updated_at: datetime.datetime


@dataclass(frozen=True)
class Resource:
    """An adopted resource."""

    id: UUID
    project_id: UUID
    domain_id: UUID
    kind: str
    external_ref: str
    origin: str
    created_at: datetime.datetime
    updated_at: datetime.datetime


@dataclass(frozen=True)
class NodeSummary:
    """A node in a list."""

    id: UUID
    name: str
    domain_id: UUID
    kind: str
    created_at: datetime.datetime


@dataclass(frozen=True)
class NodePlace:
    """Where a node stands; `old_kid` is that of a superseded key which still counts, or empty."""

    node_id: UUID
    project_id: UUID
    domain_id: UUID
    kid: str
    old_kid: str = ""


@dataclass(frozen=True)
class InForce:
    """A Domain's policy, and the values of `acr` that bindings ask for: the asker's own, and each of the Domain's."""

    policy: AccessPolicy
    own_acr: tuple[str, ...] = ()
    bindings_acr: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class SessionTerms:
    """Where a resource stands, and what its privileged sessions ask for; `node_id` is None while none registered."""

    project_id: UUID
    domain_id: UUID
    node_id: UUID | None
    policy: AccessPolicy
    binding_acr: tuple[str, ...]


@dataclass(frozen=True)
class BootstrapToken:
    """What is known of a bootstrap token; its secret part only as a hash."""

    id: UUID
    project_id: UUID
    kind: str
    env_prefix: str
    selector: str
    digest: bytes
    issued_by: UUID
    issued_at: datetime.datetime
    expires_at: datetime.datetime
    consumed_at: datetime.datetime | None = None
    revoked_at: datetime.datetime | None = None
    nonce: UUID | None = None
    public_key: bytes | None = None
    node_id: UUID | None = None


@dataclass(frozen=True)
class Peer:
    """A node as its peers see it."""

    node_id: UUID
    mesh_ip: str
    public_key: bytes
    fallback_endpoint: str = ""


@dataclass(frozen=True)
class WrappedKey:
    """A node key at rest: ciphertext and fingerprint, never the key."""

    kid: str
    wrapped: str
    fingerprint: bytes


@dataclass(frozen=True)
class Caveat:
    """What a relation depends on: a condition of the schema, and the part of its context that is fixed."""

    name: str
    context: Mapping[str, Any]


@dataclass(frozen=True)
class Tuple:
    """A relation: `resource#relation@subject`, each as `<type>:<id>`; its caveat does not make it another one."""

    resource: str
    relation: str
    subject: str
    caveat: Caveat | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.resource}#{self.relation}@{self.subject}"


@dataclass(frozen=True)
class TupleRow:
    """A tuple as it is stored."""

    id: UUID
    row: Tuple
    created_at: datetime.datetime


@dataclass(frozen=True)
class Place:
    """Where an object stands; a Domain is in no project, and the platform in no Domain."""

    project_id: UUID | None
    domain_id: UUID | None


@dataclass(frozen=True)
class Home:
    """Whose somebody is; without a Domain, the platform's."""

    domain_id: UUID | None


@dataclass(frozen=True)
class SigningKey:
    """Public half of the key that signs a Domain's events."""

    kid: str
    public_key: bytes


@dataclass(frozen=True)
class Candidate:
    """A node to be, with its key already wrapped."""

    node_id: UUID
    public_key: bytes
    nonce: UUID
    key: WrappedKey


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A Domain's nodes at one moment; those that registered together have the same one."""

    nodes: list[Peer]


@dataclass(frozen=True)
class Registered:
    """A node that is registered; it is in the snapshot too."""

    node_id: UUID
    mesh_ip: str
    snapshot: Snapshot
    mesh_cidr: str

    @property
    def peers(self) -> list[Peer]:
        """The Domain's other nodes."""
        return [peer for peer in self.snapshot.nodes if peer.node_id != self.node_id]
