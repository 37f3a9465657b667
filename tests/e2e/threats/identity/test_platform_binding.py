"""The platform's own provider: as the settings file states it, and whose names there mean something."""

import json
import uuid

import pytest

from tests.e2e.conftest import Scene
from tests.e2e.outside import Login

pytestmark = pytest.mark.e2e

IDP = "/v1/admin/idp"


async def test_the_administrators_name_at_another_provider_is_anybodys(scene: Scene) -> None:
    env = scene.story.world.env
    body = {
        "issuer": env["PLEX_OIDC_B_ISSUER"],
        "client_id": env["PLEX_OIDC_B_CLIENT_ID"],
        "client_secret_ref": "kv/idp/platform/oidc-b",
        "discovery_url": env["PLEX_OIDC_B_ISSUER"] + "/.well-known/openid-configuration",
        "jit_policy": "allow",
    }
    made = await scene.operator.call("POST", "/v1/admin/platform-idp", body)
    assert made.status == 201, made.body
    try:
        namesake = await scene.outside.sign_in(Login("operator"), binding_id=made.json["id"])
        domain = {"name": "X", "slug": f"x-{uuid.uuid4().hex[:8]}", "mesh_cidr": "10.254.7.0/24"}
        assert (await namesake.call("POST", "/v1/domains", domain)).status == 403
    finally:
        await scene.operator.call("DELETE", f"{IDP}/{made.json['id']}")


async def test_the_settings_file_is_right_about_the_platforms_provider(scene: Scene) -> None:
    world = scene.story.world
    config = world.config("identity")
    own = 'client_secret_ref = "kv/idp/platform/oidc-a"'
    assert own in config
    try:
        for file, reference in ((config.replace(own, own.replace("-a", "-b")), "oidc-b"), (config, "oidc-a")):
            await world.restart("identity", file)
            (row,) = [
                row
                for row in json.loads((await scene.operator.call("GET", "/v1/admin/platform-idp")).body)
                if row["issuer"] == world.env["PLEX_OIDC_A_ISSUER"]
            ]
            assert row["client_secret_ref"] == f"kv/idp/platform/{reference}"
    finally:
        if world.config("identity") != config:
            await world.restart("identity", config)
    await scene.outside.sign_in(Login("operator"))
