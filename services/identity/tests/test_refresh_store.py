"""Sessions whose provider is asked about them, on the real PostgreSQL and the real OpenBao."""

import asyncio
from dataclasses import replace
from uuid import UUID

import asyncpg
import pytest

from libs.bao import Bao
from libs.custody import Secret
from libs.errors import OpenbaoUnavailable
from libs.ids import uuid7
from services.identity.refresh_store import PgRefreshStore
from services.identity.sign_in_model import Grant, Held, Person, Session, digest, random_text
from services.identity.tests.test_sign_in_store import LOGIN, MINUTE, NOW, Doors, Pools, real
from services.identity.vault import BaoVault

pytestmark = pytest.mark.integration

__all__ = ["real"]

FIRST, SECOND = "vault:v1:" + "A" * 80, "vault:v1:" + "B" * 80
# Long before any session of another test, so that a round finds these first.
THEN = NOW - 5000 * MINUTE


async def granted(doors: Doors) -> tuple[Session, str]:
    binding = await doors.bound(primary=False)
    person = await doors.one.admit(binding, Person(uuid7(), doors.domain_id), "alice", NOW)
    grant = Grant(FIRST, digest("n"), THEN, NOW + 30 * MINUTE)
    session, cookie = Session(uuid7(), person, LOGIN, NOW + 60 * MINUTE, "op-1", grant), random_text()
    await doors.one.open_session(session, digest(cookie), NOW, None)
    return session, cookie


async def again(doors: Doors, session: Session) -> Session:
    """Sign the same person in once more."""
    more = replace(session, id=uuid7())
    await doors.one.open_session(more, digest(random_text()), NOW, None)
    return more


async def test_a_session_is_asked_about_by_one_of_all_replicas(real: Doors, pools: Pools) -> None:
    sessions = [(await granted(real))[0] for _ in range(10)]
    stores = [PgRefreshStore(pool) for pool in pools * 5]
    rounds = await asyncio.gather(*(store.due(THEN, NOW + 9 * MINUTE, 16, 4, []) for store in stores))
    found = [held for held_at_once in rounds for held in held_at_once]
    assert sorted(held.session_id for held in found) == sorted(session.id for session in sessions)
    (held,) = [held for held in found if held.session_id == sessions[0].id]
    assert (held.person_id, held.domain_id, held.subject) == (sessions[0].person.id, real.domain_id, "alice")
    assert (held.refresh_token, held.nonce_digest, held.auth_time) == (FIRST, digest("n"), LOGIN.auth_time)
    assert held.binding == await real.one.binding(held.binding.id)


async def test_a_session_counts_while_the_providers_word_holds(real: Doors, pools: Pools) -> None:
    session, cookie = await granted(real)
    late = NOW + 30 * MINUTE
    assert await real.other.use_session(digest(cookie), late - MINUTE, NOW - MINUTE)
    assert await real.other.use_session(digest(cookie), late, NOW - MINUTE) is None
    await PgRefreshStore(pools[1]).confirm(session.id, late + MINUTE)
    assert await real.one.use_session(digest(cookie), late, NOW - MINUTE)


async def test_the_end_of_a_session_takes_its_tokens_and_approvals(real: Doors, pools: Pools) -> None:
    session, cookie = await granted(real)
    other = replace(session, id=uuid7(), sid="op-2", grant=None)
    other_cookie = random_text()
    await real.one.open_session(other, digest(other_cookie), NOW, None)
    tokens = []
    for one in (session, other):
        device, _, _ = await real.device()
        assert await real.one.approve_device(device.id, one)
        tokens.append(random_text())
        assert await real.one.issue_token(device, digest(tokens[-1]), NOW, NOW + 15 * MINUTE)
    waiting, waiting_code, _ = await real.device()
    assert await real.one.approve_device(waiting.id, session)
    await PgRefreshStore(pools[0]).end(session.id)
    assert await real.other.use_session(digest(cookie), NOW, NOW - MINUTE) is None
    assert await real.other.poll_device(digest(waiting_code), "cli", NOW) is None
    assert [await real.other.use_token(digest(token), NOW) is not None for token in tokens] == [False, True]
    assert await real.other.use_session(digest(other_cookie), NOW, NOW - MINUTE)


@pytest.mark.parametrize("plain", ["rt-secret", "vault:v1:", "vault:v1:not base64"])
async def test_the_database_takes_no_plaintext(real: Doors, pools: Pools, plain: str) -> None:
    session, _ = await granted(real)
    with pytest.raises(asyncpg.CheckViolationError):
        await pools[0].execute("UPDATE identity.sessions SET refresh_token = $2 WHERE id = $1", session.id, plain)


async def test_a_refresh_token_opens_for_its_own_session_and_domain(bao: Bao) -> None:
    vault, domain_id, session_id = BaoVault(bao), uuid7(), uuid7()
    wrapped = await vault.wrap_refresh(domain_id, session_id, Secret(b"rt"))
    with await vault.unwrap_refresh(domain_id, session_id, wrapped) as token:
        assert token.matches(b"rt")
    for domain, session in ((uuid7(), session_id), (None, session_id), (domain_id, uuid7())):
        with pytest.raises(OpenbaoUnavailable):
            await vault.unwrap_refresh(domain, session, wrapped)


async def test_of_one_binding_so_many_are_asked_about_at_once(real: Doors, pools: Pools) -> None:
    session, _ = await granted(real)
    mine = {session.id} | {(await again(real, session)).id for _ in range(5)}
    other, _ = await granted(real)

    async def due(busy: list[UUID]) -> list[Held]:
        found = await PgRefreshStore(pools[0]).due(THEN, NOW + MINUTE, 64, 4, busy)
        # Other tests leave sessions behind.
        return [held for held in found if held.session_id in mine | {other.id}]

    first = await due([])
    assert (len(first), len({held.session_id for held in first} & mine)) == (5, 4)
    binding_id = next(held.binding.id for held in first if held.session_id in mine)
    assert await due([binding_id] * 4) == []
    assert len(await due([binding_id] * 3)) == 1
    assert len(await due([])) == 1


async def test_what_to_ask_with_next_is_kept_before_anything_is_believed(real: Doors, pools: Pools) -> None:
    session, _ = await granted(real)
    store = PgRefreshStore(pools[0])
    await store.keep(session.id, SECOND)
    found = await store.due(THEN, NOW + MINUTE, 64, 4, [])
    assert [held.refresh_token for held in found if held.session_id == session.id] == [SECOND]
