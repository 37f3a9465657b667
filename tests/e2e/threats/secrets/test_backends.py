"""F-2: whichever backend, or secrets itself, is taken away in the middle of a burst, bytes are rows to the unit."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from tests.e2e.attacker import ask_vault
from tests.e2e.faults.test_legs import gone
from tests.e2e.freeze import frozen
from tests.e2e.threats.secrets.conftest import AT_ONCE, READERS, Stage, counted
from tests.e2e.threats.secrets.test_record import held, settled
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

Away = Callable[[World, str], AbstractAsyncContextManager[None]]
ALL = READERS * AT_ONCE


@asynccontextmanager
async def sealed(world: World, name: str) -> AsyncIterator[None]:
    """Seal OpenBao for the block; a restart unseals it."""
    await ask_vault(world, "sys/seal", {})
    try:
        yield
    finally:
        await world.restart(name)


@asynccontextmanager
async def cells_held(world: World, _: str) -> AsyncIterator[None]:
    """Let nobody touch the limits' cells."""
    async with held(world, "secrets.limit_cells"):
        yield


WITHOUT_DATABASE = {f"503 {code}_unavailable" for code in ("limiter", "datastore", "audit", "authz")} | {
    "503 unavailable"
}
# Who is taken away and how, and what may be said then.
AWAY: dict[str, tuple[str, Away, set[str]]] = {
    "limiter store held": ("", cells_held, {"503 limiter_unavailable"}),
    "database stopped": (
        "postgres",
        frozen,
        {
            "503 limiter_unavailable",
            "503 datastore_unavailable",
            "503 audit_unavailable",
            "503 authz_unavailable",
            "503 unavailable",
        },
    ),
    "database killed": (
        "postgres",
        gone,
        {
            "503 limiter_unavailable",
            "503 datastore_unavailable",
            "503 audit_unavailable",
            "503 authz_unavailable",
            "503 unavailable",
        },
    ),
    "OpenBao sealed": ("openbao", sealed, {"503 openbao_unavailable"}),
    "OpenBao killed": ("openbao", gone, {"503 openbao_unavailable"}),
    "OpenBao stopped": ("openbao", frozen, {"503 openbao_unavailable"}),
    "relations killed": ("spicedb", gone, {"503 authz_unavailable"}),
    "relations stopped": ("spicedb", frozen, {"503 authz_unavailable"}),
    "identity killed": ("identity", gone, {"503 authz_unavailable", "503 unavailable"}),
    "secrets killed": ("secrets", gone, {"503 unavailable"}),
    "secrets stopped": ("secrets", frozen, {"503 unavailable"}),
}


@pytest.mark.parametrize("case", AWAY)
async def test_bytes_are_rows_to_the_unit(stage: Stage, case: str) -> None:
    victim, away, said = AWAY[case]
    await stage.back()
    async with stage.accounted() as answers:
        async with stage.bursting() as asking, away(stage.world, victim):
            late = await stage.burst(1)
            answers.extend(await asking)
        if victim == "postgres":
            await stage.reconnect()
        assert counted(answers).total() == ALL
        assert counted(answers).keys() <= {"200", *said}
        # Who asks once it is away gets no byte.
        assert counted(late).keys() <= said
        answers.extend([*late, *await settled(stage)])
