"""A person approves a device in the browser: the page is there, and its policy lets nothing in from elsewhere."""

import re

import pytest

from tests.e2e.conftest import Scene

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("path", ["/", "/device?user_code=ABCD-EFGH"])
async def test_the_page_that_the_device_flow_names_is_served(scene: Scene, path: str) -> None:
    answer = await scene.edge.call("GET", path)
    assert answer.status == 200
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(rb"""(src|href)=["']""", answer.body)
    # Nobody approves what they have not looked at, and what a stranger wrote is text.
    assert b'id="yes" disabled' in answer.body
    assert b"innerHTML" not in answer.body


async def test_the_device_flow_sends_people_to_that_page(scene: Scene) -> None:
    started = await scene.edge.call("POST", "/v1/auth/device-code", {"client_id": "plexctl"})
    uri = started.json["verification_uri_complete"]
    assert uri.startswith(scene.edge.url)
    assert (await scene.edge.call("GET", uri.removeprefix(scene.edge.url))).status == 200
