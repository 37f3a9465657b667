"""The promises of the ports, on the fake and on the real backend alike, and what OpenBao refuses to mesh."""

import asyncio
import datetime
import hashlib
import os
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from libs.bao import FORBIDDEN, Bao, BaoRefused
from libs.columns import guard_columns
from libs.errors import EventBusUnavailable, RotationUnderWay, SigningUnavailable, Stale
from libs.ids import uuid7
from libs.nats import Bus
from services.mesh.bus import SETTINGS, STREAM, JetStream
from services.mesh.columns import COLUMNS
from services.mesh.log_store import PgLog
from services.mesh.model import ROTATED, STATE_UPDATED, Logged, Publication, PublicHalf, Seen
from services.mesh.ports import KeyStore, Log, Stream, Vault
from services.mesh.service import Halves, SigningKeys
from services.mesh.store import PgKeyStore
from services.mesh.tests.fakes import (
    FakeAudit,
    FakeAuthority,
    FakeKeyStore,
    FakeLog,
    FakeStream,
    FakeVault,
    clock,
)
from services.mesh.vault import MOUNT, BaoVault

pytestmark = pytest.mark.integration

Pools = tuple[asyncpg.Pool, asyncpg.Pool]
NOBODY: Any = None


@pytest.fixture(params=["fake", "OpenBao"])
def vault(request: pytest.FixtureRequest, bao_vault: BaoVault) -> Vault:
    return FakeVault() if request.param == "fake" else bao_vault


@pytest.fixture(params=["fake", "PostgreSQL"])
def store(request: pytest.FixtureRequest, pools: Pools) -> KeyStore:
    return FakeKeyStore() if request.param == "fake" else PgKeyStore(pools[0])


@pytest.fixture(params=["fake", "PostgreSQL"])
def log(request: pytest.FixtureRequest, pools: Pools) -> Log:
    return FakeLog() if request.param == "fake" else PgLog(pools[0])


@pytest.fixture(params=["fake", "JetStream"])
async def stream(request: pytest.FixtureRequest, bus: Bus) -> Stream:
    made: Stream = FakeStream(gone=True) if request.param == "fake" else JetStream(bus, 1)
    state = await made.state()
    await made.create((state.last if state else 0) + 1)
    return made


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def half(version: int) -> PublicHalf:
    return PublicHalf(os.urandom(32), version)


def logged(domain: UUID, scope: str = "") -> Logged:
    return Logged(uuid7(), domain, scope or f"domain:{domain}", "rotate_keys", os.urandom(40), now())


# Keys -----------------------------------------------------------------------------------------------------------------


async def test_a_domain_has_no_key_until_one_is_made_and_then_keeps_it(vault: Vault) -> None:
    domain = uuid7()
    assert await vault.halves(domain) == []
    made = await asyncio.gather(*(vault.create(domain) for _ in range(10)))
    assert len(set(made)) == 1
    assert made[0].version == 1
    assert [await vault.create(domain)] == await vault.halves(domain) == made[:1]
    rotated = await vault.rotate(domain)
    assert await vault.halves(domain) == [made[0], rotated]


async def test_each_version_signs_the_exact_bytes(vault: Vault) -> None:
    domain = uuid7()
    await vault.create(domain)
    await vault.rotate(domain)
    for version, public in enumerate(await vault.halves(domain), 1):
        messages = [b"", b"one", os.urandom(60_000)]
        for message, signature in zip(messages, await vault.sign(domain, version, messages), strict=True):
            Ed25519PublicKey.from_public_bytes(public.public_key).verify(signature, message)


async def test_without_a_key_nothing_is_signed(bao_vault: BaoVault) -> None:
    with pytest.raises(SigningUnavailable):
        await bao_vault.sign(uuid7(), 1, [b"x"])
    domain = uuid7()
    await bao_vault.create(domain)
    with pytest.raises(SigningUnavailable):
        await bao_vault.sign(domain, 2, [b"x"])


async def test_a_half_is_remembered_once(store: KeyStore) -> None:
    domain, first = uuid7(), half(1)
    rows = await asyncio.gather(*(store.remember(domain, first) for _ in range(10)))
    assert len(set(rows)) == 1
    assert (rows[0].domain_id, rows[0].kid, rows[0].public_key) == (domain, first.kid, first.public_key)
    # Another half for the same version does not replace it: the rules see the difference and refuse.
    assert await store.remember(domain, half(1)) == rows[0]
    assert (await store.keys([domain, uuid7()])).keys() == {domain}


