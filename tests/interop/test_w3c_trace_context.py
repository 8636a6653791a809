"""W3C Trace Context (levels 1 and 2) and W3C Baggage, rule by rule, through real SMTP and out of real IMAP.

Each case is a mail of its own with these headers. It is read back as an agent reads it: by Python's mail library and
OpenTelemetry's stock propagators, which undo no RFC 2047 words and know few of the limits. The trace that the node
itself continued stands in `AIMX-Trace`. Cases are named after those of the W3C test suite where it has them, and cite
the section's title ("TC": Trace Context, "B": Baggage). What differs over mail: the creation context comes out as it
went in (in HTTP it is replaced at each hop), so that the parent id is the sender's.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes, policy

import pytest
from opentelemetry import baggage, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from aimx.message.header import HeaderBlock
from aimx.telemetry.context import hops
from tests.node_process import NodeProcess

TRACE, SPAN = "12345678901234567890123456789012", "1234567890123456"
GOOD = f"00-{TRACE}-{SPAN}-01"
Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Case:
    name: str
    section: str
    headers: Headers
    continued: bool
    state: str | None = None
    """What tracestate says in the end, members joined by ","; None: there is none."""
    bag: dict[str, str] | str | None = None
    """What the agent finds in its baggage; or what the header says, where the stock propagator cannot read it."""
    flags: int | None = None


def parent(name: str, section: str, *values: str, continued: bool = False, flags: int | None = None) -> Case:
    return Case(name, f"TC {section}", tuple(("traceparent", value) for value in values), continued, flags=flags)


def state(name: str, section: str, *values: str, kept: str | None = None, header: str = "tracestate") -> Case:
    """Whatever is wrong with tracestate, traceparent is not affected (TC tracestate Header)."""
    return Case(name, f"TC {section}", (("traceparent", GOOD), *((header, value) for value in values)), True, kept)


def bag(name: str, section: str, *values: str, kept: dict[str, str] | str | None = None) -> Case:
    return Case(name, f"B {section}", (("traceparent", GOOD), *(("baggage", v) for v in values)), True, bag=kept or {})


def members(first: int, last: int) -> str:
    return ",".join(f"bar{i:02}={i:02}" for i in range(first, last + 1))


LEGAL_KEY = "abcdefghijklmnopqrstuvwxyz0123456789_-*/"
LEGAL_VALUE = "".join(map(chr, [*range(0x20, 0x2C), *range(0x2D, 0x3D), *range(0x3E, 0x7F)]))
TOKEN = "!#$%&'*+-.^_`|~09AZaz"
FUTURE = "what-the-future-will-be-like"

CASES = [
    # ── traceparent ──
    Case("both_traceparent_and_tracestate_missing", "TC A traceparent is received: none", (), False),
    parent("traceparent_included_tracestate_missing", "Mutating the traceparent Field", GOOD, continued=True),
    parent("traceparent_duplicated", "Mutating the traceparent Field", f"00-{TRACE[::-1]}-{SPAN}-01", GOOD),
    parent("traceparent_duplicated_the_same", "traceparent Header", GOOD, GOOD),
    *(
        Case(f"traceparent_header_name[{n}]", "TC traceparent: Header Name", ((n, GOOD),), False)
        for n in ("trace-parent", "trace.parent", "x-traceparent")
    ),
    *(
        Case(f"traceparent_header_name_valid_casing[{n}]", "TC traceparent: Header Name", ((n, GOOD),), True)
        for n in ("TraceParent", "TrAcEpArEnT", "TRACEPARENT")
    ),
    parent("traceparent_version_0x00[dot]", "version-format", f"{GOOD}."),
    parent("traceparent_version_0x00[more]", "version-format", f"{GOOD}-{FUTURE}"),
    parent("traceparent_version_0xcc", "Versioning of traceparent", f"cc{GOOD[2:]}", continued=True),
    parent("traceparent_version_0xcc[more]", "Versioning of traceparent", f"cc{GOOD[2:]}-{FUTURE}", continued=True),
    parent("traceparent_version_0xcc[dot]", "Versioning of traceparent", f"cc{GOOD[2:]}.{FUTURE}"),
    parent("traceparent_version_0xcc[shorter_than_55]", "Versioning of traceparent", f"cc-{TRACE}-{SPAN}-"),
    parent("traceparent_version_0xff", "version", f"ff{GOOD[2:]}"),
    parent("traceparent_version_illegal_characters[.0]", "version", f".0{GOOD[2:]}"),
    parent("traceparent_version_illegal_characters[0.]", "version", f"0.{GOOD[2:]}"),
    parent("traceparent_version_illegal_characters[upper]", "version", f"CC{GOOD[2:]}"),
    parent("traceparent_version_too_long", "version", f"0{GOOD}"),
    parent("traceparent_version_too_long[4]", "version", f"00{GOOD}"),
    parent("traceparent_version_too_short", "version", GOOD[1:]),
    parent("traceparent_trace_id_all_zero", "trace-id", f"00-{'0' * 32}-{SPAN}-01"),
    parent("traceparent_trace_id_illegal_characters[first]", "trace-id", f"00-.{TRACE[1:]}-{SPAN}-01"),
    parent("traceparent_trace_id_illegal_characters[last]", "trace-id", f"00-{TRACE[:-1]}.-{SPAN}-01"),
    parent("traceparent_trace_id_upper_case", "trace-id", f"00-{'ABCDEF' + TRACE[6:]}-{SPAN}-01"),
    parent("traceparent_trace_id_too_long", "trace-id", f"00-{TRACE}3-{SPAN}-01"),
    parent("traceparent_trace_id_too_short", "trace-id", f"00-{TRACE[1:]}-{SPAN}-01"),
    parent("traceparent_parent_id_all_zero", "parent-id", f"00-{TRACE}-{'0' * 16}-01"),
    parent("traceparent_parent_id_illegal_characters[first]", "parent-id", f"00-{TRACE}-.{SPAN[1:]}-01"),
    parent("traceparent_parent_id_illegal_characters[last]", "parent-id", f"00-{TRACE}-{SPAN[:-1]}.-01"),
    parent("traceparent_parent_id_upper_case", "parent-id", f"00-{TRACE}-{'ABCDEF' + SPAN[6:]}-01"),
    parent("traceparent_parent_id_too_long", "parent-id", f"00-{TRACE}-{SPAN}7-01"),
    parent("traceparent_parent_id_too_short", "parent-id", f"00-{TRACE}-{SPAN[1:]}-01"),
    parent("traceparent_trace_flags_illegal_characters[.0]", "trace-flags", f"00-{TRACE}-{SPAN}-.0"),
    parent("traceparent_trace_flags_illegal_characters[0.]", "trace-flags", f"00-{TRACE}-{SPAN}-0."),
    parent("traceparent_trace_flags_too_long", "trace-flags", f"00-{TRACE}-{SPAN}-001"),
    parent("traceparent_trace_flags_too_short", "trace-flags", f"00-{TRACE}-{SPAN}-1"),
    parent("sampled_flag_off", "Sampled flag", f"00-{TRACE}-{SPAN}-00", continued=True, flags=0),
    parent("sampled_flag_on", "Sampled flag", GOOD, continued=True, flags=1),
    parent("random_flag", "Random Trace ID Flag (level 2)", f"00-{TRACE}-{SPAN}-03", continued=True, flags=3),
    parent("random_flag_alone", "Random Trace ID Flag (level 2)", f"00-{TRACE}-{SPAN}-02", continued=True, flags=2),
    parent("other_flags", "Other Flags", f"00-{TRACE}-{SPAN}-ff", continued=True, flags=3),
    parent("other_flags_alone", "Other Flags", f"00-{TRACE}-{SPAN}-fc", continued=True, flags=0),
    *(
        parent(f"traceparent_ows_handling[{i}]", "traceparent Header Field Values", value, continued=True)
        for i, value in enumerate((f" {GOOD}", f"\t{GOOD}", f"{GOOD} ", f"{GOOD}\t", f"\t {GOOD} \t"))
    ),
    parent("multiple_requests_with_illegal_traceparent", "trace-id", f"00-{'0' * 32}-{'0' * 16}-01"),
    # ── tracestate ──
    Case("tracestate_included_traceparent_missing", "TC tracestate Header", (("tracestate", "foo=1,bar=2"),), False),
    Case(
        "tracestate_included_traceparent_invalid",
        "TC tracestate Header",
        (("traceparent", "nonsense"), ("tracestate", "foo=1")),
        False,
    ),
    state("tracestate_included_traceparent_included", "tracestate Header", "foo=1,bar=2", kept="foo=1,bar=2"),
    *(
        state(f"tracestate_header_name[{n}]", "tracestate: Header Name", "foo=1", header=n)
        for n in ("trace-state", "trace.state")
    ),
    *(
        state(f"tracestate_header_name_valid_casing[{n}]", "tracestate: Header Name", "foo=1", kept="foo=1", header=n)
        for n in ("TraceState", "TrAcEsTaTe", "TRACESTATE")
    ),
    state("tracestate_empty_header", "tracestate Header Field Values", ""),
    state("tracestate_empty_header[after]", "tracestate Header Field Values", "foo=1", "", kept="foo=1"),
    state("tracestate_empty_header[before]", "tracestate Header Field Values", "", "foo=1", kept="foo=1"),
    state("tracestate_empty_members", "list", "foo=1,, ,bar=2", kept="foo=1,bar=2"),
    state(
        "tracestate_multiple_headers_different_keys",
        "tracestate Header Field Values",
        "foo=1,bar=2",
        "rojo=1,congo=2",
        "baz=3",
        kept="foo=1,bar=2,rojo=1,congo=2,baz=3",
    ),
    # The suite allows one of the two to go; the leftmost is the newest position (TC Combined Header Value).
    state("tracestate_duplicated_keys[same]", "Combined Header Value", "foo=1,foo=1", kept="foo=1"),
    state("tracestate_duplicated_keys[differing]", "Combined Header Value", "foo=1,foo=2", kept="foo=1"),
    state("tracestate_duplicated_keys[headers]", "Combined Header Value", "foo=1", "foo=2", kept="foo=1"),
    state(
        "tracestate_all_allowed_characters", "Value", f"{LEGAL_KEY}={LEGAL_VALUE}", kept=f"{LEGAL_KEY}={LEGAL_VALUE}"
    ),
    state(
        "tracestate_all_allowed_characters[vendor]",
        "Key",
        f"{LEGAL_KEY}@a-z0-9_-*/={LEGAL_VALUE}",
        kept=f"{LEGAL_KEY}@a-z0-9_-*/={LEGAL_VALUE}",
    ),
    state("tracestate_key_begins_with_a_digit", "Key (level 2)", "1foo=1", kept="1foo=1"),
    *(
        state(f"tracestate_ows_handling[{i}]", "tracestate Header Field Values", value, kept=kept)
        for i, (value, kept) in enumerate(
            (
                ("foo=1 \t , \t bar=2, \t baz=3", "foo=1,bar=2,baz=3"),
                ("foo=1\t \t,\t \tbar=2,\t \tbaz=3", "foo=1,bar=2,baz=3"),
                (" foo=1", "foo=1"),
                ("\tfoo=1", "foo=1"),
                ("foo=1 ", "foo=1"),
                ("foo=1\t", "foo=1"),
                ("\t foo=1 \t", "foo=1"),
            )
        )
    ),
    *(
        state(f"tracestate_key_illegal_characters[{value}]", "Key", value)
        for value in ("foo =1", "FOO=1", "foo.bar=1", "-foo=1", "=1", "foo")
    ),
    *(
        state(f"tracestate_key_illegal_vendor_format[{value}]", "Key", f"{value},bar=2")
        for value in ("foo@=1", "@foo=1", "foo@@bar=1", "foo@bar@baz=1")
    ),
    state(
        "tracestate_member_count_limit[32]",
        "tracestate Header Field Values",
        *(members(a, b) for a, b in ((1, 10), (11, 20), (21, 30), (31, 32))),
        kept=members(1, 32),
    ),
    state(
        "tracestate_member_count_limit[33]",
        "tracestate Header Field Values",
        *(members(a, b) for a, b in ((1, 10), (11, 20), (21, 30), (31, 33))),
    ),
    state("tracestate_key_length_limit[256]", "Key", "foo=1", f"{'z' * 256}=1", kept=f"foo=1,{'z' * 256}=1"),
    state("tracestate_key_length_limit[257]", "Key", "foo=1", f"{'z' * 257}=1"),
    state(
        "tracestate_key_length_limit[241@14]",
        "Key",
        f"foo=1,{'t' * 241}@{'v' * 14}=1",
        kept=f"foo=1,{'t' * 241}@{'v' * 14}=1",
    ),
    state("tracestate_key_length_limit[242@1]", "Key", f"foo=1,{'t' * 242}@v=1"),
    state("tracestate_key_length_limit[1@15]", "Key", f"foo=1,t@{'v' * 15}=1"),
    state("tracestate_value_length_limit[256]", "Value", f"foo={'v' * 256}", kept=f"foo={'v' * 256}"),
    state("tracestate_value_length_limit[257]", "Value", f"foo={'v' * 257}"),
    *(
        state(f"tracestate_value_illegal_characters[{value!r}]", "Value", value)
        for value in ("foo=bar=baz", "foo=,bar=3", "foo=caf\xe9", "foo=a\tb")
    ),
    state("tracestate_value_leading_space", "Value", "foo= 1", kept="foo= 1"),
    state(
        "tracestate_of_512_characters",
        "tracestate Limits",
        *[f"k{i}={'v' * 100}" for i in range(8)],
        kept=",".join(f"k{i}={'v' * 100}" for i in range(8)),
    ),
    # ── baggage ──
    bag("one_member", "baggage-string", "userId=alice", kept={"userId": "alice"}),
    bag("several_members", "baggage-string", "a=1,b=2 , c=3", kept={"a": "1", "b": "2", "c": "3"}),
    bag("several_headers", "Examples of HTTP headers", "a=1", "b=2,c=3", kept={"a": "1", "b": "2", "c": "3"}),
    bag("white_space_around_the_equal_sign", "key", "a =\t1", kept={"a": "1"}),
    bag("every_character_of_a_token", "key", f"{TOKEN}=1", kept=f"{TOKEN}=1"),
    bag("equal_signs_in_the_value", "value", "a=b=c==", kept={"a": "b=c=="}),
    bag("percent_encoded_utf8", "value", "city=Z%C3%BCrich%2C%20CH", kept={"city": "Z\xfcrich, CH"}),
    bag("empty_value", "value", "a=,b=2", kept={"a": "", "b": "2"}),
    bag("properties", "property", "a=1;p;q=2 ; r = 3,b=2", kept="a=1;p;q=2 ; r = 3,b=2"),
    bag("illegal_members_go_alone", "Mutating baggage", 'a=1,b c=2,d="x",e=\\,=5,f', kept={"a": "1"}),
    bag("empty_header", "Header Content", ""),
    bag("header_name_in_any_case", "Header Name", "a=1", kept={"a": "1"}),
    bag("sixty_four_members", "Limits", ",".join(f"k{i}=v" for i in range(64)), kept={f"k{i}": "v" for i in range(64)}),
    bag("eight_kibibytes", "Limits", f"k={'v' * 8190}", kept=f"k={'v' * 8190}"),
    bag(
        "what_is_beyond_the_limit_goes_whole",
        "Limits",
        ",".join(f"k{i}={'v' * 1000}" for i in range(10)),
        kept={f"k{i}": "v" * 1000 for i in range(8)},
    ),
    Case("baggage_without_a_trace", "B Mutating baggage", (("baggage", "a=1"),), False, bag={}),
]
"""Folding and RFC 2047 are the mail's own; see `FOLDED`."""

