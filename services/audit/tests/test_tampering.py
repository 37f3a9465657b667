"""Whatever is done to a chain that was anchored, and however it is covered up in the database, is found."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.audit.model import Stored
from services.audit.tests.test_checkpoints import Scene, rewrite_tree, rewritten
from services.audit.tests.test_proofs import divergence
from services.audit.tests.test_service import CHAIN, MUTATIONS

pytestmark = pytest.mark.unit

ENTRIES = 37
PLACES = st.integers(0, ENTRIES - 1)
Tamper = Callable[[Scene, int, int], list[Stored]]


def rows_of(scene: Scene) -> list[Stored]:
    return scene.chains.rows[CHAIN]


def renumbered(rows: list[Stored]) -> list[Stored]:
    return [replace(row, seq=seq) for seq, row in enumerate(rows, 1)]


def swapped(scene: Scene, one: int, other: int) -> list[Stored]:
    rows = list(rows_of(scene))
    other = (one + 1) % ENTRIES if one == other else other
    rows[one], rows[other] = rows[other], rows[one]
    return renumbered(rows)


def inserted(scene: Scene, one: int, other: int) -> list[Stored]:
    rows = rows_of(scene)
    return renumbered([*rows[:other], rows[one], *rows[other:]])


def deleted(scene: Scene, one: int, other: int) -> list[Stored]:
    rows = rows_of(scene)
    return [*rows[:one], *rows[one + 1 :]]


def closed(scene: Scene, one: int, other: int) -> list[Stored]:
    return renumbered(deleted(scene, one, other))


def cut_off(scene: Scene, one: int, other: int) -> list[Stored]:
    return rows_of(scene)[:one]


def recomputed(scene: Scene, one: int, other: int) -> list[Stored]:
    return rewritten(scene, one + 1, ENTRIES)


def grown_anew(scene: Scene, one: int, other: int) -> list[Stored]:
    return rewritten(scene, one + 1, ENTRIES + other)


def altered(name: str) -> Tamper:
    def tamper(scene: Scene, one: int, other: int) -> list[Stored]:
        rows = list(rows_of(scene))
        rows[one] = replace(rows[one], **MUTATIONS[name])
        return rows

    return tamper


TAMPERS: dict[str, Tamper] = {
    "swapped": swapped,
    "inserted": inserted,
    "deleted": deleted,
    "deleted and renumbered": closed,
    "cut off": cut_off,
    "recomputed": recomputed,
    "cut off and grown anew": grown_anew,
    **{f"altered {name}": altered(name) for name in MUTATIONS},
}
COVERS: dict[str, Callable[[Scene], None]] = {
    "nothing": lambda _: None,
    "the tree rewritten": rewrite_tree,
    "the tree deleted": lambda scene: scene.trees.nodes[CHAIN].clear(),
    "the checkpoints deleted": lambda scene: scene.trees.kept[CHAIN].clear(),
}


async def anchored() -> Scene:
    scene = Scene()
    for count in (5, ENTRIES - 5):
        await scene.append(count)
        await scene.checkpoints.turn(CHAIN)
    return scene


@pytest.mark.parametrize("cover", COVERS)
@pytest.mark.parametrize("tamper", TAMPERS)
@settings(max_examples=6)
@given(PLACES, PLACES)
@example(0, 0)
@example(ENTRIES - 1, ENTRIES - 1)
def test_it_is_found(tamper: str, cover: str, one: int, other: int) -> None:
    async def attack() -> int:
        scene = await anchored()
        scene.chains.rows[CHAIN] = TAMPERS[tamper](scene, one, other)
        COVERS[cover](scene)
        return await divergence(scene)

    assert asyncio.run(attack()) > 0


@settings(max_examples=40)
@given(st.integers(1, ENTRIES), st.integers(0, ENTRIES), st.integers(0, 9))
def test_what_was_not_touched_raises_no_alarm(first: int, more: int, after: int) -> None:
    async def look() -> int:
        scene = await anchored()
        await scene.append(after)
        return await divergence(scene, first, min(first + more, ENTRIES + after))

    assert asyncio.run(look()) == 0
