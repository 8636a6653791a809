"""What a session was told: numbers, what changed, search keys and mailbox patterns, without a store."""

import re
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimx.imap.errors import Bad, No
from aimx.imap.grammar import STAR, Cursor, Raw
from aimx.imap.listing import Pattern, canonical, superiors
from aimx.imap.response import ranges, uid_set
from aimx.imap.search import Join, holds, numbered, parse_criteria, tree
from aimx.imap.view import View
from aimx.store.contract import Changes, Mailbox, MailboxKey, Marked, Snapshot
from aimx.store.search import And, Everything, HasFlag, Not, Or, Uids

BOX = Mailbox(MailboxKey("a@b", 1), "INBOX", 7, None, True, False)
NONE: frozenset[str] = frozenset()


def view(*uids: int, recent_from: int = 1 << 31) -> View:
    return View(Snapshot(BOX, array("I", uids), recent_from, None, max(uids, default=0) + 1, 10, ()), read_only=False)


def changes(modseq: int, marked: list[Marked] | None = None, vanished: list[int] | None = None, **rest: int) -> Changes:
    marked = marked or []
    uidnext = rest.get("uidnext", max([entry.uid for entry in marked], default=0) + 1)
    return Changes(modseq, uidnext, marked, vanished or [], rest.get("recent_from", 1 << 31))


def test_expunges_are_told_only_when_allowed_and_from_the_last() -> None:
    seen = view(3, 5, 8, 9)
    seen.learn(changes(11, vanished=[3, 8, 77]))
    assert seen.announce(expunge=False) == b""
    assert seen.number(9) == 4
    assert seen.announce(expunge=True) == b"* 3 EXPUNGE\r\n* 1 EXPUNGE\r\n"
    assert seen.number(9) == 2
    assert seen.announce(expunge=True) == b""


def test_what_came_and_went_unseen_is_not_told() -> None:
    seen = view(1)
    seen.learn(changes(11, [Marked(2, NONE, 11), Marked(3, NONE, 11)]))
    seen.learn(changes(12, vanished=[2]))
    assert seen.announce(expunge=False) == b"* 2 EXISTS\r\n* 0 RECENT\r\n"
    assert list(seen.uids) == [1, 3]


def test_flags_a_command_told_are_not_told_again() -> None:
    seen = view(1, 2)
    seen.tell([Marked(1, frozenset({"\\Seen"}), 11)])
    seen.learn(changes(12, [Marked(1, frozenset({"\\Seen"}), 11), Marked(2, frozenset({"Blue"}), 12)]))
    assert seen.announce(expunge=True) == b"* 2 FETCH (FLAGS (Blue))\r\n"
    seen.tell([Marked(1, NONE, 13)])
    seen.learn(changes(14, [Marked(1, frozenset({"\\Draft"}), 14)]))
    assert seen.announce(expunge=True, with_uid=True) == b"* 1 FETCH (UID 1 FLAGS (\\Draft))\r\n"


def test_recent_messages_are_this_sessions_own() -> None:
    seen = view(1, 2, 3, recent_from=3)
    assert seen.recent_count() == 1
    seen.learn(changes(11, [Marked(4, NONE, 11), Marked(5, NONE, 11)], recent_from=5))
    seen.announce(expunge=True)
    assert [uid for uid in seen.uids if seen.is_recent(uid)] == [3, 5]


@pytest.mark.parametrize(
    ("by_uid", "messages", "expected"),
    [
        (False, ((1, 2), (2, 3)), ((10, 30),)),
        (False, ((3, 1),), ((10, 30),)),
        (False, ((STAR, STAR),), ((40, 40),)),
        (False, ((9, STAR),), ((40, 40),)),
        (True, ((99, STAR),), ((40, 40),)),
        (True, ((15, 99),), ((15, 40),)),
        (True, ((50, 99),), ()),
        (True, ((STAR, STAR), (10, 10)), ((10, 10), (40, 40))),
    ],
)
def test_sets_are_taken_within_what_the_client_knows(
    by_uid: bool, messages: tuple[tuple[int, int], ...], expected: tuple[tuple[int, int], ...]
) -> None:
    assert view(10, 20, 30, 40).ranges(by_uid, messages) == expected


def test_numbers_beyond_the_mailbox_are_an_error_and_an_empty_one_has_none() -> None:
    with pytest.raises(Bad):
        view(1, 2).ranges(False, ((3, 3),))
    assert view().ranges(False, ((1, STAR),)) == ()
    assert view().ranges(True, ((1, STAR),)) == ()
    with pytest.raises(Bad):
        view().ranges(False, ((1, 1),))


@given(
    st.sets(st.integers(1, 60)),
    st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), max_size=5),
    st.integers(1, 9),
)
def test_slices_cover_a_set_once_and_in_order(uids: set[int], messages: list[tuple[int, int]], size: int) -> None:
    seen = view(*sorted(uids))
    wanted = [uid for uid in sorted(uids) if any(min(pair) <= uid <= max(pair) for pair in messages)]
    parts = list(seen.slices(seen.ranges(True, tuple(messages)), size))
    found = [[uid for uid in seen.uids if any(low <= uid <= high for low, high in part)] for part in parts]
    assert [uid for part in found for uid in part] == wanted
    assert all(len(part) <= size for part in found)


@given(st.sets(st.integers(1, 99)))
def test_written_sets_name_what_they_should(uids: set[int]) -> None:
    named = [uid for low, high in ranges(sorted(uids)) for uid in range(low, high + 1)]
    assert named == sorted(uids)
    assert uid_set(sorted(uids)).count(b",") == max(len(ranges(sorted(uids))) - 1, 0)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("new"), st.integers(1, 3)),
        st.tuples(st.just("gone"), st.integers(0, 30)),
        st.tuples(st.just("look"), st.booleans()),
    ),
    max_size=40,
)


