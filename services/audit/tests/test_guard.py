"""When a chain is checked against its anchor, what is found, and when it is appended to."""

import asyncio
import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from prometheus_client import REGISTRY

from libs.errors import AuditDiverged, OpenbaoUnavailable, PlexError
from services.audit.guard import Guard
from services.audit.model import Anchor, Head, Storage, Stored
from services.audit.restores import Restores
from services.audit.tests.fakes import FakeAnchors
from services.audit.tests.test_checkpoints import Scene
from services.audit.tests.test_service import CHAIN

pytestmark = pytest.mark.unit

OTHER = "another chain"


@dataclass
class Anchors(FakeAnchors):
    """Anchors that may be slow, and count who asks."""

    may: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may.set()

    async def read(self, chain: str) -> Anchor | None:
        self.asked.append(chain)
        await self.may.wait()
        return await super().read(chain)


@dataclass
class Vault(Scene):
    """A chain of eleven entries, seven of them anchored, and who guards it."""

    anchors: Anchors = field(default_factory=Anchors)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.guard = Guard(Restores(self.checkpoints))

    def restart(self, name: str = "storage") -> None:
        """Have another server, and with another name a restored database."""
        self.chains.kept_in = Storage(self.chains.kept_in.server + "'", name)

    async def refused(self) -> str:
        """Look at all chains, and say why this one is refused."""
        await self.guard.look()
        if CHAIN not in self.guard.refused:
            await self.guard.ready()
            await self.guard.require(CHAIN)
            return ""
        for ask in (self.guard.ready(), self.guard.require(CHAIN)):
            with pytest.raises(AuditDiverged):
                await ask
        assert not await self.holds()
        return self.guard.refused[CHAIN]

    async def holds(self) -> bool:
        """Have the writer's question answered for the head as it is."""
        head, (seen,) = await self.chains.head(CHAIN), self.guard.seen([CHAIN])
        row = await self.chains.get(CHAIN, seen)
        return self.guard.holds(CHAIN, self.chains.kept_in.server, head, row.entry_hash if row else None)

    def cut(self, left: int) -> None:
        """Have the database as it was after so many entries."""
        del self.chains.rows[CHAIN][left:]
        self.trees.kept[CHAIN] = {size: kept for size, kept in self.trees.kept[CHAIN].items() if size <= left}
        tree = self.trees.nodes[CHAIN]
        self.trees.nodes[CHAIN] = {node: tree[node] for node in tree if (node.position + 1) << node.level <= left}

    async def fork(self, left: int, count: int) -> None:
        """Have another history from an entry on, with its tree."""
        self.cut(left)
        self.numbers += 100
        await self.append(count)
        await replace(self.checkpoints, anchors=FakeAnchors()).turn(CHAIN)

    def alter(self, seq: int, **columns: str) -> None:
        rows = self.chains.rows[CHAIN]
        rows[seq - 1] = Stored(**vars(rows[seq - 1]) | columns)


@pytest.fixture
async def vault() -> Vault:
    made = Vault()
    await made.append(7)
    await made.checkpoints.turn(CHAIN)
    await made.append(4)
    assert await made.refused() == ""
    assert await made.holds()
    return made


async def test_a_chain_is_checked_once_and_again_when_the_server_is_another_one(vault: Vault) -> None:
    asked = len(vault.anchors.asked)
    for _ in range(3):
        await vault.append(1)
        await vault.guard.look()
        await vault.guard.require(CHAIN)
        assert await vault.holds()
    assert len(vault.anchors.asked) == asked
    vault.restart()
    assert not await vault.holds()
    await vault.guard.require(CHAIN)
    assert await vault.holds()
    assert len(vault.anchors.asked) == asked + 1


async def forked(vault: Vault) -> None:
    await vault.fork(3, 8)


async def forked_longer(vault: Vault) -> None:
    await vault.fork(3, 80)


async def forked_at_once(vault: Vault) -> None:
    await vault.fork(0, 1)


RESTORED: dict[str, tuple[Callable[[Vault], object], str]] = {
    "older": (lambda vault: vault.cut(6), "the database's tree ends at entry 6, and 7 are anchored"),
    "gone": (lambda vault: vault.cut(0), "the database's tree ends at entry 0, and 7 are anchored"),
    "forked": (forked, "the first 7 entries are not those that are anchored"),
    "forked and longer": (forked_longer, "the first 7 entries are not those that are anchored"),
    "another from the first on": (forked_at_once, "the database's tree ends at entry 1, and 7 are anchored"),
    "altered": (lambda vault: vault.alter(3, relation="another"), "entry 3 is not as it was written"),
    "altered after the anchor": (lambda vault: vault.alter(9, relation="another"), "entry 9 is not as it was written"),
    "a person altered": (lambda vault: vault.alter(3, client_ip="another"), "entry 3 is not as it was written"),
    "an entry missing": (lambda vault: vault.chains.rows[CHAIN].pop(2), "entry 3 is not as it was written"),
}