async def test_a_rotation_goes_from_pending_to_current(store: KeyStore) -> None:
    domain, at = uuid7(), now()
    old = await store.remember(domain, half(1))
    ten, later = datetime.timedelta(minutes=10), datetime.timedelta(seconds=30)
    begun = await store.begin_rotation(domain, half(2), ten, at)
    assert begun.pending
    assert begun.transition_expires == at + ten
    assert begun in await store.pending(now())
    assert begun not in await store.pending(at - later)
    with pytest.raises(RotationUnderWay):
        await store.begin_rotation(domain, half(3), ten, at)
    # The transition begins with the announcement that comes out; one that was given up brings the key nowhere.
    pending = await store.renew(begun, renewed := uuid7(), at + later)
    ends = at + later + ten
    assert (pending.kid, pending.transition_expires) == (begun.kid, ends)
    with pytest.raises(RotationUnderWay):
        await store.renew(begun, uuid7(), at)
    await store.activate(begun, at)
    assert pending in await store.pending(now())
    await store.activate(pending, at)
    await store.activate(pending, at)
    with pytest.raises(RotationUnderWay):
        await store.renew(pending, uuid7(), at)
    keys = (await store.keys([domain]))[domain]
    assert keys.current is not None
    previous = keys.previous(at)
    assert previous is not None
    assert (keys.current.kid, keys.current.announcement_id) == (pending.kid, renewed)
    assert (previous.kid, previous.expires_at) == (old.kid, ends)
    with pytest.raises(RotationUnderWay):
        await store.begin_rotation(domain, half(3), ten, at)


async def test_announcements_are_due_while_the_transition_lasts(store: KeyStore) -> None:
    domain, at = uuid7(), now()
    await store.remember(domain, half(1))
    pending = await store.begin_rotation(domain, half(2), datetime.timedelta(minutes=10), at)
    await store.activate(pending, at)

    async def due(minutes: float) -> bool:
        then = at + datetime.timedelta(minutes=minutes)
        keys = await store.to_announce(then, then - datetime.timedelta(minutes=4))
        return domain in {key.domain_id for key in keys}

    assert [await due(minutes) for minutes in (1, 5, 11)] == [False, True, False]
    await store.repeat(pending, {"key_id": pending.kid}, at + datetime.timedelta(minutes=5))
    assert [await due(minutes) for minutes in (6, 9.5)] == [False, True]


async def test_a_revoked_current_key_has_a_successor_in_the_same_step(store: KeyStore) -> None:
    domain, at = uuid7(), now()
    old, successor = await store.remember(domain, half(1)), half(2)
    await store.revoke(old, successor, at)
    keys = (await store.keys([domain]))[domain]
    assert keys.current is not None
    assert keys.current.kid == successor.kid
    gone = keys.by_id(old.kid)
    assert gone is not None
    assert not gone.verifies(at)


async def test_a_key_that_began_to_sign_meanwhile_is_not_revoked_without_a_successor(store: KeyStore) -> None:
    domain, at = uuid7(), now()
    await store.remember(domain, half(1))
    pending = await store.begin_rotation(domain, half(2), datetime.timedelta(minutes=10), at)
    await store.activate(pending, at)
    with pytest.raises(Stale):
        await store.revoke(pending, None, at)
    current = (await store.keys([domain]))[domain].current
    assert current is not None
    assert current.kid == pending.kid


async def test_of_concurrent_asks_one_announces(store: KeyStore) -> None:
    domain, at, quiet = uuid7(), now(), datetime.timedelta(seconds=10)
    events: list[tuple[str, dict[str, Any]]] = [(ROTATED, {}), (STATE_UPDATED, {})]
    asked = await asyncio.gather(*(store.ask_reconcile(domain, events, at, quiet) for _ in range(10)))
    assert sum(asked) == 1
    assert await store.ask_reconcile(domain, events, at + quiet, quiet)


async def test_replicas_agree_on_a_key_that_they_make_at_the_same_time(pools: Pools, bao_vault: BaoVault) -> None:
    domain, vault = uuid7(), bao_vault
    replicas = [
        SigningKeys(vault, Halves(vault), PgKeyStore(pool), FakeAudit(), FakeAuthority(), NOBODY, clock())
        for pool in pools
    ]
    keys = await asyncio.gather(*(replicas[n % 2].ensure(domain) for n in range(20)))
    assert len(set(keys)) == 1


