"""The promises of the ports, on the fake and on the real backend alike."""

import asyncio
import datetime
from dataclasses import replace
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from libs.errors import RotationUnderWay, SigningUnavailable, Stale
from libs.ids import uuid7
from services.access.key_store import PgKeyStore
from services.access.model import Budget, PublicHalf, Reserved, Session, SessionKey, Wish
from services.access.ports import KeyStore, Store, Vault
from services.access.store import HELD_FOR, REPEATS_FOR, PgStore
from services.access.tests.fakes import FakeKeyStore, FakeStore, FakeVault
from services.access.vault import BaoVault

pytestmark = pytest.mark.integration

AT = datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.UTC)
SECOND = datetime.timedelta(seconds=1)
ROOMY = Budget(5, 5, 5)
Pools = tuple[asyncpg.Pool, asyncpg.Pool]


@pytest.fixture(params=["fake", "PostgreSQL"])
def keys(request: pytest.FixtureRequest, pools: Pools) -> KeyStore:
    return FakeKeyStore() if request.param == "fake" else PgKeyStore(pools[0])


@pytest.fixture(params=["fake", "OpenBao"])
def signer(request: pytest.FixtureRequest, vault: BaoVault) -> Vault:
    return FakeVault() if request.param == "fake" else vault


class Desk:
    """One person at one node, and the store."""

    def __init__(self, store: Store, key: SessionKey, keys: KeyStore) -> None:
        self.store, self.key, self.keys, self.kid = store, key, keys, key.kid
        self.domain, self.project, self.node, self.person = (uuid7() for _ in range(4))

    def session(self, session_id: UUID | None = None, **more: Any) -> Session:
        plain = Session(
            session_id or uuid7(), self.domain, self.project, uuid7(), self.node, self.person, (uuid7(),), "tcp",
            {"tcp": {"host": "db", "port": 1}}, AT, AT + 60 * SECOND, AT, kid=self.kid, claims='{"a":1}',
            seal=b"s" * 32,
        )  # fmt: skip
        return replace(plain, **more)

    async def reserve(
        self, session_id: UUID, request: bytes = b"", body: bytes = b"b" * 32, budget: Budget = ROOMY,
        at: datetime.datetime = AT, **more: UUID,
    ) -> Reserved:  # fmt: skip
        wish = Wish(self.project, uuid7(), "tcp", {}, 0, request or None, body)
        who, node = more.get("person", self.person), more.get("node", self.node)
        return await self.store.reserve(session_id, who, node, wish, budget, at)

    async def opened(self, **more: Any) -> Session:
        session = self.session(**more)
        assert await self.reserve(session.id) == Reserved()
        await self.store.open(session, {"session_id": str(session.id)}, AT)
        return session


@pytest.fixture(params=["fake", "PostgreSQL"])
async def desk(request: pytest.FixtureRequest, pools: Pools) -> Desk:
    half, domain, keys = PublicHalf(uuid7().bytes * 2, 1), uuid7(), FakeKeyStore()
    real: KeyStore = PgKeyStore(pools[0])
    for one in (keys, real):
        await one.remember(domain, half, AT)
    if request.param == "fake":
        return Desk(FakeStore(keys=keys), (await keys.keys(domain))[0], keys)
    return Desk(PgStore(pools[0]), (await real.keys(domain))[0], real)


# Sessions ----------------------------------------------------------------------------------------------------


async def test_a_session_comes_back_as_it_was_opened(desk: Desk) -> None:
    session = await desk.opened()
    assert await desk.store.find(session.id) == session
    assert await desk.store.find(uuid7()) is None


async def test_without_a_place_there_is_no_session(desk: Desk) -> None:
    session = desk.session()
    with pytest.raises(Stale):
        await desk.store.open(session, {}, AT)
    await desk.reserve(session.id)
    with pytest.raises(Stale):
        await desk.store.open(session, {}, AT + HELD_FOR)
    await desk.store.release(session.id)
    with pytest.raises(Stale):
        await desk.store.open(session, {}, AT)
    assert await desk.store.find(session.id) is None


