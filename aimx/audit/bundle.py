"""An exported log: a folder that says all there is to check, to anybody, without a server.

    README.md                how to check it with public tools alone
    vkeys                    verifier keys, one a line: the logs', the receipts'
    policy                   whose cosignatures count (c2sp.org/tlog-policy)
    openings.jsonl           only if asked for: what opens the leaves' commitments
    <shard>/checkpoint       the newest signed checkpoint        \\
    <shard>/tile/…           hash tiles and entry bundles         > c2sp.org/tlog-tiles, as a log serves them
    <shard>/checkpoints/     signed checkpoints of earlier sizes
    <shard>/anchors/         cosigned checkpoints; time stamps as .tsr beside theirs

An export into a folder that holds an earlier one adds what is new, and refuses when the log is not the one it was.
"""

import base64
import json
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aimx import durable
from aimx.audit.anchors import Anchor
from aimx.audit.log import Leaf, LogError, Reader, State
from aimx.store.contract import StoredEvent
from aimx.tlog import checkpoint, note, tile, tree
from aimx.tlog.errors import FormatError
from aimx.tlog.note import Verifier
from aimx.tlog.policy import Policy
from aimx.tlog.tile import Tile
from aimx.tlog.tree import NodeReader

CHECKPOINT, VKEYS, POLICY, OPENINGS, README = "checkpoint", "vkeys", "policy", "openings.jsonl", "README.md"

_SAFE = re.compile(r"[^A-Za-z0-9._@-]+")


class NotExported(LogError):
    """Nothing was exported, and why."""


@dataclass(slots=True)
class Exported:
    """What an export came to: leaves in all, and files written by this run."""

    size: int = 0
    files: int = 0
    shards: list[str] = field(default_factory=list)
    openings: int = 0


# --- writing ---


def export(
    out: Path,
    reader: Reader,
    keys: Sequence[Verifier],
    anchors: Callable[[str], Sequence[Anchor]],
    policy: Policy,
    progress: Callable[[int], None] = lambda size: None,
) -> Exported:
    """Write everything but the openings. `anchors`: those of an origin. Blocks; raises LogError (NotExported)."""
    done = Exported()
    out.mkdir(parents=True, exist_ok=True)
    for described in reader.shards():
        name = shard_name(described.origin)
        shard = out / name
        shard.mkdir(exist_ok=True)
        size = _export_shard(shard, reader.shard(described.number), anchors(described.origin), done, progress)
        done.shards.append(name)
        done.size += size
    _write(out / VKEYS, "".join(f"{key.vkey()}\n" for key in keys).encode(), done)
    _write(out / POLICY, policy.text().encode("utf-8", "surrogateescape"), done)
    _write(out / README, _readme(done.shards).encode(), done)
    (out / OPENINGS).unlink(missing_ok=True)  # an older export's would outlive an erasure
    return done


async def export_openings(out: Path, events: AsyncIterator[StoredEvent]) -> int:
    """Write what opens the commitments: keys and plain values, of all events that still have them. How many."""
    lines = []
    async for stored in events:
        row = stored.row
        if row.key is not None and stored.index is not None:
            opening = {"eid": row.eid, "place": stored.index, "key": row.key.hex(), "trace": row.trace_id.hex()}
            lines.append(json.dumps({**opening, "span": row.span_id.hex(), "open": row.detail.get("open", {})}))
    durable.replace(out / OPENINGS, "".join(line + "\n" for line in lines).encode(), 0o600)
    return len(lines)


def shard_name(origin: str) -> str:
    """The last part of a log's name: `2026h2`."""
    return _SAFE.sub("-", origin.rpartition("/")[2]).strip(".") or "log"


def _export_shard(
    shard: Path, reader: Reader, anchors: Sequence[Anchor], done: Exported, progress: Callable[[int], None]
) -> int:
    signed = reader.checkpoint()
    if signed is None:
        raise NotExported("the log has signed no checkpoint yet; start the node and let it run for a few seconds")
    size = _parsed(signed).size
    _refuse_another_history(shard / CHECKPOINT, signed, reader)
    for wanted in tile.tiles(size):
        path = shard / wanted.path()
        if not path.exists():
            octets = reader.tile(wanted)
            if octets is None:
                raise NotExported(f"the log does not hold {wanted.path()}; `aimx audit verify` says what is wrong")
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, octets, done)
            _tidy(shard, wanted)
        if wanted.level is None:
            progress(wanted.index * tile.WIDTH + wanted.width)
    kept = shard / "checkpoints"
    kept.mkdir(exist_ok=True)
    for at, _, text in reader.checkpoints():
        if at <= size:
            _write(kept / f"{at}.note", text.encode(), done)
    _export_anchors(shard / "anchors", [anchor for anchor in anchors if anchor.size <= size], done)
    _write(shard / CHECKPOINT, signed.encode(), done)  # last: until then the folder is the earlier export
    return size


