"""The rules of API tokens and service tokens: whose they are, what begets them, and what is recorded first."""

import datetime
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from libs.clock import FixedClock
from libs.errors import (
    ApiTokenLimit,
    ApiTokenRotated,
    AuditUnavailable,
    FederationKindMismatch,
    Forbidden,
    InvalidClient,
    InvalidRequest,
    InvalidScope,
    NotFound,
    PlexError,
    StepUpRequired,
)
from libs.ids import uuid7
from libs.principal import Principal
from services.identity.api_tokens import ApiTokens
from services.identity.authority import Gate
from services.identity.service_tokens import ServiceTokens
from services.identity.sign_in_model import digest
from services.identity.tests.fakes import NOW, FakeAudit, FakeAuthority
from services.identity.tests.token_fakes import FakeTokenStore
from services.identity.token_model import (
    API_TOKEN,
    SERVICE_TOKEN,
    TEXT,
    ApiToken,
    Owner,
    checksum,
    new_text,
    well_formed,
)

pytestmark = pytest.mark.unit


class AllDomains:
    async def registered(self, node_id: Any) -> bool:
        return True


@dataclass
class Desk:
    """Two people and a machine of a Domain, and the rules on top of fakes."""

    trace: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store, self.clock = FakeTokenStore(), FixedClock(NOW)
        self.authority, self.audit = FakeAuthority(self.trace), FakeAudit(self.trace)
        self.domain = uuid7()
        self.alice, self.bob = (self.store.know(Owner("user", uuid7(), self.domain)) for _ in range(2))
        self.machine = self.store.know(Owner("service", uuid7(), self.domain, "api_token"))
        gate = Gate(self.authority, self.audit, AllDomains(), self.clock)
        self.tokens = ApiTokens(self.store, gate, self.clock, "dev")
        self.services = ServiceTokens(self.store, self.audit, self.clock, "dev")

    def as_(self, owner: Owner, credential: str = "session", sid: str = "", age_s: int = 0) -> Principal:
        domain = str(owner.domain_id or "")
        login = int(self.clock.now().timestamp()) - age_s
        return Principal(str(owner.id), owner.kind, credential, domain_id=domain, session_id=sid, auth_time=login)

    def manages(self, owner: Owner) -> None:
        self.authority.granted.add((owner.reference, "manage", f"domain:{self.domain}"))

    async def issue(self, by: Principal, owner: Owner, **more: Any) -> tuple[ApiToken, str]:
        asked: dict[str, Any] = {"env_prefix": "dev", "ttl_s": 0, "scope": None, "as_admin": False} | more
        return await self.tokens.issue(by, owner.reference, **asked)

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        return [(row.action, row.reason, row.domain_id) for row in self.audit.rows]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_text_is_random_and_checks_itself() -> None:
    texts = {new_text(API_TOKEN, "dev") for _ in range(100)}
    assert len(texts) == 100
    for text in texts:
        assert TEXT.fullmatch(text)
        assert well_formed(text, API_TOKEN)
        assert not well_formed(text, SERVICE_TOKEN)
        for place in range(len(text)):
            other = "A" if text[place] != "A" else "B"
            assert not well_formed(text[:place] + other + text[place + 1 :], API_TOKEN)
    assert not well_formed(texts.pop() + "\n", API_TOKEN)
    # Known beforehand, so that what scanners have been told stays true.
    assert checksum("psk_dev_" + "0" * 30) == "0WtzZb"


async def test_a_token_is_stored_as_a_digest_after_its_row(desk: Desk) -> None:
    token, text = await desk.issue(desk.as_(desk.alice), desk.alice)
    assert desk.store.tokens == {digest(text): token}
    assert (token.owner, token.scope) == (desk.alice, None)
    assert token.expires_at - token.created_at == datetime.timedelta(days=90)
    assert desk.rows == [("api_token.issue", "granted", str(desk.domain))]
    desk.audit.refusal = AuditUnavailable()
    with pytest.raises(AuditUnavailable):
        await desk.issue(desk.as_(desk.alice), desk.alice)
    assert len(desk.store.tokens) == 1


