"""Trace context in headers: the cases of W3C's own suite as mail headers, round trips through Python's mail library,
and the choice of what a message continues."""

import email
from email import policy
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimx.message.header import HeaderBlock
from aimx.telemetry.context import (
    Choice,
    Context,
    Door,
    Hop,
    Invalid,
    Source,
    carrier,
    choose,
    claimed,
    clean_baggage,
    clean_tracestate,
    hop_line,
    hops,
    is_context_header,
    parse_traceparent,
    read,
    restate,
    write,
)

TRACE, SPAN = "12345678901234567890123456789012", "1234567890123456"
GOOD = f"00-{TRACE}-{SPAN}-01"


def block(*pairs: tuple[str, str]) -> HeaderBlock:
    raw = "".join(f"{name}: {value}\r\n" for name, value in pairs)
    return HeaderBlock.parse(raw.encode() + b"\r\n")[0]


def traced(*state: str, name: str = "tracestate") -> str:
    found = read(block(("traceparent", GOOD), *((name, value) for value in state)))
    assert isinstance(found, Context)
    assert found.trace_id.hex() == TRACE
    return found.tracestate


# ── traceparent ──


@pytest.mark.parametrize("name", ["traceparent", "TraceParent", "TrAcEpArEnT", "TRACEPARENT"])
def test_header_name_in_any_case(name: str) -> None:
    assert read(block((name, GOOD))) == Context(bytes.fromhex(TRACE), bytes.fromhex(SPAN), 1, remote=True)


@pytest.mark.parametrize("name", ["trace-parent", "trace.parent"])
def test_other_names_are_no_context(name: str) -> None:
    assert read(block((name, GOOD))) == Invalid("absent")


def test_two_traceparents_are_none() -> None:
    assert read(block(("traceparent", GOOD), ("traceparent", GOOD))) == Invalid("duplicate")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (f"00-{TRACE}-{SPAN}-01.", "malformed"),
        (f"00-{TRACE}-{SPAN}-01-what-the-future-will-be-like", "version"),
        (f"cc-{TRACE}-{SPAN}-01.what", "malformed"),
        (f"ff-{TRACE}-{SPAN}-01", "version"),
        (f".0-{TRACE}-{SPAN}-01", "malformed"),
        (f"0.-{TRACE}-{SPAN}-01", "malformed"),
        (f"000-{TRACE}-{SPAN}-01", "malformed"),
        (f"0-{TRACE}-{SPAN}-01", "malformed"),
        (f"00-{'0' * 32}-{SPAN}-01", "zero"),
        (f"00-.{TRACE[1:]}-{SPAN}-01", "malformed"),
        (f"00-{TRACE}3-{SPAN}-01", "malformed"),
        (f"00-{TRACE[1:]}-{SPAN}-01", "malformed"),
        (f"00-{TRACE}-{'0' * 16}-01", "zero"),
        (f"00-{TRACE}-{SPAN[1:]}.-01", "malformed"),
        (f"00-{TRACE}-{SPAN}7-01", "malformed"),
        (f"00-{TRACE}-{SPAN[1:]}-01", "malformed"),
        (f"00-{TRACE}-{SPAN}-.0", "malformed"),
        (f"00-{TRACE}-{SPAN}-001", "malformed"),
        (f"00-{TRACE}-{SPAN}-1", "malformed"),
        (f"00-{TRACE[:-1]}A-{SPAN}-01", "malformed"),
        (f"00-{TRACE[:-1]}１-{SPAN}-01", "malformed"),
        ("", "malformed"),
        (f"{GOOD}, {GOOD}", "malformed"),
    ],
)
def test_what_is_not_a_traceparent(value: str, reason: str) -> None:
    assert read(block(("traceparent", value))) == Invalid(reason)


@pytest.mark.parametrize("rest", ["", "-what-the-future-will-be-like"])
def test_a_future_version_is_read_as_far_as_we_know_it(rest: str) -> None:
    found = read(block(("traceparent", f"cc-{TRACE}-{SPAN}-01{rest}")))
    assert isinstance(found, Context)
    assert found.traceparent == GOOD


