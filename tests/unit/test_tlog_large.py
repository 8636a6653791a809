"""Proofs at every size up to 600 and at sizes up to ten million, against roots computed straight from RFC 6962's
definition. The large trees are sparse: all leaves but a few are alike, so any node is a few hundred hashes away."""

import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimx.tlog import tree
from aimx.tlog.errors import ProofError

SMALL = 600
LARGE = 10_000_000


class Sparse:
    """A tree of which only the leaves in `special` differ from the rest."""

    def __init__(self, special: frozenset[int]) -> None:
        self.special = special
        self.levels = [tree.leaf_hash(b"common")]
        while len(self.levels) < 25:
            self.levels.append(tree.node_hash(self.levels[-1], self.levels[-1]))
        self.node = cache(self._node)

    def leaf(self, index: int) -> bytes:
        return tree.leaf_hash(b"special %d" % index) if index in self.special else self.levels[0]

    def _node(self, level: int, index: int) -> bytes:
        if not any(index << level <= place < (index + 1) << level for place in self.special):
            return self.levels[level]
        if level == 0:
            return self.leaf(index)
        return tree.node_hash(self.node(level - 1, 2 * index), self.node(level - 1, 2 * index + 1))

    def root(self, start: int, end: int) -> bytes:
        """MTH(D[start:end]) word for word (RFC 6962 §2.1), but that alike halves are hashed once."""
        size = end - start
        if size == 0:
            return tree.EMPTY_ROOT
        if size == 1:
            return self.leaf(start)
        if size & (size - 1) == 0 and not any(start <= place < end for place in self.special):
            return self.levels[size.bit_length() - 1]
        split = 1
        while split * 2 < size:
            split *= 2
        return tree.node_hash(self.root(start, start + split), self.root(start + split, end))


@pytest.fixture(scope="module")
def nodes() -> list[list[bytes]]:
    """All complete nodes of a tree of SMALL leaves, by level."""
    levels = [[tree.leaf_hash(str(index).encode()) for index in range(SMALL)]]
    while len(levels[-1]) > 1:
        row = levels[-1]
        levels.append([tree.node_hash(row[i], row[i + 1]) for i in range(0, len(row) - 1, 2)])
    return levels


def test_every_size_up_to_600_proves_its_leaves_and_its_own_past(nodes: list[list[bytes]]) -> None:
    def read(level: int, index: int) -> bytes:
        return nodes[level][index]

    roots = [tree.EMPTY_ROOT]
    frontier = tree.Frontier()
    for leaf in nodes[0]:
        frontier.append(leaf)
        roots.append(frontier.root())
    draw = random.Random(6962)
    for size in range(1, SMALL + 1):
        assert tree.root_at(size, read) == roots[size]
        edges = {0, size - 1, size // 2, (1 << (size.bit_length() - 1)) - 1, 1 << (size - 1).bit_length() >> 1}
        for index in edges | {draw.randrange(size) for _ in range(12)}:
            if index < size:
                proof = tree.inclusion_proof(index, size, read)
                tree.verify_inclusion(index, size, nodes[0][index], proof, roots[size])
        for old in edges | {draw.randrange(size + 1) for _ in range(12)} | {size}:
            if old <= size:
                proof = tree.consistency_proof(old, size, read)
                tree.verify_consistency(old, size, roots[old], roots[size], proof)


sizes = st.integers(1, LARGE)


@settings(max_examples=150, deadline=None)
@given(sizes, st.data())
def test_a_leaf_of_a_large_tree_is_proved_and_a_neighbour_is_not(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    others = data.draw(st.frozensets(st.integers(0, size - 1), max_size=3))
    world = Sparse(others | {index})
    root = world.root(0, size)
    assert tree.root_at(size, world.node) == tree.frontier_at(size, world.node).root() == root
    proof = tree.inclusion_proof(index, size, world.node)
    tree.verify_inclusion(index, size, world.leaf(index), proof, root)
    for wrong in {index ^ 1, index + 1, size - 1} - {index}:
        with pytest.raises(ProofError):
            tree.verify_inclusion(wrong, size, world.leaf(index), proof, root)
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        broken = [*proof[:at], tree.leaf_hash(proof[at]), *proof[at + 1 :]]
        with pytest.raises(ProofError):
            tree.verify_inclusion(index, size, world.leaf(index), broken, root)


@settings(max_examples=150, deadline=None)
@given(sizes, st.data())
def test_a_large_tree_proves_what_it_was_and_nothing_else(new: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, new))
    changed = data.draw(st.integers(0, old - 1))
    was, rewritten = Sparse(frozenset()), Sparse(frozenset({changed}))
    proof = tree.consistency_proof(old, new, was.node)
    tree.verify_consistency(old, new, was.root(0, old), was.root(0, new), proof)
    forged = tree.consistency_proof(old, new, rewritten.node)
    with pytest.raises(ProofError):
        tree.verify_consistency(old, new, was.root(0, old), rewritten.root(0, new), forged)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, LARGE - 300), st.integers(0, 300))
def test_a_frontier_of_any_length_goes_on_as_the_tree_does(size: int, more: int) -> None:
    world = Sparse(frozenset({size, size + more // 2}))
    frontier = tree.Frontier.from_bytes(tree.frontier_at(size, world.node).to_bytes())
    completed = frontier.extend((world.leaf(index) for index in range(size, size + more)), 8)
    assert frontier.root() == world.root(0, size + more)
    assert frontier == tree.frontier_at(size + more, world.node)
    for level, index, node in completed:
        assert node == world.node(level, index)
