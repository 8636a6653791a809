"""Our OTLP bytes say what the stock encoder's say, field by field."""

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from aimx.telemetry.context import Context
from aimx.telemetry.otlp import Encoder
from aimx.telemetry.span import Kind, Span, Tracer
from aimx.telemetry.stock import converter

RESOURCE = {"service.name": "aimx", "service.version": "1"}

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
values = (
    text | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.lists(text, max_size=3)
)
facts = st.dictionaries(text.filter(bool), values, max_size=6)
contexts = st.builds(
    Context,
    st.binary(min_size=16, max_size=16).filter(any),
    st.binary(min_size=8, max_size=8).filter(any),
    st.integers(0, 3),
    st.sampled_from(["", "foo=1,bar=2"]),
    st.just(""),
    st.booleans(),
)
times = st.integers(0, 2**63 - 1)


@st.composite
def spans(draw: st.DrawFn) -> Span:
    kind = draw(st.sampled_from(Kind))
    span = Tracer().start(draw(text), kind, draw(st.none() | contexts), attributes=draw(facts), start_ns=draw(times))
    for _ in range(draw(st.integers(0, 2))):
        span.event(draw(text), draw(st.none() | facts), draw(times))
        span.link(draw(contexts), draw(st.none() | facts))
    if draw(st.booleans()):
        span.error(draw(text), draw(text))
    span.end(draw(times))
    return span


@given(st.lists(spans(), max_size=3))
def test_the_stock_encoder_agrees(batch: list[Span]) -> None:
    ours = ExportTraceServiceRequest.FromString(Encoder(RESOURCE, "aimx", "1").encode(batch))
    theirs = encode_spans([converter(RESOURCE, "aimx")(span) for span in batch])
    if not batch:
        assert [len(group.spans) for group in ours.resource_spans[0].scope_spans] == [0]
        return
    for group in (ours.resource_spans[0], theirs.resource_spans[0]):
        for span in group.scope_spans[0].spans:
            # The stock encoder leaves out W3C's flags and a link's tracestate, and writes an empty status.
            span.flags &= ~0xFF
            if not span.status.code:
                span.ClearField("status")
            for link in span.links:
                link.flags &= ~0xFF
                link.ClearField("trace_state")
    assert ours == theirs


def test_the_collector_sees_the_sampled_flag_and_dropped_links() -> None:
    parent = Context(b"\x01" * 16, b"\x02" * 8, 1, remote=True)
    span = Tracer().start("imap fetch", Kind.SERVER, parent, links=[parent] * 130)
    span.end()
    request = ExportTraceServiceRequest.FromString(Encoder({}, "aimx").encode([span]))
    (got,) = request.resource_spans[0].scope_spans[0].spans
    assert got.flags == 0x301
    assert (len(got.links), got.dropped_links_count) == (128, 2)
