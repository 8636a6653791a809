"""An exported log says all there is to check, any change to it is found, and a log that was altered is not exported."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aimx.audit import bundle, keys
from aimx.audit.anchors import Anchor, SqliteAnchors
from aimx.audit.bundle import NotExported
from aimx.audit.log import LogError
from aimx.audit.offline import verify_bundle
from aimx.audit.place import open_reader, read_anchors
from aimx.audit.report import Report
from aimx.audit.sequencer import Sequencer
from aimx.audit.standing import Trust
from aimx.audit.verify import verify
from aimx.cli.audit_trust import events
from aimx.tlog import note, policy
from aimx.tlog.note import COSIGNATURE_V1, Note, Signer
from tests.store.audit_memory import MemoryStore

WITNESSES = {f"w{n}": Signer(f"w{n}.example/witness", bytes([n]) * 32, COSIGNATURE_V1) for n in (1, 2, 3)}


class Node:
    """A stopped node with a past."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.store = MemoryStore()
        self.keys = keys.load_or_create(folder, "x.example", 1_780_000_000_000)

    async def live(self, messages: int) -> None:
        sequencer = Sequencer(self.store, self.folder, self.keys, node="n1")
        await sequencer.start()
        for _ in range(messages):
            self.store.accept()
        await sequencer.stop()

    def trust(self) -> Trust:
        known = {name: signer.verifier for name, signer in WITNESSES.items()}
        return Trust(policy.of_witnesses(self.keys.log.verifier, known))

    def cosign(self, *names: str, seconds_ago: int = 0) -> None:
        """Witnesses have seen the newest checkpoint."""
        signed = note.parse((self.folder / "audit.checkpoint").read_text())
        size = int(signed.text.split("\n")[1])
        anchors = SqliteAnchors(self.folder / "anchors.db")
        for name in names:
            line = WITNESSES[name].sign(signed.text.encode(), int(time.time()) - seconds_ago)
            text = str(Note(signed.text, (*signed.signatures, line)))
            anchors.add(Anchor("witness", name, self.keys.origin, size, int(time.time() * 1000), text))
        anchors.close()

    def export(self, out: Path) -> bundle.Exported:
        reader = open_reader(self.folder)
        try:
            public = [self.keys.log.verifier, self.keys.receipt.verifier]
            anchors: Callable[[str], list[Anchor]] = lambda origin: read_anchors(self.folder, None, origin)  # noqa: E731
            return bundle.export(out, reader, public, anchors, self.trust().policy)
        finally:
            reader.close()

    async def verify(self, **options: object) -> Report:
        return await verify(self.store, self.folder, patience_s=0.05, **options)  # type: ignore[arg-type]


@pytest.fixture
async def node(tmp_path: Path) -> Node:
    made = Node(tmp_path / "data")
    await made.live(140)
    return made


async def test_an_export_verifies_alone_and_holds_what_the_tree_holds(node: Node, tmp_path: Path) -> None:
    done = node.export(tmp_path / "out")
    assert (done.size, done.shards) == (281, ["2026h1"])
    done.openings = await bundle.export_openings(tmp_path / "out", events(node.store))  # type: ignore[arg-type]
    shutil.rmtree(node.folder)
    report = verify_bundle(tmp_path / "out")
    assert report.ok, report.lines()
    assert report.words == ("CONSISTENT", "NOT ANCHORED")
    assert (report.size, report.leaves, report.openings) == (281, 281, 281)
    assert report.to_json()["complete"] is None


async def test_a_second_export_writes_only_what_is_new(node: Node, tmp_path: Path) -> None:
    out = tmp_path / "out"
    node.export(out)
    assert node.export(out).files == 0
    await node.live(200)
    done = node.export(out)
    assert done.size == 681
    assert not list(out.glob("*/tile/0/000.p/*")), "the narrower parts of what is full now are gone"
    assert done.files <= 10
    fresh = tmp_path / "fresh"
    node.export(fresh)
    assert tree_of(out) == tree_of(fresh)
    assert verify_bundle(out).ok


def tree_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_a_log_that_was_altered_is_not_exported_over_its_own_past(node: Node, tmp_path: Path) -> None:
    out = tmp_path / "out"
    node.export(out)
    before = tree_of(out)
    shutil.rmtree(node.folder)
    forged = Node(node.folder)
    (forged.folder / "keys" / "log.key").write_text(node.keys.log.skey())
    (forged.folder / "keys" / "receipt.key").write_text(node.keys.receipt.skey())
    forged.keys = node.keys
    await forged.live(300)
    with pytest.raises(NotExported, match="altered"):
        forged.export(out)
    assert tree_of(out) == before
    keys.load_or_create(tmp_path / "other", "y.example", 1_780_000_000_000)
    other = Node(tmp_path / "other")
    await other.live(1)
    with pytest.raises(NotExported, match="another folder"):
        other.export(out)


async def test_openings_do_not_outlive_an_export_without_them(node: Node, tmp_path: Path) -> None:
    node.export(tmp_path)
    await bundle.export_openings(tmp_path, events(node.store))  # type: ignore[arg-type]
    assert (tmp_path / "openings.jsonl").stat().st_mode & 0o777 == 0o600
    node.export(tmp_path)
    assert not (tmp_path / "openings.jsonl").exists()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import asyncio

    folder = tmp_path_factory.mktemp("exported")

    async def make() -> None:
        node = Node(folder / "data")
        await node.live(140)
        node.cosign("w1", "w2")
        node.export(folder / "out")
        await bundle.export_openings(folder / "out", events(node.store))  # type: ignore[arg-type]

    asyncio.run(make())
    return folder / "out"


