"""What the wire gets and gives: every method reaches its rule with the caller of the call."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from libs.custody import Secret
from libs.errors import SecretNotFound
from libs.rpc.context import Call, bind
from libs.rpc.guard import REFLECTION
from libs.rpc.server import HEALTH
from libs.seal import unseal
from libs.settings import load
from plexsphere.secrets.v1 import secrets_pb2 as pb
from services.secrets.grpc_api import SecretsAdminApi, SecretsApi
from services.secrets.model import Sealed
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


@dataclass
class Ending:
    """Rules of both sides that end as they are told, and keep what they were given."""

    how: Exception | None = None
    given: list[Secret] = field(default_factory=list)

    async def fetch(self, *given: Any) -> Sealed:
        await self._end(given)
        return Sealed(b"", 1, KID)

    async def put(self, *given: Any) -> int:
        await self._end(given)
        return 1

    async def _end(self, given: Any) -> None:
        self.given += [one for one in given if isinstance(one, Secret)]
        if isinstance(self.how, TimeoutError):
            await asyncio.sleep(60)
        if self.how:
            raise self.how


@pytest.mark.parametrize(
    "how", [None, SecretNotFound(), ValueError(), TimeoutError()], ids=lambda how: type(how).__name__
)
async def test_keys_and_values_are_wiped_however_a_call_ends(world: World, how: Exception | None) -> None:
    rules: Any = Ending(how)
    read = pb.FetchNodeSecretRequest(node_id=str(world.node), name="db-password", node_key=KEY)
    put = pb.PutSecretRequest(project_id=str(world.project), name="db-password", value=KEY)
    with bind(Call(principal=world.caller)):
        for call in (
            SecretsApi(rules).FetchNodeSecret(read, NO_CONTEXT),
            SecretsAdminApi(rules).PutSecret(put, NO_CONTEXT),
        ):
            with contextlib.suppress(SecretNotFound, ValueError, TimeoutError):
                await asyncio.wait_for(call, 0.05)
    assert [one.reveal() for one in rules.given] == [bytes(len(KEY))] * 2


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
