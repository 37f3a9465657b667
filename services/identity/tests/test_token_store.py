"""What tokens ask of their store: the same promises of the fake and of PostgreSQL, and races on the real one."""

import asyncio
import datetime
import ipaddress
import secrets
from dataclasses import dataclass, replace
from uuid import UUID

import asyncpg
import pytest

from libs.errors import AlreadyExists, ApiTokenLimit, ApiTokenRotated, DomainNotEmpty, InvalidClient, NotFound
from libs.ids import uuid7
from services.identity.binding_store import PgBindingStore
from services.identity.model import Domain, Reachability, Tuple
from services.identity.relation_store import CHANNEL, PgTupleStore
from services.identity.sign_in_model import Person, digest, random_text
from services.identity.sign_in_store import PgSignInStore
from services.identity.store import PgStore
from services.identity.tests.sign_in_fakes import a_binding
from services.identity.tests.token_fakes import FakeTokenStore
from services.identity.token_model import ApiToken, Owner, ServiceIdentity, ServiceToken
from services.identity.token_store import PgTokenStore

pytestmark = pytest.mark.integration

Pools = tuple[asyncpg.Pool, asyncpg.Pool]
NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
MINUTE, DAY = datetime.timedelta(minutes=1), datetime.timedelta(days=1)


@dataclass
class Doors:
    """A store, a person and a machine that it knows, and its Domain."""

    store: FakeTokenStore | PgTokenStore
    person: Owner
    machine: Owner
    domain_id: UUID

    def a_token(self, owner: Owner | None = None, **more: object) -> ApiToken:
        plain = ApiToken(uuid7(), owner or self.person, "dev", ("read",), self.person.id, NOW, NOW + DAY)
        return replace(plain, **more)  # type: ignore[arg-type]  # each caller names fields

    async def add(self, owner: Owner | None = None, **more: object) -> tuple[ApiToken, bytes]:
        token, hashed = self.a_token(owner, **more), digest(random_text())
        await self.store.add_api_token(token, hashed)
        return token, hashed

    async def begotten(self, token: ApiToken) -> bytes:
        begot, hashed = ServiceToken(uuid7(), token.id, token.owner, None, NOW + 15 * MINUTE), digest(random_text())
        await self.store.add_service_token(begot, hashed, NOW)
        return hashed


@pytest.fixture
async def real(pools: Pools) -> Doors:
    domain_id, store = uuid7(), PgTokenStore(pools[0])
    cidr = f"{ipaddress.ip_address(0xFC << 120 | secrets.randbits(56) << 64)}/64"
    domain = Domain(domain_id, "D", f"d-{domain_id.hex}", "", "", cidr, Reachability(), NOW, NOW)
    await PgStore(pools[0]).create_domain(domain, [])
    binding, people = a_binding(domain_id, f"https://{uuid7().hex}.example"), PgSignInStore(pools[0])
    await people.add_binding(binding)
    person = await people.admit(binding, Person(uuid7(), domain_id, "Alice", "a@op.example"), random_text(), NOW)
    machine = ServiceIdentity(uuid7(), domain_id, "CI", uuid7().hex, "plexsphere", "api_token", NOW)
    await store.add_service_identity(machine)
    owners = Owner("user", person.id, domain_id), Owner("service", machine.id, domain_id, "api_token")
    return Doors(store, *owners, domain_id)


@pytest.fixture(params=["fake", "real"])
def doors(request: pytest.FixtureRequest, real: Doors) -> Doors:
    fake = FakeTokenStore(domains={real.domain_id})
    owners = fake.know(real.person), fake.know(real.machine)
    return real if request.param == "real" else Doors(fake, *owners, real.domain_id)


async def test_a_token_is_found_by_its_digest_while_it_lives(doors: Doors) -> None:
    for owner in (doors.person, doors.machine):
        token, hashed = await doors.add(owner, scope=None)
        assert await doors.store.use_api_token(hashed, NOW + DAY) is None
        used = await doors.store.use_api_token(hashed, NOW)
        assert used is not None
        assert (used.id, used.owner, used.scope) == (token.id, owner, None)
        assert [row.id for row in await doors.store.api_tokens(owner, NOW)] == [token.id]
        assert await doors.store.api_tokens(owner, NOW + DAY) == []
        assert await doors.store.owner(owner.kind, owner.id) == owner
    assert await doors.store.owner("user", doors.machine.id) is None
    with pytest.raises(NotFound):
        await doors.add(Owner("user", uuid7(), doors.domain_id))