def test_an_export_carries_what_witnesses_said(exported: Path) -> None:
    report = verify_bundle(exported)
    assert report.ok, report.lines()
    assert (report.words[1][:9], report.words[2]) == ("ANCHORED(", "WITNESSED 2/3")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_changed_octet_of_an_export_goes_unseen(exported: Path, data: st.DataObject) -> None:
    files = sorted(path for path in exported.rglob("*") if path.is_file() and path.name not in ("README.md", "policy"))
    path = data.draw(st.sampled_from(files))
    octets = path.read_bytes()
    at = data.draw(st.integers(0, len(octets) - 1))
    octet = data.draw(st.integers(0, 255).filter(lambda value: value != octets[at]))
    path.write_bytes(octets[:at] + bytes([octet]) + octets[at + 1 :])
    try:
        report = verify_bundle(exported)
        # A witness's line can be made a stranger's; then it no longer counts. Nothing else passes.
        assert not report.ok or report.words[2:] != ("WITNESSED 2/3",) or _same_opening(path, octets, at), (
            path,
            at,
            octet,
        )
    except LogError:
        pass
    finally:
        path.write_bytes(octets)


def _same_opening(path: Path, octets: bytes, at: int) -> bool:
    """A change of white space or of letters' case in hex says the same."""
    return path.name == "openings.jsonl" and (octets[at : at + 1].isspace() or octets[at : at + 1].isalpha())


async def test_a_missing_file_and_a_folder_that_is_no_export_are_said(node: Node, tmp_path: Path) -> None:
    with pytest.raises(LogError, match="not an exported log"):
        verify_bundle(tmp_path)
    out = tmp_path / "out"
    node.export(out)
    next(out.glob("*/tile/entries/000")).unlink()
    report = verify_bundle(out)
    assert [finding.kind for finding in report.findings] == ["log-unreadable"]


async def test_a_forgers_keys_are_no_use_to_him_against_yours(node: Node, tmp_path: Path) -> None:
    node.export(tmp_path / "out")
    yours = [Signer(node.keys.origin, b"\x09" * 32).verifier]
    assert verify_bundle(tmp_path / "out").ok
    assert not verify_bundle(tmp_path / "out", keys=yours).ok


# --- verdicts about anchors, on a node ---


async def test_a_quorum_of_witnesses_is_said_and_how_long_ago(node: Node) -> None:
    node.cosign("w1", seconds_ago=200)
    report = await node.verify(trust=node.trust())
    assert report.words == ("CONSISTENT", "COMPLETE", "ANCHORED(3 min)", "WITNESSED 1/3")
    assert report.standing is not None
    assert not report.standing.quorum
    node.cosign("w3", seconds_ago=20)
    report = await node.verify(trust=node.trust())
    assert report.words[2].startswith("ANCHORED(2")
    assert report.words[3] == "WITNESSED 2/3"
    assert report.standing is not None
    assert report.standing.quorum
    assert (await node.verify()).words[2:] == ("NOT ANCHORED",), "nobody's word counts without a policy"


async def test_the_newest_state_with_a_quorum_is_the_one_that_is_named(node: Node) -> None:
    node.cosign("w1", "w2")
    await node.live(3)
    node.cosign("w3")
    report = await node.verify(trust=node.trust())
    assert report.standing is not None
    assert (report.standing.size, report.standing.witnessed, report.standing.quorum) == (281, 2, True)


async def test_a_log_that_contradicts_what_a_witness_cosigned_was_altered(node: Node) -> None:
    node.cosign("w1", "w2")
    saved = (node.folder / "anchors.db").read_bytes()
    shutil.rmtree(node.folder)
    forged = Node(node.folder)
    (forged.folder / "keys" / "log.key").write_text(node.keys.log.skey())
    (forged.folder / "keys" / "receipt.key").write_text(node.keys.receipt.skey())
    forged.keys = node.keys
    (forged.folder / "audit.vkeys").write_text("".join(key.vkey() + "\n" for key in node.keys.public().all))
    await forged.live(300)
    assert (await forged.verify(trust=node.trust())).ok, "rewritten with the key, it is consistent in itself"
    (forged.folder / "anchors.db").write_bytes(saved)
    report = await forged.verify(trust=node.trust())
    assert report.words[0] == "INCONSISTENT"
    assert report.findings[0].kind == "checkpoint-contradicted"
    assert report.anchored_s is None


async def test_a_cosignature_that_was_meddled_with_is_named(node: Node) -> None:
    node.cosign("w1")
    anchors = SqliteAnchors(node.folder / "anchors.db")
    good = anchors.all(node.keys.origin)[0]
    lines = note.parse(good.note)
    forged = lines.signatures[-1]._replace(blob=bytes(8) + lines.signatures[-1].blob[8:])
    anchors.add(good._replace(note=str(Note(lines.text, (*lines.signatures[:-1], forged)))))
    anchors.close()
    report = await node.verify(trust=node.trust())
    assert "anchor-invalid" in [finding.kind for finding in report.findings]


async def test_a_checkpoint_brought_along_anchors_the_log_since_its_last_leaf(node: Node) -> None:
    kept = (node.folder / "audit.checkpoint").read_text()
    report = await node.verify(remembered=[kept])
    assert report.words[2].startswith("ANCHORED(")
    assert (report.anchored_s or 0) < 60