FORBIDDEN_TO_MESH: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "keys/evk-{id}", {"type": "ed25519", "exportable": True}),
    ("POST", "keys/evk-{id}", {"type": "ed25519", "allow_plaintext_backup": True}),
    ("POST", "keys/evk-{id}/config", {"exportable": True}),
    ("GET", "export/signing-key/evk-{id}", None),
    ("GET", "backup/evk-{id}", None),
    ("DELETE", "keys/evk-{id}", None),
]


@pytest.mark.parametrize(("method", "path", "body"), FORBIDDEN_TO_MESH)
async def test_no_private_half_gets_out(
    bao: Bao, bao_vault: BaoVault, method: str, path: str, body: dict[str, Any] | None
) -> None:
    domain = uuid7()
    await bao_vault.create(domain)
    with pytest.raises(BaoRefused) as refused:
        await bao.request(method, f"{MOUNT}/{path.format(id=domain)}", body)
    assert refused.value.status == FORBIDDEN


# The log --------------------------------------------------------------------------------------------------------------


async def test_an_event_is_logged_once_and_placed_where_it_was_published(log: Log) -> None:
    row, highest = logged(uuid7()), await log.highest()
    assert await log.append([row]) == {row.id}
    assert await log.append([row]) == set()
    assert (await log.find([row.id, uuid7()])) == {row.id: row}
    await log.note([(highest + 1, row.id)], 2)
    assert (await log.find([row.id]))[row.id].sequence == highest + 1
    await log.note([(highest + 2, row.id)], 2)
    assert (await log.find([row.id]))[row.id].sequence == highest + 2
    assert await log.highest() == await log.highest(now()) == highest + 2
    assert await log.highest(row.issued_at - datetime.timedelta(seconds=1)) <= highest


async def test_a_sequence_belongs_to_one_event(log: Log) -> None:
    one, other, highest = logged(uuid7()), logged(uuid7()), await log.highest()
    await log.append([one, other])
    await log.note([(highest + 1, one.id)], 2)
    with pytest.raises(EventBusUnavailable):
        await log.note([(highest + 2, other.id), (highest + 1, other.id)], 2)
    assert (await log.find([other.id]))[other.id].sequence is None


async def test_a_nonce_is_good_at_its_sequence_with_its_bytes(log: Log) -> None:
    domain, highest = uuid7(), await log.highest()
    placed, waiting = logged(domain), logged(domain)
    await log.append([placed, waiting])
    await log.note([(highest + 1, placed.id)], 2)
    digest = {row.id: hashlib.sha256(row.envelope).digest() for row in (placed, waiting)}
    asked = {
        Seen(highest + 1, placed.id, digest[placed.id]): Publication.PUBLISHED,
        Seen(highest + 2, placed.id, digest[placed.id]): Publication.REPLAYED,
        Seen(highest + 1, placed.id, bytes(32)): Publication.ALTERED,
        Seen(highest + 3, waiting.id, digest[waiting.id]): Publication.PENDING,
        Seen(highest + 3, waiting.id, bytes(32)): Publication.ALTERED,
        Seen(highest + 1, waiting.id, digest[waiting.id]): Publication.REPLAYED,
        Seen(highest + 4, uuid7(), digest[placed.id]): Publication.UNKNOWN,
    }
    assert await log.check(list(asked)) == list(asked.values())
    assert await log.check([]) == []


async def test_fresh_events_come_in_the_order_of_their_first_places_with_their_newest(log: Log) -> None:
    domain, highest, since = uuid7(), await log.highest(), now()
    rows = [logged(domain) for _ in range(4)]
    await log.append(rows)
    await log.note([(highest + turn, row.id) for turn, row in enumerate(rows[:3], 1)], 2)
    # Published once more, by a replica that did not know of the first time: what followed it follows it still.
    await log.note([(highest + 9, rows[0].id)], 2)
    fresh = [row for row in await log.fresh(since - datetime.timedelta(seconds=1)) if row.domain_id == domain]
    assert [row.id for row in fresh] == [row.id for row in rows[:3]]
    assert [row.sequence for row in fresh] == [highest + 9, highest + 2, highest + 3]
    assert await log.fresh(now() + datetime.timedelta(seconds=1)) == []


