"""What the timeline makes of messages and events: who answered whom, how long each step took, what became of it."""

import json
from typing import Any

import pytest

from aimx.config import LoopLimits
from aimx.sidecar.conversation import Conversation
from aimx.sidecar.timeline import Entry, Timeline, assemble
from aimx.sidecar.traces import warnings
from aimx.sidecar.visibility import is_refusal, seen_by, visible
from aimx.store.contract import EventRow, MessageRecord, SpanRef, StoredEvent

TRACE = bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736")
LATER = bytes.fromhex("11111111111111111111111111111111")
SPAN = bytes.fromhex("00f067aa0ba902b7")
T0 = 1_780_000_000_000
PLANNER, RESEARCHER, CRITIC = (f"{name}@fabric.local" for name in ("planner", "researcher", "critic"))


def eid(number: int) -> str:
    return f"01KAQ5XV2M8Z7Q4T9H3W6E{number:04d}"


def message(
    number: int, sender: str, *to: str, at: int, depth: int = 1, answers: int | None = None, **more: Any
) -> MessageRecord:
    known: dict[str, Any] = {
        "eid": eid(number),
        "t_ms": T0 + at,
        "sender": sender,
        "agent": sender or None,
        "recipients": to,
        "delivered_to": to,
        "message_id": f"<m{number}@fabric.local>",
        "in_reply_to": f"<m{answers}@fabric.local>" if answers is not None else None,
        "subject": "s",
        "content_type": "application/json",
        "workflow": "report-17",
        "priority": 0,
        "origin": SpanRef(TRACE, SPAN),
        "received": SpanRef(TRACE, SPAN),
        "context_source": "header",
        "depth": depth,
        "header_size": 100,
        "body_size": 20,
    }
    return MessageRecord(**{**known, **more})


class Events:
    """Events of one conversation, in the order in which they are added."""

    def __init__(self) -> None:
        self.seq = 0
        self.rows: dict[str, list[StoredEvent]] = {}
        self.refused: list[StoredEvent] = []

    def add(
        self, number: int | None, ev: str, at: int, agent: str | None = None, trace: bytes = TRACE, **detail: Any
    ) -> None:
        self.seq += 1
        ref = None if number is None else eid(number)
        row = EventRow(eid=eid(5000 + self.seq), ev=ev, t_ms=T0 + at, trace_id=trace, span_id=SPAN, leaf=b"{}", ref=ref,
                       agent=agent, key=b"k" * 32, detail={"open": {"from": "secret"}, **detail})  # fmt: skip
        stored = StoredEvent(self.seq, row, self.seq - 1)
        if ref is None:
            self.refused.append(stored)
        else:
            self.rows.setdefault(ref, []).append(stored)


def tree(records: list[MessageRecord], events: Events | None = None) -> Timeline:
    events = events or Events()
    return assemble(Conversation([TRACE], records, events.rows, events.refused, False))


def shape(found: Timeline) -> list[tuple[str, str | None, int, str | None]]:
    return [(entry.id, entry.parent, entry.level, entry.link) for entry in found.entries]


def test_a_reply_hangs_under_what_it_names() -> None:
    found = tree([
        message(1, PLANNER, RESEARCHER, at=0),
        message(2, RESEARCHER, PLANNER, at=10, depth=2, answers=1),
        message(3, PLANNER, RESEARCHER, at=20, depth=3, answers=2),
    ])  # fmt: skip
    assert shape(found) == [
        (eid(1), None, 0, None),
        (eid(2), eid(1), 1, "in_reply_to"),
        (eid(3), eid(2), 2, "in_reply_to"),
    ]
    assert found.depth == 3


def test_branches_are_read_one_after_the_other_each_by_time() -> None:
    found = tree([
        message(1, PLANNER, RESEARCHER, CRITIC, at=0),
        message(2, CRITIC, PLANNER, at=10, depth=2, answers=1),
        message(3, RESEARCHER, PLANNER, at=15, depth=2, answers=1),
        message(4, PLANNER, CRITIC, at=20, depth=3, answers=2),
    ])  # fmt: skip
    assert [entry.id for entry in found.entries] == [eid(1), eid(2), eid(4), eid(3)]


def test_without_in_reply_to_the_newest_delivered_message_of_one_less_depth_is_the_parent() -> None:
    found = tree([
        message(1, PLANNER, RESEARCHER, at=0),
        message(2, RESEARCHER, CRITIC, at=10, depth=2),
        message(3, PLANNER, CRITIC, at=12, depth=1),
        message(4, CRITIC, PLANNER, at=20, depth=3),
    ])  # fmt: skip
    assert shape(found) == [
        (eid(1), None, 0, None),
        (eid(2), eid(1), 1, "trace"),
        (eid(4), eid(2), 2, "trace"),
        (eid(3), None, 0, None),
    ]


