"""What identity's directory rules need from outside; each docstring is the promise."""

import datetime
from collections.abc import Mapping
from typing import Any, Protocol
from uuid import UUID

from libs.access_policy import AccessPolicy
from libs.custody import Secret
from libs.decision import Decision
from services.identity.model import (
    BootstrapToken,
    Candidate,
    Domain,
    Home,
    InForce,
    NodePlace,
    NodeSummary,
    Place,
    Project,
    Registered,
    Resource,
    SessionTerms,
    SigningKey,
    Tuple,
    TupleRow,
    WrappedKey,
)
from services.identity.node_model import Wanted


class Authority(Protocol):
    """Asks who may do what; never answers from memory."""

    async def decide(self, subject: str, permission: str, resource: str) -> Decision:
        """Answer one check; raises AuthzUnavailable for anything but an answer."""

    async def decide_all(self, questions: list[tuple[str, str, str]]) -> list[Decision]:
        """Answer several `(subject, permission, resource)` checks from one snapshot."""

    async def decide_from(self, questions: list[tuple[str, str, str]], addresses: list[str]) -> list[Decision]:
        """Answer checks of several callers from one snapshot, each from its own address."""

    async def unconditional(self, questions: list[tuple[str, str, str]]) -> bool:
        """Whether all of these are granted whatever the time and the caller's address are."""

    async def visible(self, subject: str, permission: str, kind: str, scope: str) -> list[str] | None:
        """Return the ids of a type on which a subject has a permission; None for everything below `scope`."""

    async def deliver(self) -> None:
        """Bring what was committed to SpiceDB now; what fails is brought later."""

    async def revoke(self, rows: list[Tuple]) -> None:
        """Remove tuples that are marked as removing; no check finds them once it has returned."""


class Oracle(Authority, Protocol):
    """Answers people's questions as well; raises LookupTooLarge above `most`."""

    async def decide(
        self, subject: str, permission: str, resource: str, context: Mapping[str, Any] | None = None
    ) -> Decision:
        """Answer one check; `context` is what caveats are asked with beyond the time and the address."""

    async def resources(
        self, subject: str, permission: str, kind: str, context: Mapping[str, Any], most: int
    ) -> list[str]:
        """Return the ids of objects of a type on which a subject has a permission."""

    async def subjects_with(
        self, kind: str, permission: str, resource: str, context: Mapping[str, Any], most: int
    ) -> list[str]:
        """Return the ids of subjects of a type that have a permission on an object."""


class TupleDirectory(Protocol):
    """Roles, and where objects and people are at home; a method is a transaction."""

    async def place(self, resource: str) -> Place | None:
        """Return where an object stands."""

    async def home(self, subject: str) -> Home | None:
        """Return whose a person, service or node is."""

    async def tuple(self, tuple_id: UUID) -> TupleRow | None:
        """Return a role, one that is on its way out among them."""

    async def tuples(
        self, project_id: UUID, after: UUID, limit: int, *, domain: bool, platform: bool
    ) -> list[TupleRow]:
        """Return a project's roles by id, beyond `after`; its Domain's and the platform's when asked for."""

    async def add_tuple(self, wanted: Tuple) -> TupleRow:
        """Add a role; the same one stays, and with another caveat raises RelationTupleConflict."""

    async def replace_tuple(self, tuple_id: UUID, wanted: Tuple) -> TupleRow | None:
        """Put a role in another one's place and under its id; None when that one is gone.

        Raises LastAdministrator, and RelationTupleConflict when the new one is there already.
        """

    async def remove_tuple(self, tuple_id: UUID) -> bool:
        """Mark a role as removing; False when it is gone. Raises LastAdministrator."""


class Domains(Protocol):
    """Which nodes there are."""

    async def registered(self, node_id: UUID) -> bool:
        """Whether there is such a node."""


class SigningKeys(Protocol):
    """The Domains' event keys."""

    async def ensure(self, domain_id: UUID) -> SigningKey:
        """Return the current key, made when there is none."""


class KeyWrapper(Protocol):
    """Wraps node keys under the Domain's derivation of a key that never leaves OpenBao."""

    async def wrap(self, domain_id: UUID, node_id: UUID, kid: str, key: Secret) -> str:
        """Return ciphertext bound to Domain, node and KID."""


