"""Refresh tokens: what a provider may say about who is signed in, and what ends when it no longer knows them."""

import asyncio
import datetime
import json
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import pytest
from joserfc import jws
from joserfc.jwk import OKPKey
from structlog.testing import capture_logs

from libs.custody import Secret
from libs.errors import AuditUnavailable, OpenbaoUnavailable, PlexError, ProviderFailed
from libs.ids import uuid7
from services.identity.refresh import ASK_EVERY, BELIEVED_FOR, MOST_AT_ONCE, MOST_OF_ONE, Refresh
from services.identity.sign_in_model import Binding, Held, Wanted, digest
from services.identity.sign_in_ports import ExchangeRefused
from services.identity.tests.fakes import NOW
from services.identity.tests.sign_in_fakes import CLIENT, ISSUER, SignInWorld, a_binding, sha256

pytestmark = pytest.mark.unit

NOW_S = int(NOW.timestamp())


@dataclass
class FakeRefreshStore:
    """Sessions to ask about, in memory."""

    held: list[Held]
    trace: list[str]
    kept: list[str] = field(default_factory=list)
    confirmed: list[tuple[UUID, datetime.datetime]] = field(default_factory=list)
    ended: list[UUID] = field(default_factory=list)
    busy: list[list[UUID]] = field(default_factory=list)

    async def due(
        self, at: datetime.datetime, next_at: datetime.datetime, limit: int, of_one: int, busy: list[UUID]
    ) -> list[Held]:
        self.busy.append(busy)
        found, self.held = self.held[:limit], self.held[limit:]
        return found

    async def keep(self, session_id: UUID, refresh_token: str) -> None:
        self.kept.append(refresh_token)

    async def confirm(self, session_id: UUID, until: datetime.datetime) -> None:
        self.confirmed.append((session_id, until))

    async def end(self, session_id: UUID) -> None:
        self.trace.append("end")
        self.ended.append(session_id)


class Desk(SignInWorld):
    """Somebody is signed in at a provider that gave a refresh token."""

    def __init__(self) -> None:
        super().__init__(scopes=("openid", "offline_access"))
        self.answer: dict[str, Any] | PlexError = {}
        self.held = Held(uuid7(), uuid7(), self.domain_id, "alice", self.binding, NOW_S - 60, digest("n"), "vault:v1:0")
        self.vault.kept["vault:v1:0"] = (self.domain_id, self.held.session_id, b"rt-0")
        self.rows = FakeRefreshStore([self.held], self.trace)
        self.forms: list[dict[str, str]] = []
        self.refresh = Refresh(self.rows, self, self.secrets, self.vault, self.audit, self.clock)

    async def metadata(self, binding: Binding) -> dict[str, Any]:
        return await self.provider.metadata(binding)

    async def keys(self, binding: Binding, kid: str, purpose: str = "sign_in") -> list[dict[str, Any]]:
        return await self.provider.keys(binding, kid, purpose)

    async def round(self) -> None:
        """Ask about what is due, and wait for the answers."""
        await self.refresh.look()
        while self.refresh.under_way:
            await asyncio.wait(self.refresh.under_way)

    async def userinfo(self, binding: Binding, access_token: str) -> dict[str, Any]:
        raise NotImplementedError

    async def exchange(self, binding: Binding, secret: Secret, form: dict[str, str]) -> dict[str, Any]:
        self.forms.append(form)
        if binding.id in self.provider.slow:
            await asyncio.Event().wait()
        if isinstance(self.answer, PlexError):
            raise self.answer
        return self.answer

    def id_token(self, key: OKPKey | None = None, kid: str = "k1", **changed: Any) -> str:
        plain = {
            "iss": ISSUER, "aud": CLIENT, "sub": "alice", "iat": NOW_S, "exp": NOW_S + 300, "auth_time": NOW_S - 60,
            "nonce": "n",
        }  # fmt: skip
        claims = {name: value for name, value in (plain | changed).items() if value is not ...}
        head = {"alg": "Ed25519", "kid": kid}
        return jws.serialize_compact(
            head, json.dumps(claims).encode(), key or self.provider.key, algorithms=["Ed25519"]
        )


