"""What PostgreSQL itself holds of bindings: whose secret, one state for another, and nothing left of who was let go."""

import asyncio
import datetime
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from uuid import UUID

import asyncpg
import pytest

from devstack.layout import State
from libs.errors import BindingConflict, SignInRefused
from libs.ids import uuid7
from libs.migrations import migrate_over, scripts
from libs.tests.scratch import scratch
from services.identity.binding_store import INSERT, values_of
from services.identity.model import Tuple
from services.identity.relation_store import CHANNEL
from services.identity.sign_in_model import Binding, Login, Person, Session, Wanted, digest, random_text
from services.identity.sign_in_model import Device as DeviceCode
from services.identity.sign_in_store import PgSignInStore
from services.identity.tests.sign_in_fakes import a_binding
from services.identity.tests.test_sign_in_store import MINUTE, NOW, Doors, real

pytestmark = pytest.mark.integration

Pools = tuple[asyncpg.Pool, asyncpg.Pool]
__all__ = ["real"]


@dataclass
class Bound:
    """A Domain's binding with two people who are signed in, through two replicas."""

    one: PgSignInStore
    other: PgSignInStore
    binding: Binding
    people: list[Person]
    cookies: list[str]

    async def alive(self) -> list[bool]:
        return [await self.other.use_session(digest(cookie), NOW, NOW - MINUTE) is not None for cookie in self.cookies]

    async def session(self, person: Person) -> tuple[Session, str]:
        session, cookie = Session(uuid7(), person, Login(), NOW + 60 * MINUTE), random_text()
        await self.one.open_session(session, digest(cookie), NOW, None)
        return session, cookie

    async def token(self, person: Person) -> bytes:
        session, _ = await self.session(person)
        expires_at = NOW + 10 * MINUTE
        device = DeviceCode(uuid7(), "cli", self.binding.domain_id, Wanted(), 1, expires_at)
        await self.one.start_device(device, digest(random_text()), digest(random_text()))
        assert await self.one.approve_device(device.id, session)
        token = digest(random_text())
        assert await self.one.issue_token(device, token, NOW, expires_at)
        return token


@pytest.fixture
async def bound(pools: Pools, real: Doors) -> Bound:
    one, other = PgSignInStore(pools[0]), PgSignInStore(pools[1])
    binding = a_binding(real.domain_id, f"https://{uuid7().hex}.example")
    await one.add_binding(binding)
    made = Bound(one, other, binding, [], [])
    for _ in range(2):
        made.people.append(await one.admit(binding, Person(uuid7(), real.domain_id), random_text(), NOW))
        made.cookies.append((await made.session(made.people[-1]))[1])
    return made


@pytest.fixture
async def told(pools: Pools) -> AsyncIterator[list[str]]:
    heard: list[str] = []
    async with pools[1].acquire() as lent:
        await lent.add_listener(CHANNEL, lambda *message: heard.append(str(message[-1])))
        yield heard
        await lent.reset()


@pytest.mark.parametrize(
    "reference", ["kv/idp/op", "kv/idp/platform/op", "kv/idp/{other}/op", "kv/idp/{own}/../{other}/op", "hunter2"]
)
async def test_the_database_refuses_another_owners_secret(bound: Bound, reference: str) -> None:
    text = reference.format(own=bound.binding.domain_id, other=uuid7())
    stolen = a_binding(bound.binding.domain_id, "https://thief.example", primary=False, client_secret_ref=text)
    with pytest.raises(asyncpg.CheckViolationError, match="client_secret"):
        await bound.one.add_binding(stolen)
    platforms = replace(stolen, domain_id=None, client_secret_ref=bound.binding.client_secret_ref)
    with pytest.raises(asyncpg.CheckViolationError, match="client_secret"):
        await bound.one.add_binding(platforms)