@pytest.mark.parametrize(
    ("budget", "refused"), [(Budget(2, 9, 9), "identity"), (Budget(9, 9, 2), "issue_rate"), (Budget(9, 2, 9), "node")]
)
async def test_places_and_sessions_count_together_until_they_are_over(desk: Desk, budget: Budget, refused: str) -> None:
    session = await desk.opened()
    held = uuid7()
    assert await desk.reserve(held, budget=budget) == Reserved()
    assert await desk.reserve(uuid7(), budget=budget) == Reserved(refused=refused)
    await desk.store.release(held)
    assert await desk.reserve(held, budget=budget) == Reserved()
    # The place runs out after its time, and the session by its own end.
    assert await desk.reserve(uuid7(), budget=budget, at=AT + HELD_FOR) == Reserved()
    later = session.expires_at + HELD_FOR
    assert await desk.reserve(uuid7(), budget=budget, at=later) == Reserved()
    assert await desk.reserve(uuid7(), budget=budget, at=later) == Reserved()
    assert await desk.reserve(uuid7(), budget=budget, at=later) == Reserved(refused=refused)


async def test_a_revoked_session_frees_its_place_but_was_issued_all_the_same(desk: Desk) -> None:
    session = await desk.opened()
    await desk.store.revoke(session, "operator_request", {}, AT)
    assert await desk.reserve(uuid7(), budget=Budget(1, 1, 1)) == Reserved(refused="issue_rate")
    assert await desk.reserve(uuid7(), budget=Budget(1, 1, 2)) == Reserved()


async def test_others_limits_are_their_own(desk: Desk) -> None:
    await desk.opened()
    tight = Budget(1, 1, 1)
    assert await desk.reserve(uuid7(), budget=tight, person=uuid7()) == Reserved(refused="node")
    assert await desk.reserve(uuid7(), budget=tight, person=uuid7(), node=uuid7()) == Reserved()


async def test_a_request_is_known_again_while_it_is_young(desk: Desk) -> None:
    request, session = uuid7().bytes * 2, desk.session()
    assert await desk.reserve(session.id, request) == Reserved()
    assert await desk.reserve(uuid7(), request) == Reserved(refused="in_flight")
    assert await desk.reserve(uuid7(), request, body=b"c" * 32) == Reserved(refused="other_body")
    await desk.store.open(session, {}, AT)
    assert await desk.reserve(uuid7(), request) == Reserved(session.id)
    assert await desk.reserve(uuid7(), request, body=b"c" * 32) == Reserved(refused="other_body")
    assert await desk.reserve(uuid7(), request, person=uuid7()) == Reserved()
    assert await desk.reserve(uuid7(), request, at=AT + REPEATS_FOR) == Reserved()


async def test_a_request_that_came_to_nothing_is_forgotten(desk: Desk) -> None:
    request, first = uuid7().bytes * 2, uuid7()
    await desk.reserve(first, request)
    await desk.store.release(first)
    assert await desk.reserve(uuid7(), request) == Reserved()
    # Also one that nobody gave back.
    assert await desk.reserve(uuid7(), request, at=AT + HELD_FOR) == Reserved()


async def test_a_repeat_takes_no_place_and_counts_as_a_request(desk: Desk) -> None:
    request, session, budget = uuid7().bytes * 2, desk.session(), Budget(1, 1, 3)
    await desk.reserve(session.id, request)
    await desk.store.open(session, {}, AT)
    for _ in range(2):
        assert await desk.reserve(uuid7(), request, budget=budget) == Reserved(session.id)
    assert await desk.reserve(uuid7(), request, budget=budget) == Reserved(refused="issue_rate")
    assert await desk.reserve(uuid7(), budget=Budget(9, 9, 3)) == Reserved(refused="issue_rate")
    minute = AT + 60 * SECOND
    assert await desk.reserve(uuid7(), request, budget=Budget(1, 1, 1), at=minute) == Reserved(session.id)


