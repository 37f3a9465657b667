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


ANY = ("limiter_", "datastore_", "audit_", "authz_", "")
# Who is taken away and how, and whom the answers may miss.
AWAY: dict[str, tuple[str, Away, tuple[str, ...]]] = {
    "limiter store held": ("", cells_held, ("limiter_",)),
    "database stopped": ("postgres", frozen, ANY),
    "database killed": ("postgres", gone, ANY),
    "OpenBao sealed": ("openbao", sealed, ("openbao_",)),
    "OpenBao killed": ("openbao", gone, ("openbao_",)),
    "OpenBao stopped": ("openbao", frozen, ("openbao_",)),
    "relations killed": ("spicedb", gone, ("authz_",)),
    "relations stopped": ("spicedb", frozen, ("authz_",)),
    "identity killed": ("identity", gone, ("authz_", "")),
    "secrets killed": ("secrets", gone, ("",)),
    "secrets stopped": ("secrets", frozen, ("",)),
}


@pytest.mark.parametrize("case", AWAY)
async def test_bytes_are_rows_to_the_unit(stage: Stage, case: str) -> None:
    victim, away, missed = AWAY[case]
    # A database that a busy machine keeps waiting is missed before anybody else is.
    said = {f"503 {name}unavailable" for name in (*missed, "limiter_")}
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
