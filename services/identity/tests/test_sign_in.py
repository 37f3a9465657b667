"""Signing in: what a flow must bring back, what is recorded before it counts, and what never comes to rest."""

import base64
import hashlib
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from libs.errors import (
    AuditUnavailable,
    IdpBindingNotFound,
    InvalidRequest,
    ProviderFailed,
    SignInRefused,
    SignInStateInvalid,
)
from libs.ids import uuid7
from services.identity.sign_in_model import Callback, Wanted
from services.identity.sign_in_ports import ProviderDoubted
from services.identity.tests.fakes import NOW
from services.identity.tests.sign_in_fakes import CLIENT, SignInWorld, a_binding, sha256

pytestmark = pytest.mark.unit


def query_of(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query, strict_parsing=True).items()}


async def test_the_request_binds_code_to_verifier_and_token_to_nonce() -> None:
    world = SignInWorld()
    started = await world.sign_in.start(world.domain_id, None, "", "login", Wanted(("urn:mfa", "urn:phr"), 60))
    asked = query_of(started.authorization_url)
    world.provider.claims = {"acr": "urn:mfa"}
    code = world.provider.authorize(started.authorization_url)
    await world.sign_in.complete(world.back(started, code))
    verifier = world.provider.exchanged[0]["code_verifier"]
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
    assert (asked["code_challenge"], asked["code_challenge_method"]) == (challenge, "S256")
    assert (asked["nonce"], asked["state"]) == (started.nonce, started.state)
    assert (asked["acr_values"], asked["max_age"], asked["prompt"]) == ("urn:mfa urn:phr", "60", "login")
    assert verifier not in {started.handle, started.nonce, started.state}


async def test_an_authorization_endpoint_keeps_its_own_query() -> None:
    world = SignInWorld()
    world.provider.document = {"authorization_endpoint": "https://op.example/auth?tenant=a"}
    started = await world.sign_in.start(world.domain_id, None, "", "", Wanted())
    asked = query_of(started.authorization_url)
    assert (asked["tenant"], asked["response_type"]) == ("a", "code")


async def test_a_session_is_recorded_before_it_opens_and_rests_as_a_digest() -> None:
    world = SignInWorld()
    opened = await world.walk(world.domain_id)
    assert world.trace.index("audit") < world.trace.index("open_session")
    row = world.audit.rows[0]
    assert (row.action, row.reason, row.domain_id) == ("session.sign_in", "granted", str(world.domain_id))
    assert row.subject_id == str(opened.session.person.id)
    assert world.store.sessions == {sha256(opened.cookie): opened.session}
    assert opened.csrf not in {opened.cookie, str(opened.session.id)}
    stored = repr((world.store.pending, world.store.sessions, world.store.people, world.audit.rows))
    assert opened.cookie not in stored
    assert world.provider.exchanged[0]["code_verifier"] not in stored


async def test_the_client_secret_is_wiped_after_the_exchange() -> None:
    world = SignInWorld()
    await world.walk(world.domain_id)
    assert bytes(world.secrets.handed_out[0].reveal()) == bytes(len(b"client-secret"))


async def test_without_a_record_there_is_no_session_and_no_administrator() -> None:
    world = SignInWorld()
    world.provider.claims = {"sub": "operator"}
    world.audit.refusal = AuditUnavailable("down")
    with pytest.raises(AuditUnavailable):
        await world.walk()
    assert (world.store.sessions, world.admins.granted) == ({}, [])


async def test_a_state_is_used_once_in_time_and_by_the_browser_that_started() -> None:
    world = SignInWorld()
    started = await world.sign_in.start(world.domain_id, None, "", "", Wanted())
    back = world.back(started, world.provider.authorize(started.authorization_url))
    await world.sign_in.complete(back)
    for handle in ("", "forged", (await world.sign_in.start(world.domain_id, None, "", "", Wanted())).handle):
        other = await world.sign_in.start(world.domain_id, None, "", "", Wanted())
        with pytest.raises(SignInStateInvalid):
            await world.sign_in.complete(replace(world.back(other, "code"), handle=handle))
    for _ in range(2):
        with pytest.raises(SignInStateInvalid):
            await world.sign_in.complete(back)
    late = await world.sign_in.start(world.domain_id, None, "", "", Wanted())
    world.clock.advance(600)
    with pytest.raises(SignInStateInvalid):
        await world.sign_in.complete(world.back(late, "code"))
    reasons = [row.context.get("id_token") for row in world.audit.rows if row.reason == "caveat_violation"]
    # The two replays are one row.
    assert reasons == [["state_foreign"]] * 3 + [["state_replayed"], ["state_expired"]]
    assert {row.domain_id for row in world.audit.rows} == {str(world.domain_id)}
    assert len(world.store.sessions) == 1


