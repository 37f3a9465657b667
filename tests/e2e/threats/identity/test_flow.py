"""F-3 over the wire, the flow: what comes back belongs to this sign-in, this binding and this client."""

from collections.abc import Callable
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from aiohttp import web

from tests.e2e.threats.identity.conftest import Case, Ring
from tests.e2e.threats.identity.hostile import Broken, Genuine

pytestmark = pytest.mark.e2e

BACK: dict[str, tuple[dict[str, str], str]] = {
    "another issuer answers": ({"iss": "https://evil.example"}, "response_iss"),
    "the issuer with a slash more answers": ({"iss": "https://127.0.0.1/"}, "response_iss"),
    "nobody says that he answers": ({"iss": ""}, "response_iss"),
    "the person refused": ({"error": "access_denied", "code": ""}, "provider_error"),
    "a code and an error": ({"error": "access_denied"}, "provider_error"),
    "a made-up code": ({"code": "forged"}, "code_refused"),
}


@pytest.mark.parametrize("name", BACK)
async def test_a_changed_way_back_is_refused(ring: Ring, name: str) -> None:
    changes, reason = BACK[name]
    bound = await ring.bound("flow")
    await ring.refuses(bound, (await ring.begin(bound)).changed(**changes), reason)


async def test_the_answer_of_the_provider_behind_a_door_is_not_the_doors(ring: Ring) -> None:
    bound, other = await ring.bound("flow"), await ring.bound("another Domain")
    for issuer in (ring.hostile.issuer, f"{bound.door.url}/", other.door.url):
        await ring.refuses(bound, (await ring.begin(bound)).changed(iss=issuer), "response_iss")


async def test_a_replayed_code_is_refused_though_its_state_is_fresh(ring: Ring) -> None:
    bound = await ring.bound("flow")
    one, other = await ring.begin(bound), await ring.begin(bound)
    await ring.accepts(bound, one)
    await ring.refuses(bound, other.changed(code=one.query["code"]), "code_refused")


async def test_a_stolen_code_is_worth_nothing_with_another_state(ring: Ring) -> None:
    bound = await ring.bound("flow")
    victim, thief = await ring.begin(bound), await ring.begin(bound)
    # The verifier is the thief's, the challenge the victim's (RFC 7636, 4.6).
    await ring.refuses(bound, thief.changed(code=victim.query["code"]), "code_refused")


async def test_a_code_of_another_domains_binding_is_refused(ring: Ring) -> None:
    bound, other = await ring.bound("flow"), await ring.bound("another Domain")
    foreign = await ring.begin(other)
    await ring.refuses(bound, (await ring.begin(bound)).changed(code=foreign.query["code"]), "code_refused")


def taking(into: list[Genuine]) -> Callable[[Genuine], str]:
    def take(genuine: Genuine) -> str:
        into.append(genuine)
        return genuine.token

    return take


async def test_an_id_token_of_another_domains_binding_is_refused(ring: Ring) -> None:
    bound, other = await ring.bound("flow"), await ring.bound("another Domain")
    taken: list[Genuine] = []
    other.door.token = taking(taken)
    await ring.accepts(other, await ring.begin(other))
    await ring.attempt(bound, Case("iss", lambda _: taken[0].token))
    # As if both were bound to one issuer: the same client, a genuine token; but of a sign-in that began elsewhere.
    await ring.attempt(bound, Case("nonce", lambda _: taken[0].says(iss=bound.door.url)))


async def test_an_id_token_of_an_earlier_sign_in_is_refused(ring: Ring) -> None:
    bound = await ring.bound("flow")
    taken: list[Genuine] = []
    bound.door.token = taking(taken)
    await ring.accepts(bound, await ring.begin(bound))
    await ring.attempt(bound, Case("nonce", lambda _: taken[0].token))


CHANGED_FORMS: dict[str, Callable[[dict[str, str]], dict[str, str]]] = {
    "without the verifier": lambda form: {name: value for name, value in form.items() if name != "code_verifier"},
    "another verifier": lambda form: form | {"code_verifier": "v" * 43},
    "another way back": lambda form: form | {"redirect_uri": "https://evil.example/"},
}


@pytest.mark.parametrize("name", CHANGED_FORMS)
async def test_a_code_is_worth_nothing_without_its_verifier(ring: Ring, name: str) -> None:
    bound = await ring.bound("flow")
    bound.door.asked = CHANGED_FORMS[name]
    await ring.refuses(bound, await ring.begin(bound), "code_refused")


async def test_a_request_without_pkce_gets_no_code(ring: Ring) -> None:
    bound = await ring.bound("flow")
    url, cookies = await ring.start(bound)
    asked = dict(parse_qsl(urlsplit(url).query))
    assert asked["code_challenge_method"] == "S256"
    stripped = urlencode({name: value for name, value in asked.items() if not name.startswith("code_challenge")})
    way = await ring.authorize(bound, f"{url.partition('?')[0]}?{stripped}", cookies)
    assert way.query["error"] == "invalid_request"
    await ring.refuses(bound, way, "provider_error")


def broken(_: Genuine) -> web.Response:
    raise Broken


TOKEN_ENDPOINT = {
    "does not know the client": Case(
        "client_refused", lambda _: web.json_response({"error": "invalid_client"}, status=401)
    ),
    "refuses for another reason": Case(
        "token_refused", lambda _: web.json_response({"error": "slow_down"}, status=400)
    ),
    "answers with a page": Case("token_refused", lambda _: web.Response(text="<html>", status=403)),
    "fails": Case("token_status", lambda _: web.Response(status=500), code="provider_failed"),
    "sends us elsewhere": Case(
        "token_status", lambda _: web.Response(status=307, headers={"Location": "/jwks"}), code="provider_failed"
    ),
    "answers with no JSON": Case("token_form", lambda g: web.Response(text=g.token), code="provider_failed"),
    "answers with a list": Case("token_form", lambda g: web.json_response([g.answer]), code="provider_failed"),
    "hangs up": Case("token_unreachable", broken, code="provider_failed"),
}


@pytest.mark.parametrize("name", TOKEN_ENDPOINT)
async def test_a_token_endpoint_that_gives_nothing_signs_nobody_in(ring: Ring, name: str) -> None:
    await ring.attempt(await ring.bound("token endpoint"), TOKEN_ENDPOINT[name])


@pytest.mark.parametrize("kept", [{"client_id": "plexsphere"}, {"client_secret": 7}], ids=["none", "a number"])
async def test_without_a_client_secret_nobody_signs_in(ring: Ring, kept: dict[str, object]) -> None:
    bound = await ring.bound("no secret")
    await ring.keep(bound.domain_id, kept)
    await ring.refuses(bound, await ring.begin(bound), "openbao_unavailable", "openbao_unavailable")