@pytest.mark.parametrize("credential", ["api_token", "service_token"])
async def test_a_token_begets_none_and_ends_none_but_itself(desk: Desk, credential: str) -> None:
    token, _ = await desk.issue(desk.as_(desk.alice), desk.alice)
    other, _ = await desk.issue(desk.as_(desk.alice), desk.alice)
    by = desk.as_(desk.alice, credential, str(token.id))
    desk.manages(desk.alice)
    for as_admin in (False, True):
        before = len(desk.audit.rows)
        for attempt in (
            desk.issue(by, desk.alice, as_admin=as_admin),
            desk.tokens.rotate(by, token.id, as_admin=as_admin),
            desk.tokens.rotate(by, other.id, as_admin=as_admin),
        ):
            with pytest.raises(Forbidden):
                await attempt
        assert [row.reason for row in desk.audit.rows[before:]] == ["caveat_violation"] * 3
    for as_admin in (False, True):
        with pytest.raises(Forbidden):
            await desk.tokens.revoke(by, other.id, as_admin=as_admin)
    assert desk.audit.rows[-1].context == {"token": ["credential"]}
    await desk.tokens.revoke(by, token.id, as_admin=False)
    assert [row.id for row in desk.store.tokens.values()] == [other.id]


@pytest.mark.parametrize("as_admin", [False, True])
async def test_an_old_login_begets_no_token(desk: Desk, as_admin: bool) -> None:  # noqa: FBT001 — read beside its name
    desk.manages(desk.alice)
    token, _ = await desk.issue(desk.as_(desk.alice, age_s=900), desk.alice)
    old, unknown = desk.as_(desk.alice, age_s=901), replace(desk.as_(desk.alice), auth_time=None)
    for by in (old, unknown):
        for attempt in (
            desk.issue(by, desk.alice, as_admin=as_admin),
            desk.tokens.rotate(by, token.id, as_admin=as_admin),
        ):
            with pytest.raises(StepUpRequired) as refused:
                await attempt
            (missing,) = refused.value.extra["missing"]
            assert refused.value.extra["max_age_s"] == 900
            assert desk.audit.rows[-1].context["step_up"] == [missing]
            assert missing == ("auth_time_stale" if by is old else "auth_time_missing")
    assert len(desk.audit.rows) == 5
    await desk.tokens.revoke(old, token.id, as_admin=as_admin)


async def test_who_manages_under_a_condition_gives_nobody_a_token(desk: Desk) -> None:
    desk.manages(desk.bob)
    desk.authority.conditional.update(desk.authority.granted)
    with pytest.raises(Forbidden):
        await desk.issue(desk.as_(desk.bob), desk.alice, as_admin=True)
    assert desk.audit.rows[-1].context == {"grant": ["conditional"]}
    await desk.issue(desk.as_(desk.bob), desk.bob)


async def test_anothers_token_is_not_there_and_the_attempt_is_recorded(desk: Desk) -> None:
    token, _ = await desk.issue(desk.as_(desk.alice), desk.alice)
    bob, unknown = desk.as_(desk.bob), uuid7()
    desk.audit.rows.clear()
    for token_id in (token.id, unknown):
        with pytest.raises(NotFound):
            await desk.tokens.revoke(bob, token_id, as_admin=False)
        with pytest.raises(NotFound):
            await desk.tokens.rotate(bob, token_id, as_admin=False)
        with pytest.raises(Forbidden):
            await desk.tokens.revoke(bob, token_id, as_admin=True)
    with pytest.raises(Forbidden):
        await desk.issue(bob, desk.alice)
    assert {row.reason for row in desk.audit.rows} == {"out_of_scope"}
    assert len(desk.audit.rows) == 7
    assert len(desk.store.tokens) == 1
    assert await desk.tokens.list(bob, "") == []
    with pytest.raises(Forbidden):
        await desk.tokens.list(bob, desk.alice.reference)


async def test_who_manages_the_domain_administers_its_tokens(desk: Desk) -> None:
    desk.manages(desk.bob)
    bob = desk.as_(desk.bob)
    token, _ = await desk.issue(bob, desk.alice, as_admin=True, scope=("read",), ttl_s=60)
    assert await desk.tokens.list(bob, desk.alice.reference) == [token]
    successor, _, deadline = await desk.tokens.rotate(bob, token.id, as_admin=True)
    assert (successor.owner, successor.scope, successor.issued_by) == (desk.alice, ("read",), desk.bob.id)
    assert deadline == token.expires_at, "never beyond its own end"
    await desk.tokens.revoke(bob, successor.id, as_admin=True)
    assert [action for action, _, _ in desk.rows] == ["api_token.issue", "api_token.rotate", "api_token.revoke"]
    platform = desk.store.know(Owner("user", uuid7(), None))
    with pytest.raises(Forbidden):
        await desk.issue(bob, platform, as_admin=True)
    with pytest.raises(Forbidden):
        await desk.issue(bob, Owner("user", uuid7(), None), as_admin=True)


