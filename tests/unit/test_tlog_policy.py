"""Trust policies: who has to have cosigned, and files that say so (https://c2sp.org/tlog-policy)."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimx.tlog import note, policy
from aimx.tlog.errors import FormatError

LOG = note.Signer("log.example/audit", b"\x01" * 32).verifier
WITNESSES = {
    f"{house}{n}": note.Signer(f"{house}.example/w{n}", bytes([n, ord(house)]) * 16, note.COSIGNATURE_V1).verifier
    for house in "xy"
    for n in (1, 2, 3)
}
HEAD = f"log {LOG.vkey()} https://log.example/\n" + "".join(
    f"witness {name} {key.vkey()}\n" for name, key in WITNESSES.items()
)
EXAMPLE = f"""\
# two houses
{HEAD}
\tgroup\tX-witnesses 2 x1 x2  x3
group Y-witnesses any y1 y2 y3
group both all X-witnesses Y-witnesses\t
quorum both
"""


def test_the_specifications_own_example_asks_for_two_of_the_one_house_and_one_of_the_other() -> None:
    found = policy.parse(EXAMPLE.encode())
    assert found.logs == (LOG,)
    for count in range(7):
        for names in combinations(WITNESSES, count):
            enough = sum(name[0] == "x" for name in names) >= 2 and any(name[0] == "y" for name in names)
            assert found.satisfied([WITNESSES[name] for name in names]) is enough, names


def test_a_policy_is_read_back() -> None:
    found = policy.parse(EXAMPLE.encode())
    assert policy.parse(found.text().encode()) == found


def test_nobody_is_asked_for_by_none_and_one_by_name() -> None:
    assert policy.parse(b"quorum none\n").satisfied([])
    one = policy.parse(f"{HEAD}quorum x2\n".encode())
    assert one.satisfied([WITNESSES["x2"]])
    assert not one.satisfied([WITNESSES["x1"]])


def test_without_a_policy_a_majority_of_the_witnesses_is_asked_for() -> None:
    for count in range(1, 7):
        some = dict(list(WITNESSES.items())[:count])
        found = policy.of_witnesses(LOG, some)
        assert found.satisfied(list(some.values())[: count // 2 + 1])
        assert not found.satisfied(list(some.values())[: count // 2])
    assert policy.of_witnesses(LOG, {}).satisfied([])


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ("", "quorum"),
        ("quorum none\nquorum none", "exactly one"),
        ("quorum x9", "no witness"),
        ("quorum both\ngroup both all x1", "no witness"),
        ("group g 3 x1 x2\nquorum g", "number"),
        ("group g 0 x1\nquorum g", "number"),
        ("group g 01 x1\nquorum g", "number"),
        ("group g all\nquorum g", "write"),
        ("group g all x1 x1\nquorum g", "already"),
        ("group g all x1\ngroup h all x1\nquorum g", "already"),
        ("group x1 all x2\nquorum x1", "taken"),
        ("group none all x2\nquorum none", "taken"),
        ("group g all none\nquorum g", "no witness"),
        ("witnes a b\nquorum none", "neither"),
        (f"witness again {WITNESSES['x1'].vkey()}\nquorum none", "twice"),
        (f"log {LOG.vkey()}\nquorum none", "twice"),
        (f"witness w {LOG.vkey()}\nquorum none", "type"),
        (f"log {WITNESSES['x1'].vkey()}\nquorum none", "type"),
        ("witness w x+1+AAAA\nquorum none", "type"),
        ("quorum\x0bnone", "control"),
    ],
)
def test_a_wrong_policy_is_refused_with_what_is_wrong(lines: str, word: str) -> None:
    with pytest.raises(FormatError, match=word):
        policy.parse(f"{HEAD}{lines}\n".encode())


@given(st.binary(max_size=300))
def test_garbage_is_no_policy(data: bytes) -> None:
    with pytest.raises(FormatError):
        policy.parse(data)


def test_names_are_opaque_octets() -> None:
    key = WITNESSES["x1"].vkey().encode()
    found = policy.parse(b"witness \xff\xfeK " + key + b"\nquorum \xff\xfeK\n")
    assert found.satisfied([WITNESSES["x1"]])
    with pytest.raises(FormatError, match="no witness"):
        policy.parse(b"witness \xe2\x84\xaa " + key + b"\nquorum K\n")
