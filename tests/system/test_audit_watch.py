"""The cheap look at the log that a node takes now and then: content with a good one, alarmed by an old copy."""

import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from aimx.audit.place import open_reader
from aimx.audit.selfcheck import Verdict, check
from tests.node_process import NodeProcess
from tests.otlp_receiver import wait_until
from tests.system.traffic import http


def look(data: Path) -> Verdict:
    with closing(open_reader(data)) as reader:
        return check(reader, data)


def test_an_old_copy_put_back_is_inconsistent_and_no_log_is_no_verdict(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path)
    with node:
        node.add_agent("one")
    assert look(node.data) == "consistent"
    shutil.copytree(node.data, tmp_path / "copy")
    with node:
        node.add_agent("two")
    assert look(node.data) == "consistent"
    for path in node.data.glob("audit.db*"):
        path.unlink()
    for path in (tmp_path / "copy").glob("audit.db*"):
        shutil.copy(path, node.data)
    assert look(node.data) == "inconsistent"
    for path in node.data.glob("audit.db*"):
        path.unlink()
    assert look(node.data) == "unknown"


def test_a_verification_that_finds_something_wrong_is_counted(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node, http(node) as client:

        def failures() -> float:
            (found,) = re.findall(r"(?m)^aimx_audit_verify_failures_total (\S+)", client.get("/metrics").text)
            return float(found)

        wait_until(lambda: (node.data / "audit.checkpoint").exists())
        assert client.get("/v1/audit/verify").json()["ok"]
        assert failures() == 0
        with closing(sqlite3.connect(node.data / "audit.db", isolation_level=None)) as db:
            for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                db.execute(f"DROP TRIGGER {name}")
            db.execute("UPDATE leaf SET entry = CAST(replace(entry, 'log.opened', 'log.opaque') AS BLOB) WHERE idx = 0")
        assert not client.get("/v1/audit/verify").json()["ok"]
        assert failures() == 1