async def test_its_use_is_noted_once_a_minute(doors: Doors) -> None:
    token, hashed = await doors.add()
    seen = []
    for seconds in (0, 59, 60, 61):
        await doors.store.use_api_token(hashed, NOW + datetime.timedelta(seconds=seconds))
        row = await doors.store.api_token(token.id, NOW)
        seen.append(row.last_used_at if row else None)
    assert seen == [NOW, NOW, NOW + MINUTE, NOW + MINUTE]


async def test_of_two_rotations_one_makes_a_successor(doors: Doors) -> None:
    old, hashed = await doors.add(expires_at=NOW + 2 * DAY)
    new, deadline = [(doors.a_token(), digest(random_text())) for _ in range(5)], NOW + DAY
    answers = await asyncio.gather(
        *(doors.store.rotate_api_token(old.id, *one, deadline) for one in new), return_exceptions=True
    )
    assert answers.count(deadline) == 1
    assert sum(isinstance(answer, ApiTokenRotated) for answer in answers) == 4
    assert len(await doors.store.api_tokens(doors.person, NOW)) == 2
    assert await doors.store.use_api_token(hashed, deadline - MINUTE)
    assert await doors.store.use_api_token(hashed, deadline) is None
    assert await doors.store.rotate_api_token(uuid7(), *new[0], deadline) is None


async def test_what_a_revoked_token_begot_dies_with_it(doors: Doors) -> None:
    token, hashed = await doors.add(doors.machine)
    child = await doors.begotten(token)
    assert await doors.store.use_service_token(child, NOW)
    assert await doors.store.revoke_api_token(token.id)
    assert await doors.store.use_api_token(hashed, NOW) is None
    assert await doors.store.use_service_token(child, NOW) is None
    assert not await doors.store.revoke_api_token(token.id)
    with pytest.raises(InvalidClient):
        await doors.begotten(token)


