"""What signing in asks of its store: the same promises of the fake and of PostgreSQL, and races on the real one."""

import asyncio
import datetime
import ipaddress
import secrets
from dataclasses import dataclass, replace
from uuid import UUID

import asyncpg
import pytest

from libs.errors import BindingConflict, Unauthenticated
from libs.ids import uuid7
from services.identity.devices import INTERVAL_S
from services.identity.model import Domain, Reachability
from services.identity.sign_in_model import (
    Binding,
    Device,
    Login,
    Pending,
    Person,
    Session,
    Wanted,
    digest,
    random_text,
)
from services.identity.sign_in_ports import SignInStore
from services.identity.sign_in_store import PgSignInStore
from services.identity.store import PgStore
from services.identity.tests.sign_in_fakes import FakeSignInStore, a_binding

pytestmark = pytest.mark.integration

Pools = tuple[asyncpg.Pool, asyncpg.Pool]
NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
MINUTE = datetime.timedelta(minutes=1)
LOGIN = Login("urn:mfa", ("pwd", "otp"), 1_776_249_000)


@dataclass
class Doors:
    """Two replicas' doors to one store, and a Domain of this test's own."""

    one: SignInStore
    other: SignInStore
    domain_id: UUID

    async def bound(self, **more: object) -> Binding:
        binding = a_binding(self.domain_id, f"https://{uuid7().hex}.example", **more)
        await self.one.add_binding(binding)
        return binding

    async def session(self, binding: Binding | None = None) -> tuple[Session, str]:
        binding = binding or await self.bound(primary=False)
        person = await self.one.admit(binding, Person(uuid7(), self.domain_id), random_text(), NOW)
        session, cookie = Session(uuid7(), person, LOGIN, NOW + 60 * MINUTE), random_text()
        await self.one.open_session(session, digest(cookie), NOW, None)
        return session, cookie

    async def device(self, binding_id: UUID | None = None) -> tuple[Device, str, str]:
        device_code, user_code = random_text(), random_text()
        device = Device(
            uuid7(), "cli", self.domain_id, Wanted(("urn:mfa",), 60), INTERVAL_S, NOW + 10 * MINUTE,
            binding_id=binding_id,
        )  # fmt: skip
        await self.one.start_device(device, digest(device_code), digest(user_code))
        return device, device_code, user_code


@pytest.fixture
async def real(pools: Pools) -> Doors:
    domain_id = uuid7()
    cidr = f"{ipaddress.ip_address(0xFC << 120 | secrets.randbits(56) << 64)}/64"
    domain = Domain(domain_id, "D", f"d-{domain_id.hex}", "", "", cidr, Reachability(), NOW, NOW)
    await PgStore(pools[0]).create_domain(domain, [])
    return Doors(PgSignInStore(pools[0]), PgSignInStore(pools[1]), domain_id)


@pytest.fixture(params=["fake", "real"])
def doors(request: pytest.FixtureRequest, real: Doors) -> Doors:
    fake = FakeSignInStore([])
    return real if request.param == "real" else Doors(fake, fake, real.domain_id)


async def test_a_binding_comes_back_whole_and_the_primary_first(doors: Doors) -> None:
    second = await doors.bound(primary=False, claim_mappings={"email": "upn"}, required_acr=("a", "b"))
    first = await doors.bound(required_amr=("otp",))
    assert await doors.other.binding(second.id) == second
    assert await doors.other.bindings(doors.domain_id) == [first, second]
    assert await doors.other.bindings(uuid7()) == []


async def test_an_issuer_and_a_primary_are_there_once(doors: Doors) -> None:
    row = await doors.bound()
    for again in (
        a_binding(doors.domain_id, row.issuer, primary=False),
        a_binding(doors.domain_id, "https://x.example"),
    ):
        with pytest.raises(BindingConflict):
            await doors.other.add_binding(again)


async def test_a_sign_in_is_found_unused_once(doors: Doors) -> None:
    binding, state = await doors.bound(), digest(random_text())
    pending = Pending(binding.id, "/", Wanted(("urn:mfa",), 60), NOW + 10 * MINUTE, digest("before"))
    await doors.one.start(state, pending)
    assert await doors.other.finish(state, NOW) == pending
    assert await doors.one.finish(state, NOW) == replace(pending, used=True)
    assert await doors.one.finish(digest("never started"), NOW) is None


async def test_fifty_callbacks_with_one_state_finish_one(real: Doors) -> None:
    binding, state = await real.bound(), digest(random_text())
    await real.one.start(state, Pending(binding.id, "/", Wanted(), NOW + 10 * MINUTE))
    found = await asyncio.gather(*(door.finish(state, NOW) for door in (real.one, real.other) * 25))
    assert [pending is not None and not pending.used for pending in found].count(True) == 1