FOLDED = [
    Case("folded_traceparent", "RFC 5322 §2.2.3", (("traceparent", f"\r\n {GOOD}"),), True),
    Case(
        "folded_tracestate",
        "RFC 5322 §2.2.3",
        (("traceparent", GOOD), ("tracestate", "foo=1,\r\n bar=2")),
        True,
        "foo=1,bar=2",
    ),
    Case(
        "encoded_words",
        "RFC 2047 §2",
        (
            ("traceparent", f"=?utf-8?q?{GOOD}?="),
            ("tracestate", "=?us-ascii?b?Zm9vPTEsYmFyPTI=?="),
            ("baggage", "=?utf-8?q?user=3Da?=\r\n =?utf-8?q?lice?="),
        ),
        True,
        "foo=1,bar=2",
        {"user": "alice"},
    ),
]
EVERY = CASES + FOLDED


@pytest.fixture(scope="module")
def read_back(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, bytes]]:
    """Every case's mail as it lies in the receiver's mailbox, by the case's name."""
    with NodeProcess(tmp_path_factory.mktemp("w3c")) as node:
        ada, bob = node.add_agent("ada"), node.add_agent("bob")
        with node.smtp(ada) as client:
            for case in EVERY:
                head = "".join(f"{name}: {value}\r\n" for name, value in case.headers)
                mail = f"{head}From: {ada.address}\r\nSubject: {EVERY.index(case)}\r\n\r\nhello\r\n"
                client.sendmail(ada.address, [bob.address], mail.encode("utf-8"))
        found = {}
        for octets in node.bodies(bob):
            header, _ = HeaderBlock.parse(octets)
            found[EVERY[int(header.get("Subject") or "")].name] = octets
        yield found


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in EVERY}) == len(EVERY)