def test_a_message_that_claims_to_answer_itself_or_a_later_one_is_a_root() -> None:
    found = tree([
        message(1, PLANNER, RESEARCHER, at=0, answers=1),
        message(2, CRITIC, RESEARCHER, at=5, answers=3),
        message(3, RESEARCHER, CRITIC, at=9, answers=2),
    ])  # fmt: skip
    assert shape(found) == [(eid(1), None, 0, None), (eid(2), None, 0, None), (eid(3), eid(2), 1, "in_reply_to")]


def test_a_chain_of_a_thousand_answers_is_no_trouble() -> None:
    chain = [message(n, PLANNER, PLANNER, at=n, depth=n, answers=n - 1 or None) for n in range(1, 1001)]
    found = tree(chain)
    assert found.entries[-1].level == 999
    assert json.loads(json.dumps(found.as_json()))["entries"][999]["level"] == 999


def test_times_and_waits_from_sending_to_acknowledgement() -> None:
    events = Events()
    events.add(
        1,
        "message.accepted",
        0,
        PLANNER,
        route=[{"rule": "busy", "decision": "pool", "queue": "workers", "target": RESEARCHER}],
    )
    events.add(1, "delivery.mailbox", 2, None, recipient=RESEARCHER, attempt=1, waited_ms=2)
    events.add(1, "message.read", 50, RESEARCHER, mailbox=RESEARCHER, pickup_ms=48)
    events.add(1, "message.flagged", 130, RESEARCHER, flags=["$AimxDone"], ack=True)
    records = [message(1, PLANNER, RESEARCHER, at=0), message(2, RESEARCHER, PLANNER, at=120, depth=2, answers=1)]
    found = tree(records, events)
    first = found.entries[0]
    assert [(step.kind, step.at_ms, step.wait_ms) for step in first.steps] == [
        ("accepted", 0, None),
        ("routed", 0, None),
        ("delivered", 2, 2),
        ("read", 50, 48),
        ("acknowledged", 130, 80),
    ]
    assert first.steps[1].text == f"busy: pool workers → {RESEARCHER}"
    assert first.outcome == "acknowledged"
    assert first.duration_ms == 130
    assert found.entries[1].answered_after_ms == 118
    assert found.duration_ms == 130
    assert found.counts.deliveries == found.counts.read == found.counts.acknowledged == 1


def test_retries_are_counted_and_a_waiting_copy_says_when_it_is_tried_again() -> None:
    events = Events()
    events.add(1, "message.accepted", 0, PLANNER)
    events.add(
        1, "message.deferred", 0, recipient=CRITIC, reason="unacknowledged", attempt=1, next_ms=T0 + 1000, delay_ms=1000
    )
    events.add(
        1,
        "message.deferred",
        1000,
        recipient=CRITIC,
        reason="unacknowledged",
        attempt=2,
        next_ms=T0 + 3000,
        delay_ms=2000,
    )
    waiting = tree([message(1, PLANNER, CRITIC, at=0)], events)
    assert waiting.outcome == "waiting"
    assert waiting.counts.waiting == 1
    assert waiting.entries[0].copies[0].next_ms == T0 + 3000
    events.add(1, "delivery.mailbox", 3000, recipient=CRITIC, attempt=3, waited_ms=3000)
    done = tree([message(1, PLANNER, CRITIC, at=0)], events)
    assert done.outcome == "delivered"
    assert done.counts.retries == 2
    assert done.entries[0].copies[0].next_ms is None
    assert done.entries[0].steps[-1].text == f"delivered to {CRITIC} at attempt 3"


def test_a_late_retry_in_another_trace_belongs_to_the_message_and_its_trace_is_named() -> None:
    events = Events()
    events.add(1, "delivery.mailbox", 3_600_000, trace=LATER, recipient=CRITIC, attempt=9)
    found = tree([message(1, PLANNER, CRITIC, at=0)], events)
    assert found.trace_ids == [TRACE.hex(), LATER.hex()]
    assert found.entries[0].steps[0].trace_id == LATER.hex()


def test_a_failure_notice_hangs_under_the_message_that_failed() -> None:
    events = Events()
    events.add(1, "message.bounced", 500, recipient=CRITIC, reason="unacknowledged", attempt=4, dsn=eid(2))
    found = tree([message(1, PLANNER, CRITIC, at=0), message(2, "", PLANNER, at=500)], events)
    assert shape(found)[1] == (eid(2), eid(1), 1, "failure")
    assert found.outcome == "bounced"