async def test_first_sign_ins_at_once_make_one_person(real: Doors) -> None:
    binding = await real.bound()
    people = [Person(uuid7(), real.domain_id, "A", "a@x") for _ in range(20)]
    doors = (real.one, real.other) * 10
    admitted = await asyncio.gather(
        *(door.admit(binding, person, "alice", NOW) for door, person in zip(doors, people, strict=True))
    )
    assert len({person.id for person in admitted}) == 1
    known = await real.one.person(binding, "alice")
    assert known is not None
    assert (await real.one.email(known.id), await real.one.provider_of(known.id)) == ("a@x", binding.id)


async def test_a_subject_is_somebody_else_at_another_binding(doors: Doors) -> None:
    one, other = await doors.bound(), await doors.bound(primary=False)
    first = await doors.one.admit(one, Person(uuid7(), doors.domain_id), "alice", NOW)
    second = await doors.one.admit(other, Person(uuid7(), doors.domain_id), "alice", NOW)
    assert first.id != second.id
    assert await doors.one.provider_of(second.id) == other.id
    assert (await doors.one.provider_of(uuid7()), await doors.one.email(uuid7())) == (None, "")


async def test_a_session_lives_while_it_is_used_and_not_longer_than_its_end(doors: Doors) -> None:
    session, cookie = await doors.session()
    moment, idle = NOW + 20 * MINUTE, 30 * MINUTE
    found = await doors.other.use_session(digest(cookie), moment, moment - idle)
    assert found is not None
    assert (found.id, found.login, found.expires_at, found.person.id) == (
        session.id, LOGIN, session.expires_at, session.person.id,
    )  # fmt: skip
    # Its use moved the time from which it counts as idle.
    moment = NOW + 49 * MINUTE
    assert await doors.one.use_session(digest(cookie), moment, moment - idle)
    assert await doors.one.use_session(digest(cookie), moment + idle, moment) is None
    assert await doors.one.use_session(digest(cookie), session.expires_at, moment - idle) is None
    assert await doors.one.use_session(digest("another"), moment, moment - idle) is None


async def test_what_ended_is_gone_for_every_replica(doors: Doors) -> None:
    binding = await doors.bound()
    (first, cookie), (second, other_cookie) = await doors.session(binding), await doors.session(binding)
    replacement, new_cookie = replace(second, id=uuid7()), random_text()
    await doors.one.open_session(replacement, digest(new_cookie), NOW, digest(other_cookie))
    await doors.one.end_session(first.id)
    for ended in (cookie, other_cookie):
        assert await doors.other.use_session(digest(ended), NOW, NOW - MINUTE) is None
    assert await doors.other.use_session(digest(new_cookie), NOW, NOW - MINUTE)
    assert await doors.one.end_sessions(second.person.id) == 1
    assert await doors.other.use_session(digest(new_cookie), NOW, NOW - MINUTE) is None
    assert await doors.one.end_sessions(second.person.id) == 0


async def test_a_device_gets_the_login_behind_a_session_and_one_token(doors: Doors) -> None:
    session, _ = await doors.session()
    device, device_code, user_code = await doors.device()
    assert await doors.other.device_by_user_code(digest(user_code)) == device
    assert await doors.other.poll_device(digest(device_code), "another", NOW) is None
    assert await doors.other.poll_device(digest(device_code), "cli", NOW) == device
    assert await doors.one.approve_device(device.id, session)
    assert not await doors.other.approve_device(device.id, session)
    approved = await doors.one.poll_device(digest(device_code), "cli", NOW + MINUTE)
    assert approved == replace(device, polled_at=NOW, person_id=session.person.id, login=LOGIN)
    token = random_text()
    assert await doors.one.issue_token(approved, digest(token), NOW, NOW + 15 * MINUTE)
    assert not await doors.other.issue_token(approved, digest(random_text()), NOW, NOW + 15 * MINUTE)
    found = await doors.other.use_token(digest(token), NOW + 14 * MINUTE)
    assert found is not None
    assert (found.login, found.person.id, found.expires_at) == (LOGIN, session.person.id, NOW + 15 * MINUTE)
    assert await doors.other.use_token(digest(token), NOW + 15 * MINUTE) is None
    await doors.one.end_token(found.id)
    assert await doors.other.use_token(digest(token), NOW) is None


async def test_a_session_that_is_over_approves_nothing(doors: Doors) -> None:
    session, _ = await doors.session()
    device, device_code, _ = await doors.device()
    await doors.one.end_session(session.id)
    with pytest.raises(Unauthenticated):
        await doors.other.approve_device(device.id, session)
    # Neither does the login behind an access token: its id is no session's.
    with pytest.raises(Unauthenticated):
        await doors.other.approve_device(device.id, replace(session, id=uuid7()))
    untouched = await doors.one.poll_device(digest(device_code), "cli", NOW)
    assert untouched is not None
    assert untouched.person_id is None


