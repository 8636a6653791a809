"""The tree: RFC 6962's own roots, every proof for small trees, and no false proof accepted."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimx.tlog import tile, tree
from aimx.tlog.errors import FormatError, ProofError

# The reference leaves and roots that RFC 6962 implementations share (transparency-dev/merkle, testonly/constants.go).
LEAVES = [
    bytes.fromhex(x)
    for x in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
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
MANY = [tree.leaf_hash(str(i).encode()) for i in range(600)]


def reader(leaves: list[bytes]) -> tree.NodeReader:
    return lambda level, index: tree.fold(leaves[index << level : (index + 1) << level])


@pytest.fixture(scope="module")
def roots() -> list[bytes]:
    frontier = tree.Frontier()
    out = [frontier.root()]
    for leaf in MANY:
        frontier.append(leaf)
        out.append(frontier.root())
    return out


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_every_rfc_6962_log_computes(size: int) -> None:
    hashes = [tree.leaf_hash(leaf) for leaf in LEAVES[:size]]
    frontier = tree.Frontier()
    frontier.extend(hashes)
    assert frontier.root().hex() == ROOTS[size]
    assert tree.fold(hashes).hex() == ROOTS[size]
    assert tree.root_at(size, reader(hashes)).hex() == ROOTS[size]


def test_every_leaf_of_every_small_tree_has_a_proof_that_holds(roots: list[bytes]) -> None:
    read = reader(MANY)
    for size in (*range(1, 40), 255, 256, 257, 599, 600):
        for index in range(0, size, 1 + size // 40):
            proof = tree.inclusion_proof(index, size, read)
            tree.verify_inclusion(index, size, MANY[index], proof, roots[size])


def test_every_pair_of_small_trees_has_a_consistency_proof_that_holds(roots: list[bytes]) -> None:
    read = reader(MANY)
    pairs = [(old, new) for new in range(34) for old in range(new + 1)]
    for old, new in [*pairs, *pairwise((1, 2, 255, 256, 257, 300, 512, 513, 600))]:
        tree.verify_consistency(old, new, roots[old], roots[new], tree.consistency_proof(old, new, read))


@given(st.integers(1, 600), st.data())
def test_a_proof_with_anything_changed_is_refused(size: int, data: st.DataObject) -> None:
    read = reader(MANY)
    root = tree.root_at(size, read)
    index = data.draw(st.integers(0, size - 1))
    proof = tree.inclusion_proof(index, size, read)
    wrong = data.draw(st.sampled_from(("leaf", "index", "root", "longer", "shorter", "hash")))
    leaf = MANY[index]
    match wrong:
        case "leaf":
            leaf = tree.leaf_hash(b"another")
        case "index":
            index = data.draw(st.integers(0, size).filter(lambda other: other != index))
        case "root":
            root = tree.leaf_hash(root)
        case "longer":
            proof = [*proof, root]
        case "shorter" | "hash" if not proof:
            leaf = root[::-1]
        case "shorter":
            proof = proof[:-1]
        case "hash":
            at = data.draw(st.integers(0, len(proof) - 1))
            proof[at] = tree.leaf_hash(proof[at])
    with pytest.raises(ProofError):
        tree.verify_inclusion(index, size, leaf, proof, root)


@given(st.integers(1, 600), st.data())
def test_a_rewritten_history_has_no_consistency_proof(new: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, new))
    changed = data.draw(st.integers(0, old - 1))
    other = [*MANY]
    other[changed] = tree.leaf_hash(b"rewritten")
    remembered = tree.root_at(old, reader(MANY))
    for history in (MANY, other):
        proof = tree.consistency_proof(old, new, reader(history))
        with pytest.raises(ProofError):
            tree.verify_consistency(old, new, remembered, tree.root_at(new, reader(other)), proof)


@given(st.integers(0, 600))
def test_a_log_resumes_from_its_stored_frontier(size: int) -> None:
    frontier = tree.Frontier()
    frontier.extend(MANY[:size])
    again = tree.Frontier.from_bytes(frontier.to_bytes())
    assert again == frontier == tree.frontier_at(size, reader(MANY))
    frontier.append(MANY[0])
    assert again.size == size, "a frontier read back shares nothing with the one it came from"
    with pytest.raises(FormatError):
        tree.Frontier.from_bytes(frontier.to_bytes()[:-1])


def test_nodes_are_found_in_tiles() -> None:
    size = 600

    def read(level: int, index: int) -> list[bytes]:
        nodes = MANY if level == 0 else [tree.fold(MANY[i << 8 : (i + 1) << 8]) for i in range(size >> 8)]
        return nodes[index * 256 : (index + 1) * 256]

    node, direct = tile.node_reader(read), reader(MANY)
    for level in range(10):
        for index in range(0, size >> level, 7):
            assert node(level, index) == direct(level, index)
    assert tree.root_at(size, node) == tree.root_at(size, direct)
