"""An agent that is busy gets its mail later; one that stays busy makes the sender hear of it."""

import email
import email.policy
import json
import re
import time

import pytest

from tests.node_process import NodeProcess, receipt_id
from tests.otlp_receiver import OtlpReceiver, wait_until

CONFIG = """
[delivery]
first_delay = "200ms"
max_delay = "400ms"
deadline = "{deadline}"
"""


def submit(node, sender, recipient, subject):
    with node.smtp(sender) as client:
        client.ehlo()
        client.mail(sender.address)
        assert client.rcpt(recipient.address)[0] == 250
        code, answer = client.data(
            f"From: {sender.address}\r\nSubject: {subject}\r\nX-Workflow-ID: wf\r\n\r\nhello\r\n"
        )
    assert code == 250, answer
    return receipt_id(answer)


def subjects(node, account):
    return [re.search(rb"(?m)^Subject: (.*?)\r$", body)[1].decode() for body in node.bodies(account)]


def acknowledge_all(node, account):
    with node.imap(account) as client:
        client.store("1:*", "+FLAGS", "($AimxDone)")


@pytest.mark.parametrize("restart", [False, True], ids=["", "over a restart"])
def test_a_busy_agent_gets_its_mail_when_it_is_free_again(tmp_path, restart):
    with OtlpReceiver("http/protobuf") as collector:
        environ = {**collector.environ, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        with NodeProcess(tmp_path, CONFIG.format(deadline="1h"), environ) as node:
            planner, critic = node.add_agent("planner"), node.add_agent("critic", "--max-unacked", "2")
            first, second, third = (submit(node, planner, critic, str(n)) for n in range(3))
            assert subjects(node, critic) == ["0", "1"]
            collector.wait_for(lambda spans: [s.name for s in spans].count("deliver mailbox") >= 5)
            if restart:
                node.restart()
                assert subjects(node, critic) == ["0", "1"]
            acknowledge_all(node, critic)
            wait_until(lambda: len(node.bodies(critic)) == 3)
            assert subjects(node, critic) == ["0", "1", "2"]
            assert json.loads(node.aimx("audit", "verify", "--json").stdout)["ok"]
        spans = collector.spans
    # Every attempt is a sibling, each failed one says when the next comes, the last one delivers.
    (waiting,) = [span for span in spans if span.name.startswith("enqueue ")]
    attempts = sorted((s for s in spans if s.parent_id == waiting.span_id), key=lambda s: s.start_ns)
    numbers = [span.attributes["aimx.delivery.attempt"] for span in attempts]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    for failed in attempts[:-1]:
        assert failed.error
        assert "retry.scheduled" in [event.name for event in failed.events]
    assert not attempts[-1].error
    assert {first, second, third} == {
        re.search(rb"(?m)^AIMX-ID: (\w+)", body)[1].decode() for body in node_bodies_after(tmp_path, critic)
    }


def node_bodies_after(tmp_path, account):
    """Another start shows the same mail: nothing was only in memory."""
    with NodeProcess(tmp_path, CONFIG.format(deadline="1h")) as node:
        return node.bodies(account)


def test_after_the_deadline_the_sender_is_told(tmp_path):
    with NodeProcess(tmp_path, CONFIG.format(deadline="1s")) as node:
        planner, critic = node.add_agent("planner"), node.add_agent("critic", "--max-unacked", "1")
        submit(node, planner, critic, "taken")
        began = time.monotonic()
        waiting = submit(node, planner, critic, "too much")
        wait_until(lambda: node.bodies(planner) != [], 20)
        assert time.monotonic() - began > 0.9
        (raw,) = node.bodies(planner)
        notice = email.message_from_bytes(raw, policy=email.policy.default)
        assert notice.get_content_type() == "multipart/report"
        assert notice.get_param("report-type") == "delivery-status"
        assert notice["Return-Path"] == "<>"
        _, status, original = notice.iter_parts()
        assert status.get_content_type() == "message/delivery-status"
        said = status.as_string()
        assert f"Final-Recipient: rfc822; {critic.address}" in said
        assert "Action: failed" in said
        assert re.search(r"Status: [45]\.\d\.\d", said)
        assert "too much" in original.as_string()
        assert waiting in raw.decode()
        assert subjects(node, critic) == ["taken"]
        acknowledge_all(node, critic)
        time.sleep(1)  # long enough for another attempt, were there one
        assert subjects(node, critic) == ["taken"]
        assert len(node.bodies(planner)) == 1
        assert json.loads(node.aimx("audit", "verify", "--json").stdout)["ok"]
