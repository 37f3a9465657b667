"""The gates of a read, one by one: which refuses what, in which order, and which rows the chain gets."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import pytest

from libs.access_policy import SecretLimits
from libs.custody import Secret
from libs.errors import (
    AuditUnavailable,
    AuthzUnavailable,
    DatastoreUnavailable,
    Forbidden,
    LimiterUnavailable,
    NodeIdMismatch,
    NodeUnauthorized,
    NskInvalid,
    OpenbaoUnavailable,
    PerDomainRateLimited,
    PerNodeRateLimited,
    PlexError,
    SecretNotFound,
    SecretVersionNotFound,
)
from libs.ids import uuid7
from libs.principal import Principal
from libs.seal import SealError, unseal
from services.secrets.service import TURN_WITHIN_S
from services.secrets.tests.fakes import KEY, KID, FakeLimiter, World

pytestmark = pytest.mark.unit

ALL = ["limits", "metadata", "relation", "audit", "vault"]


@dataclass
class Ask:
    """A request; mutations change one thing of it, of its caller, or of the world."""

    world: World
    caller: Principal
    node_id: UUID
    name: str = "db-password"
    version: int = 0
    key: bytes = KEY

    def set(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self, name, value)

    def pose(self, **fields: Any) -> None:
        self.caller = replace(self.caller, **fields)

    def fail(self, port: str, error: PlexError) -> None:
        getattr(self.world, port).refusal = error

    def destroy(self, version: int) -> None:
        self.world.vault.values[self.world.row.id][version - 1] = None

    def change_row(self, **fields: Any) -> None:
        world = self.world
        world.store.rows = {world.row.id: replace(world.row, **fields)}


# fmt: off
GATES: list[tuple[str, Callable[[Ask], object], type[PlexError], list[str], list[str]]] = [
    # what is wrong, how, what refuses it, gates that were passed or asked, reasons of the rows in the chain
    ("an operator asks", lambda a: a.set(caller=a.world.operator), NodeUnauthorized, [], []),
    ("a session of a node", lambda a: a.pose(credential="session"), NodeUnauthorized, [], []),
    ("another node's path", lambda a: a.set(node_id=uuid7()), NodeIdMismatch, [], []),
    ("another key than the bearer's", lambda a: a.set(key=bytes(32)), NskInvalid, [], []),
    ("an assertion without a digest", lambda a: a.pose(nsk_digest=""), NskInvalid, [], []),
    ("node over its limit", lambda a: a.fail("limits", PerNodeRateLimited()), PerNodeRateLimited, ALL[:1], []),
    ("Domain over its limit", lambda a: a.fail("limits", PerDomainRateLimited()), PerDomainRateLimited, ALL[:1], []),
    ("limiter down", lambda a: a.fail("limits", LimiterUnavailable()), LimiterUnavailable, ALL[:1], []),
    ("never existed", lambda a: a.set(name="nothing"), SecretNotFound, ALL[:2], []),
    ("upper case", lambda a: a.set(name="DB-password"), SecretNotFound, ALL[:2], []),
    ("dots", lambda a: a.set(name=".."), SecretNotFound, ALL[:2], []),
    ("encoded slash", lambda a: a.set(name="a/b"), SecretNotFound, ALL[:2], []),
    ("look-alike", lambda a: a.set(name="db-p\u0430ssword"), SecretNotFound, ALL[:2], []),
    ("NUL", lambda a: a.set(name="db-password\0"), SecretNotFound, ALL[:2], []),
    ("line feed", lambda a: a.set(name="db-password\n"), SecretNotFound, ALL[:2], []),
    ("64 characters", lambda a: a.set(name="a" * 64), SecretNotFound, ALL[:2], []),
    ("another project's", lambda a: a.change_row(project_id=uuid7()), SecretNotFound, ALL[:2], []),
    ("another Domain's", lambda a: a.change_row(domain_id=uuid7()), SecretNotFound, ALL[:2], []),
    ("destroyed", lambda a: a.change_row(destroying=True), SecretNotFound, ALL[:2], []),
    ("first value not there yet", lambda a: a.change_row(current_version=0), SecretNotFound, ALL[:2], []),
    ("metadata down", lambda a: a.fail("store", DatastoreUnavailable()), DatastoreUnavailable, ALL[:2], []),
    ("relations down", lambda a: a.fail("relations", AuthzUnavailable()), AuthzUnavailable, ALL[:3], []),
    ("revoked", lambda a: a.world.relations.granted.clear(), Forbidden, ALL[:4], ["insufficient_relation"]),
    ("audit down", lambda a: a.fail("audit", AuditUnavailable()), AuditUnavailable, ALL[:4], []),
    ("vault down", lambda a: a.fail("vault", OpenbaoUnavailable()), OpenbaoUnavailable, ALL, ["granted"]),
    ("destroyed version", lambda a: a.destroy(2), SecretVersionNotFound, ALL, ["granted"]),
    ("above the current one", lambda a: a.set(version=3), SecretVersionNotFound, ALL[:4], ["granted"]),
]
# fmt: on


@pytest.mark.parametrize(("break_it", "error", "asked", "rows"), [g[1:] for g in GATES], ids=[g[0] for g in GATES])
async def test_gates_refuse_in_order(
    break_it: Callable[[Ask], object], error: type[PlexError], asked: list[str], rows: list[str]
) -> None:
    world = World()
    ask = Ask(world, world.caller, world.node)
    break_it(ask)
    with Secret(ask.key) as key, pytest.raises(error) as refused:
        await world.reads.fetch(ask.caller, ask.node_id, ask.name, ask.version, key)
    assert type(refused.value) is error
    assert world.trace == asked
    assert [row.reason for row in world.audit.rows] == rows


@pytest.mark.parametrize(("version", "value"), [(0, b"two"), (1, b"one"), (2, b"two")])
async def test_a_granted_read_leaves_one_row_and_opens_with_the_node_key(version: int, value: bytes) -> None:
    world = World()
    with Secret(KEY) as key:
        sealed = await world.reads.fetch(world.caller, world.node, "db-password", version, key)
        assert unseal(key, sealed.body) == value
    assert (sealed.version, sealed.kid) == (version or 2, KID)
    assert world.trace == ALL
    (row,) = world.audit.rows
    assert (row.action, row.object_id, row.subject_id) == ("secret.read", str(world.row.id), str(world.node))
    assert row.context == {
        "version": [str(version or 2)],
        "kid": [KID],
        "node": [str(world.node)],
        "limiter": ["within_limits"],
    }


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        ("out_of_scope", "insufficient_relation"),
        ("insufficient_relation", "insufficient_relation"),
        ("caveat_violation", "caveat_violation"),
        ("unknown", "insufficient_relation"),
    ],
)
async def test_a_denied_name_of_the_own_project_says_insufficient_relation(verdict: str, reason: str) -> None:
    world = World()
    world.relations.granted.clear()
    world.relations.reason = verdict
    with Secret(KEY) as key, pytest.raises(Forbidden) as refused:
        await world.reads.fetch(world.caller, world.node, "db-password", 0, key)
    assert refused.value.extra == {"reason": reason, "relation_path": []}
    assert [row.reason for row in world.audit.rows] == [reason]


async def test_a_write_that_has_not_come_to_its_end_is_not_read() -> None:
    world = World()
    world.store.rows[world.row.id] = replace(world.row, pending_version=3)
    world.vault.values[world.row.id].append(b"three")
    with Secret(KEY) as key:
        sealed = await world.reads.fetch(world.caller, world.node, "db-password", 0, key)
        assert unseal(key, sealed.body) == b"two"
        with pytest.raises(SecretVersionNotFound):
            await world.reads.fetch(world.caller, world.node, "db-password", 3, key)


@pytest.mark.parametrize("key", [KEY, b"no key"], ids=["read", "not sealed"])
async def test_a_value_is_wiped_however_the_read_ends(key: bytes) -> None:
    world = World()
    world.caller = replace(world.caller, nsk_digest=hashlib.sha256(key).hexdigest())
    with Secret(key) as held, contextlib.suppress(SealError):
        await world.reads.fetch(world.caller, world.node, "db-password", 0, held)
    (value,) = world.vault.handed
    assert value.reveal() == bytes(len(b"two"))


async def test_refusals_by_limits_are_one_row_a_domain_and_reason_however_many_they_were() -> None:
    world = World()
    for refusal, times in ((PerNodeRateLimited(), 5), (PerDomainRateLimited(), 2)):
        world.limits.refusal = refusal
        for _ in range(times):
            with Secret(KEY) as key, pytest.raises(type(refusal)):
                await world.reads.fetch(world.caller, world.node, "db-password", 0, key)
    assert world.audit.rows == []
    world.audit.refusal = AuditUnavailable()
    with pytest.raises(AuditUnavailable):
        await world.reads.report_limited()
    world.audit.refusal = None
    assert await world.reads.report_limited() == 2
    assert await world.reads.report_limited() == 0
    assert [(row.domain_id, row.context) for row in world.audit.rows] == [
        (str(world.domain), {"limiter": ["per_node_rate_limited"], "times": ["5"]}),
        (str(world.domain), {"limiter": ["per_domain_rate_limited"], "times": ["2"]}),
    ]


class Hanging(FakeLimiter):
    """Charges nobody of a Domain until it is let."""

    def __init__(self, domain: UUID) -> None:
        super().__init__([])
        self.domain = domain
        self.let = asyncio.Event()

    async def spend(self, node_id: UUID, domain_id: UUID, said: SecretLimits) -> None:
        if domain_id == self.domain:
            await self.let.wait()
        await super().spend(node_id, domain_id, said)


async def test_reads_that_hang_hold_up_no_other_domains_and_who_waits_behind_them_is_told() -> None:
    world = World()
    limits = Hanging(world.domain)
    reads = replace(world.reads, limits=limits)

    async def read(domain: UUID) -> str:
        caller = replace(world.caller, domain_id=str(domain))
        with Secret(KEY) as key:
            try:
                await reads.fetch(caller, world.node, "db-password", 0, key)
            except PlexError as error:
                return error.code
        return "ok"

    started = time.monotonic()
    hanging = [asyncio.create_task(read(world.domain)) for _ in range(5)]
    await asyncio.sleep(0.01)
    async with asyncio.timeout(1):
        # Another Domain's caller has no such secret, and hears of it at once.
        assert [await read(uuid7()) for _ in range(3)] == ["secret_not_found"] * 3
    done, _ = await asyncio.wait(hanging, timeout=TURN_WITHIN_S + 2, return_when=asyncio.ALL_COMPLETED)
    assert sorted(task.result() for task in done) == ["limiter_unavailable"] * 3
    assert time.monotonic() - started < TURN_WITHIN_S + 3
    limits.let.set()
    assert sorted(await asyncio.gather(*hanging)) == ["limiter_unavailable"] * 3 + ["ok"] * 2
    # And nothing is left behind.
    assert await read(world.domain) == "ok"
