"""Session keys: made once, believed only when OpenBao has them, rotated with an overlap, revoked at once."""

from dataclasses import replace
from datetime import timedelta

import pytest

from libs.errors import Forbidden, NotFound, SigningKeyNotFound, SigningKeyRevoked, SigningUnavailable
from libs.ids import uuid7
from services.access.tests.fakes import NOW, World

pytestmark = pytest.mark.unit

WEEK = timedelta(days=7)


@pytest.fixture
def world() -> World:
    made = World()
    made.authority.granted |= {(made.operator.reference, name, f"domain:{made.domain}") for name in ("manage", "read")}
    return made


async def test_a_key_is_made_at_first_use_with_a_row_and_stays(world: World) -> None:
    first = await world.keys.current(world.domain)
    assert first.kid.startswith("sek_")
    assert await world.keys.current(world.domain) == first
    assert [row.action for row in world.audit.rows] == ["session_key.create"]
    assert await world.keys.published(world.domain) == [first]
    with pytest.raises(NotFound):
        await world.keys.published(uuid7())


async def test_a_rotation_overlaps(world: World) -> None:
    first = await world.keys.current(world.domain)
    second = await world.keys.rotate(world.operator, world.domain, WEEK)
    assert second.kid != first.kid
    assert [key.kid for key in await world.keys.published(world.domain)] == [second.kid, first.kid]
    assert (await world.keys.allowed(world.domain, first.kid)).kid == first.kid
    world.clock.at = NOW + WEEK
    assert [key.kid for key in await world.keys.published(world.domain)] == [second.kid]
    with pytest.raises(SigningUnavailable):
        await world.keys.allowed(world.domain, first.kid)
    assert [key.kid for key in await world.keys.list_all(world.operator, world.domain)] == [second.kid, first.kid]


async def test_a_revoked_key_counts_no_more_and_a_current_one_has_a_successor(world: World) -> None:
    first = await world.keys.current(world.domain)
    revoked, current = await world.keys.revoke(world.operator, world.domain, first.kid)
    assert (revoked.kid, revoked.revoked_at) == (first.kid, world.clock.now())
    assert current == await world.keys.current(world.domain)
    assert [key.kid for key in await world.keys.published(world.domain)] == [current.kid]
    with pytest.raises(SigningUnavailable):
        await world.keys.allowed(world.domain, first.kid)
    with pytest.raises(SigningKeyRevoked):
        await world.keys.revoke(world.operator, world.domain, first.kid)
    with pytest.raises(SigningKeyNotFound):
        await world.keys.revoke(world.operator, world.domain, "sek_" + "0" * 32)


async def test_a_previous_key_is_revoked_without_a_new_one(world: World) -> None:
    first = await world.keys.current(world.domain)
    second = await world.keys.rotate(world.operator, world.domain, WEEK)
    _, current = await world.keys.revoke(world.operator, world.domain, first.kid)
    assert current.kid == second.kid
    assert len(world.vault.pairs[world.domain]) == 2


async def test_a_version_that_a_crash_left_unused_is_used(world: World) -> None:
    await world.keys.current(world.domain)
    left = await world.vault.rotate(world.domain)
    assert (await world.keys.rotate(world.operator, world.domain, WEEK)).kid == left.kid


async def test_a_key_that_openbao_does_not_have_is_neither_published_nor_signed_with(world: World) -> None:
    first = await world.keys.current(world.domain)
    for planted in (
        replace(first, public_key=b"\1" * 32),
        replace(first, version=2),
        replace(first, kid="sek_" + "1" * 32),
    ):
        world.key_store.rows[world.domain] = [planted]
        assert await world.keys.published(world.domain) == []
        with pytest.raises(SigningUnavailable):
            await world.keys.current(world.domain)
        with pytest.raises(SigningUnavailable):
            await world.keys.allowed(world.domain, planted.kid)


async def test_who_does_not_manage_the_domain_changes_no_key_and_makes_no_chain(world: World) -> None:
    first, stranger = await world.keys.current(world.domain), world.person(domain_id=str(uuid7()))
    world.authority.reason = "insufficient_relation"
    with pytest.raises(Forbidden):
        await world.keys.rotate(stranger, world.domain, WEEK)
    with pytest.raises(Forbidden):
        await world.keys.revoke(stranger, world.domain, first.kid)
    with pytest.raises(Forbidden):
        await world.keys.list_all(stranger, world.domain)
    with pytest.raises(Forbidden):
        await world.keys.rotate(stranger, uuid7(), WEEK)
    assert [row.domain_id for row in world.audit.rows[1:]] == [str(world.domain)] * 2 + [""]
    world.authority.reason = "out_of_scope"
    for domain_id in (world.domain, uuid7()):
        with pytest.raises(Forbidden):
            await world.keys.rotate(stranger, domain_id, WEEK)
    assert [row.domain_id for row in world.audit.rows[4:]] == [stranger.domain_id] * 2
    assert await world.keys.current(world.domain) == first
