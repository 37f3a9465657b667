"""Audit is killed at any moment of a checkpoint: the next one goes on, and all that were stored are of one log."""

import asyncio
import contextlib
import itertools
import random

import aiohttp
import pytest

from libs.tlog.checkpoint import open_checkpoint
from libs.tlog.verify import verify_consistency
from tests.e2e.ledger import Ledger

pytestmark = pytest.mark.e2e

KILLS = 6


async def read_on(ledger: Ledger) -> None:
    """Make entries for as long as it takes; what is refused while audit is away is not of interest here."""
    while True:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            await ledger.ask("entries?limit=1")


async def test_checkpoints_go_on_after_each_kill(ledger: Ledger) -> None:
    readers = [asyncio.create_task(read_on(ledger)) for _ in range(4)]
    try:
        for _ in range(KILLS):
            # The look is each second: the moment of the kill is anywhere in it.
            await asyncio.sleep(random.uniform(1.0, 2.2))
            await ledger.world.kill("audit")
            await ledger.world.start("audit")
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    size = await ledger.checkpointed()
    rows = await ledger.dba.fetch(
        "SELECT size, note FROM audit.checkpoints WHERE chain = $1 ORDER BY size", ledger.chain
    )
    key = await ledger.key()
    checkpoints = [open_checkpoint(row["note"], key.name, [key]) for row in rows]
    assert [one.size for one in checkpoints] == [row["size"] for row in rows]
    assert len(rows) > KILLS / 2
    assert checkpoints[-1].size == size
    assert (await ledger.anchor())["note"] == rows[-1]["note"]
    for older, newer in itertools.pairwise(checkpoints):
        answer = await ledger.ask(f"consistency?from={older.size}&to={newer.size}")
        hashes = [bytes.fromhex(value) for value in answer.json["hashes"]]
        verify_consistency(older.size, older.root, newer.size, newer.root, hashes)
    assert ledger.alarms() == []
    assert (await ledger.verify())["ok"] is True