async def test_a_rotated_token_lives_a_day_and_is_not_rotated_twice(desk: Desk) -> None:
    alice = desk.as_(desk.alice)
    token, text = await desk.issue(alice, desk.alice)
    desk.clock.advance(3600)
    alice = desk.as_(desk.alice)
    successor, _, deadline = await desk.tokens.rotate(alice, token.id, as_admin=False)
    assert deadline == desk.clock.now() + datetime.timedelta(hours=24)
    assert successor.expires_at - successor.created_at == datetime.timedelta(days=90)
    with pytest.raises(ApiTokenRotated):
        await desk.tokens.rotate(alice, token.id, as_admin=False)
    desk.clock.advance(24 * 3600)
    alice = desk.as_(desk.alice)
    assert await desk.store.use_api_token(digest(text), desk.clock.now()) is None
    with pytest.raises(NotFound):
        await desk.tokens.rotate(alice, token.id, as_admin=False)


@pytest.mark.parametrize(
    ("more", "refusal"),
    [({"env_prefix": "prod"}, InvalidRequest), ({"as_admin": True}, FederationKindMismatch)],
)
async def test_what_is_not_issued(desk: Desk, more: dict[str, Any], refusal: type[PlexError]) -> None:
    federated = desk.store.know(Owner("service", uuid7(), desk.domain, "spiffe_svid"))
    desk.manages(desk.alice)
    with pytest.raises(refusal):
        await desk.issue(desk.as_(desk.alice), federated, **more)
    assert desk.store.tokens == {}


async def test_an_owner_has_at_most_a_hundred(desk: Desk) -> None:
    for _ in range(100):
        await desk.issue(desk.as_(desk.alice), desk.alice)
    with pytest.raises(ApiTokenLimit):
        await desk.issue(desk.as_(desk.alice), desk.alice)


async def test_a_service_token_is_within_its_secret(desk: Desk) -> None:
    desk.manages(desk.bob)
    _, secret = await desk.issue(desk.as_(desk.bob), desk.machine, as_admin=True, scope=("read", "deploy"))
    desk.audit.rows.clear()
    client = str(desk.machine.id)
    text, lifetime, scope = await desk.services.issue(client, secret, ("read",))
    assert well_formed(text, SERVICE_TOKEN)
    assert (lifetime, scope) == (datetime.timedelta(minutes=15), ("read",))
    assert (await desk.services.issue(client, secret, ()))[2] == ("read", "deploy")
    with pytest.raises(InvalidScope):
        await desk.services.issue(client, secret, ("manage",))
    assert [row.reason for row in desk.audit.rows] == ["granted", "granted", "caveat_violation"]
    (token,) = await desk.store.api_tokens(desk.machine, NOW)
    await desk.store.revoke_api_token(token.id)
    assert await desk.store.use_service_token(digest(text), NOW) is None


async def test_a_service_token_does_not_outlive_its_secret(desk: Desk) -> None:
    desk.manages(desk.bob)
    _, secret = await desk.issue(desk.as_(desk.bob), desk.machine, as_admin=True, ttl_s=60)
    _, lifetime, _ = await desk.services.issue(str(desk.machine.id), secret, ())
    assert lifetime == datetime.timedelta(seconds=60)


async def test_who_is_no_client_leaves_a_row_a_minute_at_most(desk: Desk) -> None:
    _, personal = await desk.issue(desk.as_(desk.alice), desk.alice)
    desk.manages(desk.bob)
    _, secret = await desk.issue(desk.as_(desk.bob), desk.machine, as_admin=True)
    other = desk.store.know(Owner("service", uuid7(), desk.domain, "api_token"))
    federated = desk.store.know(Owner("service", uuid7(), desk.domain, "oidc_cc"))
    desk.audit.rows.clear()
    machine = str(desk.machine.id)
    for client, text in ((machine, personal), (str(other.id), secret), (machine, secret + "x"), ("x", secret)):
        with pytest.raises(InvalidClient):
            await desk.services.issue(client, text, ())
    with pytest.raises(FederationKindMismatch):
        await desk.services.issue(str(federated.id), secret, ())
    # The chain takes a row of the same key once.
    assert len({row.idempotency_key for row in desk.audit.rows}) == 3
    assert len(desk.audit.rows) == 4
    assert desk.store.service_tokens == {}
