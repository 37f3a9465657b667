"""Every method of access refuses in our own type."""

from pathlib import Path
from typing import Any

import pytest

from libs.errors import NotProvisioned
from libs.rpc.guard import REFLECTION
from libs.rpc.server import HEALTH
from libs.settings import load
from plexsphere.access.v1 import access_pb2 as pb
from services.access.grpc_api import AccessApi, AccessNodeApi
from services.access.service import Access
from services.access.settings import AccessSettings

pytestmark = pytest.mark.unit

SHIPPED = Path(__file__).resolve().parents[3] / "deploy/config/access.toml"
NO_CONTEXT: Any = None


@pytest.mark.parametrize(
    ("service", "api"), [("AccessService", AccessApi(Access())), ("AccessNodeService", AccessNodeApi(Access()))]
)
async def test_every_method_is_refused_in_our_own_type(service: str, api: Any) -> None:
    for method in pb.DESCRIPTOR.services_by_name[service].methods:
        with pytest.raises(NotProvisioned):
            await getattr(api, method.name)(None, NO_CONTEXT)


def test_the_shipped_settings_name_exactly_the_services_that_exist() -> None:
    settings = load(SHIPPED, AccessSettings)
    assert settings.service == "access"
    served = {service.full_name for service in pb.DESCRIPTOR.services_by_name.values()}
    assert set(settings.callers) == served | {HEALTH, REFLECTION}
