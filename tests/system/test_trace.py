"""One trace from `send` to `ack` to the reply, as a real collector gets it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aimx.telemetry.catalogue import span_spec
from tests.node_process import NodeProcess, clean_environ
from tests.otlp_receiver import OtlpReceiver, Received

ROOT = Path(__file__).parents[2]
FAST = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
TURN = [
    "send",
    "smtp receive",
    "route recipient",
    "audit append",
    "deliver mailbox",
    "mailbox append",
    "imap fetch",
    "ack",
]


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_question_and_its_answer_are_one_trace(tmp_path, protocol):
    began_ns = time.time_ns()
    with OtlpReceiver(protocol) as collector, NodeProcess(tmp_path, environ={**collector.environ, **FAST}) as node:
        planner, critic = node.add_agent("planner"), node.add_agent("critic")
        done = subprocess.run(
            [sys.executable, "-m", "tests.system.conversation", planner.url, critic.url],
            env=clean_environ({**collector.environ, **FAST}),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        trace_id = told["trace_id"]

        def whole(spans: list[Received]) -> bool:
            # Two turns, one `process`, and the STORE of each acknowledgement.
            names = [span.name for span in spans if span.trace_id == trace_id]
            return all(names.count(name) >= 2 for name in [*TURN, "imap store"]) and "process" in names

        collector.wait_for(whole, 20)
        spans = collector.trace(trace_id)
    ended_ns = time.time_ns()
    by_id = {span.span_id: span for span in spans}

    def parent(span: Received) -> str:
        return by_id[span.parent_id].name if span.parent_id else ""

    def children(span: Received, name: str) -> list[Received]:
        return [one for one in spans if one.parent_id == span.span_id and one.name == name]

    # Every span is in the catalogue, has the kind it says there, a time in nanoseconds, and a parent that was exported.
    for span in spans:
        spec = span_spec(span.name)
        assert spec is not None, span.name
        assert span.kind == spec.kind.name, span.name
        assert began_ns <= span.start_ns <= span.end_ns <= ended_ns, span.name
        assert not span.parent_id or span.parent_id in by_id, f"{span.name} is an orphan"
        assert not span.error, span
        if span.parent_id:
            assert by_id[span.parent_id].start_ns <= span.start_ns, f"{span.name} began before {parent(span)}"
    assert [span.name for span in spans if not span.parent_id] == ["send"]

    # The two turns have the same shape; the second hangs below the first's `process`.
    question, answer = sorted((span for span in spans if span.name == "send"), key=lambda span: span.start_ns)
    (process,) = [span for span in spans if span.name == "process"]
    assert parent(process) == "send"
    assert process.parent_id == question.span_id
    assert answer.parent_id == process.span_id
    for send in (question, answer):
        (receive,) = children(send, "smtp receive")
        assert receive.attributes["aimx.context.source"] == "header"
        assert receive.attributes["messaging.message.conversation_id"] == "wf-talk"
        assert receive.attributes["smtp.response.status_code"] == 250
        (route,) = children(receive, "route recipient")
        (deliver,) = children(route, "deliver mailbox")
        assert send.span_id in {link.span_id for link in deliver.links}
        assert [parent(one) for one in spans if one.name == "mailbox append"] == ["deliver mailbox"] * 2
        (fetch,) = children(send, "imap fetch")
        assert fetch.attributes["aimx.pickup.latency"] >= 0
        (store,) = children(send, "imap store")
        assert store.attributes["aimx.ack"] is True
    assert sorted(parent(span) for span in spans if span.name == "ack") == ["process", "send"]
    assert {span.resource["service.name"] for span in spans if span.name == "send"} == {"agents"}
    assert {span.resource["service.name"] for span in spans if span.name == "smtp receive"} == {"aimx"}
