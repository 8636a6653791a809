"""The Merkle tree of RFC 6962 §2.1: hashes, the growing right edge, proofs made and proofs checked.

A *node* is addressed as (level, index): level 0 are leaf hashes, node (l, i) covers leaves i·2^l … (i+1)·2^l − 1 and
exists once all of them do. Every proof is a list of such nodes or of foldings of them, so a log only ever has to store
complete nodes, which never change.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from aimx.tlog.errors import FormatError, ProofError

HASH_SIZE = 32
EMPTY_ROOT = sha256(b"").digest()

NodeReader = Callable[[int, int], bytes]
"""`read(level, index)` returns the hash of a complete node of the tree."""


def leaf_hash(data: bytes) -> bytes:
    """The hash of one entry (RFC 6962 §2.1: 0x00 before a leaf, so that no leaf can pose as a node)."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two neighbours (RFC 6962 §2.1: 0x01 before a node)."""
    return sha256(b"\x01" + left + right).digest()


def fold(hashes: Sequence[bytes]) -> bytes:
    """The root of `hashes` taken as the nodes of one level, in order; `EMPTY_ROOT` for none."""
    if not hashes:
        return EMPTY_ROOT
    row = list(hashes)
    while len(row) > 1:
        odd = [row[-1]] if len(row) % 2 else []
        row = [sha256(b"\x01" + row[i] + row[i + 1]).digest() for i in range(0, len(row) - 1, 2)] + odd
    return row[0]


@dataclass(slots=True)
class Frontier:
    """The right edge of a tree: the roots of its complete subtrees, largest first. All that an append or a root needs.

    Its size in bytes grows with the logarithm of the number of leaves, so a log of any length is resumed from a few
    hundred bytes.
    """

    size: int = 0
    peaks: list[bytes] = field(default_factory=list)

    def append(self, leaf: bytes) -> None:
        """Add the hash of one leaf."""
        self.extend((leaf,))

    def extend(self, leaves: Iterable[bytes], stride: int = 64) -> list[tuple[int, int, bytes]]:
        """Add the hashes of leaves, in order.

        Returns the nodes this completed at the levels that are multiples of `stride`, leaves aside: (level, index,
        hash), lower levels first where one leaf completes several. With 8 they are what tiles hold.
        """
        completed: list[tuple[int, int, bytes]] = []
        peaks, size = self.peaks, self.size
        for leaf in leaves:
            node, level = leaf, 0
            while size >> level & 1:
                node = sha256(b"\x01" + peaks.pop() + node).digest()
                level += 1
                if not level % stride:
                    completed.append((level, size >> level, node))
            peaks.append(node)
            size += 1
        self.size = size
        return completed

    def root(self) -> bytes:
        """The root of the whole tree (RFC 6962 MTH)."""
        if not self.peaks:
            return EMPTY_ROOT
        root = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            root = node_hash(peak, root)
        return root

    def copy(self) -> "Frontier":
        return Frontier(self.size, list(self.peaks))

    def to_bytes(self) -> bytes:
        """8 octets of size, big-endian, then the peaks."""
        return self.size.to_bytes(8, "big") + b"".join(self.peaks)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Frontier":
        """Raises FormatError unless there are exactly as many peaks as the size has one-bits."""
        if len(data) < 8:
            raise FormatError("frontier is shorter than its size field")
        size = int.from_bytes(data[:8], "big")
        if len(data) != 8 + HASH_SIZE * size.bit_count():
            raise FormatError("frontier does not hold the peaks its size asks for")
        return cls(size, [data[i : i + HASH_SIZE] for i in range(8, len(data), HASH_SIZE)])


# --- making proofs ---


def range_root(start: int, end: int, read: NodeReader) -> bytes:
    """The root over leaves start … end−1, where `start` is aligned as RFC 6962's splits align it."""
    root: bytes | None = None
    while end > start:
        level = ((end - start) & -(end - start)).bit_length() - 1
        node = read(level, (end >> level) - 1)
        root = node if root is None else node_hash(node, root)
        end -= 1 << level
    return EMPTY_ROOT if root is None else root


def root_at(size: int, read: NodeReader) -> bytes:
    """The root the tree had when it held `size` leaves."""
    return range_root(0, size, read)


