"""The device authorization grant (RFC 8628): who may approve what, what a token keeps, and every code of a poll."""

import pytest

from libs.errors import (
    AccessDenied,
    AuditUnavailable,
    AuthorizationPending,
    DeviceCodeAlreadyApproved,
    DeviceCodeExpired,
    DeviceCodeNotFound,
    ExpiredToken,
    IdpBindingNotFound,
    InvalidGrant,
    PlexError,
    SlowDown,
    StepUpRequired,
    Unauthenticated,
)
from libs.ids import uuid7
from services.identity.sign_in_model import Asker, Wanted
from services.identity.tests.sign_in_fakes import SignInWorld, a_binding, sha256

pytestmark = pytest.mark.unit


async def test_a_token_keeps_the_login_behind_it_and_rests_as_a_digest() -> None:
    world = SignInWorld()
    world.provider.claims = {"acr": "urn:mfa", "amr": ["pwd", "otp"]}
    session = (await world.walk()).session
    _, device_code, user_code = await world.devices.start(None, "cli", Wanted())
    world.clock.advance(60)
    await world.devices.approve(session, user_code.lower().replace("-", ""))
    token, lifetime_s = await world.devices.poll(device_code, "cli")
    kept = world.store.tokens[sha256(token)]
    assert kept.login == session.login
    assert token.startswith("pat_dev_")
    assert lifetime_s <= 900
    assert world.trace.index("audit") < world.trace.index("approve_device")
    assert world.trace.index("issue_token") > len(world.trace) - 1 - world.trace[::-1].index("audit")
    assert [row.action for row in world.audit.rows[-2:]] == ["device.approve", "access_token.issue"]
    stored = repr((world.store.devices, world.store.tokens, world.store.codes))
    assert not any(text in stored for text in (token, device_code, user_code))


async def test_a_code_gives_one_token() -> None:
    world = SignInWorld()
    session = (await world.walk()).session
    _, device_code, user_code = await world.devices.start(None, "cli", Wanted())
    await world.devices.approve(session, user_code)
    await world.devices.poll(device_code, "cli")
    with pytest.raises(InvalidGrant):
        await world.devices.poll(device_code, "cli")


@pytest.mark.parametrize(
    ("waited_s", "client_id", "refusal"),
    [
        (0, "cli", SlowDown),
        (5, "cli", AuthorizationPending),
        (600, "cli", ExpiredToken),
        (5, "other", InvalidGrant),
    ],
)
async def test_a_poll_says_how_it_stands(waited_s: float, client_id: str, refusal: type[PlexError]) -> None:
    world = SignInWorld()
    _, device_code, _ = await world.devices.start(None, "cli", Wanted())
    with pytest.raises(AuthorizationPending):
        await world.devices.poll(device_code, "cli")
    world.clock.advance(waited_s)
    with pytest.raises(refusal):
        await world.devices.poll(device_code, client_id)


async def test_without_a_record_no_token_is_issued() -> None:
    world = SignInWorld()
    session = (await world.walk()).session
    _, device_code, user_code = await world.devices.start(None, "cli", Wanted())
    await world.devices.approve(session, user_code)
    world.audit.refusal = AuditUnavailable("down")
    with pytest.raises(AuditUnavailable):
        await world.devices.poll(device_code, "cli")
    assert world.store.tokens == {}


async def test_a_person_may_deny_and_the_device_is_told() -> None:
    world = SignInWorld()
    session = (await world.walk()).session
    _, device_code, user_code = await world.devices.start(None, "cli", Wanted(("urn:phr",)))
    await world.devices.deny(session, user_code)
    with pytest.raises(AccessDenied):
        await world.devices.poll(device_code, "cli")
    for again in (world.devices.approve, world.devices.deny):
        with pytest.raises(DeviceCodeNotFound):
            await again(session, user_code)
    assert [(row.action, row.context) for row in world.audit.rows[1:]] == [
        ("device.deny", {}),
        ("device.approve", {"device": ["device_code_not_found"]}),
        ("device.deny", {"device": ["device_code_not_found"]}),
    ]


async def test_an_age_of_zero_means_a_login_since_the_device_asked() -> None:
    world = SignInWorld()
    before = (await world.walk()).session
    _, _, user_code = await world.devices.start(None, "cli", Wanted((), 0))
    with pytest.raises(StepUpRequired):
        await world.devices.approve(before, user_code)
    world.clock.advance(60)
    await world.devices.approve((await world.walk()).session, user_code)


async def test_only_the_same_domain_may_approve() -> None:
    world = SignInWorld()
    at_domain, at_platform = (await world.walk(world.domain_id)).session, (await world.walk()).session
    for domain_id, session in ((world.domain_id, at_platform), (None, at_domain), (uuid7(), at_domain)):
        _, _, user_code = await world.devices.start(domain_id, "cli", Wanted())
        with pytest.raises(DeviceCodeNotFound):
            await world.devices.approve(session, user_code)
        # His own Domain reads the row: it does not say either that there is such a device.
        assert world.audit.rows[-1].object_id == "unknown"
    device, _, user_code = await world.devices.start(world.domain_id, "cli", Wanted())
    await world.devices.approve(at_domain, user_code)
    assert world.audit.rows[-1].object_id == str(device.id)


