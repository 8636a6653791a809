import random

import pytest

from aimx.store.contract import MailboxKey, Row, Store
from aimx.store.search import (
    And,
    Everything,
    HasFlag,
    Header,
    Internal,
    Not,
    Or,
    Recent,
    SearchKey,
    Sent,
    Size,
    Text,
    Uids,
)
from tests.store.conftest import BOB
from tests.store.factory import filed, new_message, nothing

ALL = ((1, 4294967295),)
FLAGS = ("\\Seen", "\\Flagged", "\\Deleted", "$AimxDone", "Work")


@pytest.fixture
async def rows(store: Store, inbox: MailboxKey) -> list[Row]:
    chance = random.Random(1)
    for n in range(40):
        flags = frozenset(flag for flag in FLAGS if chance.random() < 0.4)
        message = new_message(body=b"x" * chance.randrange(200))
        await store.accept(message, [filed(BOB, flags=flags, internal_ms=1000 * n)], nothing)
    return await store.fetch(inbox, ALL)


def holds(key: SearchKey, row: Row) -> bool | None:
    """The plain meaning; None where only the text of the message could tell."""
    match key:
        case Everything():
            return True
        case Uids(ranges):
            return any(low <= row.uid <= high for low, high in ranges)
        case HasFlag(flag):
            return flag.lower() in {name.lower() for name in row.flags}
        case Recent(since):
            return row.uid >= since
        case Internal(low, high):
            return (low is None or low <= row.internal_ms) and (high is None or row.internal_ms < high)
        case Size(op, octets):
            size = row.header_size + row.body_size
            return size > octets if op == ">" else size < octets
        case Not(inner):
            inside = holds(inner, row)
            return None if inside is None else not inside
        case And(keys):
            each = [holds(key, row) for key in keys]
            return False if False in each else None if None in each else True
        case Or(keys):
            each = [holds(key, row) for key in keys]
            return True if True in each else None if None in each else False
        case Header() | Text() | Sent():
            return None


EXACT: list[SearchKey] = [
    Everything(),
    Uids(((3, 5), (9, 9), (30, 4294967295))),
    Uids(()),
    HasFlag("\\Seen"),
    HasFlag("$aimxDONE"),
    HasFlag("work"),
    HasFlag("never-used"),
    Recent(20),
    Internal(5000, 9000),
    Internal(None, 9000),
    Internal(9000, None),
    Internal(None, None),
    Size(">", 100),
    Size("<", 100),
    Size("<", 2**80),
    Not(HasFlag("\\Seen")),
    And(()),
    Or(()),
    And((HasFlag("\\Seen"), Not(HasFlag("Work")), Size(">", 50))),
    Or((HasFlag("\\Deleted"), And((Recent(10), Not(Or((HasFlag("Work"), Size("<", 90)))))))),
]
TEXTUAL: list[SearchKey] = [Header("subject", "x' OR 1"), Text("body", "y"), Sent(1, 2)]


@pytest.mark.parametrize("key", EXACT, ids=repr)
async def test_what_sql_can_tell_is_exact(store: Store, inbox: MailboxKey, rows: list[Row], key: SearchKey) -> None:
    assert await store.search(inbox, key) == ([row.uid for row in rows if holds(key, row)], True)


@pytest.mark.parametrize("text", TEXTUAL, ids=repr)
@pytest.mark.parametrize("known", [HasFlag("\\Seen"), Not(Size(">", 80))], ids=repr)
async def test_what_it_cannot_tell_may_hold_also_under_not(
    store: Store, inbox: MailboxKey, rows: list[Row], text: SearchKey, known: SearchKey
) -> None:
    for key in (
        text,
        Not(text),
        And((text, known)),
        Not(And((text, known))),
        Or((Not(text), known)),
        Not(Or((text, known))),
    ):
        found, exact = await store.search(inbox, key)
        assert not exact
        assert found == [row.uid for row in rows if holds(key, row) is not False]


async def test_random_trees_never_miss(store: Store, inbox: MailboxKey, rows: list[Row]) -> None:
    chance = random.Random(2)

    def tree(depth: int) -> SearchKey:
        if depth == 0 or chance.random() < 0.3:
            return chance.choice(EXACT + TEXTUAL)
        kind = chance.randrange(3)
        if kind == 0:
            return Not(tree(depth - 1))
        keys = tuple(tree(depth - 1) for _ in range(chance.randrange(4)))
        return And(keys) if kind == 1 else Or(keys)

    for _ in range(200):
        key = tree(4)
        found, exact = await store.search(inbox, key)
        certain = {row.uid for row in rows if holds(key, row)}
        assert certain <= set(found)
        assert not exact or certain == set(found)


async def test_very_wide_and_very_deep_searches_are_answered(store: Store, inbox: MailboxKey, rows: list[Row]) -> None:
    odd = Uids(tuple((n, n) for n in range(1, 20_001, 2)))
    assert await store.search(inbox, odd) == ([row.uid for row in rows if row.uid % 2], True)
    wide = Or((*(HasFlag(f"k{n}") for n in range(5000)), Recent(40)))
    assert await store.search(inbox, wide) == ([40], True)
    deep: SearchKey = HasFlag("\\Seen")
    for _ in range(600):
        deep = Not(deep)
    found, _ = await store.search(inbox, deep)
    assert {row.uid for row in rows if "\\Seen" in row.flags} <= set(found)
