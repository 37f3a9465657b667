"""The promises of the ports of checkpoints, on the fake and on the real backend alike, and two replicas on the real."""

import asyncio
import datetime
import os
import uuid
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from libs.bao import FORBIDDEN, Bao, BaoRefused
from libs.clock import SystemClock
from libs.errors import DatastoreUnavailable, SigningUnavailable
from libs.tlog.checkpoint import open_checkpoint
from libs.tlog.tree import Node, Run, Span, consistency, cover, prove
from libs.tlog.verify import verify_consistency
from services.audit.checkpoints import Checkpoints
from services.audit.model import Anchor, Signed
from services.audit.ports import Anchors, Signer, Trees
from services.audit.store import PgStore
from services.audit.tests.fakes import FakeAnchors, FakeChains, FakeSigner, FakeTrees, trusting
from services.audit.tests.test_store import entry, running
from services.audit.tree_store import PgTrees
from services.audit.vault import BaoAnchors, BaoSigner
from services.audit.writer import GroupWriter

pytestmark = pytest.mark.integration

NAME = "plexsphere.example/audit"


@pytest.fixture(params=["fake", "PostgreSQL"])
def trees(request: pytest.FixtureRequest, pool: asyncpg.Pool) -> Trees:
    return FakeTrees(FakeChains()) if request.param == "fake" else PgTrees(pool)


@pytest.fixture(params=["fake", "OpenBao"])
def anchors(request: pytest.FixtureRequest, bao: Bao) -> Anchors:
    return FakeAnchors() if request.param == "fake" else BaoAnchors(bao)


@pytest.fixture(params=["fake", "OpenBao"])
def signer(request: pytest.FixtureRequest, bao: Bao) -> Signer:
    return FakeSigner() if request.param == "fake" else BaoSigner(bao)


@pytest.fixture
def chain() -> str:
    return str(uuid.uuid4())


def leaves(run: Run, count: int) -> list[tuple[Node, bytes]]:
    return [made for _ in range(count) for made in run.push(os.urandom(32))]


def signed(size: int, note: str = "note") -> Signed:
    return Signed(size, os.urandom(32), note, datetime.datetime.now(datetime.UTC))


# Trees ----------------------------------------------------------------------------------------------------------------


async def test_a_tree_grows_by_whole_turns(trees: Trees, chain: str) -> None:
    run = Run()
    assert (await trees.size(chain), await trees.hashes(chain, [Node(0, 0)])) == (0, {})
    for count in (1, 6, 100):
        assert await trees.grow(chain, leaves(run, count))
        assert await trees.size(chain) == run.end
    again = Run()
    again.extend(Span(0, 107), await trees.hashes(chain, cover(Span(0, 107))))
    assert again.root() == run.root()
    found = await trees.hashes(chain, [Node(0, 106), Node(0, 107), Node(9, 0)])
    assert found.keys() == {Node(0, 106)}
    assert await trees.size(str(uuid.uuid4())) == 0


async def test_of_several_who_grow_a_tree_at_once_one_does(trees: Trees, chain: str) -> None:
    turns = [leaves(Run(), count) for count in (3, 5, 7, 9)]
    answers = await asyncio.gather(*(trees.grow(chain, turn) for turn in turns))
    assert sum(answers) == 1
    (won,) = [turn for turn, answer in zip(turns, answers, strict=True) if answer]
    assert await trees.hashes(chain, [node for node, _ in won]) == dict(won)
    assert await trees.size(chain) == sum(node.level == 0 for node, _ in won)


async def test_a_checkpoint_is_kept_once(trees: Trees, chain: str) -> None:
    assert (await trees.newest(chain), await trees.at(chain, 3)) == (None, None)
    small, large = signed(3), signed(9)
    for one in (large, small, signed(3, "another")):
        await trees.keep(chain, one)
    assert await trees.newest(chain) == large
    assert (await trees.at(chain, 3), await trees.at(chain, 4)) == (small, None)


async def test_a_checkpoint_is_due_when_it_is_missing_old_far_behind_or_beyond_the_chain(pool: asyncpg.Pool) -> None:
    chains, now = FakeChains(), datetime.datetime.now(datetime.UTC)
    fake, real = FakeTrees(chains), PgTrees(pool)
    names = {case: str(uuid.uuid4()) for case in ("missing", "old", "behind", "fresh", "same", "beyond")}
    kept = {"old": (2, 61), "behind": (1, 0), "fresh": (2, 0), "same": (3, 600), "beyond": (4, 0)}
    async with running(GroupWriter(pool, trusting(pool))) as writer:
        for name in names.values():
            for _ in range(3):
                made = entry(name)
                await chains.append(made)
                await writer.append(made)
    for case, (size, age_s) in kept.items():
        for trees in (fake, real):
            at = now - datetime.timedelta(seconds=age_s)
            await trees.keep(names[case], Signed(size, bytes(32), "note", at))
    expected = {names[case] for case in ("missing", "old", "behind", "beyond")}
    before = now - datetime.timedelta(seconds=60)
    for found in (await fake.due(2, before), await real.due(2, before)):
        assert expected == set(found) & set(names.values())


# Anchors and the key --------------------------------------------------------------------------------------------------