async def test_invented_states_share_a_row_of_the_minute() -> None:
    world = SignInWorld()
    for state in ("a", "b", ""):
        with pytest.raises(SignInStateInvalid):
            await world.sign_in.complete(Callback(state, "code"))
    world.clock.advance(60)
    with pytest.raises(SignInStateInvalid):
        await world.sign_in.complete(Callback("c", "code"))
    assert [(row.domain_id, row.context["id_token"]) for row in world.audit.rows] == [("", ["state_unknown"])] * 2


async def test_a_provider_that_does_not_name_itself_has_a_way_back_of_its_own() -> None:
    world = SignInWorld()
    world.provider.document = {"authorization_response_iss_parameter_supported": False}
    started = await world.sign_in.start(world.domain_id, None, "", "", Wanted())
    asked = query_of(started.authorization_url)["redirect_uri"]
    assert asked == f"{world.sign_in.redirect_uri}/{world.binding.id}"
    back = replace(
        world.back(started, world.provider.authorize(started.authorization_url)), issuer="", binding_id=world.binding.id
    )
    await world.sign_in.complete(back)
    assert world.provider.exchanged[0]["redirect_uri"] == asked


async def test_a_new_session_ends_the_one_that_the_browser_had() -> None:
    world = SignInWorld()
    before = await world.walk(world.domain_id)
    after = await world.walk(world.domain_id, previous=before.cookie)
    assert list(world.store.sessions) == [sha256(after.cookie)]
    assert (after.session.id, after.csrf) != (before.session.id, before.csrf)
    assert after.session.person.id == before.session.person.id


ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "answer of another issuer": ({"issuer": "https://evil.example"}, "response_iss"),
    "answer without an issuer": ({"issuer": ""}, "response_iss"),
    "answer at the place of another binding": ({"issuer": "", "binding_id": uuid7()}, "response_binding"),
    "answer of another issuer at its own place": (
        {"issuer": "https://evil.example", "binding_id": ...},
        "response_iss",
    ),
    "refusal of the provider": ({"error": "access_denied"}, "provider_error"),
    "no code": ({"code": ""}, "code_missing"),
    "code of nobody": ({"code": "forged"}, "code_refused"),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_a_changed_answer_is_refused_with_one_row(name: str) -> None:
    changed, reason = ANSWERS[name]
    world = SignInWorld()
    started = await world.sign_in.start(world.domain_id, None, "", "", Wanted())
    back = world.back(started, world.provider.authorize(started.authorization_url))
    if changed.get("binding_id") is ...:
        changed = changed | {"binding_id": world.binding.id}
    with pytest.raises(SignInRefused):
        await world.sign_in.complete(replace(back, **changed))
    assert [(row.reason, row.context) for row in world.audit.rows] == [("caveat_violation", {"id_token": [reason]})]
    assert (world.store.sessions, world.store.people) == ({}, {})