@pytest.mark.parametrize(("flags", "kept"), [("00", 0), ("01", 1), ("02", 2), ("03", 3), ("ff", 3), ("fc", 0)])
def test_unknown_flags_are_masked(flags: str, kept: int) -> None:
    found = read(block(("traceparent", f"00-{TRACE}-{SPAN}-{flags}")))
    assert isinstance(found, Context)
    assert found.flags == kept


@pytest.mark.parametrize("value", [f" {GOOD}", f"\t{GOOD}", f"{GOOD} ", f"{GOOD}\t", f"\t {GOOD} \t", f"\r\n {GOOD}"])
def test_white_space_and_folding_around_it_do_not_matter(value: str) -> None:
    assert isinstance(read(block(("traceparent", value))), Context)


# ── tracestate ──


def test_tracestate_without_traceparent_is_nothing() -> None:
    assert read(block(("tracestate", "foo=1"))) == Invalid("absent")


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        (["foo=1,bar=2"], "foo=1, bar=2"),
        (["foo=1 \t , \t bar=2, \t baz=3"], "foo=1, bar=2, baz=3"),
        ([""], ""),
        (["foo=1", ""], "foo=1"),
        (["", "foo=1"], "foo=1"),
        (["foo=1,,bar=2"], "foo=1, bar=2"),
        (["foo=1,bar=2", "rojo=1,congo=2", "baz=3"], "foo=1, bar=2, rojo=1, congo=2, baz=3"),
        (["foo=1,foo=2"], "foo=1"),
        (["foo=1", "foo=2"], "foo=1"),
        (["foo =1"], ""),
        (["FOO=1"], ""),
        (["foo.bar=1"], ""),
        (["foo@=1,bar=2"], ""),
        (["@foo=1,bar=2"], ""),
        (["foo@@bar=1,bar=2"], ""),
        (["foo@bar@baz=1,bar=2"], ""),
        (["foo=bar=baz"], ""),
        (["foo=,bar=3"], ""),
        (["foo"], ""),
        (["z" * 256 + "=1"], "z" * 256 + "=1"),
        (["z" * 257 + "=1"], ""),
        (["t" * 241 + "@" + "v" * 14 + "=1"], "t" * 241 + "@" + "v" * 14 + "=1"),
        (["t" * 242 + "@v=1"], ""),
        (["t@" + "v" * 15 + "=1"], ""),
        (["foo=" + "v" * 256], "foo=" + "v" * 256),
        (["foo=" + "v" * 257], ""),
        ([",".join(f"bar{i}={i}" for i in range(32))], ", ".join(f"bar{i}={i}" for i in range(32))),
        ([",".join(f"bar{i}={i}" for i in range(33))], ""),
    ],
)
def test_tracestate(values: list[str], kept: str) -> None:
    assert traced(*values) == kept


def test_every_legal_character_of_tracestate() -> None:
    key = "abcdefghijklmnopqrstuvwxyz0123456789_-*/"
    value = "".join(map(chr, [*range(0x20, 0x2C), *range(0x2D, 0x3D), *range(0x3E, 0x7F)]))
    assert traced(f"{key}={value}") == f"{key}={value}"
    assert traced(f"{key}@a-z0-9_-*/={value}") == f"{key}@a-z0-9_-*/={value}"


@pytest.mark.parametrize("name", ["trace-state", "trace.state"])
def test_other_names_are_no_tracestate(name: str) -> None:
    assert traced("foo=1", name=name) == ""


# ── baggage ──


def test_baggage_keeps_whole_members_within_the_limits() -> None:
    assert clean_baggage(["a=1,b=2;p;q=x", "c = 3"]) == "a=1, b=2;p;q=x, c = 3"
    assert clean_baggage(["a=1,bad member,b=2,c=\x07,=3,d"]) == "a=1, b=2"
    assert clean_baggage([",".join(f"k{i}=v" for i in range(70))]).count("=") == 64
    long = clean_baggage([",".join(f"k{i}={'v' * 300}" for i in range(40))])
    assert 7500 < len(long) <= 8192
    assert all(len(member.partition("=")[2]) == 300 for member in long.split(", "))
    assert clean_baggage(["k=" + "v" * 9000]) == ""