class DirectoryStore(Protocol):
    """Domains, projects, resources, tokens; a method is a transaction, and tuples commit with what they are about."""

    async def create_domain(self, domain: Domain, tuples: list[Tuple]) -> None:
        """Raise MeshCidrOverlap or SlugTaken when another Domain has the range or the slug."""

    async def domain(self, domain_id: UUID) -> Domain | None:
        """Return a Domain."""

    async def domains(self, after: UUID, limit: int, among: list[UUID] | None) -> list[Domain]:
        """Return Domains by id, beyond `after`; `among` these, or all."""

    async def update_domain(self, domain_id: UUID, changes: dict[str, Any], at: datetime.datetime) -> Domain | None:
        """Change a Domain; raises MeshCidrOverlap, and SubRangeInvalidatesAllocation for what would be left outside."""

    async def delete_domain(self, domain_id: UUID) -> list[Tuple] | None:
        """Delete an empty Domain and mark its tuples as removing; raises DomainNotEmpty with counts."""

    async def create_project(self, project: Project, tuples: list[Tuple]) -> None:
        """Raise SlugTaken, SubRangeOverlap also for other projects' addresses, NotFound when the Domain is gone."""

    async def project(self, project_id: UUID) -> Project | None:
        """Return a project."""

    async def projects(
        self, domain_id: UUID | None, after: UUID, limit: int, among: list[UUID] | None
    ) -> list[Project]:
        """Return projects by id, beyond `after`; `among` these, or all."""

    async def update_project(self, project_id: UUID, changes: dict[str, Any], at: datetime.datetime) -> Project | None:
        """Change a project; raises SubRangeOverlap, SubRangeInvalidatesAllocation."""

    async def delete_project(self, project_id: UUID) -> list[Tuple] | None:
        """Delete an empty project and mark its tuples as removing; raises ProjectNotEmpty with counts."""

    async def create_resource(self, resource: Resource, tuples: list[Tuple]) -> None:
        """Raise AlreadyExists when the project has a resource of that name, NotFound when the project is gone."""

    async def resource(self, resource_id: UUID) -> Resource | None:
        """Return a resource."""

    async def resources(self, project_id: UUID, after: UUID, limit: int) -> list[Resource]:
        """Return resources by id, beyond `after`."""

    async def delete_resource(self, resource_id: UUID, at: datetime.datetime) -> list[Tuple]:
        """Delete a resource with its node and its keys, and mark all their tuples as removing; returns these."""

    async def nodes(
        self, domain_id: UUID | None, after: UUID, limit: int, among: list[UUID] | None
    ) -> list[NodeSummary]:
        """Return nodes by id, beyond `after`; `among` these, or all."""

    async def place(self, node_id: UUID) -> NodePlace | None:
        """Return where a node stands."""

    async def places(self, node_ids: list[UUID]) -> list[NodePlace]:
        """Return where nodes stand that have a live key, in no order."""

    async def add_token(self, token: BootstrapToken) -> None:
        """Store a token's hash; raises NotFound when the project is gone."""

    async def token(self, project_id: UUID, token_id: UUID) -> BootstrapToken | None:
        """Return what is known of a token."""

    async def tokens(self, project_id: UUID, after: UUID, limit: int) -> list[BootstrapToken]:
        """Return tokens, newest first, older than `after`; NIL begins."""

    async def revoke_token(self, project_id: UUID, token_id: UUID, at: datetime.datetime) -> bool | None:
        """Revoke an unused token; False when it was used or revoked, None when there is none."""


class EnrolmentStore(Protocol):
    """What registration and heartbeats write."""

    async def find_token(self, selector: str) -> BootstrapToken | None:
        """Return a token by its selector."""

    async def domain_of(self, project_id: UUID) -> UUID | None:
        """Return the Domain of a project."""

    async def find_resource(self, project_id: UUID, handle: str) -> Resource | None:
        """Return a project's resource by id or by its name elsewhere."""

    async def node_of(self, resource: Resource, public_key: bytes) -> tuple[UUID | None, bool, bool]:
        """Return the node of a resource, whether it has a key that counts, and whether another has the public key."""

    async def register(
        self, token: BootstrapToken, resource: Resource, node: Candidate, at: datetime.datetime
    ) -> Registered:
        """Consume the token and create node, address, key, tuples and outbox rows in one transaction, or nothing.

        A node that is there without a key keeps its id, address and relations. Raises the contract's refusals when
        somebody else was first, AllocatorContention when it was the same request, and PublicKeyInvalid when another
        node of the Domain has the public key.
        """

    async def replace_key(
        self, token: BootstrapToken, resource: Resource, key: WrappedKey, at: datetime.datetime
    ) -> Registered:
        """Give the token's node a fresh key; the earlier one is revoked in the same transaction.

        Raises NonceCollision when the node is another resource's, and TokenConsumed when its keys were revoked since.
        """

    async def heartbeat(
        self, node_id: UUID, checksum: bytes, version: str, nat_summary: str, at: datetime.datetime
    ) -> Wanted | None:
        """Take a sign of life; returns what the node should do, None when there is no such node."""


class AccessPolicyStore(Protocol):
    """Access policies, and what access asks about sessions; nothing here is answered from memory."""

    async def access_policy(self, domain_id: UUID) -> AccessPolicy | None:
        """Return a Domain's own policy."""

    async def in_force(self, domain_id: UUID, identity_id: UUID) -> InForce:
        """Return what holds in a Domain, and for a person's own binding."""

    async def put_access_policy(
        self, domain_id: UUID, before: AccessPolicy, policy: AccessPolicy, at: datetime.datetime
    ) -> None:
        """Put a policy for the one that was decided on.

        Raises Stale when another holds by now, and NotFound when there is no such Domain.
        """

    async def session_terms(self, asked: list[tuple[UUID, UUID]]) -> list[SessionTerms | None]:
        """Return where resources stand and what sessions there ask of an identity, as it is now; None without one."""

    async def ended_sign_ins(self, sign_in_ids: list[UUID]) -> list[UUID]:
        """Return which of these web sessions and access tokens were ended; running out ends none."""
