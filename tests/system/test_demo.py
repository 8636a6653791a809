"""`make demo` is the first thing anybody sees: everything it claims held, and it leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.node_process import AIMX, clean_environ
from tests.otlp_receiver import OtlpReceiver


def test_once(tmp_path: Path) -> None:
    environ = clean_environ({"TMPDIR": str(tmp_path), "COLUMNS": "120"})
    done = subprocess.run([*AIMX, "demo", "--once"], capture_output=True, text=True, env=environ, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✗ " not in done.stdout.partition("what held")[2]
    assert "could not take it (unacknowledged)" in done.stdout
    assert "554 5.4.6 loop refused" in done.stdout
    assert "CONSISTENT, COMPLETE, NOT ANCHORED" in done.stdout
    assert "c2sp.org/tlog-proof@v1" in done.stdout
    assert done.stderr == ""
    assert os.listdir(tmp_path) == []


def test_every_agent_joins_the_trace_of_a_collector(tmp_path: Path) -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        environ = clean_environ({"TMPDIR": str(tmp_path), **receiver.environ})
        done = subprocess.run([*AIMX, "demo", "--once"], capture_output=True, text=True, env=environ, timeout=90)
        assert done.returncode == 0, done.stdout + done.stderr
        # The exporter of an agent is awaited at its end, so all spans are here by now.
        trace_id = re.search(r"trace ([0-9a-f]{32})", done.stdout)
        assert trace_id is not None
        spans = receiver.trace(trace_id[1])
    known = {span.span_id for span in spans}
    orphans = [span.name for span in spans if span.parent_id and span.parent_id not in known]
    assert orphans == []
    assert [span.name for span in spans if not span.parent_id] == ["send"]
    assert {"send", "smtp receive", "deliver mailbox", "process", "ack", "imap store"} <= {span.name for span in spans}


def test_it_stays_until_it_is_interrupted(tmp_path: Path) -> None:
    environ = clean_environ({"TMPDIR": str(tmp_path), "COLUMNS": "200"})
    demo = subprocess.Popen([*AIMX, "demo"], stdout=subprocess.PIPE, text=True, env=environ)
    try:
        assert demo.stdout is not None
        seen = []
        for line in demo.stdout:
            seen.append(line)
            if "Ctrl-C ends" in line:
                break
        command = next(line.strip() for line in seen if line.strip().startswith("aimx trace "))
        (folder,) = tmp_path.iterdir()
        shown = subprocess.run(
            [*AIMX, *command.split()[1:]],
            env=clean_environ({"AIMX_DATA": str(folder)}),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "planner → critic" in shown.stdout
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) == 0
        assert os.listdir(tmp_path) == []
    finally:
        demo.kill()
        demo.wait(10)


def test_a_folder_that_is_there_is_not_touched(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aimx.cli", "demo", "--once", "--data", str(tmp_path)],
        capture_output=True,
        text=True,
        env=clean_environ({}),
        timeout=60,
    )
    assert done.returncode == 1
    assert "is there already" in done.stderr
