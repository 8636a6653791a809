"""Who only connects: to every door, again and again, and never signs in."""

import socket
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.node_process import LISTENERS, NodeProcess

FEW_FILES = ("sh", "-c", 'ulimit -n 260; exec "$@"', "sh")


def test_strangers_cannot_take_all_file_descriptors(tmp_path: Path) -> None:
    """Else the store and the audit log cannot open their files."""
    with NodeProcess(tmp_path, wrapper=FEW_FILES) as node, ExitStack() as held:
        planner = node.add_agent("planner")
        client = held.enter_context(node.smtp(planner))
        reader = held.enter_context(node.imap(planner))
        for door in LISTENERS:
            for _ in range(100):
                with suppress(OSError):
                    held.enter_context(socket.create_connection(node.endpoint(door), timeout=2))
        client.sendmail(planner.address, [planner.address], b"From: <planner@fabric.local>\r\n\r\nhello\r\n")
        reader.noop()
        _, ((_, found), _) = reader.fetch("1", "BODY.PEEK[TEXT]")
        assert found == b"hello\r\n"
        node.aimx("audit", "verify")
        wrong = [line for line in node.lines() if line["level"] in ("warning", "error")]
        assert wrong == []
