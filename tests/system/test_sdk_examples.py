"""The programs a user copies run as they stand."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.node_process import Account, NodeProcess, clean_environ

EXAMPLES = Path(__file__).parents[2] / "examples"
NewAgent = Callable[..., Account]


def run(name: str, *arguments: str, url: str = "") -> str:
    environ = clean_environ({"AIMX_URL": url} if url else {})
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hello(new_agent: NewAgent) -> None:
    assert "says {'hello': 'world'}" in run("hello.py", url=new_agent("hello").url)


def test_request_reply(new_agent: NewAgent) -> None:
    calculator, pupil = new_agent("calculator"), new_agent("pupil")
    answering = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "request_reply.py"), "answer"], env=clean_environ({"AIMX_URL": calculator.url})
    )
    try:
        out = run("request_reply.py", "ask", calculator.name, "6", "7", url=pupil.url)
    finally:
        answering.terminate()
        answering.wait(10)
    assert out == f"{calculator.address} says 6 x 7 = 42\n"


def test_worker_pool(new_agent: NewAgent) -> None:
    assert run("worker_pool.py", "20", url=new_agent("workers").url).endswith("20 of 20 jobs done, each once\n")


def test_loop_to_debug(node: NodeProcess, new_agent: NewAgent) -> None:
    out = run("loop_to_debug.py", new_agent("anna").url, new_agent("ben").url)
    assert "was stopped: 554 5.4.6 loop refused" in out
    trace_id = out.split()[-1]
    assert "refused" in node.aimx("trace", trace_id).stdout