async def test_the_database_refuses_a_discovery_document_elsewhere(bound: Bound, pools: Pools) -> None:
    rule, own = "discovery_is_the_issuers", bound.binding
    move = "UPDATE identity.idp_bindings SET discovery_url = $2 WHERE id = $1"
    rename = "UPDATE identity.idp_bindings SET issuer = 'https://evil.example' WHERE id = $1"
    for url in ("https://evil.example/.well-known/openid-configuration", own.discovery_url + "?a", ""):
        with pytest.raises(asyncpg.CheckViolationError, match=rule):
            await bound.one.add_binding(replace(own, id=uuid7(), primary=False, discovery_url=url))
        with pytest.raises(asyncpg.CheckViolationError, match=rule):
            await pools[0].execute(move, own.id, url)
    with pytest.raises(asyncpg.CheckViolationError, match=rule):
        await pools[0].execute(rename, own.id)
    slash = replace(own, id=uuid7(), issuer=f"{own.issuer}/", primary=False)
    await bound.one.add_binding(slash)
    assert (await bound.one.binding(slash.id)) == slash


async def test_the_migration_leads_a_binding_back_to_its_issuer(backends: State) -> None:
    identity = {"identity": scripts("identity")}
    async with scratch(backends) as database:
        await migrate_over(database.connect, identity, "0013")
        lent = await database.connect()
        led_away = a_binding(None, "https://op.example/", discovery_url="https://evil.example/d")
        await lent.execute(INSERT, *values_of(led_away))
        await migrate_over(database.connect, identity, "0014")
        url = await lent.fetchval("SELECT discovery_url FROM identity.idp_bindings")
        await lent.close()
    assert url == "https://op.example/.well-known/openid-configuration"


@pytest.mark.parametrize(
    "wrong",
    [
        {"scopes": ("email",)}, {"leeway_s": 61}, {"leeway_s": -1}, {"max_auth_age_s": -1}, {"algorithms": ()},
        {"algorithms": ("HS256",)}, {"algorithms": ("RS256", "none")},
    ],
    ids=str,
)  # fmt: skip
async def test_the_database_refuses_what_no_binding_may_say(bound: Bound, wrong: dict[str, object]) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await bound.one.change_binding(bound.binding, replace(bound.binding, **wrong))  # type: ignore[arg-type]


async def test_a_change_comes_back_whole_and_an_older_one_is_refused(bound: Bound) -> None:
    before = bound.binding
    after = replace(
        before, claim_mappings={"email": "upn"}, required_acr=("a",), required_amr=("otp",), jit_policy="deny",
        alias="new", primary=False, scopes=("openid", "groups"), accepted_amr=("otp", "pwd"), max_auth_age_s=60,
        leeway_s=0, algorithms=("ES256",), updated_at=before.updated_at + MINUTE,
    )  # fmt: skip
    await bound.one.change_binding(before, after)
    assert await bound.other.binding(before.id) == after
    with pytest.raises(BindingConflict):
        await bound.other.change_binding(before, replace(after, alias="late"))
    rival = a_binding(before.domain_id, "https://rival.example", primary=True)
    await bound.one.add_binding(rival)
    with pytest.raises(BindingConflict):
        await bound.one.change_binding(after, replace(after, primary=True))


async def test_of_twenty_changes_at_once_one_counts(bound: Bound) -> None:
    changes = [
        replace(bound.binding, alias=str(number), updated_at=bound.binding.updated_at + MINUTE) for number in range(20)
    ]
    doors = (bound.one, bound.other) * 10
    done = await asyncio.gather(
        *(door.change_binding(bound.binding, one) for door, one in zip(doors, changes, strict=True)),
        return_exceptions=True,
    )
    assert [type(one) for one in done].count(BindingConflict) == 19
    assert await bound.one.binding(bound.binding.id) == changes[done.index(None)]


async def test_a_deactivated_binding_leaves_nothing_that_opens(bound: Bound, told: list[str]) -> None:
    token = await bound.token(bound.people[0])
    waiting = DeviceCode(uuid7(), "cli", bound.binding.domain_id, Wanted(), 1, NOW + 10 * MINUTE)
    await bound.one.start_device(waiting, digest(random_text()), digest("user code"))
    approving, _ = await bound.session(bound.people[1])
    assert await bound.one.approve_device(waiting.id, approving)
    assert await bound.alive() == [True, True]
    changed = await bound.one.set_binding_status(bound.binding.id, "deactivated", NOW)
    assert changed is not None
    assert (changed.status, await bound.alive()) == ("deactivated", [False, False])
    assert await bound.other.use_token(token, NOW) is None
    assert await bound.other.device_by_user_code(digest("user code")) is None
    for person in bound.people:
        with pytest.raises(SignInRefused):
            await bound.session(person)
    await asyncio.sleep(0.1)
    for person in bound.people:
        assert any(f'"identity", "value": "{person.id}"' in one for one in told)
    await bound.one.set_binding_status(bound.binding.id, "active", NOW)
    assert await bound.alive() == [False, False]
    await bound.session(bound.people[0])


