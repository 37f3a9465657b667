"""The ring: what is served from it, when it lets go, and who is told that something is missing."""

import dataclasses
from uuid import UUID

import pytest

from libs.ids import uuid7
from services.gateway.ring import AT_ONCE_BYTES, KEPT_S, Entry, Ring, chunk

pytestmark = pytest.mark.unit

DOMAIN = UUID(int=1)


def entry(ring: Ring, sequence: int, scope: str = "domain:d", key: str = "k", age_s: float = 0) -> Entry:
    return Entry(sequence, uuid7(), DOMAIN, scope, key, b"c" * 100, ring.clock() - age_s)


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


def test_a_second_copy_is_known_for_as_long_as_it_would_be_believed() -> None:
    now = [1000.0]
    ring = Ring(lambda: now[0], most_bytes=250)
    first, ahead = entry(ring, 1, age_s=10), entry(ring, 2, age_s=-100)
    for one in (first, ahead, entry(ring, 3, age_s=5), entry(ring, 4)):
        ring.add(one)
    ring.reach(4)
    # The oldest two had to make room; a copy of one is a copy all the same.
    assert [one.sequence for one in ring.after(DOMAIN, ("domain:d",), 0)] == [2, 4]
    assert not ring.add(first)
    ring.untrust(DOMAIN, set())
    assert not ring.add(first)
    now[0] += 302
    ring.reach(4)
    assert ring.add(first)
    assert not ring.add(ahead)
    now[0] += 400
    ring.reach(4)
    assert (ring._ids, ring._ids_by_age, ring._by_age, ring._by_domain, ring._bytes) == (set(), [], [], {}, 0)


def test_what_comes_late_stands_in_its_place() -> None:
    ring = Ring(lambda: 0.0)
    for sequence in (5, 2, 9, 7):
        ring.add(entry(ring, sequence))
    assert [one.sequence for one in ring.after(DOMAIN, ("domain:d",), 2)] == [5, 7, 9]


def test_a_replay_is_handed_out_in_parts() -> None:
    ring = Ring(lambda: 0.0)
    for sequence in range(1, 2001):
        ring.add(entry(ring, sequence, scope=("node:a", "node:b")[sequence % 2]))
    seen = [0]
    while some := ring.after(DOMAIN, ("node:b",), seen[-1]):
        assert sum(len(one.chunk) for one in some) <= AT_ONCE_BYTES
        seen += [one.sequence for one in some]
    assert seen[1:] == list(range(1, 2001, 2))
    ring.add(dataclasses.replace(entry(ring, 3000, scope="node:b"), chunk=bytes(2 * AT_ONCE_BYTES)))
    assert [one.sequence for one in ring.after(DOMAIN, ("node:b",), 2000)] == [3000]


def test_what_is_remembered_of_what_went_does_not_grow_for_ever() -> None:
    ring = Ring(lambda: 0.0, most_missed=100)
    for sequence in range(1, 1001):
        ring.miss(DOMAIN, f"node:{sequence}", sequence)
    assert len(ring._missed) <= 100
    # Whoever may have missed something is told so.
    for sequence in (1, 500, 1000):
        assert not ring.complete(DOMAIN, (f"node:{sequence}",), sequence - 1)
    assert ring.complete(DOMAIN, ("node:1",), 1000)
    assert ring.complete(DOMAIN, ("node:new",), 950)


def test_http_1_0_gets_the_frame_alone() -> None:
    one = dataclasses.replace(entry(Ring(lambda: 0.0), 1), chunk=chunk(b"id: 1\n\n"))
    assert one.frame == b"id: 1\n\n"
