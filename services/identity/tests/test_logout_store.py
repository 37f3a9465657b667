"""What a provider's logout ends, on the real PostgreSQL: whose, how much, and once."""

import asyncio
from dataclasses import replace
from uuid import UUID

import pytest

from libs.ids import uuid7
from services.identity.logout_store import PgLogoutStore
from services.identity.sign_in_model import Binding, Person, Session, digest, random_text
from services.identity.tests.test_sign_in_store import LOGIN, MINUTE, NOW, Doors, Pools, real

pytestmark = pytest.mark.integration

__all__ = ["real"]


async def signed_in(doors: Doors, binding: Binding, subject: str, sid: str) -> tuple[Session, str, str]:
    """Return a session, its cookie and an access token that came from it."""
    person = await doors.one.admit(binding, Person(uuid7(), doors.domain_id), subject, NOW)
    session, cookie, token = Session(uuid7(), person, LOGIN, NOW + 60 * MINUTE, sid), random_text(), random_text()
    await doors.one.open_session(session, digest(cookie), NOW, None)
    device, _, _ = await doors.device()
    assert await doors.one.approve_device(device.id, session)
    assert await doors.one.issue_token(device, digest(token), NOW, NOW + 15 * MINUTE)
    return session, cookie, token


async def alive(doors: Doors, cookie: str, token: str) -> tuple[bool, bool]:
    session = await doors.other.use_session(digest(cookie), NOW, NOW - MINUTE)
    return session is not None, await doors.other.use_token(digest(token), NOW) is not None


def jti() -> bytes:
    return digest(random_text())


async def test_a_session_of_the_provider_takes_what_came_from_it_and_no_more(real: Doors, pools: Pools) -> None:
    logouts, binding = PgLogoutStore(pools[0]), await real.bound()
    session, cookie, token = await signed_in(real, binding, "alice", "op-1")
    _, *second = await signed_in(real, binding, "alice", "op-2")
    _, *bob = await signed_in(real, binding, "bob", "")
    waiting, waiting_code, _ = await real.device()
    assert await real.one.approve_device(waiting.id, session)
    assert await logouts.log_out(binding.id, "", "op-1", jti(), NOW, NOW + 60 * MINUTE)
    assert await alive(real, cookie, token) == (False, False)
    assert await real.other.poll_device(digest(waiting_code), "cli", NOW) is None
    assert [await alive(real, *one) for one in (second, bob)] == [(True, True)] * 2
    assert await logouts.log_out(binding.id, "alice", "", jti(), NOW, NOW + 60 * MINUTE)
    assert [await alive(real, *one) for one in (second, bob)] == [(False, False), (True, True)]


async def test_a_token_keeps_the_providers_session_when_its_own_was_replaced(real: Doors, pools: Pools) -> None:
    logouts, binding = PgLogoutStore(pools[0]), await real.bound()
    session, cookie, token = await signed_in(real, binding, "alice", "op-1")
    await real.one.open_session(replace(session, id=uuid7()), digest(random_text()), NOW, digest(cookie))
    assert await alive(real, cookie, token) == (False, True)
    assert await logouts.log_out(binding.id, "alice", "op-1", jti(), NOW, NOW + 60 * MINUTE)
    assert await alive(real, cookie, token) == (False, False)


async def test_a_binding_ends_nothing_of_another(real: Doors, pools: Pools) -> None:
    logouts, one, other = PgLogoutStore(pools[0]), await real.bound(), await real.bound(primary=False)
    _, *signed = await signed_in(real, one, "alice", "op-1")
    assert await logouts.log_out(other.id, "alice", "op-1", jti(), NOW, NOW + 60 * MINUTE)
    assert await alive(real, *signed) == (True, True)


async def test_a_logout_counts_once_and_of_a_binding(real: Doors, pools: Pools) -> None:
    one, other = PgLogoutStore(pools[0]), PgLogoutStore(pools[1])
    binding, second = await real.bound(), await real.bound(primary=False)
    seen = jti()
    tries = (store.log_out(binding.id, "alice", "", seen, NOW, NOW + 60 * MINUTE) for store in (one, other) * 10)
    assert (await asyncio.gather(*tries)).count(True) == 1
    assert await other.known(binding.id, seen)
    assert not await other.known(second.id, seen)
    assert await one.log_out(second.id, "alice", "", seen, NOW, NOW + 60 * MINUTE)


async def test_every_binding_to_an_issuer_is_found(real: Doors, pools: Pools) -> None:
    binding = await real.bound()
    found: list[UUID] = [row.id for row in await PgLogoutStore(pools[1]).believing(binding.issuer)]
    assert found == [binding.id]
    assert await PgLogoutStore(pools[1]).believing(binding.issuer + "/") == []


async def test_whose_sessions_a_logout_ends_is_known_before(real: Doors, pools: Pools) -> None:
    logouts, binding = PgLogoutStore(pools[0]), await real.bound()
    session, *_ = await signed_in(real, binding, "alice", "op-1")
    await signed_in(real, binding, "bob", "op-2")
    for whom in (("alice", ""), ("", "op-1"), ("alice", "op-1")):
        assert await logouts.whose(binding.id, *whom) == session.person.id
    for nobody in (("carol", ""), ("", "op-3"), ("alice", "op-2"), ("", "")):
        assert await logouts.whose(binding.id, *nobody) is None