def _refuse_another_history(path: Path, signed: str, reader: Reader) -> None:
    """An earlier export is a memory of the log: it must be a state that the log went through."""
    if not path.exists():
        return
    try:
        before, now = _parsed(path.read_text()), _parsed(signed)
    except (FormatError, UnicodeDecodeError) as error:
        raise NotExported(f"{path} is no checkpoint ({error}); export into another folder") from None
    if before.origin != now.origin:
        raise NotExported(f"{path.parent} holds the log {before.origin}, not {now.origin}; export into another folder")
    if before.size > now.size or tree.root_at(before.size, reader.node_reader()) != before.root:
        raise NotExported(
            f"the log was altered: {path} is signed for {before.size} leaves that are not its first leaves now. "
            "Keep that folder, it is the evidence, and run `aimx audit verify`"
        )


def _export_anchors(folder: Path, anchors: Sequence[Anchor], done: Exported) -> None:
    folder.mkdir(exist_ok=True)
    for anchor in anchors:
        stem = f"{anchor.kind}-{_SAFE.sub('-', anchor.name)}-{anchor.size}"
        _write(folder / f"{stem}.note", anchor.note.encode(), done)
        if anchor.token:
            _write(folder / f"{stem}.tsr", anchor.token, done)


def _tidy(shard: Path, written: Tile) -> None:
    """Take away the narrower parts of a tile that is now wider."""
    full = shard / Tile(written.level, written.index).path()
    parts = full.with_name(full.name + ".p")
    if written.width == tile.WIDTH:
        shutil.rmtree(parts, ignore_errors=True)
    else:
        for part in parts.iterdir():
            if part.name != str(written.width):
                part.unlink()


def _write(path: Path, octets: bytes, done: Exported) -> None:
    if path.exists() and path.read_bytes() == octets:
        return
    draft = path.with_name(f".{path.name}.new")
    draft.write_bytes(octets)
    draft.replace(path)
    done.files += 1


def _parsed(text: str) -> checkpoint.Checkpoint:
    return checkpoint.parse(note.parse(text).text)


# --- reading ---