async def test_only_a_login_at_the_binding_that_was_asked_for_may_approve() -> None:
    world = SignInWorld()
    session = (await world.walk(world.domain_id)).session
    other = a_binding(world.domain_id, "https://other.example", alias="other", primary=False)
    world.store.binding_rows[other.id] = other
    for named in ({"binding_id": other.id}, {"alias": "other"}):
        _, _, user_code = await world.devices.start(world.domain_id, "cli", Wanted(), **named)
        with pytest.raises(DeviceCodeNotFound):
            await world.devices.approve(session, user_code)
    for named in ({"binding_id": world.binding.id}, {"alias": world.binding.alias}):
        _, _, user_code = await world.devices.start(world.domain_id, "cli", Wanted(), **named)
        await world.devices.approve(session, user_code)
    for named in ({"binding_id": world.platform.id}, {"alias": "nobody"}):
        with pytest.raises(IdpBindingNotFound):
            await world.devices.start(world.domain_id, "cli", Wanted(), **named)


@pytest.mark.parametrize("wanted", [Wanted(("urn:phr",)), Wanted((), 4), Wanted(("urn:mfa",), 4)])
async def test_a_login_that_is_not_enough_must_step_up(wanted: Wanted) -> None:
    world = SignInWorld()
    world.provider.claims = {"acr": "urn:mfa"}
    session = (await world.walk()).session
    _, device_code, user_code = await world.devices.start(None, "cli", wanted)
    world.audit.rows.clear()
    with pytest.raises(StepUpRequired) as refused:
        await world.devices.approve(session, user_code)
    assert refused.value.extra == {"acr_values": list(wanted.acr_values), "max_age_s": wanted.max_age_s}
    with pytest.raises(AuthorizationPending):
        await world.devices.poll(device_code, "cli")


async def test_a_code_is_approved_once_in_time_and_while_the_session_lives() -> None:
    world = SignInWorld()
    opened = await world.walk()
    session = opened.session
    with pytest.raises(DeviceCodeNotFound):
        await world.devices.approve(session, "AAAA-AAAA")
    _, _, user_code = await world.devices.start(None, "cli", Wanted())
    await world.devices.approve(session, user_code)
    with pytest.raises(DeviceCodeAlreadyApproved):
        await world.devices.approve(session, user_code)
    _, _, late = await world.devices.start(None, "cli", Wanted())
    _, _, over = await world.devices.start(None, "cli", Wanted())
    await world.store.end_session(session.id)
    with pytest.raises(Unauthenticated):
        await world.devices.approve(session, over)
    world.clock.advance(600)
    with pytest.raises(DeviceCodeExpired):
        await world.devices.approve(session, late)


async def test_signing_out_takes_an_approval_along() -> None:
    world = SignInWorld()
    session = (await world.walk()).session
    _, device_code, user_code = await world.devices.start(None, "cli", Wanted())
    await world.devices.approve(session, user_code)
    await world.store.end_sessions(session.person.id)
    with pytest.raises(InvalidGrant):
        await world.devices.poll(device_code, "cli")


async def test_without_a_record_nothing_is_approved() -> None:
    world = SignInWorld()
    session = (await world.walk()).session
    _, device_code, user_code = await world.devices.start(None, "cli", Wanted())
    world.audit.refusal = AuditUnavailable("down")
    with pytest.raises(AuditUnavailable):
        await world.devices.approve(session, user_code)
    with pytest.raises(AuthorizationPending):
        await world.devices.poll(device_code, "cli")


async def test_who_may_approve_sees_who_asks_and_nothing_changes_by_it() -> None:
    world = SignInWorld()
    session = (await world.walk()).session
    asker = Asker("192.0.2.7", "curl\u202e" + "x" * 300)
    _, device_code, user_code = await world.devices.start(None, "c\u202eli", Wanted(("urn:phr",)), asker=asker)
    before = world.store.devices.copy()
    asking = await world.devices.inspect(session, user_code)
    assert (asking.device.client_id, asking.device.asker.client_ip) == ("cli", "192.0.2.7")
    assert asking.device.asker.user_agent == "curl" + "x" * 252
    assert (asking.asked_at, asking.step_up_needed, asking.domain_name) == (world.clock.now(), True, "")
    assert world.store.devices == before
    assert world.audit.rows[-1].action == "device.inspect"
    await world.devices.deny(session, user_code)
    with pytest.raises(DeviceCodeNotFound):
        await world.devices.inspect(session, user_code)
    with pytest.raises(AccessDenied):
        await world.devices.poll(device_code, "c\u202eli")
