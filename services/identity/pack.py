"""Between the model and protobuf."""

import datetime
import functools
from typing import Any
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from libs.rpc.context import current_principal
from plexsphere.identity.v1 import directory_pb2, enrolment_pb2
from services.identity.authority import caller_of
from services.identity.model import (
    BootstrapToken,
    Caller,
    Domain,
    NodeSummary,
    Peer,
    Project,
    Reachability,
    Resource,
    Snapshot,
)
from services.identity.node_model import Health
from services.identity.sign_in_model import Binding

STATES = {
    "healthy": enrolment_pb2.REACHABILITY_STATE_HEALTHY,
    "stale": enrolment_pb2.REACHABILITY_STATE_STALE,
    "unreachable": enrolment_pb2.REACHABILITY_STATE_UNREACHABLE,
}


def caller() -> Caller:
    """Return who is behind the call."""
    return caller_of(current_principal())


def optional_id(text: str) -> UUID | None:
    """Return an id, or nothing for an empty text."""
    return UUID(text) if text else None


def timestamp(at: datetime.datetime | None) -> Timestamp | None:
    """Return a time as protobuf has it."""
    if at is None:
        return None
    value = Timestamp()
    value.FromDatetime(at)
    return value


def duration(seconds: float) -> Duration:
    """Return seconds as protobuf has them."""
    value = Duration()
    value.FromTimedelta(datetime.timedelta(seconds=seconds))
    return value


def reachability(policy: enrolment_pb2.ReachabilityPolicy) -> Reachability:
    """Return a policy; a part that is absent counts as zero, which no policy may have."""
    return Reachability(
        policy.heartbeat_interval.ToTimedelta().total_seconds(),
        policy.stale_after.ToTimedelta().total_seconds(),
        policy.unreachable_after.ToTimedelta().total_seconds(),
    )


def domain(row: Domain) -> directory_pb2.Domain:
    """Pack a Domain."""
    policy = row.reachability
    return directory_pb2.Domain(
        id=str(row.id), name=row.name, slug=row.slug, description=row.description, region=row.region,
        mesh_cidr=row.mesh_cidr,
        reachability=enrolment_pb2.ReachabilityPolicy(
            heartbeat_interval=duration(policy.heartbeat_interval_s),
            stale_after=duration(policy.stale_after_s),
            unreachable_after=duration(policy.unreachable_after_s),
        ),
        created_at=timestamp(row.created_at), updated_at=timestamp(row.updated_at),
    )  # fmt: skip


def project(row: Project) -> directory_pb2.Project:
    """Pack a project."""
    return directory_pb2.Project(
        id=str(row.id), domain_id=str(row.domain_id), name=row.name, slug=row.slug, description=row.description,
        sub_range_cidr=row.sub_range_cidr, created_at=timestamp(row.created_at), updated_at=timestamp(row.updated_at),
    )  # fmt: skip


def resource(row: Resource) -> directory_pb2.Resource:
    """Pack a resource."""
    return directory_pb2.Resource(
        id=str(row.id), project_id=str(row.project_id), domain_id=str(row.domain_id), kind=row.kind,
        external_ref=row.external_ref, origin=row.origin, created_at=timestamp(row.created_at),
        updated_at=timestamp(row.updated_at),
    )  # fmt: skip


def node(row: NodeSummary) -> directory_pb2.NodeSummary:
    """Pack a node in a list."""
    return directory_pb2.NodeSummary(
        id=str(row.id), name=row.name, domain_id=str(row.domain_id), kind=row.kind, created_at=timestamp(row.created_at)
    )


def peer(row: Peer) -> enrolment_pb2.Peer:
    """Pack a node as its peers see it."""
    return enrolment_pb2.Peer(
        node_id=str(row.node_id), mesh_ip=row.mesh_ip, public_key=row.public_key,
        fallback_endpoint=row.fallback_endpoint,
    )  # fmt: skip


@functools.lru_cache(maxsize=8)
def snapshot(one: Snapshot) -> dict[UUID, bytes]:
    """Pack each node of a snapshot for its peers, as a part of a registration's answer.

    Once for all that registered together: a message's bytes after another's are both merged (protobuf's encoding).
    """
    return {row.node_id: enrolment_pb2.RegisterResponse(peers=[peer(row)]).SerializeToString() for row in one.nodes}


def health(row: Health) -> enrolment_pb2.Reachability:
    """Pack whether a node is heard of."""
    return enrolment_pb2.Reachability(
        state=STATES[row.state], last_heartbeat_at=timestamp(row.last_heartbeat_at),
        changed_at=timestamp(row.changed_at),
    )  # fmt: skip


def token(row: BootstrapToken) -> directory_pb2.BootstrapToken:
    """Pack what is known of a bootstrap token."""
    return directory_pb2.BootstrapToken(
        id=str(row.id), project_id=str(row.project_id), kind=row.kind, env_prefix=row.env_prefix,
        issued_at=timestamp(row.issued_at), expires_at=timestamp(row.expires_at),
        consumed_at=timestamp(row.consumed_at), revoked_at=timestamp(row.revoked_at), issued_by=str(row.issued_by),
    )  # fmt: skip


def binding(row: Binding) -> directory_pb2.IdpBinding:
    """Pack a binding."""
    return directory_pb2.IdpBinding(
        id=str(row.id), domain_id=str(row.domain_id or ""), issuer=row.issuer, client_id=row.client_id,
        client_secret_ref=row.client_secret_ref, discovery_url=row.discovery_url, claim_mappings=row.claim_mappings,
        required_acr=row.required_acr, required_amr=row.required_amr, jit_policy=row.jit_policy, status=row.status,
        alias=row.alias, primary=row.primary, created_at=timestamp(row.created_at),
        updated_at=timestamp(row.updated_at), scopes=row.scopes, accepted_amr=row.accepted_amr,
        max_auth_age_s=row.max_auth_age_s, leeway_s=row.leeway_s, algorithms=row.algorithms,
    )  # fmt: skip


def binding_changes(request: Any) -> dict[str, Any]:
    """Unpack what a patch changes."""
    plain = ("discovery_url", "jit_policy", "alias", "primary", "max_auth_age_s", "leeway_s")
    texts = ("required_acr", "required_amr", "scopes", "accepted_amr", "algorithms")
    changes = {name: getattr(request, name) for name in plain if request.HasField(name)}
    changes |= {name: tuple(getattr(request, name).values) for name in texts if request.HasField(name)}
    if request.HasField("claim_mappings"):
        changes["claim_mappings"] = dict(request.claim_mappings.values)
    return changes