async def test_of_a_hundred_and_one_tokens_the_last_is_refused(doors: Doors) -> None:
    await asyncio.gather(*(doors.add() for _ in range(99)))
    answers = await asyncio.gather(*(doors.add() for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(answer, ApiTokenLimit) for answer in answers) == 3


async def test_a_machine_is_in_a_domain_once(doors: Doors) -> None:
    row = ServiceIdentity(uuid7(), doors.domain_id, "CI", "s" * 2048, "a", "oidc_cc", NOW)
    await doors.store.add_service_identity(row)
    with pytest.raises(AlreadyExists):
        await doors.store.add_service_identity(replace(row, id=uuid7()))
    await doors.store.add_service_identity(replace(row, id=uuid7(), federation_kind="spiffe_svid"))
    assert await doors.store.delete_service_identity(uuid7(), row.id) is None
    assert await doors.store.delete_service_identity(doors.domain_id, row.id) is not None
    assert await doors.store.delete_service_identity(doors.domain_id, row.id) is None


async def test_a_deleted_machine_leaves_neither_token_nor_relation(doors: Doors) -> None:
    token, hashed = await doors.add(doors.machine)
    child, row = await doors.begotten(token), Tuple(f"domain:{doors.domain_id}", "member", doors.machine.reference)
    if isinstance(doors.store, FakeTokenStore):
        doors.store.tuples.append(row)
    else:
        await PgTupleStore(doors.store.pool).add([row])
    assert await doors.store.delete_service_identity(uuid7(), doors.machine.id) is None
    assert await doors.store.delete_service_identity(doors.domain_id, doors.machine.id) == [row]
    assert await doors.store.use_api_token(hashed, NOW) is None
    assert await doors.store.use_service_token(child, NOW) is None
    assert await doors.store.owner("service", doors.machine.id) is None
    with pytest.raises(NotFound):
        await doors.add(doors.machine)


async def test_machines_come_in_pages_by_id_and_of_their_own_domain(doors: Doors) -> None:
    store, domain = doors.store, doors.domain_id
    rows = [ServiceIdentity(uuid7(), domain, "CI", f"s{place}", "a", "oidc_cc", NOW) for place in range(3)]
    for row in rows:
        await store.add_service_identity(row)
    ids, after = sorted(row.id for row in rows), doors.machine.id
    assert [row.id for row in await store.identities(domain, "service-identity", after, 2)] == ids[:2]
    assert [row.id for row in await store.identities(domain, "", ids[1], 2)] == ids[2:]
    assert await store.identities(domain, "user", after, 2) == []
    assert await store.identities(uuid7(), "", UUID(int=0), 2) == []
    found = await store.identity(domain, rows[0].id)
    assert found is not None
    assert (found.kind, found.subject, found.issuer, found.email) == ("service-identity", "s0", "a", "")
    assert found.created_at == found.updated_at == NOW
    assert await store.identity(uuid7(), rows[0].id) is None
    with pytest.raises(NotFound):
        await store.add_service_identity(replace(rows[0], id=uuid7(), domain_id=uuid7()))


async def test_identities_come_in_pages_and_keep_their_domain(real: Doors, pools: Pools) -> None:
    rows = await real.store.identities(real.domain_id, "", UUID(int=0), 10)
    assert [(row.id, row.kind) for row in rows] == [(real.person.id, "user"), (real.machine.id, "service-identity")]
    assert (rows[0].email, rows[1].issuer) == ("a@op.example", "plexsphere")
    assert [row.id for row in await real.store.identities(real.domain_id, "", rows[0].id, 10)] == [real.machine.id]
    assert [row.id for row in await real.store.identities(real.domain_id, "user", UUID(int=0), 10)] == [rows[0].id]
    assert await real.store.identity(uuid7(), real.person.id) is None
    assert await real.store.identity(real.domain_id, real.person.id) == rows[0]
    with pytest.raises(DomainNotEmpty) as refused:
        await PgStore(pools[0]).delete_domain(real.domain_id)
    assert refused.value.extra["child_counts"]["identities"] == 2


async def test_tokens_end_with_the_binding_of_their_owner_and_it_is_told(real: Doors, pools: Pools) -> None:
    bindings, heard = PgBindingStore(pools[0]), asyncio.Queue[object]()
    (binding,) = await bindings.bindings(real.domain_id)
    _, hashed = await real.add()
    async with pools[1].acquire() as listener:
        await listener.add_listener(CHANNEL, lambda *told: heard.put_nowait(told[-1]))
        await bindings.set_binding_status(binding.id, "inactive", NOW)
        while str(real.person.id) not in str(await asyncio.wait_for(heard.get(), 5)):
            pass
        await listener.reset()
    assert await real.store.use_api_token(hashed, NOW) is None
    with pytest.raises(NotFound):
        await real.add()
    await bindings.set_binding_status(binding.id, "active", NOW)
    assert await real.store.use_api_token(hashed, NOW) is None, "it does not come back"


async def test_no_token_is_stored_beside_the_end_of_its_binding(real: Doors, pools: Pools) -> None:
    bindings = PgBindingStore(pools[0])
    (binding,) = await bindings.bindings(real.domain_id)
    old = [await real.add() for _ in range(5)]
    successors = [(real.a_token(), digest(random_text())) for _ in old]
    rotations = [
        real.store.rotate_api_token(token.id, *new, NOW + DAY) for (token, _), new in zip(old, successors, strict=True)
    ]
    await asyncio.gather(
        *rotations, bindings.set_binding_status(binding.id, "inactive", NOW), *(real.add() for _ in range(5)),
        return_exceptions=True,
    )  # fmt: skip
    assert await real.store.api_tokens(real.person, NOW) == []


@pytest.mark.parametrize(
    "column",
    ["digest = '\\x00'", "scope = '{}'", "scope = '{root}'", "expires_at = created_at + interval '366 days'",
     "identity_id = NULL", "env_prefix = 'test'"],
)  # fmt: skip
async def test_the_database_refuses_what_no_token_is(real: Doors, pools: Pools, column: str) -> None:
    token, _ = await real.add()
    with pytest.raises(asyncpg.CheckViolationError):
        await pools[0].execute(f"UPDATE identity.api_tokens SET {column} WHERE id = $1", token.id)