def frontier_at(size: int, read: NodeReader) -> Frontier:
    """The frontier the tree had when it held `size` leaves."""
    peaks: list[bytes] = []
    start = 0
    for level in reversed(range(size.bit_length())):
        if size >> level & 1:
            peaks.append(read(level, start >> level))
            start += 1 << level
    return Frontier(size, peaks)


def _split(size: int) -> int:
    """The largest power of two smaller than `size` (RFC 6962 §2.1)."""
    return 1 << (size - 1).bit_length() - 1


def inclusion_proof(index: int, size: int, read: NodeReader) -> list[bytes]:
    """PATH(index, D[size]) of RFC 6962 §2.1.1, from the leaf upwards."""
    if not 0 <= index < size:
        raise ProofError(f"no leaf {index} in a tree of {size}")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(range_root(middle, end, read))
            end = middle
        else:
            path.append(range_root(start, middle, read))
            start = middle
    path.reverse()
    return path


def consistency_proof(old: int, new: int, read: NodeReader) -> list[bytes]:
    """PROOF(old, D[new]) of RFC 6962 §2.1.2; empty when nothing has to be shown (old is 0 or equals new)."""
    if not 0 <= old <= new:
        raise ProofError(f"a tree of {new} has no earlier tree of {old}")
    if old in (0, new):
        return []
    proof: list[bytes] = []
    start, end = 0, new
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            proof.append(range_root(middle, end, read))
            end = middle
        else:
            proof.append(range_root(start, middle, read))
            start = middle
    if start:  # the old tree is not a whole left subtree, so its last part has to be named too
        proof.append(range_root(start, end, read))
    proof.reverse()
    return proof


# --- checking proofs ---


def root_from_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """The root that `proof` leads to from the hash of leaf `index`. Raises ProofError when the form cannot be right."""
    if not 0 <= index < size:
        raise ProofError(f"no leaf {index} in a tree of {size}")
    _need_hashes(proof)
    inner = (index ^ (size - 1)).bit_length()
    if len(proof) != inner + (index >> inner).bit_count():
        raise ProofError(f"an inclusion proof of leaf {index} in {size} cannot have {len(proof)} hashes")
    return _climb(leaf, index, inner, proof)


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Raises ProofError unless the leaf hash stands at `index` in the tree of `size` leaves with `root`."""
    if root_from_inclusion(index, size, leaf, proof) != root:
        raise ProofError(f"leaf {index} is not in the tree of {size} leaves with this root")


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Raises ProofError unless the tree (new, new_root) begins with the tree (old, old_root)."""
    if not 0 <= old <= new:
        raise ProofError(f"a tree of {new} cannot continue one of {old}")
    _need_hashes(proof)
    if old in (0, new):
        if proof:
            raise ProofError("nothing has to be proved here, yet the proof is not empty")
        if old == 0 and old_root != EMPTY_ROOT:
            raise ProofError("the root of an empty tree is fixed and is another")
        if old == new and old_root != new_root:
            raise ProofError(f"two different roots for {new} leaves")
        return
    if not proof:
        raise ProofError("the consistency proof is empty")
    # The last leaf of the old tree is climbed from, after skipping the levels at which the old tree is complete.
    last = old - 1
    inner = (last ^ (new - 1)).bit_length()
    shift = (old & -old).bit_length() - 1
    inner -= shift
    if old == 1 << shift:
        seed, rest = old_root, proof
    else:
        seed, rest = proof[0], proof[1:]
    last >>= shift
    if len(rest) != inner + (last >> inner).bit_count():
        raise ProofError(f"a consistency proof from {old} to {new} cannot have {len(proof)} hashes")
    was = seed
    for level, sibling in enumerate(rest):
        if level >= inner or last >> level & 1:
            was = node_hash(sibling, was)
    if was != old_root:
        raise ProofError(f"the tree of {new} leaves does not begin with the tree of {old}")
    if _climb(seed, last, inner, rest) != new_root:
        raise ProofError(f"the proof does not lead to the root of the tree of {new} leaves")


def _climb(node: bytes, index: int, inner: int, proof: Sequence[bytes]) -> bytes:
    """Inside the last complete subtree siblings stand where the index's bits say; on the border always on the left."""
    for level, sibling in enumerate(proof):
        left = level >= inner or index >> level & 1
        node = node_hash(sibling, node) if left else node_hash(node, sibling)
    return node


def _need_hashes(proof: Sequence[bytes]) -> None:
    if any(len(part) != HASH_SIZE for part in proof):
        raise ProofError("a proof consists of hashes of 32 octets")
