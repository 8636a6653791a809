"""Two nodes, two processes, one collector: what agents on either say to each other is one trace without an orphan."""

import json
from pathlib import Path

import pytest

from tests.node_process import NodeProcess
from tests.otlp_receiver import OtlpReceiver, Received
from tests.ports import free_port


def config(folder: Path, name: str, other: str, ports: dict[str, int]) -> str:
    ca = json.dumps(str(folder / other / "data" / "tls" / "ca.pem"))
    return f"""
node = "{name}"
listen.peer = "127.0.0.1:{ports[name]}"
delivery = {{ first_delay = "100ms", breaker_failures = 100 }}
[domain."{name}.example"]
[peer.{other}]
domains = ["{other}.example"]
ca = {ca}
host = "127.0.0.1"
port = {ports[other]}
"""


@pytest.fixture
def ports() -> dict[str, int]:
    return {"a": free_port(), "b": free_port()}


def test_a_conversation_over_two_nodes_is_one_trace(tmp_path: Path, ports: dict[str, int]) -> None:
    with OtlpReceiver("grpc") as receiver:
        nodes = {}
        for name, other in (("a", "b"), ("b", "a")):
            alone = NodeProcess(tmp_path / name, config=f'[domain."{name}.example"]\n', environ=receiver.environ)
            with alone:
                pass  # its authority is there now, for the other one to be told
            nodes[name] = NodeProcess(
                tmp_path / name, config=config(tmp_path, name, other, ports), environ=receiver.environ
            )
        with nodes["a"] as a, nodes["b"] as b:
            ada, bob = a.add_agent("ada"), b.add_agent("bob")
            with a.smtp(ada) as client:
                client.sendmail(
                    ada.address, [bob.address], b"From: ada@a.example\r\nMessage-ID: <q@a.example>\r\n\r\nq\r\n"
                )
            receiver.wait_for(lambda spans: _arrived(spans, "b"))
            with b.smtp(bob) as client:
                client.sendmail(
                    bob.address,
                    [ada.address],
                    b"From: bob@b.example\r\nMessage-ID: <r@b.example>\r\nIn-Reply-To: <q@a.example>\r\n\r\nr\r\n",
                )
            spans = receiver.wait_for(lambda spans: _arrived(spans, "a"))
            assert len(a.bodies(ada)) == len(b.bodies(bob)) == 1
        spans = [span for span in spans if not span.name.startswith(("audit", "checkpoint"))]
        about = [span for span in spans if span.name in ("smtp receive", "relay a", "relay b", "deliver mailbox")]
        assert len({span.trace_id for span in about}) == 1, [(span.name, span.trace_id) for span in about]
        known = {span.span_id for span in receiver.spans}
        assert [span.name for span in about if span.parent_id and span.parent_id not in known] == []
        relays = {span.span_id: span.name for span in about if span.name.startswith("relay")}
        received = [relays[s.parent_id] for s in about if s.name == "smtp receive" and s.parent_id in relays]
        assert sorted(received) == ["relay a", "relay b"], "each node's reception hangs under the other's hand-over"


def _arrived(spans: list[Received], node: str) -> bool:
    relayed = {span.span_id for span in spans if span.name == f"relay {node}"}
    receptions = {span.span_id for span in spans if span.parent_id in relayed}
    routes = {span.span_id for span in spans if span.parent_id in receptions}
    return any(span.name == "deliver mailbox" and span.parent_id in routes for span in spans)