async def test_signing_out_everywhere_takes_tokens_and_approvals_along(doors: Doors) -> None:
    session, _ = await doors.session()
    waiting, waiting_code, _ = await doors.device()
    device, _, _ = await doors.device()
    token = random_text()
    for one in (device, waiting):
        assert await doors.one.approve_device(one.id, session)
    assert await doors.one.issue_token(device, digest(token), NOW, NOW + 15 * MINUTE)
    await doors.one.end_sessions(session.person.id)
    assert await doors.other.use_token(digest(token), NOW) is None
    assert await doors.other.poll_device(digest(waiting_code), "cli", NOW) is None
    assert not await doors.other.issue_token(waiting, digest(random_text()), NOW, NOW + 15 * MINUTE)


async def granted(doors: Doors, session: Session) -> bytes:
    """Return the digest of an access token that a session approved."""
    device, _, _ = await doors.device()
    assert await doors.one.approve_device(device.id, session)
    token = digest(random_text())
    assert await doors.one.issue_token(device, token, NOW, NOW + 15 * MINUTE)
    return token


async def test_signing_out_takes_the_tokens_that_the_session_approved(doors: Doors) -> None:
    session, _ = await doors.session()
    other = replace(session, id=uuid7())
    await doors.one.open_session(other, digest(random_text()), NOW, None)
    ended, kept = await granted(doors, session), await granted(doors, other)
    await doors.one.end_session(session.id)
    assert await doors.other.use_token(ended, NOW) is None
    assert await doors.other.use_token(kept, NOW) is not None


async def test_a_stronger_login_keeps_the_tokens_of_the_one_before_until_it_ends(doors: Doors) -> None:
    session, cookie = await doors.session()
    token = await granted(doors, session)
    stronger = replace(session, id=uuid7())
    await doors.one.open_session(stronger, digest(random_text()), NOW, digest(cookie))
    assert await doors.other.use_token(token, NOW) is not None
    await doors.one.end_session(stronger.id)
    assert await doors.other.use_token(token, NOW) is None


async def test_another_person_in_the_same_browser_ends_the_tokens_of_the_one_before(doors: Doors) -> None:
    session, cookie = await doors.session()
    token = await granted(doors, session)
    other, _ = await doors.session()
    await doors.one.open_session(replace(other, id=uuid7()), digest(random_text()), NOW, digest(cookie))
    assert await doors.other.use_token(token, NOW) is None


async def test_no_token_slips_past_signing_out(real: Doors) -> None:
    for _ in range(20):
        session, _ = await real.session()
        device, _, _ = await real.device()
        assert await real.one.approve_device(device.id, session)
        token = digest(random_text())
        await asyncio.gather(
            real.one.issue_token(device, token, NOW, NOW + 15 * MINUTE), real.other.end_session(session.id)
        )
        assert await real.one.use_token(token, NOW) is None


async def test_a_device_is_denied_once_and_for_good(doors: Doors) -> None:
    session, _ = await doors.session()
    device, device_code, _ = await doors.device()
    assert await doors.one.deny_device(device.id)
    assert not await doors.other.deny_device(device.id)
    assert not await doors.other.approve_device(device.id, session)
    polled = await doors.one.poll_device(digest(device_code), "cli", NOW)
    assert polled == replace(device, denied=True)
    approved, _, _ = await doors.device()
    assert await doors.one.approve_device(approved.id, session)
    assert not await doors.one.deny_device(approved.id)


async def test_no_token_slips_past_signing_out_everywhere(real: Doors) -> None:
    for _ in range(20):
        session, _ = await real.session()
        device, _, _ = await real.device()
        assert await real.one.approve_device(device.id, session)
        token = random_text()
        await asyncio.gather(
            real.one.issue_token(device, digest(token), NOW, NOW + 15 * MINUTE),
            real.other.end_sessions(session.person.id),
        )
        assert await real.one.use_token(digest(token), NOW) is None


async def test_fifty_polls_at_once_get_one_token(real: Doors) -> None:
    session, _ = await real.session()
    device, _, _ = await real.device()
    assert await real.one.approve_device(device.id, session)
    tokens = [random_text() for _ in range(50)]
    doors = (real.one, real.other) * 25
    issued = await asyncio.gather(
        *(
            door.issue_token(device, digest(token), NOW, NOW + 15 * MINUTE)
            for door, token in zip(doors, tokens, strict=True)
        )
    )
    assert sum(issued) == 1
    found = [await real.one.use_token(digest(token), NOW) for token in tokens]
    assert [one is not None for one in found] == list(issued)
