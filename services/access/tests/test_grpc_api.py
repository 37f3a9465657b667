"""What the wire gets and gives: every method reaches its rule with the caller of the call."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from libs.errors import AttachNotProvisioned, InvalidRequest
from libs.rpc.context import Call, bind
from libs.rpc.guard import REFLECTION
from libs.rpc.server import HEALTH
from libs.settings import load
from plexsphere.access.v1 import access_pb2 as pb
from services.access.grpc_api import AccessApi, AccessNodeApi, SessionKeysAdminApi, SessionKeysApi, wish
from services.access.settings import AccessSettings
from services.access.tests.fakes import World

pytestmark = pytest.mark.unit

SHIPPED = Path(__file__).resolve().parents[3] / "deploy/config/access.toml"
NO_CONTEXT: Any = None


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    made.authority.granted |= {(made.operator.reference, "read", f"project:{made.project}")}
    made.authority.granted |= {(made.operator.reference, name, f"domain:{made.domain}") for name in ("manage", "read")}
    with bind(Call(principal=made.operator)):
        yield made


def asked(world: World, **more: Any) -> pb.IssueSessionRequest:
    plain: dict[str, Any] = {"target": pb.Target(ssh=pb.SshTarget(user="root", allowed_commands=["uptime"]))}
    return pb.IssueSessionRequest(
        project_id=str(world.project), resource_id=str(world.resource), kind="ssh", **(plain | more)
    )


async def test_a_session_there_and_back(world: World) -> None:
    api = AccessApi(world.access, world.clock)
    issued = await api.IssueSession(asked(world, requested_ttl_seconds=60), NO_CONTEXT)
    session, of = issued.session, {"project_id": str(world.project), "session_id": issued.session.id}
    assert issued.token.count(".") == 2
    assert (session.status, session.kind, session.target.ssh.user) == ("active", "ssh", "root")
    assert list(session.target.ssh.allowed_commands) == ["uptime"]
    assert session.expires_at.seconds - session.issued_at.seconds == 60
    assert (await api.GetSession(pb.GetSessionRequest(**of), NO_CONTEXT)).session == session
    page = await api.ListSessions(pb.ListSessionsRequest(project_id=str(world.project), limit=1), NO_CONTEXT)
    assert list(page.sessions) == [session]
    with bind(Call(principal=world.agent())):
        report = pb.ReportActivityRequest(node_id=str(world.node), session_id=session.id, kind="ssh")
        report.report = '{"exit_code":1}'
        await AccessNodeApi(world.activity).ReportActivity(report, NO_CONTEXT)
        for wrong in ("[]", "{", "[" * 10_000):
            report.report = wrong
            with pytest.raises(InvalidRequest):
                await AccessNodeApi(world.activity).ReportActivity(report, NO_CONTEXT)
    assert [said for *_, said in world.store.reports] == [{"exit_code": 1}]
    with pytest.raises(AttachNotProvisioned):
        await api.AttachSession(pb.AttachSessionRequest(**of), NO_CONTEXT)
    await api.RevokeSession(pb.RevokeSessionRequest(**of, reason="operator_request"), NO_CONTEXT)
    revoked = (await api.GetSession(pb.GetSessionRequest(**of), NO_CONTEXT)).session
    assert (revoked.status, revoked.revoke_reason) == ("revoked", "operator_request")
    assert revoked.HasField("revoked_at")


async def test_keys_there_and_back(world: World) -> None:
    domain_id, admin = str(world.domain), SessionKeysAdminApi(world.keys)
    await world.keys.current(world.domain)
    rotated = await admin.RotateSessionKey(
        pb.RotateSessionKeyRequest(domain_id=domain_id, transition_seconds=60), NO_CONTEXT
    )
    verifying = await SessionKeysApi(world.keys).ListVerifyingKeys(
        pb.ListVerifyingKeysRequest(domain_id=domain_id), NO_CONTEXT
    )
    listed = await admin.ListSessionKeys(pb.ListSessionKeysRequest(domain_id=domain_id), NO_CONTEXT)
    assert list(listed.keys) == list(verifying.keys)
    assert listed.keys[0] == rotated.key
    assert listed.keys[1].HasField("expires_at")
    done = await admin.RevokeSessionKey(
        pb.RevokeSessionKeyRequest(domain_id=domain_id, kid=rotated.key.kid), NO_CONTEXT
    )
    assert done.revoked.HasField("revoked_at")
    assert done.current.kid not in {key.kid for key in listed.keys}


def test_two_requests_are_the_same_when_they_say_the_same(world: World) -> None:
    first = wish(asked(world, idempotency_key="k"))
    assert first == wish(asked(world, idempotency_key="k"))
    assert wish(asked(world)).request_digest is None
    others = [
        asked(world, idempotency_key="k", requested_ttl_seconds=1),
        asked(world, idempotency_key="k", target=pb.Target(ssh=pb.SshTarget(user="root"))),
        asked(
            world, idempotency_key="k", target=pb.Target(ssh=pb.SshTarget(user="daemon", allowed_commands=["uptime"]))
        ),
    ]
    assert len({first.body_digest, *(wish(one).body_digest for one in others)}) == 4
    assert {wish(one).request_digest for one in others} == {first.request_digest}


def test_the_shipped_settings_name_exactly_the_services_that_exist() -> None:
    settings = load(SHIPPED, AccessSettings)
    assert settings.service == "access"
    served = {service.full_name for service in pb.DESCRIPTOR.services_by_name.values()}
    assert set(settings.callers) == served | {HEALTH, REFLECTION}
    assert all(callers == ["gateway"] for name, callers in settings.callers.items() if name.startswith("plexsphere."))
