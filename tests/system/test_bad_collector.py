"""A collector that is away, refuses, hangs or is slow: no mail is lost, and what becomes of the spans is told."""

import json
import time

import pytest

from tests.node_process import Account, NodeProcess
from tests.otlp_receiver import OtlpReceiver

FAST = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
SMALL = {"OTEL_BSP_MAX_QUEUE_SIZE": "100", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "50"}
MAILS = 100


@pytest.mark.parametrize("collector", ["absent", "refusing", "hanging", "a tenth as fast"])
def test_with_a_bad_collector_no_mail_is_lost_and_the_loss_of_spans_is_told(tmp_path, collector):
    with OtlpReceiver("grpc") as receiver:
        match collector:
            case "refusing":
                receiver.behave("refuse")
            case "hanging":
                receiver.behave("hang")
            case "a tenth as fast":
                receiver.pace(20)
        endpoint = "http://127.0.0.1:9" if collector == "absent" else receiver.endpoint
        environ = {**receiver.environ, **FAST, **SMALL, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        node = NodeProcess(tmp_path, environ=environ).start()
        try:
            planner, critic = node.add_agent("planner"), node.add_agent("critic")
            slowest = send(node, planner, critic, MAILS)
            assert len(node.bodies(critic)) == MAILS
            assert slowest < 3, "a collector that waits ten seconds held up no mail"
            said = {finding["what"]: finding for finding in json.loads(node.aimx("doctor", "--json").stdout)}
            assert "spans dropped" in said["spans"]["text"]
            assert ("refused" if collector == "refusing" else "full") in said["spans"]["text"]
            assert node.stop() < 10
        finally:
            if node.process is not None:
                node.kill()
    told = [line for line in node.lines() if line.get("event") == "spans.dropped"]
    assert 1 <= len(told) <= 2, "once a minute, and once more at the end"
    assert told[0]["level"] == "warning"
    # Every span was sent or counted, and of those that waited there were never more than the buffer holds.
    dropped = sum(line.get(reason, 0) for line in told for reason in ("full", "refused", "closed"))
    assert dropped + len(receiver.spans) >= 6 * MAILS


def test_spans_in_hand_when_the_node_is_stopped_reach_the_collector(tmp_path):
    slow = {"OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with OtlpReceiver("http/protobuf") as receiver:
        with NodeProcess(tmp_path, environ={**receiver.environ, **slow}) as node:
            planner, critic = node.add_agent("planner"), node.add_agent("critic")
            send(node, planner, critic, 40)
            assert not receiver.spans, "they wait for more"
        names = [span.name for span in receiver.spans]
        assert names.count("smtp receive") == names.count("deliver mailbox") == 40
        assert names.count("audit append") >= 80
        assert receiver.orphans() == []


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_is_busy_for_a_while_gets_every_span(tmp_path, protocol):
    with OtlpReceiver(protocol) as receiver:
        receiver.behave("busy")
        with NodeProcess(tmp_path, environ={**receiver.environ, **FAST}) as node:
            planner, critic = node.add_agent("planner"), node.add_agent("critic")
            send(node, planner, critic, 20)
            receiver.wait_for_requests(1)
            receiver.behave("take")
            spans = receiver.wait_for(lambda spans: [span.name for span in spans].count("deliver mailbox") == 20)
        assert len({span.span_id for span in spans}) == len(spans), "none twice"


def send(node: NodeProcess, sender: Account, recipient: Account, count: int) -> float:
    """How long the slowest took, in seconds."""
    slowest = 0.0
    with node.smtp(sender) as client:
        for number in range(count):
            began = time.monotonic()
            text = f"From: {sender.address}\r\nSubject: {number}\r\n\r\nhello\r\n"
            client.sendmail(sender.address, [recipient.address], text)
            slowest = max(slowest, time.monotonic() - began)
    return slowest
