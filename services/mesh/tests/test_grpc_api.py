"""What the wire gets: keys as the contract has them, and our own refusal where nothing is provisioned."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from libs.errors import BusNotProvisioned, NotProvisioned, PlexError
from libs.ids import uuid7
from libs.rpc.guard import REFLECTION
from libs.rpc.server import HEALTH
from libs.settings import load
from plexsphere.mesh.v1 import mesh_pb2 as pb
from services.mesh.grpc_api import MeshAdminApi, PublishApi, SigningKeysApi, pack
from services.mesh.model import SigningKey
from services.mesh.service import SigningKeys
from services.mesh.settings import MeshSettings
from services.mesh.tests.fakes import FakeAudit, FakeStore, FakeVault

pytestmark = pytest.mark.unit

SHIPPED = Path(__file__).resolve().parents[3] / "deploy/config/mesh.toml"
NO_CONTEXT: Any = None


async def test_a_key_is_answered() -> None:
    api = SigningKeysApi(SigningKeys(FakeVault(), FakeStore(), FakeAudit()))
    answer = await api.EnsureSigningKey(pb.EnsureSigningKeyRequest(domain_id=str(uuid7())), NO_CONTEXT)
    assert answer.key.kid.startswith("evk_")
    assert len(answer.key.public_key) == 32
    assert not answer.key.HasField("expires_at")


def test_a_key_in_transition_says_until_when() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    packed = pack(SigningKey("evk_0", uuid7(), bytes(32), 1, now, now + timedelta(days=7)))
    assert packed.created_at.ToDatetime(UTC) == now
    assert packed.expires_at.ToDatetime(UTC) == now + timedelta(days=7)


@pytest.mark.parametrize(
    ("service", "api", "codes"),
    [
        ("PublishService", PublishApi(), {"Publish": BusNotProvisioned}),
        (
            "MeshAdminService",
            MeshAdminApi(),
            {
                "ListSigningKeys": NotProvisioned,
                "RotateSigningKey": NotProvisioned,
                "RevokeSigningKey": NotProvisioned,
                "PublishEvent": BusNotProvisioned,
            },
        ),
    ],
)
async def test_the_rest_is_refused_in_our_own_type(service: str, api: Any, codes: dict[str, type[PlexError]]) -> None:
    assert {method.name for method in pb.DESCRIPTOR.services_by_name[service].methods} == set(codes)
    for name, error in codes.items():
        with pytest.raises(error) as refused:
            await getattr(api, name)(None, NO_CONTEXT)
        assert type(refused.value) is error


def test_the_shipped_settings_name_exactly_the_services_that_exist() -> None:
    settings = load(SHIPPED, MeshSettings)
    assert settings.service == "mesh"
    served = {service.full_name for service in pb.DESCRIPTOR.services_by_name.values()}
    assert set(settings.callers) == served | {HEALTH, REFLECTION}