async def test_no_session_slips_past_a_deactivation(bound: Bound) -> None:
    for _ in range(20):
        await bound.one.set_binding_status(bound.binding.id, "active", NOW)
        cookie = random_text()
        session = Session(uuid7(), bound.people[0], Login(), NOW + 60 * MINUTE)
        await asyncio.gather(
            bound.one.open_session(session, digest(cookie), NOW, None),
            bound.other.set_binding_status(bound.binding.id, "deactivated", NOW),
            return_exceptions=True,
        )
        assert await bound.one.use_session(digest(cookie), NOW, NOW - MINUTE) is None


async def test_a_removed_binding_takes_people_tuples_and_tokens(bound: Bound, pools: Pools, told: list[str]) -> None:
    token = await bound.token(bound.people[0])
    row = Tuple(f"domain:{bound.binding.domain_id}", "admin", f"user:{bound.people[0].id}")
    await bound.one.make_admin(bound.people[0].id, row)
    assert await bound.one.remove_binding(bound.binding.id) == [row]
    assert (await bound.one.binding(bound.binding.id), await bound.alive()) == (None, [False, False])
    assert await bound.other.use_token(token, NOW) is None
    state = "SELECT state FROM identity.relation_tuples WHERE subject_id = $1"
    assert await pools[0].fetchval(state, str(bound.people[0].id)) == "removing"
    await asyncio.sleep(0.1)
    assert any(f'"identity", "value": "{bound.people[0].id}"' in one for one in told)
    assert await bound.one.remove_binding(bound.binding.id) is None


async def test_who_was_made_an_administrator_by_file_is_so_once(bound: Bound, pools: Pools) -> None:
    person_id = bound.people[0].id
    row = Tuple(f"domain:{bound.binding.domain_id}", "admin", f"user:{person_id}")
    assert not await bound.one.was_made_admin(person_id)
    await asyncio.gather(*(door.make_admin(person_id, row) for door in (bound.one, bound.other) * 5))
    assert await bound.other.was_made_admin(person_id)
    await pools[0].execute("DELETE FROM identity.relation_tuples WHERE subject_id = $1", str(person_id))
    await bound.one.make_admin(person_id, row)
    count = "SELECT count(*) FROM identity.relation_tuples WHERE subject_id = $1"
    assert await pools[0].fetchval(count, str(person_id)) == 0


async def test_the_files_binding_is_brought_up_to_date_and_else_left_alone(pools: Pools) -> None:
    store, issuer = PgSignInStore(pools[0]), f"https://{secrets.token_hex(8)}.example"
    before = {row.id: row for row in await store.bindings(None)}
    stated = a_binding(None, issuer, created_at=NOW, updated_at=NOW)
    made: list[UUID] = []
    try:
        await asyncio.gather(*(store.ensure_binding(replace(stated, id=uuid7())) for _ in range(8)))
        (first,) = [row for row in await store.bindings(None) if row.issuer == issuer]
        made.append(first.id)
        assert first.primary
        await store.set_binding_status(first.id, "deactivated", NOW)
        later = replace(stated, id=uuid7(), client_id="new", updated_at=NOW + datetime.timedelta(hours=1))
        await store.ensure_binding(later)
        now = await store.binding(first.id)
        assert now == replace(first, client_id="new", status="deactivated", updated_at=later.updated_at)
        await store.ensure_binding(replace(later, updated_at=NOW + datetime.timedelta(hours=2)))
        assert await store.binding(first.id) == now
    finally:
        # The stack's own binding gets its place back.
        for binding_id in made:
            await store.remove_binding(binding_id)
        for row in before.values():
            current = await store.binding(row.id)
            assert current is not None
            await store.change_binding(current, row)


async def test_nobody_comes_in_by_a_binding_that_is_gone(real: Doors) -> None:
    binding = await real.bound()
    assert await real.other.remove_binding(binding.id) == []
    with pytest.raises(SignInRefused):
        await real.one.admit(binding, Person(uuid7(), real.domain_id), "alice", NOW)
