"""How late rounds are, and which chains they found altered, is told at each scrape."""

import datetime
from dataclasses import dataclass, field

import pytest
from prometheus_client import REGISTRY

from libs.clock import FixedClock
from libs.errors import AuditDiverged, DatastoreUnavailable
from services.audit.rounds import Rounds

pytestmark = pytest.mark.unit

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
MINUTE = datetime.timedelta(seconds=60)


@dataclass
class Desk:
    """Chains that are due until their turn goes well."""

    waiting: list[str] = field(default_factory=list)
    fails: Exception | None = None
    away: bool = False

    async def turn(self, chain: str) -> None:
        if self.fails is not None:
            raise self.fails
        self.waiting.remove(chain)

    async def due(self, entries: int, before: datetime.datetime) -> list[str]:
        if self.away:
            raise DatastoreUnavailable
        return list(self.waiting)


def told(name: str) -> float:
    return REGISTRY.get_sample_value(name, {"round": "test"}) or 0.0


async def test_a_chain_that_waits_is_overdue_until_its_turn_goes_well() -> None:
    desk, clock = Desk(["a"], DatastoreUnavailable()), FixedClock(NOW)
    rounds = Rounds("test", desk.turn, desk.due, clock, MINUTE, 1)
    for waited_s in (0, 90, 180):
        await rounds.look()
        assert told("plexsphere_round_overdue_seconds") == waited_s
        clock.advance(90)
    desk.fails = None
    await rounds.look()
    assert told("plexsphere_round_overdue_seconds") == 0


async def test_rounds_that_cannot_look_are_overdue() -> None:
    desk, clock = Desk(away=True), FixedClock(NOW)
    rounds = Rounds("test", desk.turn, desk.due, clock, MINUTE, 1)
    clock.advance(600)
    with pytest.raises(DatastoreUnavailable):
        await rounds.look()
    assert told("plexsphere_round_overdue_seconds") > 500


async def test_an_altered_chain_is_told_until_it_is_right_again() -> None:
    desk, clock = Desk(["a", "b"], AuditDiverged("altered")), FixedClock(NOW)
    rounds = Rounds("test", desk.turn, desk.due, clock, MINUTE, 1)
    await rounds.look()
    assert told("plexsphere_chains_diverged") == 2
    desk.fails = None
    clock.advance(120)
    await rounds.look()
    assert told("plexsphere_chains_diverged") == 0
