"""A credential of each kind at every verifier of another kind, with what the edge remembers warm: refused each time.

A session token has no verifier among these: it is for a node, and the control plane takes it nowhere.
"""

import asyncio
import base64
import hashlib
import json
import secrets
import time
import uuid
from dataclasses import replace
from urllib.parse import parse_qs, urlencode, urlsplit

import grpc
import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from devstack.layout import State
from plexsphere.identity.v1 import sign_in_pb2, sign_in_pb2_grpc
from tests.e2e.attacker import peer
from tests.e2e.conftest import Scene, operator_token
from tests.e2e.outside import JSON, Answer, Edge, Login, Outside, own_browser
from tests.e2e.sessions import issue, resource_of
from tests.e2e.stories.main_job import Story
from tests.e2e.threats.identity.tenants import PASSWORD

pytestmark = pytest.mark.e2e

WHOAMI = "/v1/auth/whoami"
KINDS = (
    "id_token", "provider access token", "logout token", "access token", "API token", "service token",
    "session cookie", "CSRF value", "assertion", "node bearer", "node key", "bootstrap token", "device code",
    "user code", "session token",
)  # fmt: skip
# What each verifier is there for, and what it says to what it is not.
VERIFIERS = {
    "session cookie": ({"session cookie"}, {"401 unauthenticated"}),
    "operator bearer": ({"access token", "API token", "service token"}, {"401 unauthenticated"}),
    "node bearer": ({"node bearer"}, {"401 unauthorized"}),
    "bootstrap token": ({"bootstrap token"}, {"400 invalid_body", "403 token_unknown", "422 unprocessable"}),
    "device code": ({"device code"}, {"400 invalid_grant", "400 invalid_body"}),
    "user code": ({"user code"}, {"404 device_code_not_found", "400 invalid_body"}),
    # The secret of a service identity is an API token of its own.
    "client secret": ({"API token"}, {"401 invalid_client"}),
    "assertion": ({"assertion"}, {"UNAUTHENTICATED"}),
    "logout token": ({"logout token"}, {"400 logout_refused"}),
    "code at the callback": (set(), {"400 sign_in_refused"}),
}  # fmt: skip


