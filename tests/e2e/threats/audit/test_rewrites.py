"""A-1 over the wire: a DBA who rewrites what is in the database consistently, and what is outside of it that tells."""

import asyncpg
import pytest

from libs.tlog.checkpoint import open_checkpoint
from tests.e2e.attacker import eventually
from tests.e2e.ledger import Ledger

pytestmark = pytest.mark.e2e

ZEROS = "0" * 64


async def nothing_is_signed(ledger: Ledger, anchor: object) -> None:
    """See the next look at the chain raise an alarm, and sign nothing for it."""

    async def told() -> bool:
        return bool(ledger.alarms() or ledger.alarms("restore"))

    await eventually(told)
    assert await ledger.anchor() == anchor


SHIFT = "UPDATE audit.entries SET seq = seq + 1000 WHERE chain = $1 AND seq >= 4"
BACK = "UPDATE audit.entries SET seq = seq - 999 WHERE chain = $1 AND seq > 1000"
COPY = """
INSERT INTO audit.entries SELECT chain, 4, sha256('other'), entry_hash, canonical, occurred_at, pseudonym, relation,
    object_type, object_id, reason, correlation_id, context FROM audit.entries WHERE chain = $1 AND seq = 3
"""
CLUMSY = {
    "the first deleted": (1, ["DELETE FROM audit.entries WHERE chain = $1 AND seq = 1"]),
    "one deleted": (4, ["DELETE FROM audit.entries WHERE chain = $1 AND seq = 4"]),
    "the last deleted": (11, ["DELETE FROM audit.entries WHERE chain = $1 AND seq >= 11"]),
    "two swapped": (
        4,
        [
            "UPDATE audit.entries SET seq = seq + 1000 WHERE chain = $1 AND seq IN (4, 5)",
            "UPDATE audit.entries SET seq = CASE seq WHEN 1004 THEN 5 ELSE 4 END WHERE chain = $1 AND seq > 1000",
        ],
    ),
    "one inserted": (4, [SHIFT, BACK, COPY, "UPDATE audit.chains SET seq = seq + 1 WHERE chain = $1"]),
}


@pytest.mark.parametrize("name", CLUMSY)
async def test_what_is_done_to_single_rows_is_found_there(ledger: Ledger, name: str) -> None:
    seq, statements = CLUMSY[name]
    for statement in statements:
        await ledger.dba.execute(statement, ledger.chain)
    verdict = await ledger.verify()
    assert (verdict["ok"], verdict["divergent_seq"]) == (False, seq)


@pytest.mark.parametrize("first", [1, 5, 11])
async def test_a_chain_that_is_recomputed_from_an_entry_on_is_found_there(ledger: Ledger, first: int) -> None:
    anchor = await ledger.anchor()
    await ledger.rewrite(first)
    verdict = await ledger.verify()
    assert (verdict["ok"], verdict["divergent_seq"]) == (False, first)
    # Who asks about a later part alone is told as well, and a part before it is proved by the stored hashes.
    later = await ledger.verify(first=11, last=11)
    assert (later["ok"], later["divergent_seq"]) == (False, first)
    assert first == 1 or (await ledger.verify(first=1, last=first - 1))["ok"] is True
    await nothing_is_signed(ledger, anchor)


@pytest.mark.parametrize("checkpoints", ["kept", "deleted"])
async def test_a_chain_that_is_recomputed_with_its_tree_is_found_by_the_anchor(
    ledger: Ledger, checkpoints: str
) -> None:
    anchor, size = await ledger.anchor(), await ledger.size()
    await ledger.rewrite(3)
    await ledger.rewrite_tree()
    if checkpoints == "deleted":
        await ledger.forget_checkpoints()
    root = open_checkpoint(anchor["note"], (await ledger.key()).name, [await ledger.key()]).root
    for segment in ({}, {"first": 5, "last": 7}, {"first": 1, "last": 2}):
        verdict = await ledger.verify(**segment)
        assert (verdict["ok"], verdict["divergent_seq"]) == (False, size)
        assert verdict["expected_hash"] == root.hex() != verdict["observed_hash"]
    await nothing_is_signed(ledger, anchor)