# ── writing, and other people's mail libraries ──

states = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_*/-]{0,60}", fullmatch=True),
    st.from_regex(r"[!#-+\--<>-~]{1,100}", fullmatch=True).filter(
        lambda value: "=?" not in value and "?=" not in value
    ),
    max_size=32,
).map(lambda members: ", ".join(f"{key}={value}" for key, value in members.items()))
bags = st.dictionaries(
    st.from_regex(r"[A-Za-z0-9_.-]{1,30}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9%._~-]{0,120}", fullmatch=True),
    max_size=50,
).map(lambda members: ", ".join(f"{key}={value}" for key, value in members.items()))
contexts = st.builds(
    Context,
    st.binary(min_size=16, max_size=16).filter(any),
    st.binary(min_size=8, max_size=8).filter(any),
    st.integers(0, 3),
    states,
    bags,
    st.just(True),
)


@given(contexts)
def test_what_we_write_we_read(context: Context) -> None:
    assert read(HeaderBlock.parse(b"".join(write(context)) + b"\r\n")[0]) == context


@given(contexts)
def test_what_we_write_pythons_mail_library_reads_and_writes_again(context: Context) -> None:
    raw = b"".join(write(context)) + b"\r\nbody\r\n"
    for rules in (policy.SMTP, policy.compat32.clone(linesep="\r\n")):
        again = email.message_from_bytes(raw, policy=rules).as_bytes(policy=rules)  # type: ignore[arg-type]
        assert read(HeaderBlock.parse(again)[0]) == context


values = st.one_of(
    states,
    bags,
    st.sampled_from(
        [GOOD, f" {GOOD}", f"=?utf-8?q?{GOOD}?=", "foo=1,foo=2", "a=1,,b=2", "a=1,\r\n b c=2", "", "foo=\xe9"]
    ),
    st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=80),
)


@given(st.lists(st.tuples(st.sampled_from(["traceparent", "Tracestate", "baggage"]), values), max_size=6))
def test_what_is_restated_everybody_reads_as_we_do(pairs: list[tuple[str, str]]) -> None:
    header = block(("traceparent", GOOD), *[pair for pair in pairs if pair[0] != "traceparent"])
    if len(pairs) % 2:  # a traceparent that may be no good
        header = block(*pairs)
    context = read(header)
    if not isinstance(context, Context):
        return
    header.prepend(restate(header, context))
    assert read(header) == context
    assert restate(header, context) == [], "once is enough"
    mail = email.message_from_bytes(header.to_bytes(), policy=policy.compat32)
    assert mail.get_all("traceparent") == [mail["traceparent"]]
    assert parse_traceparent(str(mail["traceparent"])) == context._replace(tracestate="", baggage="")
    for name, kept in (("tracestate", context.tracestate), ("baggage", context.baggage)):
        assert len(mail.get_all(name, [])) == (1 if kept else 0)
        said = "".join(str(mail.get(name, "")).splitlines())
        assert ", ".join([part for member in said.split(",") if (part := member.strip(" \t"))]) == kept


def test_a_value_that_a_mail_library_made_unreadable_is_still_read() -> None:
    mail = EmailMessage(policy=policy.SMTP)
    mail["traceparent"] = GOOD
    mail["baggage"] = ",".join(f"key{i}=value{i}" for i in range(12))  # becomes RFC 2047 words
    raw = mail.as_bytes()
    assert b"=?utf-8?" in raw
    found = read(HeaderBlock.parse(raw)[0])
    assert isinstance(found, Context)
    assert found.baggage == ", ".join(f"key{i}=value{i}" for i in range(12))


