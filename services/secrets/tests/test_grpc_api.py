"""What the wire gets and gives: every method reaches its rule with the caller of the call."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from libs.custody import Secret
from libs.rpc.context import Call, bind
from libs.rpc.guard import REFLECTION
from libs.rpc.server import HEALTH
from libs.seal import unseal
from libs.settings import load
from plexsphere.secrets.v1 import secrets_pb2 as pb
from services.secrets.grpc_api import SecretsAdminApi, SecretsApi
from services.secrets.settings import SecretsSettings
from services.secrets.tests.fakes import KEY, KID, World

pytestmark = pytest.mark.unit

SHIPPED = Path(__file__).resolve().parents[3] / "deploy/config/secrets.toml"
NO_CONTEXT: Any = None


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def admin(world: World) -> Iterator[SecretsAdminApi]:
    with bind(Call(principal=world.operator)):
        yield SecretsAdminApi(world.admin)


async def test_a_node_reads(world: World) -> None:
    request = pb.FetchNodeSecretRequest(node_id=str(world.node), name="db-password", version=1, node_key=KEY)
    with bind(Call(principal=world.caller)):
        answer = await SecretsApi(world.reads).FetchNodeSecret(request, NO_CONTEXT)
    assert (answer.version, answer.kid) == (1, KID)
    assert unseal(Secret(KEY), answer.body) == b"one"
    assert world.limits.charged == [(world.node, world.domain, world.caller.secret_limits)]


async def test_an_operator_writes_lists_grants_revokes_and_destroys(world: World, admin: SecretsAdminApi) -> None:
    named = {"project_id": str(world.project), "name": "api-key"}
    reader = named | {"node_id": str(world.node)}
    written = await admin.PutSecret(pb.PutSecretRequest(**named, value=b"v", expected_version=0), NO_CONTEXT)
    assert written.version == 1
    page = await admin.ListSecrets(pb.ListSecretsRequest(project_id=str(world.project), limit=1), NO_CONTEXT)
    assert [(row.name, row.current_version) for row in page.secrets] == [("api-key", 1)]
    assert page.next_cursor
    await admin.GrantReader(pb.GrantReaderRequest(**reader), NO_CONTEXT)
    await admin.RevokeReader(pb.RevokeReaderRequest(**reader), NO_CONTEXT)
    await admin.DestroySecretVersion(pb.DestroySecretVersionRequest(**named, version=1), NO_CONTEXT)
    await admin.DestroySecret(pb.DestroySecretRequest(**named), NO_CONTEXT)
    assert [row.action for row in world.audit.rows] == [
        "secret.put",
        "secret.list",
        "reader.grant",
        "reader.revoke",
        "secret.destroy_version",
        "secret.destroy",
    ]


def test_the_shipped_settings_name_exactly_the_services_that_exist() -> None:
    settings = load(SHIPPED, SecretsSettings)
    assert settings.service == "secrets"
    served = {service.full_name for service in pb.DESCRIPTOR.services_by_name.values()}
    assert set(settings.callers) == served | {HEALTH, REFLECTION}
