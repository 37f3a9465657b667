"""Who may have a chain go on from a restored database, by what, and what it leaves."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import pytest

from libs.custody import Secret
from libs.errors import (
    AcknowledgementInvalid,
    AcknowledgementNotTrusted,
    AcknowledgementStale,
    AuditDiverged,
    DatastoreUnavailable,
    OpenbaoUnavailable,
    PlexError,
    RestoreInconsistent,
)
from libs.tlog.signer import SignerKey, make_key, parse_signer
from libs.tlog.tree import EMPTY, Node
from services.audit.acknowledgements import Acknowledgements
from services.audit.guard import Guard
from services.audit.model import PLATFORM, Anchor
from services.audit.restores import Restores
from services.audit.tests.fakes import FakePeppers
from services.audit.tests.test_checkpoints import NAME
from services.audit.tests.test_guard import Anchors, Vault, forked, forked_longer
from services.audit.tests.test_service import CHAIN

pytestmark = pytest.mark.unit

KEY, OTHER = (parse_signer(make_key("restore.example")[0]) for _ in range(2))
RIGHT = f"{NAME}/restore"


class Restored(Vault):
    """A restored database, and who may acknowledge it."""

    @property
    def acknowledgements(self) -> Acknowledgements:
        keys = [KEY.verifier]
        return Acknowledgements(self.checkpoints, self.guard, self.chains, FakePeppers(), keys, self.clock)

    async def statement(self) -> str:
        _, text = await self.acknowledgements.check("c", every=False)
        return text

    async def acknowledge(self, text: str, key: SignerKey = KEY) -> list[str]:
        return await self.acknowledgements.acknowledge("c", key.seal(text))

    @property
    def state(self) -> object:
        """All that an acknowledgement could change."""
        rows = [row.entry_hash for row in self.chains.rows[CHAIN]]
        return (rows, dict(self.anchors.anchors), dict(self.anchors.storages), set(self.trees.kept[CHAIN]))


async def restored(change: Callable[[Vault], object] = lambda vault: vault.cut(6)) -> Restored:
    made = Restored()
    await made.append(7)
    await made.checkpoints.turn(CHAIN)
    await made.append(4)
    assert await made.refused() == ""
    assert await made.holds()
    answer = change(made)
    if isinstance(answer, Awaitable):
        await answer
    made.restart("restored")
    assert await made.refused()
    return made


GOES_ON: dict[str, Callable[[Vault], object]] = {
    "older": lambda vault: vault.cut(6),
    "gone": lambda vault: vault.cut(0),
    "after the anchor": lambda vault: vault.cut(9),
    "forked": forked,
    "forked and longer": forked_longer,
    "altered": lambda vault: vault.alter(3, relation="another"),
}


@pytest.mark.parametrize("name", GOES_ON)
async def test_what_was_acknowledged_goes_on_with_an_entry_and_its_own_anchor(name: str) -> None:
    vault = await restored(GOES_ON[name])
    head, text = await vault.chains.head(CHAIN), await vault.statement()
    epoch = vault.anchors.anchors[CHAIN].epoch
    assert await vault.acknowledge(text) == [CHAIN]
    row = vault.chains.rows[CHAIN][-1]
    assert (row.seq, row.prev_hash) == (head.seq + 1, head.entry_hash)
    assert row.context["action"] == ["audit.restore-acknowledged"]
    assert row.context["database"] == [str(head.seq), head.entry_hash.hex()]
    assert row.context["anchor"][0] == "7"
    assert row.context["acknowledged_by"] == ["restore.example", KEY.verifier.id.hex()]
    anchored = await vault.checkpoints.anchored(CHAIN)
    assert anchored is not None
    assert (anchored.size, anchored.root) == (row.seq, vault.root(row.seq))
    assert vault.anchors.anchors[CHAIN].epoch == epoch + 1
    assert row.seq in vault.trees.kept[CHAIN]
    for guard in (vault.guard, Guard(Restores(vault.checkpoints))):
        vault.guard = guard
        assert await vault.refused() == ""
        assert await vault.holds()
    await vault.append(2)
    await vault.checkpoints.turn(CHAIN)
    assert await vault.anchored() == row.seq + 2
    assert await vault.statement() == ""


@pytest.mark.parametrize("left", [0, 2])
async def test_what_a_process_saw_of_a_chain_that_has_no_anchor_is_shown_and_acknowledged_as_well(left: int) -> None:
    vault = Restored()
    await vault.append(4)
    await vault.guard.require(CHAIN)
    assert await vault.holds()
    vault.cut(left)
    assert not await vault.holds()
    with pytest.raises(AuditDiverged):
        await vault.guard.require(CHAIN)
    (state,), text = await vault.acknowledgements.check("c", every=False)
    assert (state.claim.chain, state.claim.size, state.claim.root, state.claim.head.seq) == (CHAIN, 0, EMPTY, left)
    assert state.reason == "entry 4 was there and is not any longer"
    assert await vault.acknowledge(text) == [CHAIN]
    assert [row.context["action"][0] for row in vault.chains.rows[CHAIN]][left:] == ["audit.restore-acknowledged"]
    assert vault.anchors.anchors[CHAIN].epoch == 1
    assert await vault.refused() == ""
    assert await vault.holds()
    assert await vault.acknowledgements.check("c", every=False) == ([], "")


async def test_all_chains_are_shown_and_those_that_are_refused_are_to_be_signed_for() -> None:
    vault = await restored()
    for every in (True, False):
        (state,), text = await vault.acknowledgements.check("c", every=every)
        assert (state.claim.chain, state.claim.size, state.claim.head.seq) == (CHAIN, 7, 6)
        assert state.reason
        assert text.split("\n")[0] == RIGHT
        assert text.split("\n")[2].startswith(f"{CHAIN} 7 ")
    rows = [(row.context["action"], row.reason) for row in vault.chains.rows[PLATFORM]]
    assert rows == [(["audit.check-restore"], "granted")] * 2


def swapped(text: str) -> str:
    chain, size, root, seq, last = text.split("\n")[2].split(" ")
    return text.replace(f"{chain} {size} {root} {seq} {last}", f"{chain} {size} {last} {seq} {root}")


FORGED: dict[str, tuple[Callable[[str], str], SignerKey, type[PlexError]]] = {
    "by another key of that name": (lambda text: text, OTHER, AcknowledgementNotTrusted),
    "another log": (lambda text: text.replace(RIGHT, "another/restore"), KEY, AcknowledgementInvalid),
    "another sentence": (lambda text: text.replace("go on", "stop"), KEY, AcknowledgementInvalid),
    "no chain": (lambda text: "\n".join(text.split("\n")[:2]) + "\n", KEY, AcknowledgementInvalid),
    "a chain twice": (lambda text: text + text.split("\n")[2] + "\n", KEY, AcknowledgementInvalid),
    "a number that is none": (lambda text: text.replace(" 7 ", " 07 "), KEY, AcknowledgementInvalid),
    "another size": (lambda text: text.replace(" 7 ", " 8 "), KEY, AcknowledgementStale),
    "another head": (lambda text: text.replace(" 6 ", " 5 "), KEY, AcknowledgementStale),
    "another chain": (lambda text: text.replace(CHAIN, CHAIN[:-1] + "2"), KEY, AcknowledgementStale),
    "another root": (swapped, KEY, AcknowledgementStale),
}


@pytest.mark.parametrize("name", FORGED)
async def test_what_is_not_exactly_that_changes_nothing(name: str) -> None:
    vault = await restored()
    change, key, refusal = FORGED[name]
    text, before = await vault.statement(), vault.state
    with pytest.raises(refusal):
        await vault.acknowledge(change(text), key)
    assert vault.state == before
    assert await vault.refused()
    assert vault.chains.rows[PLATFORM][-1].context["restore"] == [refusal.code]


async def test_nobody_may_where_no_key_is_trusted() -> None:
    vault = await restored()
    text = await vault.statement()
    with pytest.raises(AcknowledgementNotTrusted):
        await replace(vault.acknowledgements, keys=()).acknowledge("c", KEY.seal(text))


async def test_an_acknowledgement_is_good_for_one_time() -> None:
    vault = await restored()
    text = await vault.statement()
    await vault.acknowledge(text)
    with pytest.raises(AcknowledgementStale):
        await vault.acknowledge(text)
    # The same backup once more is another case: the anchor is the acknowledged one's.
    vault.cut(6)
    vault.restart("restored again")
    assert await vault.refused()
    with pytest.raises(AcknowledgementStale):
        await vault.acknowledge(text)
    await vault.acknowledge(await vault.statement())
    assert await vault.refused() == ""


INCONSISTENT: dict[str, Callable[[Vault], object]] = {
    "the tree of another log": lambda vault: vault.trees.nodes[CHAIN].update({Node(0, 6): b"x" * 32}),
    "the tree has a hole": lambda vault: vault.trees.nodes[CHAIN].pop(Node(2, 0)),
    "entries after the tree altered": lambda vault: vault.alter(10, canonical=b"{}"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", INCONSISTENT)
async def test_a_database_that_is_no_log_by_itself_is_not_to_be_acknowledged(name: str) -> None:
    vault = await restored(INCONSISTENT[name])
    text, before = await vault.statement(), vault.state
    with pytest.raises(RestoreInconsistent):
        await vault.acknowledge(text)
    assert vault.state == before


@dataclass
class Crashing(Anchors):
    """Anchors that cannot be written at a step."""

    step: str = ""

    async def move(self, chain: str, note: str, before: Anchor | None, epoch: int = 0) -> bool:
        if self.step == "anchor":
            raise OpenbaoUnavailable
        return await super().move(chain, note, before, epoch)

    async def found_whole(self, chain: str, storage: str) -> None:
        if self.step == "storage":
            raise OpenbaoUnavailable
        await super().found_whole(chain, storage)


@pytest.mark.parametrize("step", ["anchor", "checkpoint", "storage"])
async def test_after_a_crash_between_two_steps_the_same_note_is_taken_again(step: str) -> None:
    vault = await restored()
    text, length = await vault.statement(), len(vault.chains.rows[CHAIN])

    right, vault.anchors = vault.anchors, Crashing(vault.anchors.anchors, vault.anchors.storages, step=step)
    vault.trees.refusal = DatastoreUnavailable() if step == "checkpoint" else None
    with pytest.raises(PlexError):
        await vault.acknowledge(text)
    vault.anchors, vault.trees.refusal = right, None
    vault.guard = Guard(Restores(vault.checkpoints))
    if await vault.refused():
        await vault.acknowledge(text)
    assert await vault.refused() == ""
    assert len(vault.chains.rows[CHAIN]) == length + 1
    await vault.append(1)
    await vault.checkpoints.turn(CHAIN)
    assert await vault.anchored() == length + 2


async def test_of_two_who_send_it_at_once_one_entry_is_left() -> None:
    vault = await restored()
    text, length = await vault.statement(), len(vault.chains.rows[CHAIN])
    await asyncio.gather(*(vault.acknowledge(text) for _ in range(2)), return_exceptions=True)
    assert len(vault.chains.rows[CHAIN]) == length + 1
    assert await vault.refused() == ""


@pytest.mark.parametrize("name", ["", "a b", "a+b"])
def test_a_key_has_a_name_that_a_note_can_hold(name: str) -> None:
    with pytest.raises(Exception, match="name"):
        make_key(name)


def test_a_key_that_is_read_signs_as_the_one_that_was_made() -> None:
    content, verifier = make_key("restore.example")
    signer = parse_signer(content)
    assert signer.verifier == verifier
    assert "Ed25519PrivateKey" not in repr(signer)
    raw = bytes(content.reveal())
    for broken in (b"", raw[1:], raw.replace(b"restore", b"another"), raw[:-5] + raw[-4:], b"\xff" + raw):
        with pytest.raises(Exception, match=r"key|base64"):
            parse_signer(Secret(broken))
