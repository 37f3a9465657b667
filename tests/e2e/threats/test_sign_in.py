"""F-3 over the wire, as far as it goes: flow attacks at the callback, and who may approve what."""

from dataclasses import replace
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from tests.e2e.conftest import Scene
from tests.e2e.outside import Answer, Login, own_browser

pytestmark = pytest.mark.e2e


async def callback_of(scene: Scene, subject: str = "operator") -> tuple[str, dict[str, str]]:
    """Walk a sign-in up to the callback, without following it; returns its URL and the browser's own header."""
    started = await scene.edge.call("POST", "/v1/auth/sign-in", {})
    login = Login(subject)
    url = started.json["authorization_url"]
    back = await login.authorize(scene.outside.http, url, scene.story.world.edge_url)
    return back, own_browser(started)


async def get(scene: Scene, url: str, own: dict[str, str]) -> Answer:
    parts = urlsplit(url)
    return await scene.edge.call("GET", f"{parts.path}?{parts.query}", headers={"Accept": "application/json", **own})


def changed(url: str, **parameters: str) -> str:
    parts = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()} | parameters
    return f"{parts.path}?{urlencode({name: value for name, value in query.items() if value})}"


def refused(answer: Answer) -> bool:
    return answer.status in {400, 502} and "Set-Cookie" not in answer.headers


async def test_a_state_is_used_once(scene: Scene) -> None:
    url, own = await callback_of(scene)
    first = await get(scene, url, own)
    assert first.status == 303
    assert refused(await get(scene, url, own))


@pytest.mark.parametrize(
    "parameters",
    [
        {"state": "forged"},
        {"state": ""},
        {"code": "forged"},
        {"code": ""},
        {"iss": "https://evil.example"},
        {"iss": ""},
        {"error": "access_denied"},
    ],
    ids=lambda parameters: "-".join(f"{name}={value}" for name, value in parameters.items()),
)
async def test_a_changed_answer_of_the_provider_opens_no_session(scene: Scene, parameters: dict[str, str]) -> None:
    url, own = await callback_of(scene)
    assert refused(await get(scene, changed(url, **parameters), own))


async def test_a_state_of_another_sign_in_does_not_fit_the_code(scene: Scene) -> None:
    (one, _), (other, own) = await callback_of(scene), await callback_of(scene)
    state = parse_qs(urlsplit(other).query)["state"][0]
    assert refused(await get(scene, changed(one, state=state), own))


async def test_a_session_ends_for_good_when_it_signs_out(scene: Scene) -> None:
    browser = await scene.outside.sign_in(Login("operator"))
    assert (await browser.call("GET", "/v1/auth/whoami")).status == 200
    assert (await browser.call("DELETE", "/v1/auth/whoami")).status == 204
    assert (await browser.call("GET", "/v1/auth/whoami")).status == 401


async def test_a_stranger_may_sign_in_and_then_nothing(scene: Scene) -> None:
    stranger = await scene.outside.sign_in(Login("stranger"))
    assert (await stranger.call("GET", f"/v1/domains/{scene.story.domain_id}")).status == 403
    listed = await stranger.call("GET", "/v1/domains")
    assert listed.json["items"] == []
    body = {"name": "X", "slug": "x-stranger", "mesh_cidr": "10.254.0.0/24"}
    assert (await stranger.call("POST", "/v1/domains", body)).status == 403


async def test_one_credential_is_not_believed_as_another_kind(scene: Scene) -> None:
    browser = await scene.outside.sign_in(Login("operator"))
    cookie, node = browser.cookies["plexsphere_session"], scene.story.node_a
    secret = f"/v1/nodes/{node.node_id}/secrets/db-password"
    assert (await scene.edge.as_bearer(cookie).call("GET", "/v1/auth/whoami")).status == 401
    assert (await scene.edge.as_bearer(node.bearer).call("GET", "/v1/auth/whoami")).status == 401
    assert (await scene.edge.as_bearer(scene.token).call("GET", secret)).status == 401
    assert (await browser.call("GET", secret)).status == 401
    assert (await scene.edge.as_bearer(scene.story.bootstrap[0]).call("GET", secret)).status == 401


async def test_nor_after_the_edge_has_believed_it_as_its_own_kind(scene: Scene) -> None:
    browser, node = await scene.outside.sign_in(Login("operator")), scene.story.node_a
    for value, own in ((scene.token, scene.operator), (node.bearer, scene.edge.as_bearer(node.bearer))):
        path = f"/v1/nodes/{node.node_id}/state" if value == node.bearer else "/v1/auth/whoami"
        assert (await own.call("GET", path)).status == 200
        stolen = replace(browser, cookies=browser.cookies | {"plexsphere_session": value})
        assert (await stolen.call("GET", "/v1/auth/whoami")).status == 401
    assert (await browser.call("GET", "/v1/auth/whoami")).status == 200
    cookie = browser.cookies["plexsphere_session"]
    assert (await scene.edge.as_bearer(cookie).call("GET", "/v1/auth/whoami")).status == 401