@pytest.mark.parametrize("tree", ["kept", "rewritten"])
@pytest.mark.parametrize("left", [0, 4])
async def test_a_tail_that_is_cut_off_with_its_head_is_found(ledger: Ledger, left: int, tree: str) -> None:
    anchor = await ledger.anchor()
    await ledger.cut_off(left)
    if tree == "rewritten":
        await ledger.rewrite_tree()
        await ledger.forget_checkpoints(above=left)
    verdict = await ledger.verify()
    assert (verdict["ok"], verdict["divergent_seq"], verdict["observed_hash"]) == (False, left + 1, ZEROS)
    await nothing_is_signed(ledger, anchor)


async def test_a_chain_that_is_cut_off_and_grown_beyond_its_anchor_is_found(ledger: Ledger) -> None:
    anchor, size = await ledger.anchor(), await ledger.size()
    await ledger.cut_off(4)
    await ledger.rewrite_tree()
    await ledger.forget_checkpoints(above=4)
    await ledger.grow(size)
    assert await ledger.head() > size
    verdict = await ledger.verify()
    assert (verdict["ok"], verdict["divergent_seq"]) == (False, size)
    await nothing_is_signed(ledger, anchor)


async def test_a_head_that_is_rewound_is_found(ledger: Ledger) -> None:
    anchor = await ledger.anchor()
    sql = "UPDATE audit.chains c SET seq = 4, entry_hash = e.entry_hash FROM audit.entries e "
    await ledger.dba.execute(sql + "WHERE c.chain = $1 AND e.chain = c.chain AND e.seq = 4", ledger.chain)
    await nothing_is_signed(ledger, anchor)
    verdict = await ledger.verify()
    assert (verdict["ok"], verdict["divergent_seq"], verdict["observed_hash"]) == (False, 5, ZEROS)
    assert await ledger.head() == 4


async def test_a_proof_of_a_rewritten_entry_is_not_given(ledger: Ledger) -> None:
    size = await ledger.size()
    assert (await ledger.ask(f"proof?seq=3&size={size}")).status == 200
    await ledger.rewrite(3)
    for attempt in (f"proof?seq=3&size={size}", f"proof?seq={size}&size={size}"):
        assert str(await ledger.ask(attempt)) == "409 audit_diverged"
    await ledger.rewrite_tree()
    assert str(await ledger.ask(f"proof?seq=3&size={size}")) == "409 audit_diverged"


async def test_a_checkpoint_that_nobody_signed_is_not_shown(ledger: Ledger) -> None:
    size = await ledger.size()
    forge = """
    INSERT INTO audit.checkpoints
    SELECT chain, size + 100, sha256('other'), replace(note, E'\\n' || size, E'\\n9'), now()
    FROM audit.checkpoints WHERE chain = $1 AND size = $2
    """
    await ledger.dba.execute(forge, ledger.chain, size)
    assert str(await ledger.ask("checkpoint")) == "409 audit_diverged"
    assert str(await ledger.ask(f"consistency?from={size}&to={size + 100}")) == "409 audit_diverged"


async def test_what_came_after_the_anchor_can_be_rewritten_until_the_next(ledger: Ledger) -> None:
    # The residual risk, pinned: nobody outside of the database knows of these entries yet.
    await ledger.world.restart("audit", ledger.world.config("audit").replace("every_s = 1.0", "every_s = 600.0"))
    try:
        await ledger.fill(3)
        size, head = await ledger.size(), await ledger.head()
        assert size < head
        await ledger.rewrite(head)
        assert (await ledger.verify())["ok"] is True
        await ledger.rewrite(size)
        assert (await ledger.verify())["divergent_seq"] == size
    finally:
        await ledger.forget()
        await ledger.world.restart("audit", ledger.world.config("audit").replace("every_s = 600.0", "every_s = 1.0"))


@pytest.mark.parametrize("table", ["tree", "checkpoints"])
async def test_even_the_owner_is_refused_by_the_tables(ledger: Ledger, table: str) -> None:
    owner = await ledger.world.superuser()
    try:
        await owner.execute("SET ROLE migrator")
        for statement in (
            f"UPDATE audit.{table} SET chain = chain",
            f"DELETE FROM audit.{table}",
            f"TRUNCATE audit.{table}",
        ):
            with pytest.raises(asyncpg.FeatureNotSupportedError):
                await owner.execute(statement)
    finally:
        await owner.close()