async def test_what_was_published_between_is_as_much_as_was_asked_for(log: Log) -> None:
    domain, highest, since = uuid7(), await log.highest(), now() - datetime.timedelta(seconds=1)
    rows = [logged(domain) for _ in range(4)]
    await log.append(rows)
    await log.note([(highest + turn, row.id) for turn, row in enumerate(rows, 1)], 2)
    size = len(rows[0].envelope)
    for most, most_bytes, expected in ((9, 10**6, 3), (2, 10**6, 2), (9, size, 1), (9, size + 1, 2), (9, 1, 1)):
        found = await log.between(highest + 2, highest + 9, since, most, most_bytes)
        assert [row.id for row in found] == [row.id for row in rows[1 : 1 + expected]]
        assert found[0].sequence == highest + 2
    assert await log.between(highest + 1, 2**63 - 1, now() + datetime.timedelta(seconds=1), 9, 10**6) == []


async def test_one_replica_keeps_the_stream(pools: Pools) -> None:
    one, other = PgLog(pools[0]), PgLog(pools[1])
    async with one.leading() as leads, other.leading() as follows:
        assert [await leads(), await leads(), await follows()] == [True, True, False]
    async with other.leading() as leads:
        assert await leads()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE mesh.event_log SET envelope = ''",
        "DELETE FROM mesh.event_log",
        "TRUNCATE mesh.event_log",
        "UPDATE mesh.event_positions SET sequence = 1",
        "DELETE FROM mesh.event_positions",
        "UPDATE mesh.signing_keys SET public_key = ''",
        "DELETE FROM mesh.signing_keys",
        "DROP TABLE mesh.event_log",
    ],
)
async def test_the_service_itself_cannot_change_the_log(pools: Pools, change: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await pools[0].execute(change)


async def test_a_row_whose_digest_is_not_its_own_is_refused(pools: Pools) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await pools[0].execute("INSERT INTO mesh.event_log VALUES ($1, $1, 's', 't', 'a', sha256('b'), now())", uuid7())


# The stream -----------------------------------------------------------------------------------------------------------


async def test_what_is_published_gets_ascending_sequences_and_can_be_read_back(stream: Stream) -> None:
    rows = [logged(uuid7()) for _ in range(20)]
    places = await stream.publish(rows)
    assert places == list(range(places[0], places[0] + 20))
    assert await stream.read(places[0], 100) == list(zip(places, (row.envelope for row in rows), strict=True))
    state = await stream.state()
    assert state is not None
    assert state.last == places[-1]
    name, pending = await stream.open_consumer(places[10], datetime.timedelta())
    assert (bool(name), pending) == (True, 10)


async def test_a_restarted_stream_is_empty_and_goes_on_above(stream: Stream) -> None:
    (place,) = await stream.publish([logged(uuid7())])
    assert isinstance(place, int)
    await stream.restart(place + 100)
    assert await stream.publish([logged(uuid7())]) == [place + 100]


async def test_the_settings_of_a_stream_that_is_there_are_made_right(stream: Stream) -> None:
    before = await stream.state()
    await stream.create(1)
    assert await stream.state() == before


CHANGED: dict[str, dict[str, Any]] = {
    "nothing is acknowledged": {"no_ack": True},
    "no batches": {"allow_atomic": False},
    "full after one": {"discard": "new", "max_msgs": 1},
    "one a subject": {"max_msgs_per_subject": 1},
    "other subjects": {"subjects": ["foo.>"]},
    "subjects changed on the way": {"subject_transform": {"src": "events.>", "dest": "events.x.>"}},
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
async def test_settings_that_somebody_changed_are_noticed_and_made_right(bus: Bus, change: dict[str, Any]) -> None:
    stream = JetStream(bus, 1)
    await stream.create(1)
    await bus.request(f"$JS.API.STREAM.UPDATE.{STREAM}", SETTINGS | change)
    state = await stream.state()
    assert state is not None
    assert not state.ours
    await stream.create(1)
    state = await stream.state()
    assert state is not None
    assert state.ours


async def test_the_columns_are_the_declared_ones(pools: Pools) -> None:
    await guard_columns(pools[0], "mesh", COLUMNS)