def test_a_refused_message_stands_where_it_would_have_stood() -> None:
    events = Events()
    events.add(None, "loop.refused", 30, RESEARCHER, sender=RESEARCHER, recipients=[PLANNER], rule="repeats", depth=3,
               text="said 6 times; raise max_repeats", in_reply_to="<m2@fabric.local>")  # fmt: skip
    records = [message(1, PLANNER, RESEARCHER, at=0), message(2, PLANNER, RESEARCHER, at=10, depth=2, answers=1)]
    found = tree(records, events)
    refused = found.entries[-1]
    assert (refused.stored, refused.parent, refused.level, refused.outcome) == (False, eid(2), 2, "refused")
    assert refused.steps[0].text == "said 6 times; raise max_repeats"
    assert found.outcome == "refused"
    assert found.counts.refused == 1
    assert {member.address: member.refused for member in found.participants}[RESEARCHER] == 1


def test_missing_facts_are_no_error() -> None:
    events = Events()
    for ev in ("message.accepted", "message.deferred", "delivery.mailbox", "message.bounced", "message.read",
               "message.flagged", "message.moved", "mailbox.accessed", "message.erased", "some.news"):  # fmt: skip
        events.add(1, ev, 5, None, route=[None, 3, {}], attempt="x", next_ms=None, flags=7)
    events.add(None, "loop.refused", 6, None, recipients="nobody")
    found = tree([message(1, PLANNER, CRITIC, at=0)], events)
    assert json.dumps(found.as_json())
    assert found.entries[0].outcome == "erased"


def test_openings_of_the_audit_log_are_not_part_of_it() -> None:
    events = Events()
    events.add(1, "message.accepted", 0, PLANNER, size=7)
    found = tree([message(1, PLANNER, CRITIC, at=0)], events)
    assert found.entries[0].steps[0].detail == {"size": 7}


def test_half_a_surrogate_in_somebodys_json_does_not_break_the_answer() -> None:
    events = Events()
    events.add(1, "message.deferred", 0, None, recipient=CRITIC, reason="\ud800")
    json.dumps(tree([message(1, PLANNER, CRITIC, at=0)], events).as_json(), ensure_ascii=False).encode()


def test_a_recipient_does_not_learn_who_else_got_a_copy() -> None:
    events = Events()
    events.add(1, "message.accepted", 0, PLANNER, recipients=[CRITIC, RESEARCHER], route=[{"target": RESEARCHER}])
    events.add(1, "delivery.mailbox", 1, None, recipient=CRITIC)
    events.add(1, "delivery.mailbox", 1, None, recipient=RESEARCHER)
    events.add(1, "message.read", 2, RESEARCHER)
    record = message(1, PLANNER, CRITIC, RESEARCHER, at=0)
    seen = visible(record, events.rows[eid(1)], CRITIC)
    assert [event.row.ev for event in seen] == ["message.accepted", "delivery.mailbox"]
    assert RESEARCHER not in repr(seen)
    assert seen_by(record, CRITIC).delivered_to == (CRITIC,)
    assert seen_by(record, PLANNER) is record
    assert len(visible(record, events.rows[eid(1)], PLANNER)) == 4


@pytest.mark.parametrize("ev", ["loop.refused", "message.rejected"])
def test_a_refusal_is_an_event_without_a_message(ev: str) -> None:
    row = EventRow(eid(1), ev, T0, TRACE, SPAN, b"{}")
    assert is_refusal(row)
    row.ref = eid(2)
    assert not is_refusal(row)


def test_warnings_name_refusals_waits_and_depth_in_order() -> None:
    events = Events()
    events.add(1, "message.deferred", 0, recipient=CRITIC, reason="quota", attempt=1)
    events.add(None, "loop.refused", 30, CRITIC, text="enough", depth=17)
    found = tree([message(1, PLANNER, CRITIC, at=0, depth=16)], events)
    assert [warning.kind for warning in warnings(found, LoopLimits())] == ["waiting", "refused", "deep"]
    assert [w.kind for w in warnings(found, LoopLimits(warn_depth=0))] == ["waiting", "refused"]


def test_an_entry_says_how_long_its_agent_thought_even_when_delivery_is_unknown() -> None:
    found = tree([message(1, PLANNER, CRITIC, at=0), message(2, CRITIC, PLANNER, at=70, depth=2, answers=1)])
    answer: Entry = found.entries[1]
    assert answer.answered_after_ms == 70


def test_a_warning_of_the_loop_guard_is_a_step_and_a_warning() -> None:
    events = Events()
    events.add(1, "message.accepted", 0, PLANNER, loop={"rule": "repeats", "count": 4, "limit": 3})
    found = tree([message(1, PLANNER, CRITIC, at=0)], events)
    assert [step.kind for step in found.entries[0].steps] == ["accepted", "warned"]
    assert [(w.kind, w.text) for w in warnings(found, LoopLimits())] == [
        ("loop", "the loop guard warned: repeats is 4, it warns from 3")
    ]