async def test_a_sign_in_asks_for_and_keeps_what_its_binding_says() -> None:
    world = SignInWorld(scopes=("openid", "offline_access"))
    world.provider.given = {"refresh_token": "rt-secret"}
    started = await world.sign_in.start(world.domain_id, None, "", "login", Wanted())
    assert "prompt=login+consent" in started.authorization_url
    code = world.provider.authorize(started.authorization_url)
    session = (await world.sign_in.complete(world.back(started, code))).session
    assert session.grant is not None
    assert world.vault.kept[session.grant.refresh_token] == (world.domain_id, session.id, b"rt-secret")
    assert session.grant.nonce_digest == sha256(started.nonce)
    assert (session.grant.refresh_at, session.grant.confirmed_until) == (NOW + ASK_EVERY, NOW + BELIEVED_FOR)
    assert "rt-secret" not in repr((world.store.sessions, world.audit.rows))
    plain = SignInWorld()
    assert "consent" not in (await plain.sign_in.start(plain.domain_id, None, "", "", Wanted())).authorization_url
    assert (await plain.walk(plain.domain_id)).session.grant is None


@pytest.mark.parametrize("says", [{}, {"nonce": ...}, {"auth_time": ...}, {"azp": CLIENT}, {"aud": [CLIENT]}])
async def test_a_provider_that_stands_by_a_person_is_believed_for_a_while(says: dict[str, Any]) -> None:
    desk = Desk()
    desk.answer = {"id_token": desk.id_token(**says)}
    await desk.round()
    assert desk.forms == [{"grant_type": "refresh_token", "refresh_token": "rt-0"}]
    assert (desk.rows.kept, desk.rows.confirmed) == ([], [(desk.held.session_id, NOW + BELIEVED_FOR)])
    assert (desk.rows.ended, desk.audit.rows) == ([], [])


