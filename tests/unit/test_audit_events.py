"""Leaves: what every event binds, that nothing personal stands in one, and that each opens from its own row."""

import inspect
import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimx.audit import events
from aimx.audit.opening import opening_fault
from aimx.store.contract import EventRow, Hold, SpanRef
from aimx.tlog.leaf import commit, fold_values

STAMP = events.Stamp("n1", 1_780_000_000_123, SpanRef(bytes(range(16)), bytes(range(8))), "ann@x.example")
KEY = bytes(range(32))
M1, M2 = "01JZ0000000000000000000001", "01JZ0000000000000000000002"
BOX = ("ann@x.example", "INBOX")
ONE = events.Command("ann@x.example", BOX, [M1])
TWO = events.Command("ann@x.example", BOX, [M1, M2])
AWAY = events.Departure(
    message=M1, key=KEY, recipient="bob@x.example", via="mx", host="mx.x.example", code=250, attempt=1
)
HOLD = Hold("agent", "bob@x.example", "case 7 of bob@x.example", "admin", 1_780_000_000_000)
DIGESTS = {"data": b"\x0a" * 32, "header": b"\x0b" * 32, "body": b"\x0c" * 32}


def accepted(recipients: tuple[str, ...] = ("bob@x.example",)) -> EventRow:
    return events.message_accepted(
        STAMP, eid=M1, key=KEY, **DIGESTS, sender="ann@x.example", recipients=recipients, size=1234, facts={"rc": 250}
    )


EVERY = [
    accepted(),
    events.message_appended(STAMP, eid=M2, key=KEY, **DIGESTS, by="ann@x.example", box=BOX, size=5),
    events.message_rejected(STAMP, code=550, status="5.7.1", by="ann@x.example", recipients=("bob@x.example",)),
    events.message_rejected(STAMP, code=550, status="5.7.1", by="", n=40, since_ms=1_780_000_000_000),
    events.message_traced(STAMP, eid=M2, data=DIGESTS["data"], by="ann@x.example", recipients=("bob@x.example",)),
    events.message_repeated(STAMP, message=M1, key=KEY, by="ann@x.example"),
    events.loop_refused(
        STAMP, rule="repeats", count=6, by="ann@x.example", loop="wf-secret", recipients=("bob@x.example",)
    ),
    events.message_deferred(STAMP, message=M1, key=KEY, recipient="bob@x.example", why="quota", attempt=2, next_ms=5),
    events.message_bounced(STAMP, message=M1, key=KEY, recipient="bob@x.example", why="deadline", attempt=9, dsn=M2),
    events.delivery_mailbox(STAMP, message=M1, key=KEY, recipient="bob@x.example", box=BOX, uid=7),
    events.message_relayed(STAMP, AWAY),
    events.delivery_webhook(STAMP, AWAY),
    events.delivery_lmtp(STAMP, AWAY),
    events.mailbox_accessed(STAMP, by="admin", box=BOX, via="http", admin=True, message=M1),
    events.message_read(STAMP, ONE),
    events.message_flagged(STAMP, TWO, op="add", flags={"$AimxDone", "\\Seen"}, ack=True),
    events.message_copied(STAMP, TWO, to=("ann@x.example", "Archive")),
    events.message_moved(STAMP, ONE, to=("ann@x.example", "Archive")),
    events.message_expunged(STAMP, TWO),
    events.message_erased(STAMP, message=M1, by="admin", why="request", leaf=1),
    events.hold_placed(STAMP, hold=HOLD),
    events.hold_released(STAMP, hold=HOLD, by="admin"),
    events.queue_changed(STAMP, what="hold", by="admin", messages=[M1, M1], deliveries=[3, 4]),
    events.queue_changed(STAMP, what="drop", by="admin", messages=[M1, M2], deliveries=[3, 5]),
    events.config_changed(STAMP, what="agent.added", by="admin", subject="bob@x.example"),
    events.data_mended(STAMP, what="mailbox-counts", n=2, by="admin"),
    events.key_rotated(STAMP, what="log", by="admin", old="o", new="n"),
    events.login_refused(STAMP, via="smtp", n=9, since_ms=1, sources=["203.0.113.9"], accounts=["bob@x.example"]),
    events.log_opened(STAMP, origin="x.example/audit/2026h2", log="vkey", receipt="vkey"),
    events.log_closed(STAMP, eid="01JZ0000000000000000000009", origin="x/audit/2026h2", next="x/audit/2027h1", log="v"),
    events.log_dropped(STAMP, origin="x/audit/2026h2", size=9, last="note", by="admin"),
    events.heartbeat(STAMP, size=3),
    events.anchor_recorded(STAMP, kind="mail", size=3, who="bob@x.example", proof="AAAA"),
]
PERSONAL = (
    "ann@",
    "bob@",
    "INBOX",
    "Archive",
    "wf-secret",
    "203.0.113.9",
    "mx.x.example",
    "$AimxDone",
    *(d.hex() for d in DIGESTS.values()),
)