async def test_a_session_is_bound_to_more_sign_ins_while_it_is_active(desk: Desk) -> None:
    session, other = await desk.opened(), uuid7()
    for _ in range(2):
        assert await desk.store.join(session.id, other, AT)
    found = await desk.store.find(session.id)
    assert found == replace(session, sign_in_ids=(*session.sign_in_ids, other))
    assert not await desk.store.join(session.id, uuid7(), session.expires_at)
    await desk.store.revoke(session, "operator_request", {}, AT)
    assert not await desk.store.join(session.id, uuid7(), AT)


async def test_under_a_revoked_key_there_is_no_session(desk: Desk) -> None:
    session, request = desk.session(), uuid7().bytes * 2
    await desk.reserve(session.id, request)
    await desk.keys.revoke(desk.key, half(2), AT)
    with pytest.raises(Stale):
        await desk.store.open(session, {}, AT)
    assert await desk.store.find(session.id) is None
    assert await desk.reserve(uuid7(), request) == Reserved()


async def test_a_session_is_revoked_with_its_key(desk: Desk) -> None:
    session, at = await desk.opened(), AT + SECOND
    await desk.keys.revoke(desk.key, half(2), at)
    ended = replace(session, revoked_at=at, revoke_reason="policy_violation")
    assert await desk.store.find(session.id) == ended
    assert not await desk.store.touch(session.id, desk.node, "tcp", {}, at)
    pages = {
        status: await desk.store.page(desk.project, status, "", None, None, 9, at) for status in ("active", "revoked")
    }
    assert pages == {"active": [], "revoked": [ended]}
    # Until somebody writes it down.
    assert ended in await desk.store.unrevoked(UUID(int=0), 10_000, at)
    assert await desk.store.revoke(session, "policy_violation", {}, at + SECOND)
    assert ended not in await desk.store.unrevoked(UUID(int=0), 10_000, at)


async def test_releasing_what_became_a_session_changes_nothing(desk: Desk) -> None:
    request, session = uuid7().bytes * 2, desk.session()
    await desk.reserve(session.id, request)
    await desk.store.open(session, {}, AT)
    await desk.store.release(session.id)
    assert await desk.reserve(uuid7(), request) == Reserved(session.id)


async def test_an_active_session_is_revoked_once(desk: Desk) -> None:
    session = await desk.opened()
    assert await desk.store.revoke(session, "policy_violation", {}, AT + SECOND)
    assert not await desk.store.revoke(session, "operator_request", {}, AT + 2 * SECOND)
    found = await desk.store.find(session.id)
    assert found == replace(session, revoked_at=AT + SECOND, revoke_reason="policy_violation")
    over = await desk.opened()
    assert not await desk.store.revoke(over, "operator_request", {}, over.expires_at)


async def test_activity_is_noted_of_active_sessions_of_the_node_and_kind(desk: Desk) -> None:
    session = await desk.opened()
    at = AT + 5 * SECOND
    assert await desk.store.touch(session.id, desk.node, "tcp", {}, at)
    assert await desk.store.touch(session.id, desk.node, "tcp", {}, AT)
    found = await desk.store.find(session.id)
    assert found is not None
    assert found.last_active_at == at
    for node, kind, when in ((uuid7(), "tcp", at), (desk.node, "ssh", at), (desk.node, "tcp", session.expires_at)):
        assert not await desk.store.touch(session.id, node, kind, {}, when)
    await desk.store.revoke(session, "operator_request", {}, at)
    assert not await desk.store.touch(session.id, desk.node, "tcp", {}, at)


