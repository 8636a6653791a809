"""Ids: unique, sortable, and a Message-ID that brings its trace home."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimx.message import identifier
from aimx.message.identifier import eid_time_ms, message_ids, mint, new_eid, unmint

KEY = b"k" * 32
TRACE, SPAN = b"\x12" * 16, b"\x34" * 8


def test_event_ids_sort_in_the_order_they_were_made_and_never_repeat() -> None:
    made = [new_eid() for _ in range(5000)]
    assert made == sorted(made)
    assert len(set(made)) == 5000
    assert all(re.fullmatch("[0-7][0-9A-HJKMNP-TV-Z]{25}", eid) for eid in made)


def test_event_ids_tell_their_time_and_survive_a_clock_that_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identifier, "_last_ms", -1)  # whatever other tests of this process have dated
    future = time.time_ns() // 1_000_000 + 3_600_000
    first = new_eid(future)
    assert eid_time_ms(first) == future
    assert new_eid(future - 1000) > first
    with pytest.raises(ValueError, match="ULID"):
        eid_time_ms("short")


def test_a_minted_message_id_brings_its_trace_back() -> None:
    minted = mint(TRACE, SPAN, "fabric.local", KEY)
    assert unmint(minted, KEY) == (TRACE, SPAN)
    assert unmint(minted[1:-1], KEY) == (TRACE, SPAN)
    assert TRACE.hex() in minted  # a person finds it in any mail log
    assert len(minted) < 200


def test_two_messages_of_one_span_have_different_ids() -> None:
    assert mint(TRACE, SPAN, "fabric.local", KEY) != mint(TRACE, SPAN, "fabric.local", KEY)


def test_nobody_without_the_key_can_make_or_change_one() -> None:
    minted = mint(TRACE, SPAN, "fabric.local", KEY)
    assert unmint(minted, b"other" * 6) is None
    assert unmint(minted.replace("fabric.local", "evil.example"), KEY) is None
    for i in range(1, 76):
        changed = minted[:i] + ("0" if minted[i] != "0" else "1") + minted[i + 1 :]
        assert unmint(changed, KEY) is None


@given(st.text(max_size=120))
def test_foreign_ids_are_not_ours(value: str) -> None:
    assert unmint(value, KEY) is None


def test_ids_are_found_among_garbage() -> None:
    assert message_ids(None) == []
    assert message_ids("<a@b> (comment) <c@d>\t<broken <e@f>") == ["<a@b>", "<c@d>", "<e@f>"]
