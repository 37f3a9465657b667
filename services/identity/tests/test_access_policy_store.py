"""Policies and terms in PostgreSQL, and which sign-ins count as ended."""

import asyncio
import datetime
from contextlib import suppress
from dataclasses import replace
from uuid import UUID

import asyncpg
import pytest

from libs.access_policy import AccessPolicy, Override, SecretLimits, Strength
from libs.errors import NotFound, Stale
from libs.ids import uuid7
from services.identity.access_policy_store import PgAccessPolicyStore
from services.identity.relations import Feed, Revocation
from services.identity.revocation_feed import follow
from services.identity.sign_in_model import Session, digest, random_text
from services.identity.sign_in_store import PgSignInStore
from services.identity.tests.replicas import Replica
from services.identity.tests.test_relations import first, soon
from services.identity.tests.test_sign_in_store import LOGIN, MINUTE, NOW, Doors, real

__all__ = ["real"]
pytestmark = pytest.mark.integration

Pools = tuple[asyncpg.Pool, asyncpg.Pool]
LIMITS = SecretLimits(node_rate_per_minute=6, domain_burst=7)
POLICY = AccessPolicy(Strength(("a", "b"), ("otp",), 60), {"ssh": Override(("a",), (), 30)}, 60, 120, 1, 2, 3, LIMITS)


async def test_a_policy_put_on_one_replica_holds_on_the_other(real: Doors, pools: Pools) -> None:
    one, other = map(PgAccessPolicyStore, pools)
    assert await one.access_policy(real.domain_id) is None
    before = AccessPolicy()
    for policy in (POLICY, AccessPolicy()):
        await one.put_access_policy(real.domain_id, before, policy, NOW)
        assert await other.access_policy(real.domain_id) == policy
        before = policy
    with pytest.raises(NotFound):
        await one.put_access_policy(uuid7(), AccessPolicy(), POLICY, NOW)


