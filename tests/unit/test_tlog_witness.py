"""What a witness cosigns and what it refuses, and in which words (https://c2sp.org/tlog-witness)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimx.tlog import checkpoint, note, tree, witness
from aimx.tlog.checkpoint import Checkpoint
from aimx.tlog.errors import FormatError, ProofError
from aimx.tlog.witness import Conflict, Inconsistent, Latest, Malformed, Request, Sound, UnknownLog, Unsigned

LOG = note.Signer("log.example/audit", b"\x01" * 32)
OTHER_KEY = note.Signer("log.example/audit", b"\x07" * 32)
WITNESS = note.Signer("witness.example/w1", b"\x02" * 32, note.COSIGNATURE_V1)
KEYS = [LOG.verifier]
LEAVES = [tree.leaf_hash(str(i).encode()) for i in range(40)]
REWRITTEN = [*LEAVES[:3], tree.leaf_hash(b"rewritten"), *LEAVES[4:]]


def reader(leaves: list[bytes]) -> tree.NodeReader:
    return lambda level, index: tree.fold(leaves[index << level : (index + 1) << level])


def root(size: int, leaves: list[bytes] = LEAVES) -> bytes:
    return tree.fold(leaves[:size])


def request(old: int, size: int, leaves: list[bytes] = LEAVES, signer: note.Signer = LOG) -> Request:
    signed = checkpoint.sign(Checkpoint("log.example/audit", size, root(size, leaves)), [signer])
    return Request(old, tuple(tree.consistency_proof(old, size, reader(leaves))), str(signed))


def known(size: int) -> Latest:
    return Latest(size, root(size))


@given(st.integers(0, 40), st.integers(0, 40))
def test_a_continuation_is_cosigned_and_its_log_takes_the_cosignature(old: int, new: int) -> None:
    old, new = min(old, new), max(old, new)
    asked = witness.parse(request(old, new).body())
    verdict = witness.judge(asked, KEYS, known(old))
    assert isinstance(verdict, Sound)
    line = witness.cosign(verdict, WITNESS, 1_780_000_000).line()
    held = witness.accept(line, verdict.note.text, WITNESS.verifier)
    assert held.time == 1_780_000_000
    both = note.Note(verdict.note.text, (*verdict.signatures, held.signature))
    opened = checkpoint.open_signed(str(both), LOG.verifier, [WITNESS.verifier])
    assert len(opened.signatures) == 2


def test_a_rewritten_history_is_refused_and_so_is_another_tree_of_the_same_size() -> None:
    assert isinstance(witness.judge(request(5, 9, REWRITTEN), KEYS, known(5)), Inconsistent)
    assert isinstance(witness.judge(request(9, 9, REWRITTEN), KEYS, known(9)), Inconsistent)


def test_a_log_cut_short_is_refused_whatever_it_says_it_was() -> None:
    assert witness.judge(request(3, 3), KEYS, known(9)) == Conflict(9)
    assert isinstance(witness.judge(request(3, 9)._replace(old=12), KEYS, known(12)), Malformed)


def test_a_stale_client_is_told_from_where_to_prove() -> None:
    assert witness.judge(request(0, 20), KEYS, known(9)) == Conflict(9)
    assert isinstance(witness.judge(request(9, 20), KEYS, known(9)), Sound)


def test_only_the_logs_own_signature_counts() -> None:
    assert isinstance(witness.judge(request(0, 3), [], witness.UNKNOWN), UnknownLog)
    assert isinstance(witness.judge(request(0, 3, signer=OTHER_KEY), KEYS, witness.UNKNOWN), Unsigned)
    forged = request(0, 3)._replace(note=request(0, 4).note.replace("\n4\n", "\n3\n"))
    assert isinstance(witness.judge(forged, KEYS, witness.UNKNOWN), Unsigned)
    assert isinstance(
        witness.judge(request(0, 3, signer=OTHER_KEY), [*KEYS, OTHER_KEY.verifier], witness.UNKNOWN), Sound
    )


def test_the_empty_tree_has_one_root_and_needs_no_proof() -> None:
    assert isinstance(witness.judge(request(0, 0), KEYS, witness.UNKNOWN), Sound)
    signed = checkpoint.sign(Checkpoint("log.example/audit", 0, LEAVES[0]), [LOG])
    assert isinstance(witness.judge(Request(0, (), str(signed)), KEYS, witness.UNKNOWN), Inconsistent)
    assert isinstance(witness.judge(request(0, 5)._replace(proof=(LEAVES[0],)), KEYS, witness.UNKNOWN), Inconsistent)


@given(st.integers(1, 40), st.data())
def test_a_proof_with_anything_changed_is_never_cosigned(new: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, new))
    good = request(old, new)
    proof = list(good.proof)
    match data.draw(st.sampled_from(("longer", "shorter", "hash"))):
        case "shorter" if proof:
            proof.pop(data.draw(st.integers(0, len(proof) - 1)))
        case "hash" if proof:
            at = data.draw(st.integers(0, len(proof) - 1))
            proof[at] = tree.leaf_hash(proof[at])
        case _:
            proof.insert(data.draw(st.integers(0, len(proof))), LEAVES[-1])
    assert isinstance(witness.judge(good._replace(proof=tuple(proof)), KEYS, known(old)), Inconsistent)


@given(st.data())
def test_no_changed_octet_of_a_request_is_cosigned_as_something_else(data: st.DataObject) -> None:
    good = request(5, 9).body()
    at = data.draw(st.integers(0, len(good) - 1))
    octet = data.draw(st.integers(0, 255).filter(lambda value: value != good[at]))
    try:
        asked = witness.parse(good[:at] + bytes([octet]) + good[at + 1 :])
    except FormatError:
        return
    assert not isinstance(witness.judge(asked, KEYS, known(5)), Sound)


@given(st.binary(max_size=200))
def test_garbage_is_malformed(data: bytes) -> None:
    with pytest.raises(FormatError):
        witness.parse(data)


@pytest.mark.parametrize(
    "body",
    [
        b"old 01\n\nx",
        b"old -1\n\nx",
        b"old\n\nx",
        b"new 1\n\nx",
        b"old 1\nAAAA\n\nx",
        b"old 1\n" + b"A" * 43 + b"=\n" * 64,
        b"old 1\n" + (b"A" * 43 + b"=\n") * 64 + b"\nx",
        b"old 1\n" + b"x" * witness.MAX_REQUEST,
    ],
)
def test_a_malformed_request_is_refused(body: bytes) -> None:
    with pytest.raises(FormatError):
        witness.parse(body)


def test_an_answer_of_somebody_else_is_no_cosignature() -> None:
    asked = request(0, 3)
    text = note.parse(asked.note).text
    other = note.Signer("witness.example/w2", b"\x08" * 32, note.COSIGNATURE_V1)
    stranger = other.sign(text.encode(), 5).line()
    ours = WITNESS.sign(text.encode(), 6).line()
    assert witness.accept(stranger + ours, text, WITNESS.verifier).time == 6
    for answer in (stranger, WITNESS.sign(b"another\n", 6).line(), WITNESS.sign(text.encode(), 0).line()):
        with pytest.raises(ProofError):
            witness.accept(answer, text, WITNESS.verifier)
    for garbage in ("", "hello", "\n", ours[:-1]):
        with pytest.raises((FormatError, ProofError)):
            witness.accept(garbage, text, WITNESS.verifier)
