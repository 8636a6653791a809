"""The cheap look at the log that a node takes now and then: content with a good one, alarmed by an old copy."""

import shutil
from contextlib import closing
from pathlib import Path

from aimx.audit.place import open_reader
from aimx.audit.selfcheck import Verdict, check
from tests.node_process import NodeProcess


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