async def test_a_policy_is_put_for_the_one_that_was_decided_on(real: Doors, pools: Pools) -> None:
    one, other = map(PgAccessPolicyStore, pools)
    tight = replace(POLICY, strength=Strength(("a",), ("otp", "hwk"), 30))
    await one.put_access_policy(real.domain_id, AccessPolicy(), POLICY, NOW)
    await other.put_access_policy(real.domain_id, POLICY, tight, NOW)
    with pytest.raises(Stale):
        await one.put_access_policy(real.domain_id, POLICY, replace(POLICY, max_ttl_s=119), NOW)
    assert await one.access_policy(real.domain_id) == tight
    # Of many who decided on the same one, one is in time.
    wanted = [replace(tight, max_ttl_s=ttl) for ttl in range(61, 71)]
    puts = [
        pair.put_access_policy(real.domain_id, tight, policy, NOW)
        for pair, policy in zip([one, other] * 5, wanted, strict=True)
    ]
    answers = await asyncio.gather(*puts, return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["NoneType", *["Stale"] * 9]


async def test_terms_are_of_now(replicas: tuple[Replica, Replica], pools: Pools, real: Doors) -> None:
    store, one = PgAccessPolicyStore(pools[0]), replicas[0]
    domain = await one.domain()
    project = await one.project(domain)
    bare = await one.resource(project)
    resource, enrolled = await one.node(project)
    (terms,) = await store.session_terms([(resource.id, uuid7())])
    assert terms is not None
    assert (terms.project_id, terms.domain_id, terms.node_id) == (project.id, domain.id, enrolled.node.node_id)
    assert (terms.policy, terms.binding_acr) == (AccessPolicy(), ())
    await store.put_access_policy(domain.id, AccessPolicy(), POLICY, NOW)
    (terms,) = await store.session_terms([(bare.id, uuid7())])
    assert terms is not None
    assert (terms.node_id, terms.policy) == (None, POLICY)
    assert await store.session_terms([(uuid7(), uuid7())]) == [None]
    session, _ = await real.session(await real.bound(required_acr=("urn:mfa", "urn:phr")))
    (terms,) = await store.session_terms([(resource.id, session.person.id)])
    assert terms is not None
    assert terms.binding_acr == ("urn:mfa", "urn:phr")


async def test_changed_limits_are_with_the_nodes_key_at_once_and_told_to_every_feed(
    replicas: tuple[Replica, Replica], pools: Pools
) -> None:
    store, keys, feed = PgAccessPolicyStore(pools[0]), PgSignInStore(pools[1]), Feed()
    domain = await replicas[0].domain()
    _, enrolled = await replicas[0].node(await replicas[0].project(domain))

    async def limits() -> SecretLimits:
        (key,) = await keys.node_keys(enrolled.node.node_id, NOW)
        return key.secret_limits

    assert await limits() == SecretLimits()
    following = asyncio.create_task(follow(pools[1], feed))
    longer, told = replace(POLICY, max_ttl_s=180), 0
    try:
        heard = await soon(lambda: first(feed))
        for before, after in [(AccessPolicy(), POLICY), (POLICY, longer), (longer, AccessPolicy())]:
            await store.put_access_policy(domain.id, before, after, NOW)
            assert await limits() == after.secret_limits
        async with asyncio.timeout(5):
            while told < 2:
                told += await anext(heard) == Revocation("domain", str(domain.id))
            # What changes no limit tells nobody.
            assert await anext(heard) == Revocation()
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


async def ended(pools: Pools, *sessions: UUID) -> list[UUID]:
    found = await PgAccessPolicyStore(pools[1]).ended_sign_ins(list(sessions))
    return [one for one in sessions if one in found]


async def test_what_is_ended_is_known_however_it_ended(real: Doors, pools: Pools) -> None:
    store = PgSignInStore(pools[0])
    out, everywhere, unbound, left = [(await real.session())[0] for _ in range(4)]
    ids = [session.id for session in (out, everywhere, unbound, left)]
    assert await ended(pools, *ids) == []
    await store.end_session(out.id)
    assert await ended(pools, *ids) == ids[:1]
    await store.end_sessions(everywhere.person.id)
    assert await ended(pools, *ids) == ids[:2]
    await store.remove_binding((await store.provider_of(unbound.person.id)) or uuid7())
    assert await ended(pools, *ids) == ids[:3]


async def test_an_access_token_ends_with_its_session_and_running_out_ends_none(real: Doors, pools: Pools) -> None:
    store = PgSignInStore(pools[0])
    session, _ = await real.session()
    device, *_ = await real.device()
    assert await store.approve_device(device.id, session)
    assert await store.issue_token(device, digest(random_text()), NOW, NOW + 5 * MINUTE)
    past = NOW - 10 * MINUTE
    gone = Session(uuid7(), session.person, LOGIN, past + MINUTE)
    await store.open_session(gone, digest(random_text()), past, None)
    await store.open_session(
        Session(uuid7(), session.person, LOGIN, NOW + MINUTE), digest(random_text()), NOW, None
    )  # fmt: skip
    assert await pools[0].fetchval("SELECT count(*) FROM identity.sessions WHERE id = $1", gone.id) == 0
    assert await ended(pools, gone.id, device.id) == []
    await store.end_session(session.id)
    assert await ended(pools, gone.id, device.id) == [device.id]


async def test_what_a_token_began_ends_with_its_session_also_when_the_token_has_run_out(
    real: Doors, pools: Pools
) -> None:
    store = PgSignInStore(pools[0])
    session, _ = await real.session()
    tokens = []
    for _ in range(2):
        device, *_ = await real.device()
        assert await store.approve_device(device.id, session)
        # The second cleans the first away, and is there still, run out as well, when its session ends.
        assert await store.issue_token(device, digest(random_text()), NOW - MINUTE, NOW - MINUTE / 2)
        tokens.append(device.id)
        await pools[0].execute("DELETE FROM identity.access_tokens WHERE id = $1 AND id <> $2", tokens[0], device.id)
    assert await ended(pools, *tokens) == []
    await store.end_session(session.id)
    assert await ended(pools, *tokens) == tokens


async def test_signing_in_once_more_ends_nothing_until_the_new_session_ends(real: Doors, pools: Pools) -> None:
    store = PgSignInStore(pools[0])
    first, cookie = await real.session()
    second = Session(uuid7(), first.person, LOGIN, NOW + 60 * MINUTE)
    await store.open_session(second, digest("second" + cookie), NOW, digest(cookie))
    third = Session(uuid7(), first.person, LOGIN, NOW + 60 * MINUTE)
    await store.open_session(third, digest("third" + cookie), NOW, digest("second" + cookie))
    assert await ended(pools, first.id, second.id, third.id) == []
    await store.end_session(third.id)
    assert await ended(pools, first.id, second.id, third.id) == [first.id, second.id, third.id]


async def test_somebody_elses_sign_in_in_the_same_browser_ends_the_session(real: Doors, pools: Pools) -> None:
    first, cookie = await real.session()
    other, _ = await real.session()
    mine = Session(uuid7(), other.person, LOGIN, NOW + 60 * MINUTE)
    await PgSignInStore(pools[0]).open_session(mine, digest(random_text()), NOW, digest(cookie))
    assert await ended(pools, first.id, mine.id) == [first.id]


async def test_a_row_is_kept_for_longer_than_any_privileged_session_lasts(real: Doors, pools: Pools) -> None:
    session, _ = await real.session()
    await PgSignInStore(pools[0]).end_session(session.id)
    old = "UPDATE identity.ended_sign_ins SET ended_at = now() - $2::interval WHERE id = $1"
    for hours, kept in ((13, True), (49, False)):
        await pools[0].execute(old, session.id, datetime.timedelta(hours=hours))
        await real.session()
        assert (await ended(pools, session.id) == [session.id]) is kept
