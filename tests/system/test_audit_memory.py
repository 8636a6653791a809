"""Ten million leaves: what the log keeps in memory does not grow with it, and neither does what a reader keeps."""

import os
import random
import time
from pathlib import Path

import psutil
import pytest

from aimx.audit.place import open_log, open_reader
from aimx.tlog import proof, tile
from aimx.tlog.note import ED25519, Signer
from aimx.tlog.tile import Tile
from tests.store.audit_logs import leaves

LEAVES = int(os.environ.get("AIMX_TEST_LEAVES", "10_000_000"))
BATCH = 5000
SETTLED = 200_000
"""By then every cache has its size."""
ALLOWED = 16 << 20
SIGNER = Signer("x.example/audit/2026h2", b"\x01" * 32, ED25519)


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_memory_is_flat_at_ten_million_leaves(tmp_path: Path) -> None:
    log, process, before, began = open_log(tmp_path), psutil.Process(), 0, time.perf_counter()
    for start in range(0, LEAVES, BATCH):
        log.append(leaves(start, start + BATCH))
        if start + BATCH == SETTLED:
            before = process.memory_info().rss
    log.sign([SIGNER], 0)
    grown, took = process.memory_info().rss - before, time.perf_counter() - began
    print(f"\n{LEAVES:,} leaves in {took:.0f} s; memory grew by {grown / 2**20:.1f} MiB after the first {SETTLED:,}")
    assert grown < ALLOWED
    assert len(log.state.frontier.to_bytes()) < 1000
    log.close()

    log, reader, before = open_log(tmp_path), open_reader(tmp_path), process.memory_info().rss
    assert log.state.size == LEAVES
    slowest, chance = 0.0, random.Random(7)
    for _ in range(300):
        index = chance.randrange(LEAVES)
        began = time.perf_counter()
        found = reader.prove(index)
        slowest = max(slowest, time.perf_counter() - began)
        proof.verify(found, leaves(index, index + 1)[0][1], SIGNER.verifier)
        reader.tile(Tile(None, index // tile.WIDTH))
    last = list(tile.tiles(LEAVES))
    for wanted in [one for one in last if one.width < tile.WIDTH]:
        assert len(reader.tile(wanted) or b"") >= wanted.width
    grown = process.memory_info().rss - before
    print(f"300 proofs, the slowest in {slowest * 1000:.1f} ms; memory grew by {grown / 2**20:.1f} MiB")
    assert grown < 4 * ALLOWED
    reader.close()
    log.close()