async def test_pages_are_newest_first_and_filtered(desk: Desk) -> None:
    one, two, three = sorted([await desk.opened() for _ in range(3)], key=lambda row: row.id)
    await desk.store.revoke(two, "operator_request", {}, AT)

    async def page(
        status: str = "", kind: str = "", who: UUID | None = None, before: UUID | None = None, at: Any = AT
    ) -> list[UUID]:
        return [row.id for row in await desk.store.page(desk.project, status, kind, who, before, 2, at)]

    assert await page() == [three.id, two.id]
    assert await page(before=two.id) == [one.id]
    assert await page("active") == [three.id, one.id]
    assert await page("revoked") == [two.id]
    assert await page("expired") == []
    assert await page("expired", at=one.expires_at) == [three.id, one.id]
    assert await page(kind="ssh") == await page(who=uuid7()) == []
    assert await page(kind="tcp", who=desk.person) == [three.id, two.id]
    active = {row.id for row in await desk.store.unrevoked(UUID(int=0), 10_000, AT)}
    assert active >= {one.id, three.id}
    assert two.id not in active
    assert three.id in {row.id for row in await desk.store.unrevoked(one.id, 10_000, AT)}
    assert one.id not in {row.id for row in await desk.store.unrevoked(one.id, 10_000, AT)}


# Keys --------------------------------------------------------------------------------------------------------


def half(version: int) -> PublicHalf:
    return PublicHalf(uuid7().bytes * 2, version)


async def test_a_first_key_is_recorded_once(keys: KeyStore) -> None:
    domain_id, first = uuid7(), half(1)
    assert await keys.keys(domain_id) == []
    await keys.remember(domain_id, first, AT)
    await keys.remember(domain_id, half(2), AT)
    (found,) = await keys.keys(domain_id)
    assert (found.kid, found.version, found.current) == (first.kid, 1, True)


async def test_a_key_succeeds_another_once(keys: KeyStore) -> None:
    domain_id, second = uuid7(), half(2)
    await keys.remember(domain_id, half(1), AT)
    await keys.succeed(domain_id, second, AT, AT + SECOND)
    with pytest.raises(RotationUnderWay):
        await keys.succeed(domain_id, half(2), AT, AT + 2 * SECOND)
    before, current = await keys.keys(domain_id)
    assert (before.expires_at, before.verifies(AT), before.verifies(AT + SECOND)) == (AT + SECOND, True, False)
    assert (current.kid, current.current) == (second.kid, True)


async def test_a_key_is_revoked_with_a_successor_exactly_when_it_signs(keys: KeyStore) -> None:
    domain_id = uuid7()
    await keys.remember(domain_id, half(1), AT)
    (first,) = await keys.keys(domain_id)
    with pytest.raises(Stale):
        await keys.revoke(first, None, AT)
    await keys.revoke(first, half(2), AT)
    revoked, current = await keys.keys(domain_id)
    assert (revoked.revoked_at, revoked.verifies(AT), current.current) == (AT, False, True)
    with pytest.raises(Stale):
        await keys.revoke(first, half(3), AT)
    await keys.succeed(domain_id, half(3), AT, AT + SECOND)
    with pytest.raises(Stale):
        await keys.revoke(current, half(4), AT)
    await keys.revoke(current, None, AT)
    assert [key.verifies(AT) for key in await keys.keys(domain_id)] == [False, False, True]


async def test_of_many_makers_all_get_the_same_key(signer: Vault) -> None:
    domain_id = uuid7()
    assert await signer.halves(domain_id) == []
    made = await asyncio.gather(*(signer.create(domain_id) for _ in range(8)))
    assert len({one.public_key for one in made}) == 1
    second = await signer.rotate(domain_id)
    assert [one.version for one in await signer.halves(domain_id)] == [1, 2]
    assert second == (await signer.halves(domain_id))[1]


async def test_the_same_bytes_under_the_same_version_have_the_same_signature(signer: Vault) -> None:
    domain_id = uuid7()
    first = await signer.create(domain_id)
    signature = await signer.sign(domain_id, 1, b"message")
    second = await signer.rotate(domain_id)
    assert await signer.sign(domain_id, 1, b"message") == signature
    Ed25519PublicKey.from_public_bytes(first.public_key).verify(signature, b"message")
    newer = await signer.sign(domain_id, 2, b"message")
    Ed25519PublicKey.from_public_bytes(second.public_key).verify(newer, b"message")


async def test_a_key_that_is_not_there_signs_nothing(vault: BaoVault) -> None:
    with pytest.raises(SigningUnavailable):
        await vault.sign(uuid7(), 1, b"message")