@pytest.mark.parametrize("case", EVERY, ids=lambda case: case.name)
def test_the_node_and_the_agent_read_the_same(case: Case, read_back: dict[str, bytes]) -> None:
    octets = read_back[case.name]
    (hop,) = hops(HeaderBlock.parse(octets)[0])
    assert (hop.context.trace_id.hex() == TRACE) is case.continued, "what the node continued"
    assert re.search(rb"traceparent=00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-0[0-3];", octets), "by our version"

    mail = message_from_bytes(octets, policy=policy.default)
    carrier = {name.lower(): str(value) for name, value in reversed(mail.items())}
    assert len(mail.get_all("traceparent", [])) == 1, "exactly one, always"
    assert len(mail.get_all("tracestate", [])) <= 1
    assert len(mail.get_all("baggage", [])) <= 1
    context = TraceContextTextMapPropagator().extract(carrier)
    found = trace.get_current_span(context).get_span_context()
    assert found.is_valid
    assert format(found.trace_id, "032x") == hop.context.trace_id.hex(), "what the agent continues"
    if case.continued:
        assert format(found.span_id, "016x") == SPAN, "the creation context is the sender's"
    if case.flags is not None:
        assert found.trace_flags & 3 == case.flags
        assert hop.context.flags & 2 == case.flags & 2, "the random flag says how the trace id was made"
    assert ",".join(_members(carrier.get("tracestate"))) == (case.state or "")
    if isinstance(case.bag, str):
        assert carrier["baggage"] == case.bag
    elif case.bag is not None:
        assert dict(baggage.get_all(W3CBaggagePropagator().extract(carrier))) == case.bag


def _members(value: str | None) -> list[str]:
    return [member for part in (value or "").split(",") if (member := part.strip(" \t"))]


def test_three_mails_of_one_trace_are_three_spans(read_back: dict[str, bytes]) -> None:
    """Suite: multiple_requests_with_valid_traceparent."""
    spans = {hops(HeaderBlock.parse(read_back[case.name])[0])[0].context.span_id for case in EVERY if case.continued}
    assert len(spans) == sum(case.continued for case in EVERY)


def test_a_new_trace_says_that_its_id_is_random(read_back: dict[str, bytes]) -> None:
    """TC Random Trace ID Flag (level 2): set where the node made the id."""
    mail = message_from_bytes(read_back["both_traceparent_and_tracestate_missing"], policy=policy.default)
    assert str(mail["traceparent"]).endswith("-03")
