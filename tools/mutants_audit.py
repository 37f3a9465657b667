"""Mutants of the record that an attack over the wire must find."""

from tools.mutant import THREATS, Mutant

SERVICE, PROOFS, CHECKPOINTS = (f"services/audit/{name}.py" for name in ("service", "proofs", "checkpoints"))
ATTACKS = THREATS + "audit/test_rewrites.py::"
SHORTER = "        if head.seq < anchored.size:\n"
SAME = "            await self._require_same(chain, anchored, run)\n"

AUDIT = (
    Mutant(
        "A-1 the anchor is asked",
        SERVICE,
        "        if run.begin < anchored.size and (doubt",
        "        if False and (doubt",
        ATTACKS + "test_a_chain_that_is_recomputed_with_its_tree_is_found_by_the_anchor",
    ),
    Mutant(
        "A-1 a chain is not shorter than its anchor",
        SERVICE,
        SHORTER,
        SHORTER.replace("head.seq < anchored.size", "False"),
        ATTACKS + "test_a_tail_that_is_cut_off_with_its_head_is_found",
    ),
    Mutant(
        "A-1 a checkpoint goes on from the anchor",
        CHECKPOINTS,
        SAME,
        "",
        ATTACKS + "test_a_chain_that_is_cut_off_and_grown_beyond_its_anchor_is_found",
    ),
    Mutant(
        "A-1 the last leaf is the last entry",
        CHECKPOINTS,
        "        if row is None or leaf_hash(row.entry_hash) != stored[leaf]:\n",
        "        if row is None:\n",
        ATTACKS + "test_a_chain_that_is_recomputed_from_an_entry_on_is_found_there",
    ),
    Mutant(
        "A-1 nothing is shown that does not verify",
        PROOFS,
        "            verify_inclusion(leaf_hash(row.entry_hash), seq - 1, size, hashes, shown.signed.root)\n",
        "            pass\n",
        ATTACKS + "test_a_proof_of_a_rewritten_entry_is_not_given",
    ),
)
