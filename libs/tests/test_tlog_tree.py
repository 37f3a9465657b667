"""The Merkle tree against RFC 6962's words, its reference roots, and an implementation that is not ours."""

import hashlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymerkle import InclusionProof, InmemoryTree, InvalidProof

from libs.tlog.tree import EMPTY, Node, Run, Span, consistency, cover, inclusion, leaf_hash, node_hash, prove
from libs.tlog.verify import NotProven, verify_consistency, verify_inclusion

pytestmark = pytest.mark.unit

# Leaves and roots of the reference implementation of RFC 6962 (google/certificate-transparency, merkle_tree_test).
LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
SIZES = st.integers(1, 300)


def entries(count: int) -> list[bytes]:
    return [hashlib.sha256(str(number).encode()).digest() for number in range(count)]


def grown(leaves: list[bytes]) -> tuple[Run, dict[Node, bytes]]:
    run, stored = Run(), dict[Node, bytes]()
    for leaf in leaves:
        stored |= dict(run.push(leaf))
    return run, stored


def by_definition(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962 2.1, as it is written there."""
    if not leaves:
        return EMPTY
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return hashlib.sha256(b"\x01" + by_definition(leaves[:half]) + by_definition(leaves[half:])).digest()


def subproof(old: int, leaves: list[bytes], *, whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 6962 2.1.2, as it is written there."""
    if old == len(leaves):
        return [] if whole else [by_definition(leaves)]
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    left, right = leaves[:half], leaves[half:]
    if old <= half:
        return [*subproof(old, left, whole=whole), by_definition(right)]
    return [*subproof(old - half, right, whole=False), by_definition(left)]


@pytest.mark.parametrize("size", range(9))
def test_the_roots_are_those_of_the_reference(size: int) -> None:
    assert grown(LEAVES[:size])[0].root().hex() == ROOTS[size]


def test_the_proofs_are_those_of_the_examples() -> None:
    # RFC 6962 2.1.3, a tree of seven: a to f and j are leaves, g to k the pairs above, l the right of the root.
    ab, cd, ef, j = Span(0, 2), Span(2, 4), Span(4, 6), Span(6, 7)
    a_to_d, e_to_j = Span(0, 4), Span(4, 7)
    assert inclusion(0, 7) == [Span(1, 2), cd, e_to_j]
    assert inclusion(3, 7) == [Span(2, 3), ab, e_to_j]
    assert inclusion(4, 7) == [Span(5, 6), j, a_to_d]
    assert inclusion(6, 7) == [ef, a_to_d]
    assert consistency(3, 7) == [Span(2, 3), Span(3, 4), ab, e_to_j]
    assert consistency(4, 7) == [e_to_j]
    assert consistency(6, 7) == [ef, j, a_to_d]
    assert consistency(7, 7) == []


@given(st.integers(0, 300))
def test_roots_are_as_defined_and_cost_two_hashes_an_entry_at_most(size: int) -> None:
    leaves = entries(size)
    run, stored = grown(leaves)
    assert run.root() == by_definition(leaves)
    assert len(stored) <= 2 * size
    assert len(run.parts) <= max(1, size.bit_length())


@given(SIZES, st.data())
def test_a_tree_goes_on_from_its_stored_hashes(size: int, data: st.DataObject) -> None:
    leaves = entries(size)
    whole, stored = grown(leaves)
    old = data.draw(st.integers(0, size))
    run = Run()
    run.extend(Span(0, old), stored)
    for leaf in leaves[old:]:
        for node, value in run.push(leaf):
            assert stored[node] == value
    assert run.root() == whole.root()


@given(SIZES, st.lists(st.integers(0, 300), max_size=4))
def test_entries_that_are_pushed_together_are_those_that_are_pushed_one_by_one(begin: int, cuts: list[int]) -> None:
    leaves, one, many = entries(300), Run(begin), Run(begin)
    for leaf in leaves:
        one.push(leaf)
    for first, last in itertools.pairwise([0, *sorted(cuts), 300]):
        many.push_all(leaves[first:last])
    assert (many.end, many.parts) == (one.end, one.parts)


@given(SIZES, st.data())
def test_a_segment_between_stored_hashes_gives_the_root(size: int, data: st.DataObject) -> None:
    leaves = entries(size)
    whole, stored = grown(leaves)
    first = data.draw(st.integers(0, size - 1))
    last = data.draw(st.integers(first + 1, size))
    changed = data.draw(st.none() | st.integers(first, last - 1))
    middle = Run(first)
    for index in range(first, last):
        middle.push(b"changed" if index == changed else leaves[index])
    run = Run()
    run.extend(Span(0, first), stored)
    for node, value in middle.parts:
        run.add(node, value)
    run.extend(Span(last, size), stored)
    assert (run.root() == whole.root()) is (changed is None)


@given(st.integers(0, 2**62), st.integers(0, 2**62))
def test_a_span_is_held_by_few_subtrees_that_touch(begin: int, length: int) -> None:
    at = begin
    nodes = list(cover(Span(begin, begin + length)))
    for node in nodes:
        assert node.position << node.level == at
        at += 1 << node.level
    assert at == begin + length
    assert len(nodes) <= 2 * 63


@given(st.integers(1, 2**62), st.data())
def test_proofs_read_few_hashes_of_any_tree(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    for spans in (inclusion(index, size), consistency(index + 1, size)):
        assert sum(len(list(cover(span))) for span in spans) <= 2 * size.bit_length() + 1


def theirs(leaves: list[bytes]) -> Any:
    tree = InmemoryTree(algorithm="sha256")
    for leaf in leaves:
        tree.append_entry(leaf)
    return tree


@given(SIZES, st.data())
def test_inclusion_is_proved_as_others_do(size: int, data: st.DataObject) -> None:
    leaves = entries(size)
    run, stored = grown(leaves)
    tree = theirs(leaves)
    assert tree.get_root() == run.root()
    index = data.draw(st.integers(0, size - 1))
    proof = prove(inclusion(index, size), stored)
    verify_inclusion(leaf_hash(leaves[index]), index, size, proof, run.root())
    other = tree.prove_inclusion(index + 1, size)
    assert other.path == [leaf_hash(leaves[index]), *proof]
    # Their verifier over our hashes, and ours over theirs.
    ours = InclusionProof("sha256", True, size, index + 1, other.rule, [leaf_hash(leaves[index]), *proof])
    ours.verify(leaf_hash(leaves[index]), run.root(), index=index + 1, size=size)
    verify_inclusion(other.path[0], index, size, other.path[1:], tree.get_root())


@given(SIZES, st.data())
def test_consistency_is_proved_as_others_do(size: int, data: st.DataObject) -> None:
    leaves = entries(size)
    run, stored = grown(leaves)
    old = data.draw(st.integers(1, size))
    old_root = grown(leaves[:old])[0].root()
    proof = prove(consistency(old, size), stored)
    assert proof == subproof(old, leaves, whole=True)
    # Their proofs have another form than RFC 6962's; the trees of which both speak are the same.
    tree = theirs(leaves)
    verify_consistency(old, tree.get_root(old), size, tree.get_root(), proof)
    other = tree.prove_consistency(old, size)
    other.verify(old_root, run.root(), prior_size=old, later_size=size)
    forked = grown([*leaves[: old - 1], b"forked"])[0].root()
    for verify in (
        lambda: verify_consistency(old, forked, size, run.root(), proof),
        lambda: other.verify(forked, run.root(), prior_size=old, later_size=size),
    ):
        with pytest.raises((NotProven, InvalidProof)):
            verify()


Alter = Callable[[list[bytes]], list[bytes]]
ALTERED: dict[str, Alter] = {
    "one more": lambda proof: [*proof, bytes(32)],
    "one more in front": lambda proof: [bytes(32), *proof],
    "one less": lambda proof: proof[:-1],
    "none": lambda _: [],
    "first one less": lambda proof: proof[1:],
    "other order": lambda proof: proof[::-1],
    "another hash": lambda proof: [bytes(32), *proof[1:]],
    "a short hash": lambda proof: [proof[0][:-1], *proof[1:]],
    "a long hash": lambda proof: [*proof[:-1], proof[-1] + b"\0"],
}


@pytest.mark.parametrize("name", ALTERED)
@pytest.mark.parametrize(("index", "size"), [(0, 7), (5, 11), (10, 11), (63, 100)])
def test_an_altered_proof_proves_nothing(name: str, index: int, size: int) -> None:
    leaves = entries(size)
    run, stored = grown(leaves)
    proof = prove(inclusion(index, size), stored)
    with pytest.raises(NotProven):
        verify_inclusion(leaf_hash(leaves[index]), index, size, ALTERED[name](proof), run.root())
    old = index + 1 if index + 1 < size else size - 1
    old_root = grown(leaves[:old])[0].root()
    path = prove(consistency(old, size), stored)
    if len(path) == 1 and name == "other order":
        return
    with pytest.raises(NotProven):
        verify_consistency(old, old_root, size, run.root(), ALTERED[name](path))


@given(st.integers(2, 100), st.data())
def test_a_proof_holds_for_its_own_leaf_index_size_and_root_only(size: int, data: st.DataObject) -> None:
    leaves = entries(size)
    run, stored = grown(leaves)
    index = data.draw(st.integers(0, size - 1))
    proof, leaf = prove(inclusion(index, size), stored), leaf_hash(leaves[index])
    other = data.draw(st.integers(0, size - 1).filter(lambda one: one != index))
    for claim in (
        (leaf_hash(leaves[other]), index, size, proof, run.root()),
        (leaf, other, size, proof, run.root()),
        (leaf, size, size, proof, run.root()),
        (leaf, -1, size, proof, run.root()),
        (leaf, index, size, proof, bytes(32)),
        (node_hash(leaf, leaf), index, size, proof, run.root()),
    ):
        with pytest.raises(NotProven):
            verify_inclusion(*claim)


def test_a_proof_holds_for_one_size_only() -> None:
    # The root is right each time: only the length of the proof says that the size is not.
    run, stored = grown(entries(4))
    leaf, proof = stored[Node(0, 0)], prove(inclusion(0, 4), stored)
    for size, why in ((2, "too long"), (8, "too short")):
        with pytest.raises(NotProven, match=why):
            verify_inclusion(leaf, 0, size, proof, run.root())
    old_root, path = grown(entries(2))[0].root(), prove(consistency(2, 4), stored)
    verify_consistency(2, old_root, 4, run.root(), path)
    with pytest.raises(NotProven, match="too short"):
        verify_consistency(2, old_root, 8, run.root(), path)
    with pytest.raises(NotProven, match="too long"):
        verify_consistency(2, old_root, 3, run.root(), [*path, path[0]])


def test_no_byte_moves_from_one_hash_to_the_next() -> None:
    run, stored = grown(entries(4))
    first, second, third = prove(consistency(3, 4), stored)
    moved = [first + second[:1], second[1:], third]
    with pytest.raises(NotProven, match="wrong length"):
        verify_consistency(3, grown(entries(3))[0].root(), 4, run.root(), moved)


@pytest.mark.parametrize(("old", "new"), [(0, 0), (0, 4), (5, 4), (-1, 4)])
def test_there_is_nothing_to_prove_of_trees_that_are_none(old: int, new: int) -> None:
    with pytest.raises(NotProven):
        verify_consistency(old, EMPTY, new, EMPTY, [])
    with pytest.raises(ValueError, match="no such"):
        consistency(old, new)


def test_two_trees_of_one_size_are_one_tree() -> None:
    root = grown(entries(5))[0].root()
    verify_consistency(5, root, 5, root, [])
    for proof, new_root in (([], bytes(32)), ([bytes(32)], root)):
        with pytest.raises(NotProven):
            verify_consistency(5, root, 5, new_root, proof)


def test_a_run_takes_only_what_follows() -> None:
    run = Run(3)
    with pytest.raises(ValueError, match="does not follow"):
        run.add(Node(0, 5), bytes(32))
    with pytest.raises(ValueError, match="from within"):
        run.root()
    with pytest.raises(ValueError, match="no such leaf"):
        inclusion(3, 3)
