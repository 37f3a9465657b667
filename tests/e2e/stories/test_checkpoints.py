"""An auditor keeps a checkpoint, and proves with it what is and was in the chain without believing the service."""

import base64
from typing import Any

import metamorphic_log as foreign
import pytest
from pymerkle import InmemoryTree

from devstack.layout import State
from devstack.rotate import rotate
from libs.tlog.checkpoint import Checkpoint, open_checkpoint
from libs.tlog.note import parse_key
from libs.tlog.proof import parse_proof
from libs.tlog.tree import leaf_hash
from libs.tlog.verify import NotProven, verify_consistency
from tests.e2e.conftest import Scene
from tests.e2e.ledger import LOG, Ledger
from tests.e2e.outside import JSON, entry_hash
from tests.e2e.stories.main_job import action

pytestmark = pytest.mark.e2e


async def opened(ledger: Ledger, shown: JSON) -> Checkpoint:
    """Believe a checkpoint by OpenBao's public key, not by the one that is shown with it."""
    key = await ledger.key()
    assert parse_key(shown["key"]) == key
    checkpoint = open_checkpoint(shown["note"], f"{LOG}/{ledger.chain}", [key])
    assert (checkpoint.size, checkpoint.root.hex()) == (shown["size"], shown["root"])
    return checkpoint


async def test_an_auditor_proves_entries_and_that_nothing_was_taken_back(ledger: Ledger) -> None:
    await ledger.fill(5)
    await ledger.checkpointed()
    older = await opened(ledger, (await ledger.ask("checkpoint")).json)
    await ledger.fill(8)
    await ledger.checkpointed()
    newer = await opened(ledger, (await ledger.ask("checkpoint")).json)
    assert 5 < older.size < newer.size

    key = await ledger.key()
    for seq in (1, older.size, newer.size):
        shown = (await ledger.ask(f"entries/{seq}")).json["proof"]
        own = bytes.fromhex(entry_hash(shown["prev_hash"], base64.b64decode(shown["canonical_bytes"])))
        proof = (await ledger.ask(f"proof?seq={seq}&size={newer.size}")).json
        assert bytes.fromhex(proof["entry_hash"]) == own
        file = parse_proof(proof["tlog_proof"])
        assert file.verify(own, key.name, [key]) == newer == await opened(ledger, proof["checkpoint"])
        assert file.index == seq - 1
        assert [value.hex() for value in file.hashes] == proof["hashes"]
        with pytest.raises(NotProven):
            file.verify(leaf_hash(own), key.name, [key])
        # So does a verifier that is not ours.
        foreign.checkpoint_verify_inclusion(file.note, [str(key)], seq - 1, leaf_hash(own), list(file.hashes))

    # Another one comes to the same root from the entries themselves.
    tree: Any = InmemoryTree(algorithm="sha256")
    for row in reversed((await ledger.ask("entries?limit=200")).json["items"]):
        tree.append_entry(bytes.fromhex(row["entry_hash"]))
    assert [tree.get_root(one.size) for one in (older, newer)] == [older.root, newer.root]

    answer = (await ledger.ask(f"consistency?from={older.size}&to={newer.size}")).json
    hashes = [bytes.fromhex(value) for value in answer["hashes"]]
    verify_consistency(older.size, older.root, newer.size, newer.root, hashes)
    assert [await opened(ledger, answer[which]) for which in ("older", "newer")] == [older, newer]
    foreign.checkpoint_verify_consistency(answer["older"]["note"], answer["newer"]["note"], [str(key)], hashes)


async def test_checkpoints_of_a_key_and_of_the_next_one_are_of_one_log(ledger: Ledger) -> None:
    await ledger.fill(3)
    await ledger.checkpointed()
    first, older = await ledger.key(), await opened(ledger, (await ledger.ask("checkpoint")).json)
    await rotate(State(ledger.world.state), "checkpoint-key")
    await ledger.fill(3)
    await ledger.checkpointed()
    newer = await opened(ledger, (await ledger.ask("checkpoint")).json)
    assert await ledger.key() != first
    answer = (await ledger.ask(f"consistency?from={older.size}&to={newer.size}")).json
    hashes = [bytes.fromhex(value) for value in answer["hashes"]]
    verify_consistency(older.size, older.root, newer.size, newer.root, hashes)
    assert open_checkpoint(answer["older"]["note"], first.name, [first]) == older
    assert (await ledger.verify())["ok"]


async def test_each_read_is_a_row_and_what_is_not_there_is_said(ledger: Ledger) -> None:
    assert str(await ledger.ask("proof?seq=1&size=999")) == "404 checkpoint_not_found"
    await ledger.fill(1)
    size = await ledger.checkpointed()
    before = await ledger.head()
    for what in ("checkpoint", f"proof?seq=1&size={size}", f"consistency?from={size}&to={size}"):
        assert (await ledger.ask(what)).status == 200
    rows = (await ledger.ask("entries?limit=3")).json["items"]
    assert [row["seq"] for row in rows] == [before + 3, before + 2, before + 1]
    assert [action(row) for row in rows] == ["audit.prove-consistency", "audit.prove", "audit.checkpoint"]
    assert str(await ledger.ask(f"proof?seq={size + 1}&size={size}")) == "404 not_found"
    assert str(await ledger.ask(f"consistency?from={size}&to={size + 1000}")) == "404 checkpoint_not_found"
    assert str(await ledger.ask("proof?seq=0&size=1")) == "400 invalid_query_parameter"


async def test_the_platforms_chain_has_checkpoints_of_its_own(ledger: Ledger) -> None:
    await ledger.fill(1)
    await ledger.checkpointed()
    shown = (await ledger.auditor.call("GET", "/v1/platform/audit/checkpoint")).json
    key = parse_key(shown["key"])
    assert key.name == f"{LOG}/platform"
    assert key.public_key == (await ledger.key()).public_key
    size = open_checkpoint(shown["note"], key.name, [key]).size
    proof = (await ledger.auditor.call("GET", f"/v1/platform/audit/proof?seq=1&size={size}")).json
    own = bytes.fromhex(proof["entry_hash"])
    assert parse_proof(proof["tlog_proof"]).verify(own, key.name, [key]).size == size
    same = await ledger.auditor.call("GET", f"/v1/platform/audit/consistency?from={size}&to={size}")
    assert same.json["hashes"] == []
    # A checkpoint of one chain is none of another.
    with pytest.raises(NotProven):
        open_checkpoint(shown["note"], f"{LOG}/{ledger.chain}", [await ledger.key()])


async def test_who_is_no_auditor_gets_neither(ledger: Ledger, scene: Scene) -> None:
    node = scene.edge.as_bearer(scene.story.node_a.bearer)
    for what in ("checkpoint", "proof?seq=1&size=1", "consistency?from=1&to=1"):
        assert (await scene.edge.call("GET", f"{ledger.path}/{what}")).status == 401
        assert (await node.call("GET", f"{ledger.path}/{what}")).status == 401