@pytest.mark.parametrize("row", EVERY, ids=lambda row: row.ev)
def test_every_leaf_is_as_the_catalogue_says_and_opens_from_its_row(row: EventRow) -> None:
    kind, leaf = events.CATALOGUE[row.ev], json.loads(row.leaf)
    common = {"v", "ev", "t", "eid", "node", "c"}
    assert leaf.keys() - {"ref"} == common | kind.fields.keys()
    assert leaf["c"].keys() == {"trace", "span"} | kind.commits.keys()
    assert row.leaf == json.dumps(leaf, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert (leaf["v"], leaf["ev"], leaf["eid"], leaf["t"], leaf["node"]) == (
        "aimx.audit/1",
        row.ev,
        row.eid,
        row.t_ms,
        "n1",
    )
    assert row.key is not None
    assert leaf["c"]["trace"] == commit(row.key, "trace", STAMP.span.trace_id)
    assert leaf["c"]["span"] == commit(row.key, "span", STAMP.span.span_id)
    again = replace(row, detail=json.loads(json.dumps(row.detail)))
    assert opening_fault(again) is None


@pytest.mark.parametrize("row", EVERY, ids=lambda row: row.ev)
def test_no_leaf_shows_whom_or_what_it_is_about(row: EventRow) -> None:
    text = row.leaf.decode()
    assert not [word for word in PERSONAL if word in text]
    assert not re.search(r"[^\"]+@[^\"]+", text)


def test_every_event_of_the_catalogue_has_a_builder_that_this_file_tests() -> None:
    builders = {
        name.replace("_", ".", 1)
        for name, made in inspect.getmembers(events, inspect.isfunction)
        if not name.startswith("_")
        and made.__module__ == events.__name__
        and inspect.signature(made).return_annotation is EventRow
    }
    assert events.CATALOGUE.keys() == {row.ev for row in EVERY} == builders - {"event"}


def test_an_imap_command_names_a_message_only_when_it_touched_one() -> None:
    one, two = events.message_read(STAMP, ONE), events.message_read(STAMP, TWO)
    assert (one.ref, one.messages, json.loads(one.leaf)["ref"]) == (M1, (), M1)
    assert (two.ref, two.messages, "ref" in json.loads(two.leaf)) == (None, (M1, M2), False)
    assert json.loads(two.leaf)["n"] == 2


@pytest.mark.parametrize("change", ["from", "rcpt", "data", "key", "trace", "span", "ref", "t_ms", "eid"])
def test_a_changed_opening_is_noticed(change: str) -> None:
    row = accepted()
    opening = dict(row.detail["open"])
    match change:
        case "from":
            row = replace(row, detail={"open": {**opening, "from": "eve@x.example"}})
        case "rcpt":
            row = replace(row, detail={"open": {**opening, "rcpt": []}})
        case "data":
            row = replace(row, detail={"open": {**opening, "data": "00" * 32}})
        case "key":
            row = replace(row, key=b"\x00" * 32)
        case "trace":
            row = replace(row, trace_id=b"\x00" * 16)
        case "span":
            row = replace(row, span_id=b"\x00" * 8)
        case "ref":
            row = replace(row, ref=M2)
        case "t_ms":
            row = replace(row, t_ms=0)
        case "eid":
            row = replace(row, eid=M2, ref=M2)
    assert opening_fault(row) is not None


@given(st.lists(st.emails(), min_size=1, max_size=400))
def test_any_number_of_recipients_fits_a_leaf_and_opens(recipients: list[str]) -> None:
    row = accepted(tuple(recipients))
    assert len(row.leaf) <= 65_535
    assert opening_fault(replace(row, detail=json.loads(json.dumps(row.detail)))) is None
    if len(recipients) > events.FOLD_ABOVE:
        folded = commit(KEY, "rcpt", fold_values([address.encode() for address in recipients]))
        assert json.loads(row.leaf)["c"]["rcpt"] == folded


def test_a_thousand_recipients_are_one_commitment() -> None:
    row = accepted(tuple(f"agent{n}@x.example" for n in range(1000)))
    assert len(row.leaf) < 700
    assert isinstance(json.loads(row.leaf)["c"]["rcpt"], str)


def test_an_event_with_a_field_too_many_or_too_few_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="heartbeat"):
        events.event("heartbeat", STAMP, fields={}, values={})
    with pytest.raises(ValueError, match="heartbeat"):
        events.event("heartbeat", STAMP, fields={"size": 1}, values={"by": "a"})