class Wallet:
    """One credential of each kind, all of them genuine and alive."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.world = scene, scene.story.world
        self.values: dict[str, str] = {}
        self.client_id = ""

    async def fill(self) -> None:
        scene, values = self.scene, self.values
        browser = await scene.outside.sign_in(Login("operator"))
        values["access token"] = scene.token
        values["session cookie"] = browser.cookies["plexsphere_session"]
        values["CSRF value"] = browser.cookies["plexsphere_csrf"]
        node = scene.story.node_a
        values["node bearer"], values["node key"] = node.bearer, base64.b64encode(node.key).decode()
        issued = await scene.operator.call(
            "POST",
            f"/v1/projects/{scene.story.project_id}/bootstrap-tokens",
            {"kind": "node", "env_prefix": "dev", "ttl_seconds": 900},
        )
        values["bootstrap token"] = issued.json["token"]
        started = (await scene.edge.call("POST", "/v1/auth/device-code", {"client_id": "kinds"})).json
        values["device code"], values["user code"] = started["device_code"], started["user_code"]
        await self._of_a_machine()
        await self._of_a_session()
        await self._of_the_provider()
        stub = sign_in_pb2_grpc.AuthenticationServiceStub(peer(self.world, "identity", "gateway"))
        kind = sign_in_pb2.CREDENTIAL_KIND_OPERATOR_BEARER
        request = sign_in_pb2.AuthenticateRequest(kind=kind, credential=scene.token, audience="identity")
        values["assertion"] = (await stub.Authenticate(request)).assertion
        assert set(values) == set(KINDS)
        assert all(values.values())

    async def _of_a_machine(self) -> None:
        body = {"display_name": "CI", "subject": uuid.uuid4().hex, "audience": "a", "federation_kind": "api_token"}
        path = f"/v1/domains/{self.scene.story.domain_id}/service-identities"
        self.client_id = (await self.scene.operator.call("POST", path, body)).json["id"]
        wanted = {"identity_ref": f"service:{self.client_id}", "env_prefix": "dev"}
        issued = await self.scene.operator.call("POST", "/v1/admin/tokens", wanted)
        self.values["API token"] = issued.json["plaintext"]
        self.values["service token"] = (await self.exchange(issued.json["plaintext"])).json["access_token"]

    async def _of_a_session(self) -> None:
        scene, story = self.scene, self.scene.story
        policy = {"required_acr": [PASSWORD]}
        put = await scene.operator.call("PUT", f"/v1/domains/{story.domain_id}/access-policy", policy)
        assert put.status == 200, put.body
        browser = await scene.outside.sign_in(Login("operator", acr=PASSWORD))
        strong = scene.edge.as_bearer(await scene.outside.access_token(browser))
        issued = await issue(strong, story, await resource_of(replace(story, operator=strong), story.node_a.handle))
        self.values["session token"] = issued.json["token"]

    async def exchange(self, secret: str) -> Answer:
        body = {"grant_type": "client_credentials", "client_id": self.client_id, "client_secret": secret}
        return await self.scene.edge.call("POST", "/v1/auth/service/token", body)

    async def _of_the_provider(self) -> None:
        """Sign in as the edge's own client, so that its tokens are as good as any that the edge gets."""
        state, world = State(self.world.state), self.world
        issuer, http = state.issuer("oidc-a"), self.scene.outside.http
        async with http.get(f"{issuer}/.well-known/openid-configuration") as answer:
            document = await answer.json()
        verifier = secrets.token_urlsafe(32)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
        redirect = f"{world.edge_url}/v1/auth/callback"
        asked = {
            "response_type": "code", "client_id": "plexsphere", "redirect_uri": redirect, "scope": "openid",
            "state": "s", "nonce": "n", "code_challenge": challenge, "code_challenge_method": "S256",
        }  # fmt: skip
        url = f"{document['authorization_endpoint']}?{urlencode(asked)}"
        back = await Login("operator").authorize(http, url, world.edge_url)
        form = {
            "grant_type": "authorization_code", "code": parse_qs(urlsplit(back).query)["code"][0],
            "redirect_uri": redirect, "code_verifier": verifier,
        }  # fmt: skip
        secret = (world.state / "secrets/oidc-a.secret").read_text()
        basic = base64.b64encode(f"plexsphere:{secret}".encode()).decode()
        async with http.post(
            document["token_endpoint"], data=form, headers={"Authorization": f"Basic {basic}"}
        ) as answer:
            found: JSON = await answer.json()
        self.values["id_token"], self.values["provider access token"] = found["id_token"], found["access_token"]
        keys = KeySet.import_key_set(json.loads((world.state / "secrets/oidc-a.jwks.json").read_text()))
        key, event = keys.keys[0], "http://schemas.openid.net/event/backchannel-logout"
        claims = {
            "iss": issuer, "aud": "plexsphere", "iat": int(time.time()), "exp": int(time.time()) + 120,
            "jti": uuid.uuid4().hex, "sub": "nobody-in-particular", "events": {event: {}},
        }  # fmt: skip
        header = {"alg": "RS256", "typ": "logout+jwt", "kid": key.kid}
        self.values["logout token"] = jwt.encode(header, claims, key)

    # Verifiers --------------------------------------------------------------------------------------------------------

    async def present(self, verifier: str, value: str) -> str:
        """Present a value and return what was said; nothing that was refused leaves a cookie."""
        answer = await getattr(self, verifier.replace(" ", "_"))(value)
        assert isinstance(answer, str) or "plexsphere_session" not in str(answer.headers), answer.headers
        return str(answer)

    async def session_cookie(self, value: str) -> Answer:
        return await Edge(self.world.edge_url, self.scene.outside.http, cookies={"plexsphere_session": value}).call(
            "GET", WHOAMI
        )

    async def operator_bearer(self, value: str) -> Answer:
        return await self.scene.edge.as_bearer(value).call("GET", WHOAMI)

    async def node_bearer(self, value: str) -> Answer:
        path = f"/v1/nodes/{self.scene.story.node_a.node_id}/state"
        return await self.scene.edge.as_bearer(value).call("GET", path)

    async def bootstrap_token(self, value: str) -> Answer:
        node = self.scene.story.node_a
        body = {
            "project_id": self.scene.story.project_id, "resource_handle": node.handle, "bootstrap_token": value,
            "nonce": str(uuid.uuid4()), "public_key": node.public_key,
        }  # fmt: skip
        return await self.scene.edge.call("POST", "/v1/register", body)

    async def device_code(self, value: str) -> Answer:
        body = {"device_code": value, "client_id": "kinds"}
        return await self.scene.edge.call("POST", "/v1/auth/device-token", body)

    async def user_code(self, value: str) -> Answer:
        cookies = {"plexsphere_session": self.values["session cookie"], "plexsphere_csrf": self.values["CSRF value"]}
        browser = Edge(self.world.edge_url, self.scene.outside.http, cookies=cookies)
        return await browser.call("POST", "/v1/auth/device/approve", {"user_code": value})

    async def client_secret(self, value: str) -> Answer:
        return await self.exchange(value)

    async def assertion(self, value: str) -> str:
        pki = self.world.state / "pki"
        credentials = grpc.ssl_channel_credentials(
            (pki / "ca.crt").read_bytes(), (pki / "gateway.key").read_bytes(), (pki / "gateway.crt").read_bytes()
        )
        target = f"127.0.0.1:{State(self.world.state).port('identity')}"
        options = [("grpc.ssl_target_name_override", "identity")]
        async with grpc.aio.secure_channel(target, credentials, options=options) as opened:
            try:
                await sign_in_pb2_grpc.SessionServiceStub(opened).GetWhoami(
                    sign_in_pb2.GetWhoamiRequest(), metadata=[("x-plexsphere-principal", value)], timeout=5
                )
            except grpc.aio.AioRpcError as error:
                return error.code().name
        return "OK"

    async def code_at_the_callback(self, value: str) -> Answer:
        started = await self.scene.edge.call("POST", "/v1/auth/sign-in", {})
        query = {"code": value, "state": started.json["state"], "iss": State(self.world.state).issuer("oidc-a")}
        path = f"/v1/auth/callback?{urlencode(query)}"
        return await self.scene.edge.call("GET", path, headers={"Accept": "application/json", **own_browser(started)})

    async def logout_token(self, value: str) -> Answer:
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        body = urlencode({"logout_token": value}).encode()
        return await self.scene.edge.call("POST", "/v1/auth/backchannel-logout", body, headers=form)


