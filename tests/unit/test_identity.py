"""Names, senders, tokens and the throttle: pure parts of identity."""

import stat
from pathlib import Path

import pytest

from aimx.identity import tokens
from aimx.identity.addresses import BadName, agent_address, normalise
from aimx.identity.agents import generate_password
from aimx.identity.sender import envelope_refusal, header_refusal
from aimx.identity.throttle import ADDRESS_FACTOR, MAX_ENTRIES, Throttle

DOMAINS = ("fabric.local", "other.example")
ME = "planner@fabric.local"


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("planner", ME),
        (" Planner@Fabric.Local ", ME),
        ("a", "a@fabric.local"),
        ("x-1.y_z+w@other.example", "x-1.y_z+w@other.example"),
        ("a" * 64, "a" * 64 + "@fabric.local"),
    ],
)
def test_an_agents_name_becomes_its_address(name: str, address: str) -> None:
    assert agent_address(name, DOMAINS) == address


@pytest.mark.parametrize(
    "name",
    ["", "@", ".a", "a.", "a..b", "a b", "a@b", "a@nowhere.example", "a" * 65, "mailer-daemon", "é", "a/b"],
)
def test_a_name_no_agent_may_have_is_refused_with_advice(name: str) -> None:
    with pytest.raises(BadName, match=r"use|choose"):
        agent_address(name, DOMAINS)


def test_a_bare_log_in_name_means_the_default_domain() -> None:
    assert normalise(" Planner", "fabric.local") == ME


def test_an_agent_sends_as_itself_only() -> None:
    assert envelope_refusal(ME, ME) is None
    assert envelope_refusal("critic@fabric.local", ME)
    assert envelope_refusal("", ME)


@pytest.mark.parametrize(
    "values", [[], [ME], [f"The Planner <{ME.upper()}>"], [f'"a, b" (<x@y>) <{ME}> (me)'], [f"({ME}) {ME}"]]
)
def test_its_own_name_in_the_header_is_fine(values: list[str]) -> None:
    assert header_refusal("From", values, ME) is None


@pytest.mark.parametrize(
    "values",
    [
        ["critic@fabric.local"],
        [f"{ME}, critic@fabric.local"],
        [ME, ME],
        [f"{ME} <critic@fabric.local>"],
        [f"critic@fabric.local <{ME}>, <critic@fabric.local>"],
        [""],
        ["undisclosed:;"],
        ["a" * 100_000],
        ["(" * 5_000],
        [f"critic@fabric.local <{ME}>"],
        [f"<{ME}> critic@fabric.local"],
        [f"<{ME}"],
        [f'"x <{ME}>'],
        [f"group: {ME};"],
        [f"<critic@fabric.local:{ME}>"],
        ["planner @fabric.local"],
    ],
)
def test_another_name_in_the_header_is_refused(values: list[str]) -> None:
    assert header_refusal("From", values, ME)


def test_secrets_are_made_once_and_for_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "admin.token"
    token = tokens.kept_token(path)
    assert tokens.kept_token(path) == token
    assert len(token) >= 43
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["admin.token"]
    assert tokens.same(token, token)
    assert not tokens.same(token[:-1], token)
    assert not tokens.same("\ud800", token)
    secret = tokens.node_secret(tmp_path / "secret")
    assert len(secret) == 32
    assert tokens.node_secret(tmp_path / "secret") == secret


def test_passwords_are_long_and_differ() -> None:
    assert len({generate_password() for _ in range(100)}) == 100
    assert len(generate_password()) == 35


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def throttle(clock: Clock) -> Throttle:
    return Throttle(3, 60.0, clock)


def fail(throttle: Throttle, address: str, account: str, times: int) -> None:
    for _ in range(times):
        throttle.failed(address, account)


def test_an_account_is_closed_after_its_failures_and_opens_after_the_window(throttle: Throttle, clock: Clock) -> None:
    fail(throttle, "192.0.2.1", ME, 2)
    assert throttle.wait("192.0.2.1", ME) == 0
    fail(throttle, "192.0.2.2", ME, 1)
    clock.now += 10
    assert throttle.wait("192.0.2.3", ME) == 50
    assert throttle.wait("192.0.2.1", "critic@fabric.local") == 0
    clock.now += 50
    assert throttle.wait("192.0.2.3", ME) == 0
    assert (throttle.failures, throttle.refused) == (3, 1)


def test_an_address_is_closed_that_tries_many_accounts(throttle: Throttle) -> None:
    for n in range(3 * ADDRESS_FACTOR):
        fail(throttle, "192.0.2.1", f"a{n}@fabric.local", 1)
    assert throttle.wait("192.0.2.1", "new@fabric.local") > 0
    assert throttle.wait("192.0.2.2", "new@fabric.local") == 0


def test_addresses_of_one_ipv6_network_count_as_one(throttle: Throttle) -> None:
    for n in range(3 * ADDRESS_FACTOR):
        fail(throttle, f"2001:db8::{n:x}", f"a{n}@fabric.local", 1)
    assert throttle.wait("2001:db8::ffff:1", "new@fabric.local") > 0
    assert throttle.wait("2001:db8:0:1::1", "new@fabric.local") == 0


def test_nobody_locks_out_an_agent_where_it_has_signed_in(throttle: Throttle) -> None:
    throttle.succeeded("192.0.2.1", ME)
    fail(throttle, "198.51.100.1", ME, 100)
    assert throttle.wait("192.0.2.1", ME) == 0
    assert throttle.wait("198.51.100.1", ME) > 0
    fail(throttle, "192.0.2.1", ME, 3)
    assert throttle.wait("192.0.2.1", ME) > 0, "its own failures count"


def test_memory_is_bounded(throttle: Throttle) -> None:
    for n in range(MAX_ENTRIES + 100):
        throttle.failed(f"192.0.2.{n}", f"a{n}")
        throttle.succeeded(f"192.0.2.{n}", f"a{n}")
    assert len(throttle._accounts._counts) == MAX_ENTRIES
    assert len(throttle._known) == MAX_ENTRIES