@given(STEPS)
def test_a_client_that_believes_what_it_is_told_is_never_wrong(steps: list[tuple[str, int]]) -> None:
    """The server's list and the client's, kept by nothing but EXISTS and EXPUNGE, are the same after each answer."""
    seen, client = view(1, 2, 3), [1, 2, 3]
    alive, fresh, gone, nextuid, modseq = [1, 2, 3], [], [], 4, 10
    for kind, value in steps:
        if kind == "new":
            fresh += range(nextuid, nextuid + value)
            alive += range(nextuid, nextuid + value)
            nextuid += value
        elif kind == "gone" and alive:
            gone.append(alive.pop(value % len(alive)))
        else:
            modseq += 1
            marked = [Marked(uid, NONE, modseq) for uid in fresh if uid in alive]
            seen.learn(Changes(modseq, nextuid, marked, sorted(gone), nextuid))
            fresh, gone = [], []
            for number, word in re.findall(rb"\* (\d+) (EXPUNGE|EXISTS)", seen.announce(expunge=bool(value))):
                if word == b"EXPUNGE":
                    del client[int(number) - 1]
                else:
                    client += list(seen.uids)[len(client) : int(number)]
            assert client == list(seen.uids)
            if value:
                assert client == alive


# --- search ----------------------------------------------------------------------------------------------------------


def criteria(text: str) -> tuple[object, ...]:
    return parse_criteria(Cursor(Raw([text.encode()])))


def asked(text: str) -> object:
    return tree(numbered(parse_criteria(Cursor(Raw([text.encode()]))), view(1, 2, 3).ranges, ((2, 3),)))


def test_search_keys_become_one_flat_tree() -> None:
    assert asked("ALL") == Everything()
    assert asked("SEEN UNSEEN 1:2 UID 3:*") == And(
        (HasFlag("\\Seen"), Not(HasFlag("\\Seen")), Uids(((1, 2),)), Uids(((3, 3),)))
    )
    assert asked("OR SEEN OR (DRAFT) NOT NOT DELETED") == Or(
        (HasFlag("\\Seen"), HasFlag("\\Draft"), HasFlag("\\Deleted"))
    )
    assert asked("NEW") == And((Uids(((2, 3),)), Not(HasFlag("\\Seen"))))


def test_depth_costs_nothing_until_it_is_real() -> None:
    assert isinstance(asked("OR ALL " * 5000 + "ALL"), Or)
    assert asked("(" * 2000 + "SEEN" + ")" * 2000) == HasFlag("\\Seen")
    with pytest.raises(No, match="nested"):
        asked("NOT (DRAFT OR SEEN " * 100 + "ALL" + ")" * 100)


@pytest.mark.parametrize(
    "text",
    ["", "OR", "OR SEEN", "NOT", "(", "()", "(SEEN", "SEEN)", "SEEN  DRAFT", "SEEN ", "FROB", "ON x", "LARGER -1", "0"],
)
def test_broken_keys_are_refused(text: str) -> None:
    with pytest.raises(Bad):
        criteria(text)


KEYS = st.recursive(
    st.sampled_from(["SEEN", "DRAFT", "ALL", "UID 1", "LARGER 10", "UNDELETED"]),
    lambda inner: st.one_of(
        inner.map("NOT {}".format),
        st.tuples(inner, inner).map("OR {0[0]} {0[1]}".format),
        st.lists(inner, min_size=1, max_size=4).map(lambda keys: f"({' '.join(keys)})"),
    ),
    max_leaves=15,
)


@given(KEYS, st.sets(st.sampled_from(["\\Seen", "\\Draft", "\\Deleted"])), st.integers(1, 2), st.integers(5, 15))
def test_deciding_in_postfix_is_deciding_the_tree(text: str, flags: set[str], uid: int, size: int) -> None:
    from aimx.imap.search import Candidate
    from aimx.message.header import HeaderBlock

    keys = numbered(parse_criteria(Cursor(Raw([text.encode()]))), view(1, 2).ranges, ())
    candidate = Candidate(uid, frozenset(flags), 0, size, HeaderBlock([]), lambda name: [], str, str)

    def decide(key: object) -> bool:
        match key:
            case And(parts):
                return all(map(decide, parts))
            case Or(parts):
                return any(map(decide, parts))
            case Not(part):
                return not decide(part)
            case _:
                return holds((key, Join("and", 1)), candidate)  # type: ignore[arg-type]

    assert holds(keys, candidate) == decide(tree(keys))


# --- patterns --------------------------------------------------------------------------------------------------------


@given(st.text("ab/", max_size=12), st.text("ab/%*", max_size=8))
def test_patterns_match_as_the_rfc_says(name: str, pattern: str) -> None:
    expression = "".join({"*": ".*", "%": "[^/]*"}.get(char, re.escape(char)) for char in pattern)
    assert Pattern(pattern).matches(name) == bool(re.fullmatch(expression, name))


def test_a_pattern_made_to_back_up_does_not() -> None:
    assert not Pattern("%*" * 500 + "x").matches("a" * 10_000)
    assert not Pattern("*a" * 500 + "x").matches("a" * 10_000)


def test_levels_above_and_inbox_in_any_case() -> None:
    assert superiors(["a/b/c", "a/d", "e"]) == {"a", "a/b"}
    assert [canonical(name) for name in ("inbox", "InBox/x", "inboxes")] == ["INBOX", "INBOX/x", "inboxes"]