class BundleReader(Reader):
    """One shard of an exported folder, with the calls of any log's Reader. What the files say is not believed here."""

    def __init__(self, shard: Path) -> None:
        self.path = shard
        self._state: State | None = None

    def close(self) -> None:
        """There is nothing to close."""

    def numbers(self) -> list[int]:
        return [1]

    def shard(self, number: int) -> "BundleReader":
        return self

    def state(self) -> State:
        if self._state is None:
            try:
                signed = (self.path / CHECKPOINT).read_text()
                found = _parsed(signed)
            except (OSError, UnicodeDecodeError, FormatError) as error:
                raise LogError(f"{self.path} holds no checkpoint that can be read: {error}") from None
            self._size = found.size
            frontier = tree.frontier_at(found.size, self.node_reader())
            self._state = State(found.size, found.root, frontier, signed)
        return self._state

    _size = 0

    def index_of(self, eid: str) -> int | None:
        name = b'"eid":"' + eid.encode() + b'"'
        for start in range(0, self.state().size, tile.WIDTH):
            for leaf in self.leaves(start, start + tile.WIDTH):
                if name in leaf.entry:
                    return leaf.idx
        return None

    def leaves(self, start: int, end: int) -> list[Leaf]:
        found: list[Leaf] = []
        for index in range(start // tile.WIDTH, -(-min(end, self._known()) // tile.WIDTH)):
            try:
                entries = tile.decode_bundle(self._octets(None, index))
            except FormatError as error:
                raise LogError(f"{self.path}: entry bundle {index}: {error}") from None
            hashes = self.nodes(0, index * tile.WIDTH, (index + 1) * tile.WIDTH)
            first = index * tile.WIDTH
            for at, (entry, digest) in enumerate(zip(entries, hashes, strict=False), first):
                if start <= at < end:
                    found.append(Leaf(at, _eid(entry), digest, entry))
        return found

    def nodes(self, level: int, start: int, end: int) -> list[bytes]:
        held = min(end, self._known() >> tile.HEIGHT * level)
        found: list[bytes] = []
        for index in range(start // tile.WIDTH, -(-held // tile.WIDTH)):
            first = index * tile.WIDTH
            try:
                hashes = tile.hashes(self._octets(level, index))
            except FormatError as error:
                raise LogError(f"{self.path}: tile {index} of level {level}: {error}") from None
            found += hashes[max(start - first, 0) : held - first]
        return found

    def checkpoints(self) -> list[tuple[int, int, str]]:
        folder = self.path / "checkpoints"
        notes = [path for path in folder.glob("*.note") if path.stem.isdigit()] if folder.is_dir() else []
        return [(int(path.stem), 0, path.read_text(errors="replace")) for path in sorted(notes, key=_size_of)]

    def anchors(self) -> list[Anchor]:
        """What outsiders said, as far as the folder holds it."""
        found: list[Anchor] = []
        folder = self.path / "anchors"
        for path in sorted(folder.glob("*.note")) if folder.is_dir() else []:
            kind, _, rest = path.stem.partition("-")
            name, _, size = rest.rpartition("-")
            if kind in ("witness", "mail", "timestamp") and size.isdigit():
                stamp = path.with_suffix(".tsr")
                token = stamp.read_bytes() if stamp.exists() else b""
                text = path.read_text(errors="replace")
                found.append(Anchor(kind, name, "", int(size), 0, text, token))  # type: ignore[arg-type]
        return found

    def node_reader(self) -> NodeReader:
        return tile.node_reader(lambda level, index: self.nodes(level, index * tile.WIDTH, (index + 1) * tile.WIDTH))

    def _known(self) -> int:
        if not self._size:
            self.state()
        return self._size

    def _octets(self, level: int | None, index: int) -> bytes:
        nodes = self._known() >> tile.HEIGHT * (level or 0)
        width = min(tile.WIDTH, nodes - index * tile.WIDTH)
        try:
            return (self.path / Tile(level, index, width).path()).read_bytes()
        except OSError as error:
            raise LogError(f"{error.filename}: {error.strerror}") from None


def shards(folder: Path) -> Iterator[BundleReader]:
    """The shards of an export, oldest first. Raises LogError when the folder is none."""
    found = [BundleReader(path.parent) for path in folder.glob(f"*/{CHECKPOINT}")]
    if not found:
        raise LogError(f"{folder} is not an exported log: no folder in it has a checkpoint")
    return iter(sorted(found, key=_start))


def _start(reader: BundleReader) -> int:
    try:
        return reader.described().start
    except LogError:
        return 0  # whoever checks it will say what is wrong with it


def vkeys(path: Path) -> list[Verifier]:
    """A file of verifier keys, one a line. Raises LogError."""
    try:
        return [Verifier.parse(line) for line in path.read_text().split()]
    except (OSError, UnicodeDecodeError, FormatError) as error:
        raise LogError(f"{path} does not hold verifier keys: {error}") from None


def openings(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of openings.jsonl; nothing when the export has none. Raises LogError."""
    path = folder / OPENINGS
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                found = None
            if not isinstance(found, dict):
                raise LogError(f"line {number} of {path} is no opening")
            yield found


def _size_of(path: Path) -> int:
    return int(path.stem)


def _eid(entry: bytes) -> str:
    return entry.partition(b'"eid":"')[2].partition(b'"')[0].decode("ascii", "replace")


def root64(root: bytes) -> str:
    """A root as checkpoints write it."""
    return base64.b64encode(root).decode()


def _readme(names: Sequence[str]) -> str:
    listed = "\n".join(f"- `{name}/`" for name in names)
    return _README.replace("{shards}", listed).replace("{shard}", names[-1])


_README = """\
# An exported audit log

Everything here can be checked without the server it came from and without its makers' tools.

{shards}

is a transparency log in the formats of https://c2sp.org (tlog-tiles, tlog-checkpoint, signed-note): an RFC 6962 Merkle
tree, SHA-256, Ed25519. Each entry is one event as JSON; what could name a person stands in it only as a commitment.

**Whose keys are these?** `vkeys` is what the export says. Compare it with the keys you were given by another way: a
forger would bring his own.

## The tree, with Tessera's fsck

    head -n 1 vkeys > log.vkey
    go run github.com/transparency-dev/tessera/cmd/fsck@v1.0.4 --ui=false \\
        --storage_url=file://$PWD/{shard}/ --public_key=log.vkey

hashes all entries again, compares every tile, and checks the signed checkpoint against the root.

## Witnesses

`{shard}/anchors/witness-*.note` are checkpoints that others have cosigned (https://c2sp.org/tlog-cosignature);
`policy` (https://c2sp.org/tlog-policy) names them and says how many are enough. Any signed-note library checks them.
Each must be a state that this log went through: its size and root must be those of the tree at that size.

## Time stamps

    openssl ts -verify -data {shard}/anchors/timestamp-*-SIZE.note -in {shard}/anchors/timestamp-*-SIZE.tsr \\
        -CAfile THE-AUTHORITYS-CERTIFICATES.pem

## One entry

Bundle N of `{shard}/tile/entries/` holds entries 256·N and up, each after two octets of length. An entry's hash is
SHA-256(00 ‖ entry) and stands in `{shard}/tile/0/`.

If there is an `openings.jsonl`, each line opens one entry: HMAC-SHA256(key, "aimx/v1/" ‖ part ‖ 00 ‖ value), base64,
must be what the entry has under `c`. An entry without a line was erased, and an entry `message.erased` says so.

## All of it at once

    aimx audit verify --bundle .

which needs no server, no configuration and no network (`pip install aimx-server`).
"""