@pytest.mark.parametrize("service", ["stopped", "running"])
@pytest.mark.parametrize("name", RESTORED)
async def test_what_was_restored_is_refused_with_the_reason_until_the_right_one_is(
    vault: Vault, name: str, service: str
) -> None:
    right = copy.deepcopy((dict(vault.chains.rows), dict(vault.trees.nodes)))
    counted = REGISTRY.get_sample_value("plexsphere_refusals_total", {"control": "restore", "reason": "diverged"})
    change, reason = RESTORED[name]
    if (restored := change(vault)) is not None and asyncio.iscoroutine(restored):
        await restored
    vault.restart("restored")
    if service == "stopped":
        vault.guard = Guard(Restores(vault.checkpoints))
    found = await vault.refused()
    # A process that saw the later entries misses those first.
    gone = service == "running" and not name.startswith(("altered", "a person", "an entry"))
    assert found == ("entry 11 was there and is not any longer" if gone else reason)
    assert await vault.refused() == found
    after = REGISTRY.get_sample_value("plexsphere_refusals_total", {"control": "restore", "reason": "diverged"})
    assert after == (counted or 0) + 1
    assert REGISTRY.get_sample_value("plexsphere_audit_chains_refused") == 1
    await vault.guard.require(OTHER)
    vault.chains.rows[CHAIN], vault.trees.nodes[CHAIN] = right[0][CHAIN], right[1][CHAIN]
    vault.restart("restored again")
    assert await vault.refused() == ""
    assert await vault.holds()
    assert REGISTRY.get_sample_value("plexsphere_audit_chains_refused") == 0


async def test_rows_are_looked_at_once_in_each_storage(vault: Vault) -> None:
    # The residual risk, pinned: in place nobody looks before a verification, a comparison or a checkpoint does.
    vault.alter(3, relation="another")
    vault.restart()
    assert await vault.refused() == ""
    vault.restart("restored")
    assert await vault.refused() == "entry 3 is not as it was written"


@pytest.mark.parametrize("change", ["behind", "same", "another"])
async def test_a_head_that_is_not_where_it_was_is_checked_at_its_next_append(vault: Vault, change: str) -> None:
    rows = vault.chains.rows[CHAIN]
    if change == "behind":
        vault.cut(10)
    elif change == "same":
        rows[-1] = replace(rows[-1], entry_hash=b"x" * 32)
    else:
        # Longer, and another entry where the last one was.
        rows[-1] = replace(rows[-1], entry_hash=b"x" * 32)
        rows.append(replace(rows[-1], seq=12))
    assert not await vault.holds()
    with pytest.raises(AuditDiverged):
        await vault.guard.require(CHAIN)
    assert vault.guard.refused == {CHAIN: "entry 11 was there and is not any longer"}


async def test_what_another_replica_appended_is_nothing_to_doubt(vault: Vault) -> None:
    asked = len(vault.anchors.asked)
    await vault.append(3)
    assert await vault.holds()
    vault.guard.wrote(CHAIN, Head(15, b"own"))
    assert vault.guard.seen([CHAIN, OTHER]) == [15, 0]
    assert len(vault.anchors.asked) == asked


async def test_without_the_anchor_nothing_is_trusted_and_nothing_accused(vault: Vault) -> None:
    guard = vault.guard = Guard(Restores(vault.checkpoints))
    vault.anchors.refusal = OpenbaoUnavailable()
    for ask in (guard.require(CHAIN), guard.look(), guard.ready()):
        with pytest.raises(PlexError) as refused:
            await ask
        assert not isinstance(refused.value, AuditDiverged)
    assert (await vault.holds(), guard.refused) == (False, {})
    vault.anchors.refusal = None
    assert await vault.refused() == ""


async def test_one_chain_that_takes_long_holds_up_no_other_and_is_checked_once_for_all(vault: Vault) -> None:
    guard = Guard(Restores(vault.checkpoints))
    await guard.require(OTHER)
    vault.anchors.may.clear()
    vault.anchors.asked.clear()
    waiting = [asyncio.create_task(guard.require(CHAIN)) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await guard.require(OTHER)
    assert not any(task.done() for task in waiting[1:])
    vault.anchors.may.set()
    await asyncio.gather(*waiting[1:])
    assert vault.anchors.asked == [CHAIN]


async def test_what_was_seen_before_an_acknowledgement_is_forgotten(vault: Vault) -> None:
    vault.cut(9)
    assert not await vault.holds()
    with pytest.raises(AuditDiverged):
        await vault.guard.require(CHAIN)
    anchor = vault.anchors.anchors[CHAIN]
    vault.anchors.anchors[CHAIN] = replace(anchor, version=2, epoch=1)
    # What is refused is looked at again after ten times as long as that took; here at once.
    assert await vault.guard.look_at([CHAIN]) == [""]
    assert await vault.refused() == ""
    assert await vault.holds()


@pytest.mark.parametrize("change", ["nothing", "lost"])
async def test_nothing_is_signed_for_a_chain_that_lost_what_was_seen(vault: Vault, change: str) -> None:
    turn = vault.guard.before(vault.checkpoints.turn)
    if change == "lost":
        # The anchor knows nothing of what came after it.
        vault.cut(9)
        with pytest.raises(AuditDiverged):
            await turn(CHAIN)
        assert await vault.anchored() == 7
    else:
        await turn(CHAIN)
        assert await vault.anchored() == 11
