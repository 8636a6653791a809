"""Notes, checkpoints, tiles, proofs: the octets other programs write are read, ours are theirs, forgeries are not."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimx.tlog import checkpoint, leaf, note, proof, receipt, tile, tree
from aimx.tlog.errors import FormatError, ProofError

VECTORS = Path(__file__).parent.parent / "vectors" / "audit"
ORIGIN = "mail.agents.example/audit/2026h2"
LOG = note.Signer(ORIGIN, b"\x01" * 32)
WITNESS = note.Signer("witness.example/w1", b"\x02" * 32, note.COSIGNATURE_V1)
RECEIPT = note.Signer(ORIGIN, b"\x03" * 32, note.RECEIPT)
ENTRIES = tile.decode_bundle((VECTORS / "tile/entries/000.p/3").read_bytes())

# The key, text and signature of the example in the documentation of Go's golang.org/x/mod/sumdb/note.
GO_SKEY = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
GO_LINE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)


def test_our_signatures_are_those_of_gos_note_package() -> None:
    signer = note.Signer.parse(GO_SKEY)
    assert signer.skey() == GO_SKEY
    assert signer.verifier.vkey() == GO_VKEY
    assert str(note.sign(GO_TEXT, [signer])) == GO_TEXT + "\n" + GO_LINE


def test_the_example_key_of_c2sp_is_read() -> None:
    vkey = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
    assert note.Verifier.parse(vkey).vkey() == vkey


def test_the_golden_checkpoint_verifies_and_is_written_again_octet_for_octet() -> None:
    data = (VECTORS / "checkpoint").read_bytes()
    keys = [note.Verifier.parse(line) for line in (VECTORS / "keys.vkey").read_text().split()]
    assert keys == [LOG.verifier, WITNESS.verifier]
    opened = checkpoint.open_signed(data, keys[0], keys[1:])
    assert [(held.verifier.name, held.time) for held in opened.signatures] == [
        (ORIGIN, None),
        ("witness.example/w1", 1780000060),
    ]
    root = tree.fold([tree.leaf_hash(entry) for entry in ENTRIES])
    assert opened.checkpoint == checkpoint.Checkpoint(ORIGIN, 3, root)
    text = opened.checkpoint.text()
    ours = note.Note(text, (LOG.sign(text.encode()), WITNESS.sign(text.encode(), time=1780000060)))
    assert str(ours).encode() == data


def test_the_golden_proof_proves_its_leaf_and_no_other() -> None:
    text = (VECTORS / "m1.tlog-proof").read_text()
    found = proof.parse(text)
    assert found.text() == text
    assert proof.verify(found, ENTRIES[1], LOG.verifier).checkpoint.size == 3
    with pytest.raises(ProofError):
        proof.verify(found, ENTRIES[2], LOG.verifier)
    extra = proof.Proof(found.index, found.path, found.checkpoint, b"\x00opening")
    assert proof.parse(extra.text()) == extra


def test_the_golden_tiles_are_written_again() -> None:
    assert tile.encode_bundle(ENTRIES) == (VECTORS / "tile/entries/000.p/3").read_bytes()
    hashes = tile.hashes((VECTORS / "tile/0/000.p/3").read_bytes())
    assert hashes == [tree.leaf_hash(entry) for entry in ENTRIES]


def test_the_golden_commitments_open_and_nothing_else_does() -> None:
    key = bytes(range(32))
    committed = "t0m1sXUeQZ5fgxZGjSjJSO7vvn90GTxXg2JosErsewU="
    assert leaf.commit(key, "from", b"a@agents.example") == committed
    leaf.open_commitment(key, "from", b"a@agents.example", committed)
    for wrong_key, part, value in (
        (key[::-1], "from", b"a@agents.example"),
        (key, "rcpt", b"a@agents.example"),
        (key, "from", b"b"),
    ):
        with pytest.raises(ProofError):
            leaf.open_commitment(wrong_key, part, value, committed)


@given(st.integers(0, 10**13), st.integers(0, 7), st.integers(1, 256))
def test_a_tiles_path_is_read_back(index: int, level: int, width: int) -> None:
    for one in (tile.Tile(level, index, width), tile.Tile(None, index, width)):
        assert tile.parse_path(one.path()) == one


def test_tile_paths_are_those_of_c2sp() -> None:
    assert tile.Tile(0, 1234067).path() == "tile/0/x001/x234/067"
    assert [t.path() for t in tile.tiles(70_000) if t.width < 256] == [
        "tile/entries/273.p/112",
        "tile/0/273.p/112",
        "tile/1/001.p/17",
        "tile/2/000.p/1",
    ]
    for wrong in (
        "tile/0/x000/001",
        "tile/0/1",
        "tile/0/000.p/256",
        "tile/0/000.p/0",
        "tile/00/000",
        "tile/64/000",
        "/tile/0/000",
        "tile/8/000/",
        "tile/0/000\n",
    ):
        with pytest.raises(FormatError):
            tile.parse_path(wrong)
    assert tile.exists(tile.Tile(1, 1, 17), 70_000)
    assert not tile.exists(tile.Tile(1, 1, 18), 70_000)
    assert not tile.exists(tile.Tile(2, 1, 1), 70_000)


@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(1, 3))
def test_a_bundle_cut_short_is_refused(entries: list[bytes], cut: int) -> None:
    data = tile.encode_bundle(entries)
    assert tile.decode_bundle(data) == entries
    if entries and len(entries[-1]) + 2 > cut:
        with pytest.raises(FormatError):
            tile.decode_bundle(data[:-cut])


def test_a_bad_signature_by_a_known_key_spoils_the_note_and_an_unknown_key_does_not() -> None:
    signed = note.sign("text\n", [LOG])
    stranger = note.Signer("someone.example", b"\x09" * 32).sign(b"text\n")
    with_stranger = note.parse(str(signed) + stranger.line())
    assert [held.verifier for held in note.verify(with_stranger, [LOG.verifier])] == [LOG.verifier]
    forged = note.Note("other\n", signed.signatures)
    with pytest.raises(ProofError):
        note.verify(forged, [LOG.verifier])
    with pytest.raises(ProofError):
        note.verify(signed, [WITNESS.verifier])


def test_a_checkpoint_of_another_log_is_refused() -> None:
    other = note.Signer("other.example/audit", b"\x01" * 32)
    text = checkpoint.Checkpoint(ORIGIN, 0, tree.EMPTY_ROOT).text()
    with pytest.raises(ProofError):
        checkpoint.open_signed(str(note.sign(text, [other])), other.verifier)


@given(st.data())
def test_no_changed_octet_of_a_checkpoint_passes(data: st.DataObject) -> None:
    good = (VECTORS / "checkpoint").read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    octet = data.draw(st.integers(0, 255).filter(lambda value: value != good[at]))
    keys = LOG.verifier, [WITNESS.verifier]
    try:
        opened = checkpoint.open_signed(good[:at] + bytes([octet]) + good[at + 1 :], *keys)
    except (FormatError, ProofError):
        return
    # All that a change can do unseen is to turn the witness into somebody unknown.
    assert opened.checkpoint == checkpoint.open_signed(good, *keys).checkpoint
    assert [held.verifier for held in opened.signatures] == [LOG.verifier]


@given(st.text(max_size=200))
def test_garbage_is_refused_and_never_breaks_a_reader(text: str) -> None:
    for read in (
        note.parse,
        checkpoint.parse,
        proof.parse,
        note.Verifier.parse,
        note.Signer.parse,
        tile.parse_path,
        receipt.parse,
    ):
        with pytest.raises(FormatError):
            read(text)


@pytest.mark.parametrize(
    "text", ["o\n-1\nR\n", "o\n01\nR\n", "o\n1\n\n", "o\n1\nAAAA\n", "o\n²\nR\n", "\n1\nR\n", "o\n1\n"]
)
def test_a_checkpoint_with_a_malformed_line_is_refused(text: str) -> None:
    root = "YeE/t6Ke+qyppWmas2v7WY5eGy8NC3AMeIZrEgbb8PA="
    with pytest.raises(FormatError):
        checkpoint.parse(text.replace("R", root))


PROMISE = receipt.Promise(
    ORIGIN, "01JZ0000000000000000000001", b"\x05" * 32, 1780000000123, b"\x06" * 32, "a@x.example", ("b@x.example",)
)


def test_a_receipt_survives_the_reply_line_and_binds_what_was_sent() -> None:
    issued = receipt.issue(PROMISE, RECEIPT)
    reply = "250 2.0.0 " + issued.line()
    assert len(reply) + 2 <= 512
    found = receipt.parse(reply)
    assert found == issued
    receipt.verify(found, PROMISE, RECEIPT.verifier)
    for wrong in (
        PROMISE._replace(data=b"\x07" * 32),
        PROMISE._replace(recipients=("b@x.example", "c@x.example")),
        PROMISE._replace(sender="z@x.example"),
    ):
        with pytest.raises(ProofError):
            receipt.verify(found, wrong, RECEIPT.verifier)
    with pytest.raises(ProofError):
        receipt.verify(found._replace(t_ms=1), PROMISE, RECEIPT.verifier)


def test_the_receipt_key_is_the_golden_one_and_a_log_key_cannot_give_receipts() -> None:
    assert RECEIPT.verifier.vkey() == (
        ORIGIN + "+3231b2f8+/2FpbXgvcmVjZWlwdC92Me1JKMYo0cLG6ukDOJBZlWEpWSc6XGP5NjbBRhSshzfR"
    )
    with pytest.raises(ValueError, match="receipt key"):
        receipt.issue(PROMISE, LOG)


def test_a_signer_never_shows_its_key() -> None:
    assert LOG.skey().split("+")[-1] not in repr(LOG)


def test_canonical_leaves_are_sorted_compact_utf8() -> None:
    assert leaf.canonical({"b": 1, "a": {"z": None, "y": "ü"}}) == '{"a":{"y":"ü","z":null},"b":1}'.encode()