# Presented once more before each try, so that the edge has just believed it as what it is.
REMEMBERED = {
    "session cookie": "session cookie", "access token": "operator bearer", "API token": "operator bearer",
    "service token": "operator bearer", "node bearer": "node bearer",
}  # fmt: skip


async def _fill(story: Story) -> tuple[dict[str, str], str]:
    async with Outside(story.world.edge_url, story.world.ca_file) as outside:
        wallet = Wallet(Scene(story, await operator_token(outside), outside))
        await wallet.fill()
        return wallet.values, wallet.client_id


@pytest.fixture(scope="module")
def filled(set_scene: Story) -> tuple[dict[str, str], str]:
    return asyncio.run(_fill(set_scene))


@pytest.fixture
def wallet(scene: Scene, filled: tuple[dict[str, str], str]) -> Wallet:
    opened = Wallet(scene)
    opened.values, opened.client_id = filled
    return opened


@pytest.mark.parametrize("verifier", VERIFIERS)
async def test_every_kind_is_refused_where_another_is_expected(wallet: Wallet, verifier: str) -> None:
    own, refusals = VERIFIERS[verifier]
    for kind in KINDS:
        if kind in REMEMBERED:
            believed = await wallet.present(REMEMBERED[kind], wallet.values[kind])
            assert believed == "200", f"{kind}: {believed}"
        if kind not in own:
            said = await wallet.present(verifier, wallet.values[kind])
            assert said in refusals, f"{kind} as {verifier}: {said}"


@pytest.mark.parametrize(
    "verifier", ["session cookie", "operator bearer", "node bearer", "client secret", "assertion", "logout token"]
)
async def test_each_verifier_takes_its_own(wallet: Wallet, verifier: str) -> None:
    # Else the table could pass because nothing is believed at all.
    for kind in VERIFIERS[verifier][0]:
        assert await wallet.present(verifier, wallet.values[kind]) in {"200", "OK"}, kind
