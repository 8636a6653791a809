"""The stock SDK (`trace.sdk = "stock"`) exports what AIMX's own encoder exports, span for span; what users may install
beside it (samplers, resource detectors) is heard by both."""

import asyncio
import os
import platform
from dataclasses import replace
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult

from aimx.telemetry import export, stock
from aimx.telemetry.context import Context
from aimx.telemetry.span import SERVER, Facts, Sink, Span
from tests.otlp_receiver import OtlpReceiver, Received
from tests.protocol.mail_node import MailNode, add_agent, running
from tests.protocol.test_mail import eid_of, refusal, until

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


class Both:
    """Hands every span to each of the sinks."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks

    def take(self, span: Span) -> None:
        for sink in self._sinks:
            sink.take(span)

    def flush(self, timeout_s: float) -> bool:
        return min(sink.flush(timeout_s) for sink in self._sinks)

    def close(self, timeout_s: float) -> bool:
        return min(sink.close(timeout_s) for sink in self._sinks)


def opened(receiver: OtlpReceiver, sdk: export.Sdk, monkeypatch: pytest.MonkeyPatch) -> Sink:
    for name, value in receiver.environ.items():
        monkeypatch.setenv(name, value)
    sink = export.open_tracer("aimx", sdk).sink
    assert sink is not None
    assert sink.flush(20)  # its exporters are made, from these variables
    return sink


def by_id(receiver: OtlpReceiver) -> dict[str, Received]:
    """What arrived. The resource may differ in who says to have exported it."""
    assert len({span.span_id for span in receiver.spans}) == len(receiver.spans), "none twice"
    return {
        span.span_id: replace(
            span, resource={key: value for key, value in span.resource.items() if not key.startswith("telemetry.sdk")}
        )
        for span in receiver.spans
    }


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_both_export_the_same_spans_of_the_same_mail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    with OtlpReceiver(protocol) as ours, OtlpReceiver(protocol) as stocks:
        both = Both(opened(ours, "aimx", monkeypatch), opened(stocks, "stock", monkeypatch))
        retry = {"first_delay": "50ms", "max_delay": "100ms", "jitter": 0.0, "deadline": "200ms"}
        lists = {"all": {"members": ["ada", "bob"]}}
        async with running(tmp_path, ["ada", "bob"], delivery=retry, list=lists) as node:
            assert node.node.tracer is not None
            node.node.tracer.sink = both
            await all_sorts_of_mail(node)
        assert await asyncio.to_thread(both.close, 20)
    got, expected = by_id(ours), by_id(stocks)
    assert got == expected
    names = {span.name for span in got.values()}
    assert {"smtp receive", "route recipient", "enqueue mailbox", "deliver mailbox", "dead-letter mailbox"} <= names
    assert any(span.error for span in got.values())
    assert any(span.links for span in got.values())
    assert any(span.events for span in got.values())
    assert any(span.tracestate for span in got.values())


async def all_sorts_of_mail(node: MailNode) -> None:
    """Delivered, to a list, refused, given up, filed over IMAP, with a sender's context and without."""
    await node.send("ada", "bob", traceparent=TRACEPARENT, tracestate="vendor=1", X_Workflow_ID="wf")
    await node.send("ada", "all")
    await refusal(node.send_raw("ada", ["bob"], b"From: bob@fabric.local\r\n\r\nnot from bob\r\n"))
    await add_agent(node.store, "eve", quota=1)
    eid = eid_of(await node.send("ada", "eve"))
    await node.append("ada", "INBOX", b"From: x@y.example\r\n\r\nfiled\r\n")

    async def bounced() -> bool:
        return any(event.row.ev == "message.bounced" for event in await node.events(eid))

    await until(bounced)


def test_facts_and_what_is_odd_are_the_same_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with OtlpReceiver("http/protobuf") as ours, OtlpReceiver("http/protobuf") as stocks:
        both = Both(opened(ours, "aimx", monkeypatch), opened(stocks, "stock", monkeypatch))
        tracer = export.Tracer(both)
        shared = Facts({"a": "ü" * 200, "b": True, "c": 1, "d": -1, "e": 0.5, "f": ("x", "y")})
        for number in (0, 1):
            span = tracer.start("smtp receive", SERVER, attributes=shared)
            span.say({"n": number, "yes": bool(number), "empty": "", "long": "x" * 300})
            span.link(Context(b"\x01" * 16, b"\x02" * 8, 1, "s=1", remote=True), {"why": "answer"})
            span.error("4.2.2", "mailbox full")
            span.end()
        assert both.close(20)
    assert by_id(ours) == by_id(stocks)
    assert len(ours.spans) == 2


# ── what users install beside it ──


class EveryOther(Sampler):
    """By the last bit of the trace id."""

    def __init__(self, argument: str) -> None:
        assert argument == "odd"

    def should_sample(self, parent_context, trace_id, name, *_args, **_named):  # type: ignore[no-untyped-def]
        return SamplingResult(Decision.RECORD_AND_SAMPLE if trace_id % 2 else Decision.DROP)

    def get_description(self) -> str:
        return "EveryOther"


class Entry:
    """As `importlib.metadata` finds it in an installed package."""

    def __init__(self, made: type) -> None:
        self._made = made

    def load(self) -> type:
        return self._made


@pytest.mark.parametrize("sdk", ["aimx", "stock"])
def test_an_installed_sampler_decides(sdk: export.Sdk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock, "entry_points", lambda group, name: [Entry(EveryOther)] if name == "every_other" else [])
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "every_other")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "odd")
    with OtlpReceiver("http/protobuf") as receiver:
        for name, value in receiver.environ.items():
            monkeypatch.setenv(name, value)
        tracer = export.open_tracer("aimx", sdk)
        spans = [tracer.start("ack", parent=Context(bytes([n]) * 16, b"\x02" * 8)) for n in range(1, 9)]
        for span in spans:
            span.child("process").end()
            span.end()
        assert tracer.close(20)
        sampled = {span.trace_id.hex() for span in spans if span.trace_id[-1] % 2}
        assert {span.trace_id for span in receiver.spans} == sampled
        assert len(receiver.spans) == 8
        assert [span.context.sampled for span in spans] == [True, False] * 4


@pytest.mark.parametrize("sdk", ["aimx", "stock"])
def test_resource_detectors_are_asked(sdk: export.Sdk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", "os")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=mail")
    with OtlpReceiver("grpc") as receiver:
        for name, value in receiver.environ.items():
            monkeypatch.setenv(name, value)
        tracer = export.open_tracer("aimx-test", sdk)
        tracer.start("ack").end()
        assert tracer.close(20)
        about = receiver.spans[0].resource
    assert about["os.type"] == platform.system().lower()
    assert (about["team"], about["service.name"]) == ("mail", "aimx-test")
    assert about["telemetry.sdk.name"] == ("aimx" if sdk == "aimx" else "opentelemetry")