TOKENS: dict[str, tuple[dict[str, Any], dict[str, Any], Wanted, str]] = {
    "nonce of another sign-in": ({}, {"nonce": "other"}, Wanted(), "nonce"),
    "another audience": ({}, {"aud": "other"}, Wanted(), "aud"),
    "asked for a class that did not come back": ({}, {"acr": "urn:pwd"}, Wanted(("urn:mfa",)), "acr_asked"),
    "asked for an age": ({}, {"auth_time": 0}, Wanted((), 60), "auth_time"),
    "asked for now and got a second ago": ({}, {"auth_time": int(NOW.timestamp()) - 1}, Wanted((), 0), "auth_time"),
    "asked for now and got no time": ({}, {"auth_time": None}, Wanted((), 0), "auth_time_missing"),
    "a provider's session without a name": ({}, {"sid": 7}, Wanted(), "sid_form"),
    "below the binding's class": ({"required_acr": ("urn:mfa",)}, {"acr": "urn:pwd"}, Wanted(), "acr"),
    # Whoever asks for less than the binding demands must not get it.
    "asked for less than the binding demands": (
        {"required_acr": ("urn:mfa",)}, {"acr": "urn:pwd"}, Wanted(("urn:pwd",)), "acr",
    ),
    "older than the binding allows": ({"max_auth_age_s": 4}, {}, Wanted(), "auth_time"),
    "older than the binding allows, asked for more": ({"max_auth_age_s": 4}, {}, Wanted((), 60), "auth_time"),
    "clock off by more than the binding bears": ({"leeway_s": 5}, {"iat": 1_777_636_810}, Wanted(), "iat"),
    "a method that the binding does not accept": (
        {"accepted_amr": ("pwd", "otp")}, {"amr": ["pwd", "sms"]}, Wanted(), "amr_accepted",
    ),
    "signed as the binding does not pin": ({"algorithms": ("RS256",)}, {}, Wanted(), "alg_not_pinned"),
    "below the binding's methods": ({"required_amr": ("otp",)}, {"amr": ["pwd"]}, Wanted(), "amr"),
    "unknown person where nobody new is let in": ({"jit_policy": "deny"}, {}, Wanted(), "unknown_person"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENS)
async def test_a_token_that_is_not_enough_opens_nothing_and_says_one_thing(name: str) -> None:
    binding, claims, wanted, reason = TOKENS[name]
    world = SignInWorld(**binding)
    world.provider.claims = claims
    with pytest.raises(SignInRefused) as refused:
        await world.walk(world.domain_id, wanted)
    # One code and one text outwards, whatever the reason was.
    assert (refused.value.code, refused.value.detail) == ("sign_in_refused", SignInRefused.title)
    assert [row.context for row in world.audit.rows] == [{"id_token": [reason]}]
    assert (world.store.sessions, world.store.people) == ({}, {})


async def test_a_crash_on_the_way_is_a_refusal_with_its_row() -> None:
    world = SignInWorld()
    started = await world.sign_in.start(world.domain_id, None, "", "", Wanted())
    # Nothing answers so; a bug of ours could meet it.
    world.provider.asked = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        await world.sign_in.complete(world.back(started, "code"))
    assert [row.context for row in world.audit.rows] == [{"id_token": ["internal"]}]
    assert world.store.sessions == {}


async def test_an_age_of_zero_means_a_login_since_the_sign_in_began() -> None:
    world = SignInWorld()
    started = await world.sign_in.start(world.domain_id, None, "", "", Wanted((), 0))
    assert query_of(started.authorization_url)["max_age"] == "0"
    world.provider.claims = {"auth_time": int(NOW.timestamp()) + 20, "sid": "op-1"}
    world.clock.advance(40)
    opened = await world.sign_in.complete(world.back(started, world.provider.authorize(started.authorization_url)))
    assert (opened.session.login.auth_time, opened.session.sid) == (int(NOW.timestamp()) + 20, "op-1")


async def test_where_to_sign_out_of_the_provider() -> None:
    world = SignInWorld()
    person_id = (await world.walk(world.domain_id)).session.person.id
    assert await world.sign_in.logout_url(person_id) == ""
    world.provider.document = {"end_session_endpoint": "https://op.example/end?tenant=a"}
    asked = query_of(await world.sign_in.logout_url(person_id))
    assert asked == {"tenant": "a", "client_id": CLIENT, "post_logout_redirect_uri": "https://edge/"}
    assert await world.sign_in.logout_url(uuid7()) == ""
    for bad in ("javascript:alert(1)", "https://op.example/\r\nSet-Cookie: a=b", "https://op.example/\ud800"):
        world.provider.document = {"end_session_endpoint": bad}
        assert await world.sign_in.logout_url(person_id) == ""
    world.provider.refusal = ProviderFailed("down")
    assert await world.sign_in.logout_url(person_id) == ""


async def test_a_class_above_the_binding_s_floor_that_was_asked_for_is_enough() -> None:
    world = SignInWorld(required_acr=("urn:mfa", "urn:phr"))
    world.provider.claims = {"acr": "urn:phr"}
    opened = await world.walk(world.domain_id, Wanted(("urn:phr",)))
    assert opened.session.login.acr == "urn:phr"


async def test_a_binding_that_was_taken_away_finishes_no_sign_in() -> None:
    world = SignInWorld()
    started = await world.sign_in.start(world.domain_id, None, "", "", Wanted())
    code = world.provider.authorize(started.authorization_url)
    world.store.binding_rows[world.binding.id] = SignInWorld(status="deactivated", id=world.binding.id).binding
    with pytest.raises(SignInRefused):
        await world.sign_in.complete(world.back(started, code))
    assert world.store.sessions == {}


@pytest.mark.parametrize(
    ("claims", "name", "email"),
    [
        ({}, "Alice", "alice@op.example"),
        ({"name": None, "email": 7}, "", ""),
        ({"name": "A\x00\ud800\nB", "email": "x" * 300}, "AB", "x" * 256),
        ({"nickname": "Al", "upn": "al@corp"}, "Al", "al@corp"),
    ],
)
async def test_names_are_text_that_can_be_stored_or_nothing(claims: dict[str, Any], name: str, email: str) -> None:
    mapped = {"display_name": "nickname", "email": "upn"} if "upn" in claims else {}
    world = SignInWorld(claim_mappings=mapped)
    world.provider.claims = claims
    person = (await world.walk(world.domain_id)).session.person
    assert (person.display_name, person.email) == (name, email)


async def test_a_named_subject_of_the_platforms_binding_administers() -> None:
    world = SignInWorld()
    world.provider.claims = {"sub": "operator"}
    opened = await world.walk()
    assert world.admins.granted == [opened.session.person.id]
    # The grant is a change of relations: the one row of this request says so, before it happens.
    assert [row.context for row in world.audit.rows] == [{"relation": ["platform_admin"]}]
    assert world.trace.index("audit") < world.trace.index("grant")


async def test_who_was_made_an_administrator_once_is_not_again() -> None:
    world = SignInWorld()
    world.provider.claims = {"sub": "operator"}
    opened = await world.walk()
    world.store.made_admins.add(opened.session.person.id)
    await world.walk()
    assert world.admins.granted == [opened.session.person.id]
    assert world.audit.rows[-1].context == {}


async def test_the_name_at_another_provider_of_the_platform_is_anybodys() -> None:
    world = SignInWorld()
    other = a_binding(None, "https://guests.example", primary=False)
    world.store.binding_rows[other.id] = other
    world.provider.claims = {"sub": "operator"}
    started = await world.sign_in.start(None, other.id, "", "", Wanted())
    code = world.provider.authorize(started.authorization_url)
    await world.sign_in.complete(replace(world.back(started, code), issuer=other.issuer))
    assert world.admins.granted == []


async def test_a_binding_says_which_scopes_and_ages_are_asked_for() -> None:
    world = SignInWorld(scopes=("openid", "groups"), max_auth_age_s=60)
    asked = [
        query_of((await world.sign_in.start(world.domain_id, None, "", "", Wanted((), age))).authorization_url)
        for age in (None, 30, 300)
    ]
    assert [(one["scope"], one["max_age"]) for one in asked] == [("openid groups", age) for age in ("60", "30", "60")]


async def test_nobody_else_administers() -> None:
    world = SignInWorld()
    await world.walk()
    world.provider.claims = {"sub": "operator"}
    await world.walk(world.domain_id)
    assert world.admins.granted == []
    assert [row.context for row in world.audit.rows] == [{}, {}]


async def test_an_unknown_domain_is_offered_what_one_without_bindings_is() -> None:
    world = SignInWorld()
    offered = [await world.sign_in.options(one) for one in (None, uuid7(), world.domain_id)]
    assert offered == [[world.platform], [world.platform], [world.binding]]
    with pytest.raises(IdpBindingNotFound):
        await world.sign_in.start(world.domain_id, world.platform.id, "", "", Wanted())


async def test_the_way_back_is_on_the_list() -> None:
    world = SignInWorld()
    for path in ("https://evil.example", "//evil.example", "/\\evil", "/other"):
        with pytest.raises(InvalidRequest):
            await world.sign_in.start(world.domain_id, None, path, "", Wanted())


async def test_a_provider_that_fails_is_no_refusal_of_the_person() -> None:
    world = SignInWorld()
    started = await world.sign_in.start(world.domain_id, None, "", "", Wanted())
    world.provider.refusal = ProviderDoubted("jwks_unreachable")
    with pytest.raises(ProviderFailed):
        await world.sign_in.complete(world.back(started, "code"))
    assert [row.context for row in world.audit.rows] == [{"id_token": ["jwks_unreachable"]}]


@pytest.mark.parametrize("name", ["access_token", "refresh_token"])
async def test_a_credential_that_cannot_be_one_opens_no_session(name: str) -> None:
    world = SignInWorld()
    world.provider.given = {name: "\ud800"}
    with pytest.raises(SignInRefused):
        await world.walk(world.domain_id)
    assert [row.context for row in world.audit.rows] == [{"id_token": [f"{name}_form"]}]


async def test_a_binding_that_is_deleted_meanwhile_lets_nobody_in_and_says_so_in_a_row() -> None:
    world = SignInWorld()
    world.store.deleted.add(world.binding.id)
    with pytest.raises(SignInRefused):
        await world.walk(world.domain_id)
    assert [row.context for row in world.audit.rows] == [{"id_token": ["binding_gone"]}]
    assert not world.store.sessions