async def test_a_rotated_token_takes_the_place_of_the_old_one() -> None:
    desk = Desk()
    desk.answer = {"refresh_token": "rt-1"}
    await desk.round()
    (kept,) = desk.rows.kept
    assert desk.vault.kept[kept] == (desk.domain_id, desk.held.session_id, b"rt-1")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "refresh-token-invalid-issuer": ({"iss": "https://evil.example"}, "iss"),
    "refresh-token-invalid-sub": ({"sub": "mallory"}, "sub"),
    "another audience": ({"aud": "other"}, "aud"),
    "one audience more": ({"aud": [CLIENT, "other"]}, "aud"),
    "another presenter": ({"azp": "other"}, "azp"),
    "expired": ({"exp": NOW_S - 31}, "exp"),
    "no end": ({"exp": ...}, "exp_missing"),
    "an end that is no number": ({"exp": "1970"}, "exp_form"),
    "a list as time of login": ({"auth_time": [1]}, "auth_time_form"),
    "a nonce that has no encoding": ({"nonce": "\ud800"}, "nonce_form"),
    "an audience that is an object": ({"aud": [{}]}, "aud_form"),
    "issued in the future": ({"iat": NOW_S + 31}, "iat"),
    "a fresher login": ({"auth_time": NOW_S}, "auth_time"),
    "nonce of another sign-in": ({"nonce": "m"}, "nonce"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_provider_that_says_something_else_ends_the_session(name: str) -> None:
    says, reason = REFUSED[name]
    desk = Desk()
    desk.answer = {"id_token": desk.id_token(**says), "refresh_token": "rt-1"}
    await desk.round()
    assert (desk.rows.ended, desk.rows.confirmed) == ([desk.held.session_id], [])
    assert [row.context for row in desk.audit.rows] == [{"refresh": [reason]}]
    assert desk.trace == ["audit", "end"]


@pytest.mark.parametrize("forge", [lambda desk: desk.id_token(OKPKey.generate_key("Ed25519")), lambda _: 7])
async def test_a_forged_token_ends_the_session(forge: Any) -> None:
    desk = Desk()
    desk.answer = {"id_token": forge(desk)}
    await desk.round()
    assert (desk.rows.ended, desk.rows.confirmed) == ([desk.held.session_id], [])


async def test_who_is_no_longer_known_is_out() -> None:
    desk = Desk()
    desk.answer = ExchangeRefused("code_refused")
    await desk.round()
    assert desk.rows.ended == [desk.held.session_id]
    assert [row.context for row in desk.audit.rows] == [{"refresh": ["invalid_grant"]}]


@pytest.mark.parametrize("failure", [ProviderFailed("down"), ExchangeRefused("client_refused"), OpenbaoUnavailable()])
async def test_what_says_nothing_of_the_person_neither_ends_nor_confirms(failure: PlexError) -> None:
    desk = Desk()
    desk.answer = failure
    await desk.round()
    assert (desk.rows.ended, desk.rows.confirmed, desk.audit.rows) == ([], [], [])


async def test_without_a_record_nothing_ends_and_the_others_are_asked() -> None:
    desk = Desk()
    desk.rows.held.append(replace(desk.held))
    desk.audit.refusal, desk.answer = AuditUnavailable("down"), ExchangeRefused("code_refused")
    await desk.round()
    assert (desk.rows.ended, len(desk.forms)) == ([], 2)


@pytest.mark.parametrize("fresh", ["\ud800", "rt-é", "rt\n", "r" * 16_385, 7])
async def test_a_refresh_token_that_cannot_be_one_ends_the_session(fresh: object) -> None:
    desk = Desk()
    desk.answer = {"refresh_token": fresh}
    await desk.round()
    assert (desk.rows.ended, desk.rows.kept) == ([desk.held.session_id], [])
    assert [row.context for row in desk.audit.rows] == [{"refresh": ["refresh_token_form"]}]


async def test_keys_that_are_not_known_yet_postpone_and_the_rotated_token_is_kept() -> None:
    desk = Desk()
    desk.answer = {"id_token": desk.id_token(kid="k2"), "refresh_token": "rt-1"}
    await desk.round()
    assert (desk.rows.ended, desk.rows.confirmed, desk.audit.rows) == ([], [], [])
    assert [desk.vault.kept[kept][2] for kept in desk.rows.kept] == [b"rt-1"]


async def a_moment() -> None:
    """Let everything run that waits for no clock and nobody else."""
    for _ in range(2000):
        await asyncio.sleep(0)


async def test_a_bug_that_one_answer_meets_is_that_sessions_own() -> None:
    desk = Desk()
    # Its ciphertext is of another session, which the fake's assertion refuses.
    desk.rows.held.insert(0, replace(desk.held, session_id=uuid7()))
    with capture_logs() as logs:
        asking = asyncio.create_task(desk.refresh.run())
        await a_moment()
    assert [line["event"] for line in logs] == ["refresh.bug"]
    assert (asking.done(), desk.rows.confirmed) == (False, [(desk.held.session_id, NOW + BELIEVED_FOR)])
    asking.cancel()


async def test_a_bug_on_the_way_to_the_sessions_does_not_end_the_asking() -> None:
    desk = Desk()
    asking = asyncio.create_task(replace(desk.refresh, clock=None).run())  # type: ignore[arg-type]  # the bug
    await a_moment()
    assert not asking.done()
    asking.cancel()


async def test_nobody_waits_for_a_slow_provider_of_somebody_else() -> None:
    desk = Desk()
    slow = replace(desk.held, binding=a_binding(uuid7()))
    desk.provider.slow = {slow.binding.id}
    # More than fit at once: the next are looked for as soon as one is answered, without a pause.
    desk.rows.held = [slow] * MOST_OF_ONE + [desk.held] * (2 * MOST_AT_ONCE)
    asking = asyncio.create_task(desk.refresh.run())
    await a_moment()
    assert len(desk.rows.confirmed) == 2 * MOST_AT_ONCE
    assert max(map(len, desk.rows.busy)) <= MOST_AT_ONCE
    assert all(busy.count(slow.binding.id) == MOST_OF_ONE for busy in desk.rows.busy[1:])
    asking.cancel()


async def test_names_that_the_id_token_lacks_come_from_the_userinfo_endpoint() -> None:
    world = SignInWorld(claim_mappings={"email": "upn"})
    world.provider.document = {"userinfo_endpoint": "https://op.example/me"}
    world.provider.known = {"sub": "alice", "upn": "a@corp", "name": "Somebody else"}
    person = (await world.walk(world.domain_id)).session.person
    assert (person.email, person.display_name) == ("a@corp", "Alice")
    assert world.provider.userinfo_asked == ["at"]
    plain = SignInWorld()
    plain.provider.document = {"userinfo_endpoint": "https://op.example/me"}
    await plain.walk(plain.domain_id)
    assert plain.provider.userinfo_asked == []


@pytest.mark.parametrize("known", [{"sub": "mallory", "upn": "m@corp"}, {"upn": "m@corp"}])
async def test_userinfo_of_somebody_else_is_refused(known: dict[str, Any]) -> None:
    world = SignInWorld(claim_mappings={"email": "upn"})
    world.provider.document, world.provider.known = {"userinfo_endpoint": "https://op.example/me"}, known
    with pytest.raises(PlexError):
        await world.walk(world.domain_id)
    assert [row.context for row in world.audit.rows] == [{"id_token": ["userinfo_sub"]}]
    assert world.store.sessions == {}


async def test_a_token_that_is_refused_asks_for_no_userinfo() -> None:
    world = SignInWorld(claim_mappings={"email": "upn"})
    world.provider.document, world.provider.claims = {"userinfo_endpoint": "https://op.example/me"}, {"aud": "other"}
    with pytest.raises(PlexError):
        await world.walk(world.domain_id)
    assert world.provider.userinfo_asked == []
