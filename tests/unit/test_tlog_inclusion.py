"""A leaf is looked for in a log's public files; neither a yes nor a no is taken on trust."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimx.tlog import checkpoint, note, tile, tree
from aimx.tlog.checkpoint import Checkpoint
from aimx.tlog.errors import FormatError, ProofError
from aimx.tlog.inclusion import find

LOG = note.Signer("log.example/audit", b"\x01" * 32)
LEAVES = [tree.leaf_hash(str(i).encode()) for i in range(600)]


def files(size: int) -> dict[str, bytes]:
    """Everything a log of `size` leaves serves but its entries."""
    nodes = {0: LEAVES[:size]}
    while len(nodes[max(nodes)]) >= 256:
        row = nodes[max(nodes)]
        nodes[max(nodes) + 1] = [tree.fold(row[at : at + 256]) for at in range(0, len(row) - 255, 256)]
    served = {
        one.path(): b"".join(nodes[one.level][one.index * 256 : one.index * 256 + one.width])
        for one in tile.tiles(size)
        if one.level is not None
    }
    root = tree.fold(LEAVES[:size])
    served["checkpoint"] = str(checkpoint.sign(Checkpoint("log.example/audit", size, root), [LOG])).encode()
    return served


async def look(served: dict[str, bytes], leaf: bytes) -> int | None:
    async def fetch(path: str) -> bytes:
        return served[path]

    return (await find(fetch, leaf, [LOG.verifier])).place


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 600])
async def test_a_leaf_is_found_where_it_is_and_its_absence_is_proved(size: int) -> None:
    served = files(size)
    for index in {0, size // 2, size - 1} - {-1}:
        if index < size:
            assert await look(served, LEAVES[index]) == index
    assert await look(served, tree.leaf_hash(b"another")) is None


@settings(max_examples=40, deadline=None)
@given(st.data())
async def test_files_that_were_changed_prove_nothing(data: st.DataObject) -> None:
    served = files(600)
    path = data.draw(st.sampled_from(sorted(served)))
    at = data.draw(st.integers(0, len(served[path]) - 1))
    served[path] = served[path][:at] + bytes([served[path][at] ^ 1]) + served[path][at + 1 :]
    for leaf in (tree.leaf_hash(b"another"), LEAVES[3], LEAVES[599]):
        try:
            found = await look(served, leaf)
        except (FormatError, ProofError):
            continue
        # What was changed was not needed for this answer, and the answer is the true one.
        assert found == (LEAVES.index(leaf) if leaf in LEAVES else None)


async def test_a_leaf_that_is_held_back_is_no_proof_of_its_absence() -> None:
    served = files(600)
    served["tile/0/001"] = served["tile/0/001"].replace(LEAVES[300], LEAVES[301])
    with pytest.raises(ProofError, match="add up"):
        await look(served, LEAVES[300])
    served["tile/0/002.p/88"] = served["tile/0/002.p/88"][:-32]
    with pytest.raises(ProofError, match="fewer"):
        await look(served, LEAVES[300])
