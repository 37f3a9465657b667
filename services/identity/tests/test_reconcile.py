"""Drift on the real PostgreSQL and SpiceDB, with an attacker who writes to SpiceDB himself."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import asyncpg
import pytest
from prometheus_client import REGISTRY

from libs.errors import AuditUnavailable, Forbidden
from libs.ids import uuid7
from services.identity.authority import Gate
from services.identity.drift_store import PgDriftStore
from services.identity.model import Caveat, Tuple
from services.identity.reconcile import Drift, Reconcile
from services.identity.relation_store import PgTupleStore
from services.identity.relations import Relations, SentinelMissing
from services.identity.schema import PLATFORM
from services.identity.spicedb import SpiceDb
from services.identity.tests.fakes import FakeAudit, FakeAuthority, signed_in
from services.identity.tests.test_relations import Held, reader, reason

pytestmark = pytest.mark.integration

Pools = tuple[asyncpg.Pool, asyncpg.Pool]
ROOT = signed_in()


@dataclass
class Bench:
    """The rule, and what it needs, in reach."""

    reconcile: Reconcile
    audit: FakeAudit
    relations: Relations
    spicedb: SpiceDb
    rows: list[Tuple] = field(default_factory=list)

    async def drift(self, *, repair: bool = False) -> dict[str, list[Tuple]]:
        """Return what differs among this test's own rows; the stack is shared."""
        found = await self.reconcile.run(ROOT, repair=repair)
        return self.mine(found)

    def mine(self, found: Drift) -> dict[str, list[Tuple]]:
        kinds = {kind: [row for row in getattr(found, kind) if row in self.rows] for kind in vars(found)}
        return {kind: rows for kind, rows in kinds.items() if rows}


@pytest.fixture
async def bench(pools: Pools, relations: Relations, spicedb: SpiceDb) -> Bench:
    audit, authority = FakeAudit([]), FakeAuthority([], {(ROOT.reference, "manage", PLATFORM)})
    gate: Any = Gate(authority, audit, FakeAudit)  # type: ignore[arg-type]  # nobody asks for Domains here
    return Bench(Reconcile(relations, PgDriftStore(pools[0]), gate), audit, relations, spicedb)


async def test_a_grant_that_somebody_wrote_into_spicedb_is_shown_and_taken_away(bench: Bench) -> None:
    row = reader(uuid7(), uuid7())
    forged = Tuple(
        f"project:{uuid7()}", "admin", f"user:{uuid7()}", Caveat("expires", {"until": "2040-01-01T00:00:00Z"})
    )
    bench.rows = [row, forged]
    await bench.spicedb.touch(bench.rows)
    assert await reason(bench.relations, row) == "granted"
    assert set((await bench.drift())["surplus"]) == {row, forged}
    assert (REGISTRY.get_sample_value("plexsphere_relation_drift", {"kind": "surplus"}) or 0) >= 2
    # Shown is not corrected.
    assert await reason(bench.relations, row) == "granted"
    await bench.drift(repair=True)
    assert await reason(bench.relations, row) == "out_of_scope"
    assert await bench.drift() == {}
    assert [(one.action, one.context["mode"]) for one in bench.audit.rows[-2:]] == [
        ("relation.reconcile", ["repair"]), ("relation.reconcile", ["report"]),
    ]  # fmt: skip


async def test_a_grant_that_somebody_took_out_of_spicedb_comes_back(bench: Bench) -> None:
    bench.rows = [reader(uuid7(), uuid7())]
    await bench.relations.grant(bench.rows[0])
    await bench.spicedb.delete(bench.rows)
    assert await bench.drift() == {"missing": bench.rows}
    await bench.drift(repair=True)
    assert await reason(bench.relations, bench.rows[0]) == "granted"
    assert await bench.drift() == {}
    await bench.relations.remove(bench.rows[0].resource, "", "")


async def test_a_condition_that_somebody_took_off_comes_back(bench: Bench) -> None:
    row = Tuple(f"project:{uuid7()}", "admin", f"user:{uuid7()}", Caveat("expires", {"until": "2020-01-01T00:00:00Z"}))
    bench.rows = [row]
    await bench.relations.grant(row)
    await bench.spicedb.touch([replace(row, caveat=None)])
    assert (await bench.relations.decide(row.subject, "manage", row.resource)).granted
    assert await bench.drift(repair=True) == {"altered": [row]}
    assert (await bench.relations.decide(row.subject, "manage", row.resource)).reason == "caveat_violation"
    await bench.relations.remove(row.resource, "", "")


async def test_what_is_revoked_during_a_repair_stays_revoked(bench: Bench, pools: Pools) -> None:
    """The worst moment: the repair has seen the row live, and writes after the removal has answered."""
    row = reader(uuid7(), uuid7())
    await bench.relations.grant(row)
    await bench.spicedb.delete([row])
    drift = await bench.reconcile.measure()
    assert row in drift.missing
    await bench.relations.remove(row.resource, "", "")
    await bench.reconcile.store.correct([row], [])
    await bench.relations.revoke([row])
    assert await reason(bench.relations, row) == "out_of_scope"
    # And while its write is held up in the middle.
    await bench.relations.grant(row)
    await bench.spicedb.delete([row])
    held = Held(bench.spicedb)
    repairing = asyncio.create_task(
        replace(bench.reconcile, relations=replace(bench.relations, checker=held)).run(ROOT, repair=True)
    )
    await held.reached.wait()
    other = replace(bench.relations, tuples=PgTupleStore(pools[1]))
    revoking = asyncio.create_task(other.remove(row.resource, "", ""))
    await asyncio.wait([revoking], timeout=0.3)
    held.let.set()
    await asyncio.gather(repairing, revoking)
    assert await reason(bench.relations, row) == "out_of_scope"


async def test_what_is_granted_during_a_repair_stays_granted(bench: Bench) -> None:
    row = reader(uuid7(), uuid7())
    await bench.spicedb.touch([row])
    drift = await bench.reconcile.measure()
    assert row in drift.surplus
    await bench.relations.grant(row)
    await bench.reconcile.store.correct([], [row])
    await bench.relations.revoke([row])
    assert await reason(bench.relations, row) == "granted"
    await bench.relations.remove(row.resource, "", "")


async def test_an_emptied_spicedb_is_no_drift(bench: Bench, sentinel: Tuple) -> None:
    row = reader(uuid7(), uuid7())
    await bench.relations.grant(row)
    await bench.spicedb.delete([row, sentinel])
    with pytest.raises(SentinelMissing):
        await bench.reconcile.measure()
    await bench.relations.refill()
    await bench.relations.remove(row.resource, "", "")


async def test_only_who_manages_the_platform_reconciles_and_nothing_moves_without_its_row(bench: Bench) -> None:
    row = reader(uuid7(), uuid7())
    await bench.spicedb.touch([row])
    with pytest.raises(Forbidden):
        await bench.reconcile.run(signed_in(), repair=True)
    bench.audit.refusal = AuditUnavailable()
    with pytest.raises(AuditUnavailable):
        await bench.reconcile.run(ROOT, repair=True)
    assert await reason(bench.relations, row) == "granted"
    await bench.spicedb.delete([row])
