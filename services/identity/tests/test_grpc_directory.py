"""What the wire gets from the directory, enrolment, relations and the fleet; and that every RPC has a rule."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import protovalidate
import pytest
from google.protobuf.duration_pb2 import Duration

from libs.clock import FixedClock
from libs.errors import AuthzUnavailable, NotFound, PlexError
from libs.ids import uuid7
from libs.principal import Principal
from libs.rpc import context
from libs.rpc.guard import REFLECTION
from libs.rpc.server import HEALTH
from libs.settings import load
from plexsphere.identity.v1 import (
    access_policy_pb2,
    authorization_pb2,
    enrolment_pb2,
    relations_pb2,
    sign_in_pb2,
    tokens_pb2,
)
from plexsphere.identity.v1 import directory_pb2 as pb
from plexsphere.identity.v1.enrolment_pb2 import ReachabilityPolicy
from services.identity.grpc_access import AccessPolicyApi, SessionTermsApi
from services.identity.grpc_authorization import AuthorizationApi
from services.identity.grpc_directory import DirectoryApi
from services.identity.grpc_fleet import EnrolmentApi, FleetApi, RelationsAdminApi, RelationsApi
from services.identity.grpc_nodes import NodeAdminApi, NodeApi
from services.identity.model import NodePlace, Tuple
from services.identity.relations import Feed, Question, Relations, Revocation
from services.identity.settings import IdentitySettings
from services.identity.tests.fakes import MESH_CIDR, MESH_IP, NOW, World, node_principal
from services.identity.tests.test_enrolment import CHECKSUM, KEY

pytestmark = pytest.mark.unit

SHIPPED = Path(__file__).resolve().parents[3] / "deploy/config/identity.toml"
FILES = (pb, access_policy_pb2, authorization_pb2, enrolment_pb2, relations_pb2, sign_in_pb2, tokens_pb2)
NO_CONTEXT: Any = None
UNUSED: Any = None


class Tuples:
    """Tuples of which some are on their way."""

    def __init__(self, *on_their_way: Tuple) -> None:
        self._on_their_way = set(on_their_way)

    async def held(self, rows: list[Tuple]) -> set[Tuple]:
        return self._on_their_way.intersection(rows)


DELIVERED: Any = Tuples()


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    with context.bind(context.Call(principal=Principal(made.owner.subject, "user", "session"))):
        yield made


def api(world: World) -> DirectoryApi:
    return DirectoryApi(world.identity, UNUSED)


def test_the_shipped_settings_name_exactly_the_services_that_exist() -> None:
    settings = load(SHIPPED, IdentitySettings)
    served = {service.full_name for file in FILES for service in file.DESCRIPTOR.services_by_name.values()}
    assert set(settings.callers) == served | {HEALTH, REFLECTION}


def test_every_rpc_is_overridden() -> None:
    apis = {
        "DirectoryService": DirectoryApi,
        "EnrolmentService": EnrolmentApi,
        "NodeService": NodeApi,
        "NodeAdminService": NodeAdminApi,
        "RelationsService": RelationsApi,
        "RelationsAdminService": RelationsAdminApi,
        "AuthorizationService": AuthorizationApi,
        "FleetService": FleetApi,
        "AccessPolicyService": AccessPolicyApi,
        "SessionTermsService": SessionTermsApi,
    }
    services = {name: service for file in FILES for name, service in file.DESCRIPTOR.services_by_name.items()}
    missing = [
        f"{name}.{method.name}"
        for name, kind in apis.items()
        for method in services[name].methods
        if method.name not in vars(kind)
    ]
    assert missing == []


async def test_a_domain_there_and_back(world: World) -> None:
    request = pb.CreateDomainRequest(name="B", slug="b", region="eu-1", mesh_cidr="10.2.0.0/16")
    created = (await api(world).CreateDomain(request, NO_CONTEXT)).domain
    assert (created.name, created.slug, created.region, created.mesh_cidr) == ("B", "b", "eu-1", "10.2.0.0/16")
    # The platform's policy, where the caller states none.
    policy = created.reachability
    seconds = [policy.heartbeat_interval.seconds, policy.stale_after.seconds, policy.unreachable_after.seconds]
    assert seconds == [30, 90, 300]
    world.authority.granted.add((world.owner.reference, "manage", f"domain:{created.id}"))
    changed = await api(world).UpdateDomain(pb.UpdateDomainRequest(domain_id=created.id, description=""), NO_CONTEXT)
    assert changed.domain.description == ""
    partly = pb.UpdateDomainRequest(
        domain_id=created.id, reachability=ReachabilityPolicy(stale_after=Duration(seconds=9))
    )
    for patch, code in [
        (pb.UpdateDomainRequest(domain_id=created.id), "empty_patch"),
        (partly, "invalid_reachability_policy"),
    ]:
        with pytest.raises(PlexError) as raised:
            await api(world).UpdateDomain(patch, NO_CONTEXT)
        assert raised.value.code == code


async def test_a_range_is_given_back_by_its_own_field(world: World) -> None:
    request = pb.CreateProjectRequest(domain_id=str(world.domain.id), name="S", slug="s", sub_range_cidr="10.1.4.0/24")
    project = (await api(world).CreateProject(request, NO_CONTEXT)).project
    assert project.sub_range_cidr == "10.1.4.0/24"
    world.authority.granted.add((world.owner.reference, "manage", f"project:{project.id}"))
    release = pb.UpdateProjectRequest(project_id=project.id, release_sub_range=True)
    assert (await api(world).UpdateProject(release, NO_CONTEXT)).project.sub_range_cidr == ""


async def test_the_text_of_a_token_is_in_the_answer_to_its_issue_only(world: World) -> None:
    project_id = str(world.project.id)
    wanted = pb.IssueBootstrapTokenRequest(project_id=project_id, kind="node", env_prefix="dev", ttl_seconds=300)
    issued = await api(world).IssueBootstrapToken(wanted, NO_CONTEXT)
    assert issued.metadata.issued_by == world.owner.subject
    secret = issued.token.rsplit("_", 1)[1]
    get = pb.GetBootstrapTokenRequest(project_id=project_id, token_id=issued.metadata.id)
    found = await api(world).GetBootstrapToken(get, NO_CONTEXT)
    assert found.metadata == issued.metadata
    assert not found.metadata.HasField("consumed_at")
    listed = await api(world).ListBootstrapTokens(
        pb.ListBootstrapTokensRequest(project_id=project_id, limit=10), NO_CONTEXT
    )
    assert [row.id for row in listed.tokens] == [issued.metadata.id]
    assert secret not in f"{found}{listed}"


async def test_a_registration_and_its_heartbeat(world: World) -> None:
    request = enrolment_pb2.RegisterRequest(
        project_id=str(world.project.id),
        resource_handle="edge-a",
        bootstrap_token=await world.token(),
        nonce=str(uuid4()),
        public_key=KEY,
    )
    answer = await EnrolmentApi(world.enrolment).Register(request, NO_CONTEXT)
    assert (answer.mesh_ip, answer.domain_mesh_cidr, len(answer.nsk)) == (MESH_IP, MESH_CIDR, 32)
    assert answer.signing_key_id.startswith("evk_")
    beat = enrolment_pb2.HeartbeatRequest(node_id=answer.node_id, binary_checksum=CHECKSUM, binary_version="1")
    beat.client_now.FromDatetime(NOW)
    node_id = next(iter(world.enrolled.nodes))
    nodes = NodeApi(world.enrolment, UNUSED, UNUSED, UNUSED, UNUSED)
    with context.bind(context.Call(principal=node_principal(node_id, world.domain.id))):
        taken = await nodes.Heartbeat(beat, NO_CONTEXT)
        world.enrolled.pending.add(node_id)
        asked = await nodes.Heartbeat(beat, NO_CONTEXT)
    assert (taken.accepted_at, taken.reconcile, taken.rotate_keys) == (beat.client_now, False, False)
    assert asked.rotate_keys


class FakeChecker:
    """SpiceDB that knows what it was told."""

    def __init__(self, *known: tuple[str, str, str]) -> None:
        self.known = set(known)

    async def check(self, questions: list[Question]) -> list[bool]:
        return [question[:3] in self.known for question in questions]


async def test_permissions_have_hyphens_on_the_wire_and_every_question_its_verdict() -> None:
    node, other = f"node:{uuid7()}", f"node:{uuid7()}"
    checker: Any = FakeChecker((node, "node_agent", node), (node, "any", other))
    rules = RelationsApi(Relations(checker, DELIVERED, Tuple("", "", "")), Feed(), FixedClock(NOW))
    checks = [
        relations_pb2.CheckRequest(subject=node, permission="node-agent", resource=resource)
        for resource in (node, other, f"node:{uuid7()}")
    ]
    wanted = [
        relations_pb2.VERDICT_GRANTED,
        relations_pb2.VERDICT_INSUFFICIENT_RELATION,
        relations_pb2.VERDICT_OUT_OF_SCOPE,
    ]
    bulk = await rules.BulkCheck(relations_pb2.BulkCheckRequest(checks=checks), NO_CONTEXT)
    assert [result.verdict for result in bulk.results] == wanted
    assert not any(result.conditional for result in bulk.results)
    assert [(await rules.Check(check, NO_CONTEXT)).verdict for check in checks] == wanted


async def test_a_grant_on_its_way_is_no_denial_and_nobody_elses_matter() -> None:
    node, other = f"node:{uuid7()}", f"node:{uuid7()}"
    checker: Any = FakeChecker((node, "node_agent", node))
    tuples: Any = Tuples(Tuple(other, "agent", other))
    rules = RelationsApi(Relations(checker, tuples, Tuple("", "", "")), Feed(), FixedClock(NOW))
    mine, theirs = (
        relations_pb2.CheckRequest(subject=one, permission="node-agent", resource=one) for one in (node, other)
    )
    bulk = await rules.BulkCheck(relations_pb2.BulkCheckRequest(checks=[mine, theirs]), NO_CONTEXT)
    assert [one.verdict for one in bulk.results] == [
        relations_pb2.VERDICT_GRANTED, relations_pb2.VERDICT_UNSPECIFIED,
    ]  # fmt: skip
    with pytest.raises(AuthzUnavailable):
        await rules.Check(theirs, NO_CONTEXT)


async def test_the_feed_tells_what_was_revoked_and_beats() -> None:
    feed = Feed()
    feed.open()
    rules = RelationsApi(UNUSED, feed, FixedClock(NOW))
    stream = rules.WatchRevocations(relations_pb2.WatchRevocationsRequest(), NO_CONTEXT)
    asyncio.get_running_loop().call_soon(feed.beat)
    assert (await anext(stream)).WhichOneof("revoked") is None
    gone = Tuple("secret:1", "reader", "node:2")
    for revocation, field, value in [
        (Revocation("relation", relation=gone), "relation", None),
        (Revocation("node", "n"), "node_id", "n"),
        (Revocation("credential", "c"), "credential_digest", "c"),
        (Revocation("identity", "i"), "identity_id", "i"),
        (Revocation("domain", "d"), "domain_id", "d"),
    ]:
        feed.publish(revocation)
        answer = await anext(stream)
        assert answer.at.ToDatetime() == NOW.replace(tzinfo=None)
        assert answer.WhichOneof("revoked") == field
        assert value is None or getattr(answer, field) == value
    feed.close()
    assert [answer async for answer in stream] == []


async def test_a_stream_that_is_too_slow_ends() -> None:
    feed = Feed()
    feed.open()
    stream = feed.listen()
    asyncio.get_running_loop().call_soon(feed.beat)
    await anext(stream)
    for number in range(2000):
        feed.publish(Revocation("node", str(number)))
    seen = [revocation.value async for revocation in stream]
    assert 0 < len(seen) < 2000


async def test_standings_leave_out_nodes_that_are_gone(world: World) -> None:
    here, other, gone = uuid7(), uuid7(), uuid7()
    world.store.place_rows = {
        node_id: NodePlace(node_id, world.project.id, world.domain.id, "nsk_1") for node_id in (here, other)
    }
    checker: Any = FakeChecker((f"node:{here}", "node_agent", f"node:{here}"))
    fleet = FleetApi(world.store, Relations(checker, DELIVERED, Tuple("", "", "")))
    asked = relations_pb2.GetStandingsRequest(node_ids=[str(here), str(other), str(gone)])
    found = (await fleet.GetStandings(asked, NO_CONTEXT)).standings
    assert {row.node_id: row.agent for row in found} == {str(here): True, str(other): False}
    assert {row.nsk_kid for row in found} == {"nsk_1"}


async def test_the_fleet_knows_what_exists(world: World) -> None:
    fleet = FleetApi(world.store, UNUSED)
    found = await fleet.LocateProject(relations_pb2.LocateProjectRequest(project_id=str(world.project.id)), NO_CONTEXT)
    assert found.domain_id == str(world.domain.id)
    with pytest.raises(NotFound):
        await fleet.LocateProject(relations_pb2.LocateProjectRequest(project_id=str(uuid7())), NO_CONTEXT)
    with pytest.raises(NotFound):
        await fleet.LocateNode(relations_pb2.LocateNodeRequest(node_id=str(uuid7())), NO_CONTEXT)


@pytest.mark.parametrize(
    ("subject", "relation", "resource"),
    [
        (f"user:{uuid7()}", "reader", f"secret:{uuid7()}"),
        (f"node:{uuid7()}", "admin", f"secret:{uuid7()}"),
        (f"node:{uuid7()}", "reader", f"domain:{uuid7()}"),
        (f"node:{uuid7()}", "reader", "platform:main"),
        ("node:*", "reader", f"secret:{uuid7()}"),
        ("", "reader", f"secret:{uuid7()}"),
    ],
    ids=["a person", "another relation", "a Domain", "the platform", "everybody", "nobody"],
)
def test_the_secrets_service_gives_secrets_readers_and_nobody_anything_else(
    subject: str, relation: str, resource: str
) -> None:
    request = relations_pb2.WriteRelationRequest(subject=subject, relation=relation, resource=resource)
    with pytest.raises(protovalidate.ValidationError):
        protovalidate.validate(request)


def test_only_access_is_told_what_sessions_ask_for() -> None:
    callers = load(SHIPPED, IdentitySettings).callers
    assert callers["plexsphere.identity.v1.SessionTermsService"] == ["access"]


def test_who_asks_about_relations_cannot_change_them() -> None:
    callers = load(SHIPPED, IdentitySettings).callers
    assert callers["plexsphere.identity.v1.RelationsAdminService"] == ["secrets"]
    asking = relations_pb2.DESCRIPTOR.services_by_name["RelationsService"]
    assert {method.name for method in asking.methods} == {"Check", "BulkCheck", "WatchRevocations"}