def test_the_stock_propagator_reads_what_we_write() -> None:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = Context(bytes.fromhex(TRACE), bytes.fromhex(SPAN), 3, "foo=1, bar=2", "k=v")
    found = trace.get_current_span(TraceContextTextMapPropagator().extract(carrier(context))).get_span_context()
    assert found.trace_id == int(TRACE, 16)
    assert found.span_id == int(SPAN, 16)
    assert dict(found.trace_state.items()) == {"foo": "1", "bar": "2"}


def test_a_strangers_claim_is_kept_under_names_that_nobody_continues() -> None:
    headers = block(("Subject", "x"), ("traceparent", GOOD), ("Baggage", "a=1"), ("tracestate", "foo=1"))
    headers.prepend(claimed(headers.strip(is_context_header)))
    assert read(headers) == Invalid("absent")
    assert headers.get("AIMX-Claimed-Traceparent") == GOOD
    assert headers.get("AIMX-Claimed-Baggage") == "a=1"
    assert headers.get("AIMX-Claimed-Tracestate") == "foo=1"


# ── hops ──


@given(st.integers(0, 9999), contexts, st.text(max_size=40), st.text(max_size=40))
def test_a_hop_line_says_where_the_message_was(number: int, context: Context, by: str, rule: str) -> None:
    by, rule = by.encode("utf-8", "replace").decode(), rule.encode("utf-8", "replace").decode()
    bare = Context(*context[:3], remote=True)
    raw = hop_line(Hop(number, bare, by, rule))
    assert raw.isascii()
    assert hops(HeaderBlock.parse(raw + b"\r\n")[0]) == [Hop(number, bare, by, rule)]


def test_hops_are_newest_first_and_garbage_between_them_is_skipped() -> None:
    context = parse_traceparent(GOOD)
    assert isinstance(context, Context)
    lines = [hop_line(Hop(number, context, "mx.example", "default")) for number in (2, 1)]
    lines.insert(1, b"AIMX-Trace: hop=x; nonsense\r\n")
    found = hops(HeaderBlock.parse(b"".join(lines) + b"\r\n")[0])
    assert [hop.number for hop in found] == [2, 1]


# ── choosing ──

A, B, C, D = (Context(bytes([i]) * 16, bytes([i]) * 8, 1, "s=1", "b=1") for i in range(1, 5))
ABSENT = Invalid("absent")


@pytest.mark.parametrize(
    ("door", "header", "hop", "reply", "references", "expected"),
    [
        (Door.PEER, A, B, None, None, Choice(B, Source.HOP)),
        (Door.PEER, A, None, None, None, Choice(A, Source.HEADER)),
        (Door.AGENT, A, B, None, None, Choice(A, Source.HEADER)),
        (Door.AGENT, A, None, C, D, Choice(A, Source.HEADER, (C,))),
        (Door.AGENT, A, None, A._replace(span_id=b"z" * 8), None, Choice(A, Source.HEADER)),
        (Door.AGENT, ABSENT, None, C, D, Choice(C, Source.IN_REPLY_TO)),
        (Door.AGENT, Invalid("duplicate"), None, None, D, Choice(D, Source.REFERENCES)),
        (Door.AGENT, ABSENT, None, None, None, Choice(None, Source.NEW)),
        (Door.STRANGER, A, B, None, None, Choice(None, Source.NEW, (A._replace(flags=0, tracestate="", baggage=""),))),
        (Door.STRANGER, A, None, C, None, Choice(C, Source.IN_REPLY_TO, (Context(*A[:2], 0),))),
        (Door.STRANGER, ABSENT, None, None, None, Choice(None, Source.NEW)),
    ],
)
def test_which_context_a_message_continues(
    door: Door,
    header: Context | Invalid,
    hop: Context | None,
    reply: Context | None,
    references: Context | None,
    expected: Choice,
) -> None:
    assert choose(door, header=header, hop=hop, in_reply_to=reply, references=references) == expected


def test_tracestate_joins_several_headers_in_order() -> None:
    assert clean_tracestate(["a=1", "b=2"]) == "a=1, b=2"