async def test_an_anchor_moves_by_check_and_set_alone(anchors: Anchors, chain: str) -> None:
    assert await anchors.read(chain) is None
    assert await anchors.move(chain, "one", None)
    one = await anchors.read(chain)
    assert one == Anchor("one", 1)
    moved = await asyncio.gather(*(anchors.move(chain, f"two {number}", one, 7) for number in range(5)))
    assert sum(moved) == 1
    assert not await anchors.move(chain, "late", None)
    assert not await anchors.move(chain, "early", Anchor("three", 3))
    assert await anchors.read(chain) == Anchor(f"two {moved.index(True)}", 2, 7)
    assert chain in await anchors.chains()


async def test_where_a_chain_was_found_whole_is_noted(anchors: Anchors, chain: str) -> None:
    assert await anchors.storage(chain) == ""
    for name in ("one", "two"):
        await asyncio.gather(*(anchors.found_whole(chain, name) for _ in range(3)))
        assert await anchors.storage(chain) == name


async def test_the_exact_bytes_are_signed_by_the_last_key(signer: Signer) -> None:
    key = Ed25519PublicKey.from_public_bytes((await signer.keys())[-1])
    for text in (b"", "the — text\n".encode(), os.urandom(500)):
        key.verify(await signer.sign(text), text)


FORBIDDEN_TO_AUDIT: list[tuple[str, str, dict[str, Any] | None]] = [
    ("DELETE", "kv/data/audit/{chain}/anchor", None),
    ("POST", "kv/delete/audit/{chain}/anchor", {"versions": [1]}),
    ("POST", "kv/destroy/audit/{chain}/anchor", {"versions": [1]}),
    ("DELETE", "kv/metadata/audit/{chain}/anchor", None),
    ("POST", "kv/metadata/audit/{chain}/anchor", {"cas_required": False}),
    ("POST", "transit-audit/keys/acp/rotate", {}),
    ("POST", "transit-audit/keys/acp/config", {"exportable": True}),
    ("GET", "transit-audit/export/signing-key/acp", None),
    ("GET", "transit-audit/backup/acp", None),
    ("POST", "transit-audit/keys/another", {"type": "ed25519"}),
]


@pytest.mark.parametrize(("method", "path", "body"), FORBIDDEN_TO_AUDIT)
async def test_audit_itself_cannot_take_back_an_anchor_or_take_out_the_key(
    bao: Bao, chain: str, method: str, path: str, body: dict[str, Any] | None
) -> None:
    await BaoAnchors(bao).move(chain, "one", None)
    with pytest.raises(BaoRefused) as refused:
        await bao.request(method, path.format(chain=chain), body)
    assert refused.value.status == FORBIDDEN


# Replicas -------------------------------------------------------------------------------------------------------------


async def test_replicas_under_load_leave_one_line_of_checkpoints(pool: asyncpg.Pool, bao: Bao, chain: str) -> None:
    store, trees = PgStore(pool), PgTrees(pool)
    replica = Checkpoints(NAME, store, trees, BaoAnchors(bao), BaoSigner(bao), SystemClock())
    async with running(GroupWriter(pool, trusting(pool))) as writer:
        for _ in range(6):
            await asyncio.gather(*(writer.append(entry(chain)) for _ in range(37)))
            appends = [writer.append(entry(chain)) for _ in range(10)]
            turns = [replica.turn(chain) for _ in range(4)]
            answers = await asyncio.gather(*appends, *turns, return_exceptions=True)
            assert [answer for answer in answers if isinstance(answer, Exception)] == []
    await replica.turn(chain)
    rows = await pool.fetch("SELECT size, root, note FROM audit.checkpoints WHERE chain = $1 ORDER BY size", chain)
    keys, before = await replica.keys(chain), None
    for row in rows:
        now = open_checkpoint(row["note"], f"{NAME}/{chain}", keys)
        assert (now.size, now.root) == (row["size"], row["root"])
        if before is not None:
            spans = consistency(before.size, now.size)
            hashes = await trees.hashes(chain, [node for span in spans for node in cover(span)])
            verify_consistency(before.size, before.root, now.size, now.root, prove(spans, hashes))
        before = now
    assert before is not None
    assert before == await replica.anchored(chain)
    assert before.size == (await store.head(chain)).seq == 6 * 47


async def test_a_crash_after_each_step_leaves_a_state_from_which_it_goes_on(
    pool: asyncpg.Pool, bao: Bao, chain: str
) -> None:
    @dataclass(frozen=True)
    class Unsigned(BaoSigner):
        async def sign(self, text: bytes) -> bytes:
            raise SigningUnavailable

    @dataclass(frozen=True)
    class Unkept(PgTrees):
        async def keep(self, chain: str, signed: Signed) -> None:
            raise DatastoreUnavailable

    whole = Checkpoints(NAME, PgStore(pool), PgTrees(pool), BaoAnchors(bao), BaoSigner(bao), SystemClock())
    sizes, seen = [3, 6], "SELECT array_agg(size ORDER BY size) FROM audit.checkpoints WHERE chain = $1"
    async with running(GroupWriter(pool, trusting(pool))) as writer:
        await asyncio.gather(*(writer.append(entry(chain)) for _ in range(3)))
        with pytest.raises(SigningUnavailable):
            await replace(whole, signer=Unsigned(bao)).turn(chain)
        assert (await whole.trees.size(chain), await whole.anchored(chain)) == (3, None)
        with pytest.raises(DatastoreUnavailable):
            await replace(whole, trees=Unkept(pool)).turn(chain)
        anchored = await whole.anchored(chain)
        assert (anchored and anchored.size, await pool.fetchval(seen, chain)) == (3, None)
        await asyncio.gather(*(writer.append(entry(chain)) for _ in range(3)))
    await whole.turn(chain)
    assert await pool.fetchval(seen, chain) == sizes
