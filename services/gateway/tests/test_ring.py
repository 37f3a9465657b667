"""The ring: what is served from it, when it lets go, and who is told that something is missing."""

from uuid import UUID

import pytest

from libs.ids import uuid7
from services.gateway.ring import KEPT_S, Entry, Ring

pytestmark = pytest.mark.unit

DOMAIN = UUID(int=1)


def entry(ring: Ring, sequence: int, scope: str = "domain:d", key: str = "k", age_s: float = 0) -> Entry:
    return Entry(sequence, uuid7(), DOMAIN, scope, key, b"f", b"c" * 100, ring.clock() - age_s)


def test_what_is_older_than_five_minutes_goes_and_only_who_missed_something_is_told() -> None:
    now = [1000.0]
    ring = Ring(lambda: now[0])
    ring.begin(10)
    for sequence, scope in ((11, "node:a"), (12, "node:b"), (13, "node:a")):
        ring.add(entry(ring, sequence, scope))
        now[0] += 100
    ring.reach(13)
    now[0] += KEPT_S - 300 + 1
    ring.reach(20)
    assert [one.sequence for one in ring.after(DOMAIN, ("node:a",), 10)] == [13]
    # Only node:a missed what is gone; node:b has been told everything since the floor.
    assert ring.complete(DOMAIN, ("node:b",), 10)
    assert not ring.complete(DOMAIN, ("node:a",), 10)
    assert ring.complete(DOMAIN, ("node:a",), 11)
    assert not ring.complete(DOMAIN, ("node:b",), 9)


def test_an_event_is_kept_once() -> None:
    ring = Ring(lambda: 0.0)
    one = entry(ring, 1)
    assert [ring.add(one), ring.add(one)] == [True, False]


def test_what_a_revoked_key_signed_is_served_no_more() -> None:
    ring = Ring(lambda: 0.0)
    for sequence, key in ((1, "old"), (2, "new"), (3, "old")):
        ring.add(entry(ring, sequence, key=key))
    ring.untrust(DOMAIN, {"new"})
    assert [one.sequence for one in ring.after(DOMAIN, ("domain:d",), 0)] == [2]
    # Who missed one of them is told; an agent that has seen them is not.
    assert not ring.complete(DOMAIN, ("domain:d",), 2)
    assert ring.complete(DOMAIN, ("domain:d",), 3)


def test_an_event_goes_when_nodes_would_refuse_it_however_late_it_came() -> None:
    now = [1000.0]
    ring = Ring(lambda: now[0])
    ring.add(entry(ring, 1, age_s=10))
    # The second was published late: it goes first, and takes nothing with it.
    ring.add(entry(ring, 2, age_s=KEPT_S - 10))
    ring.reach(2)
    now[0] += 11
    assert not ring.complete(DOMAIN, ("domain:d",), 1)
    assert [one.sequence for one in ring.after(DOMAIN, ("domain:d",), 0)] == [1]
    now[0] += KEPT_S
    assert ring.complete(DOMAIN, ("domain:d",), 2)
    assert ring.after(DOMAIN, ("domain:d",), 0) == []
