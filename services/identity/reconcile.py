"""Drift between identity's tuple table, which is the truth, and SpiceDB: measured, shown, corrected.

Correcting goes the way of every grant and every removal: what is missing is pending again unless it is being removed by
now, what is surplus gets a row that is being removed unless it was granted by now. So neither undoes what somebody does
meanwhile.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog

from libs.errors import PlexError
from libs.telemetry import DRIFT
from services.identity.authority import Act, Gate
from services.identity.model import Caller, Tuple
from services.identity.relations import Relations
from services.identity.schema import PLATFORM

MEASURE_EVERY_S = 300.0

log = structlog.get_logger()


class DriftStore(Protocol):
    """The tuple table as a whole. Raises DatastoreUnavailable."""

    async def snapshot(self) -> Mapping[Tuple, str]:
        """Return every tuple with its state; "refused" for what SpiceDB would not take."""

    async def correct(self, lost: list[Tuple], surplus: list[Tuple]) -> None:
        """Make live tuples pending, and give those that no row knows one that is being removed; tells the feed."""


@dataclass(frozen=True)
class Drift:
    """What differs."""

    missing: list[Tuple]
    surplus: list[Tuple]
    altered: list[Tuple]
    refused: list[Tuple]


@dataclass(frozen=True)
class Reconcile:
    """Compares and corrects."""

    relations: Relations
    store: DriftStore
    gate: Gate

    async def run(self, caller: Caller, *, repair: bool) -> Drift:
        """Return what differs, and correct it when asked to; SpiceDB is as the table once this has returned."""
        mode = ["repair" if repair else "report"]
        await self.gate.write(caller, "manage", PLATFORM, Act("relation.reconcile", PLATFORM, "", {"mode": mode}))
        drift = await self.measure()
        lost = drift.missing + drift.altered
        if repair and (lost or drift.surplus):
            await self.store.correct(lost, drift.surplus)
            await self.relations.revoke(lost + drift.surplus)
            log.warning("relations.repaired", lost=len(lost), surplus=len(drift.surplus))
        return drift

    async def measure(self) -> Drift:
        """Compare; the table is read before and after, so that what is on its way is no drift."""
        before = await self.store.snapshot()
        found = {row: row for row in await self.relations.checker.read_all()}
        after = await self.store.snapshot()
        live = [row for row, state in after.items() if state == "live" == before.get(row)]
        drift = Drift(
            missing=[row for row in live if row not in found],
            surplus=[row for row in found if row not in before and row not in after],
            altered=[row for row in live if row in found and found[row].caveat != row.caveat],
            refused=[row for row, state in after.items() if state == "refused"],
        )
        for kind in ("missing", "surplus", "altered", "refused"):
            DRIFT.labels(kind).set(len(getattr(drift, kind)))
        return drift

    async def watch(self) -> None:
        """Measure now and then, for as long as the process lives; what differs is for people to judge."""
        while True:
            await asyncio.sleep(MEASURE_EVERY_S)
            try:
                drift = await self.measure()
            except PlexError as error:
                log.warning("relations.drift_unknown", code=error.code)
                continue
            if drift.missing or drift.surplus or drift.altered:
                counts = {kind: len(getattr(drift, kind)) for kind in ("missing", "surplus", "altered")}
                log.error("relations.drift", **counts)
