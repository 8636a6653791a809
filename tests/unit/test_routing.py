"""What a rule, a pool or a list makes of a recipient, and what `route explain` says about it."""

from dataclasses import replace

import pytest

from aimx.config import SettingError, Settings, load
from aimx.message.header import HeaderBlock
from aimx.routing.table import Facts, Route, RoutingTable, explain

AGENTS = {f"{name}@fabric.local" for name in ("planner", "ada", "bob", "cleo", "critic")}


def settings(**parts: object) -> Settings:
    return Settings.model_validate(parts)


def route(
    table: RoutingTable, recipient: str = "planner", workflow: str | None = None, header: bytes = b"", **facts: object
) -> Route:
    return table.route(asked(recipient, workflow, header, **facts), AGENTS.__contains__)


def asked(recipient: str, workflow: str | None = None, header: bytes = b"", **facts: object) -> Facts:
    defaults: dict[str, object] = {
        "sender": "ada@fabric.local",
        "recipient": f"{recipient}@fabric.local",
        "workflow": workflow,
        "agent": "ada",
        "header": HeaderBlock.parse(header + b"\r\n")[0],
        "content_type": "application/json",
        "size": 100,
        "key": "01JZ0000000000000000000000",
    }
    return Facts(**(defaults | facts))  # type: ignore[arg-type]


def addresses(found: Route) -> list[str]:
    return [landing.address.partition("@")[0] for landing in found.landings]


def test_without_rules_a_recipient_is_its_own_mailbox() -> None:
    found = route(RoutingTable(settings()))
    assert addresses(found) == ["planner"]
    assert found.landings[0].queue == "mailbox"
    assert found.landings[0].steps[0].rule == "recipient"


def test_nobody_is_refused_as_unknown_and_named() -> None:
    found = route(RoutingTable(settings()), "ghost")
    assert found.unknown
    assert found.refusal is not None
    assert "ghost@fabric.local" in found.refusal.target


def test_the_same_workflow_stays_with_the_same_pool_member() -> None:
    table = RoutingTable(settings(pool={"research": {"members": ["ada", "bob", "cleo"]}}))
    first = {workflow: addresses(route(table, "research", workflow)) for workflow in map(str, range(40))}
    again = {workflow: addresses(route(table, "research", workflow)) for workflow in first}
    assert first == again
    assert all(len(members) == 1 for members in first.values())
    assert {members[0] for members in first.values()} == {"ada", "bob", "cleo"}, "a pool spreads its work"


def test_a_pool_member_that_left_moves_only_its_own_workflows() -> None:
    full = RoutingTable(settings(pool={"research": {"members": ["ada", "bob", "cleo"]}}))
    less = RoutingTable(settings(pool={"research": {"members": ["ada", "bob"]}}))
    for workflow in map(str, range(40)):
        before = addresses(route(full, "research", workflow))
        if before != ["cleo"]:
            assert addresses(route(less, "research", workflow)) == before


def test_a_member_that_takes_no_mail_gives_its_workflows_to_others_and_gets_them_back() -> None:
    table = RoutingTable(settings(pool={"research": {"members": ["ada", "bob", "cleo"]}}))
    for workflow in map(str, range(20)):
        asks = asked("research", workflow)
        (usual,) = table.route(asks, AGENTS.__contains__).landings
        (stand_in,) = table.route(asks, (AGENTS - {usual.address}).__contains__).landings
        assert stand_in.address != usual.address
        assert table.route(asks, AGENTS.__contains__).landings == [usual]
    none = table.route(asked("research", "w"), lambda address: False)
    assert none.refusal is not None
    assert none.refusal.target == "no member of pool research can take mail"


def test_a_pool_in_a_list_is_one_member_also_where_the_list_names_it_too() -> None:
    groups = {"pool": {"work": {"members": ["ada", "bob"]}}, "list": {"all": {"members": ["ada", "bob", "work"]}}}
    assert sorted(addresses(route(RoutingTable(settings(**groups)), "all"))) == ["ada", "bob"]
    groups["list"] = {"all": {"members": ["ada", "cleo", "work"]}}
    table = RoutingTable(settings(**groups))
    for workflow in map(str, range(20)):
        (worker,) = addresses(route(table, "work", workflow))
        assert set(addresses(route(table, "all", workflow))) == {"ada", "cleo", worker}


def test_pools_that_name_each_other_end() -> None:
    pools = {"x": {"members": ["y"]}, "y": {"members": ["x"]}}
    found = route(RoutingTable(settings(pool=pools)), "x")
    assert found.refusal is not None
    assert found.landings == []


def test_a_list_reaches_each_member_once_also_through_a_list_that_names_itself() -> None:
    table = RoutingTable(
        settings(
            list={"all": {"members": ["ada", "inner", "all", "ghost"]}, "inner": {"members": ["bob", "ada", "all"]}}
        )
    )
    found = route(table, "all")
    assert sorted(addresses(found)) == ["ada", "bob"]
    assert found.landings[1].queue == "inner"


def test_the_first_rule_that_holds_decides_and_priority_rules_fall_through() -> None:
    table = RoutingTable(
        settings(
            route=[
                {"name": "urgent", "workflow": "incident-*", "priority": 5},
                {"name": "to-critic", "workflow": "incident-*", "to": "mailbox:critic"},
                {"name": "never", "to": "mailbox:bob"},
            ]
        )
    )
    found = route(table, "planner", "incident-7")
    assert (addresses(found), found.priority) == (["critic"], 5)
    assert addresses(route(table, "planner", "calm")) == ["bob"]


@pytest.mark.parametrize(
    ("condition", "facts", "holds"),
    [
        ({"recipient": "plan*@*"}, {}, True),
        ({"sender": "bob@*"}, {}, False),
        ({"agent": "ADA"}, {}, True),
        ({"header": {"X-Team": "r?d"}}, {"header": b"X-Team: red\r\n"}, True),
        ({"header": {"X-Team": "r?d"}}, {}, False),
        ({"content_type": "application/*"}, {}, True),
        ({"larger_than": 100}, {}, False),
        ({"larger_than": 99, "smaller_than": 101}, {}, True),
        ({"workflow": "w-*"}, {}, False),
    ],
)
def test_every_kind_of_condition(condition: dict[str, object], facts: dict[str, bytes], holds: bool) -> None:
    table = RoutingTable(settings(route=[{"name": "no", "refuse": "not here"} | condition]))
    found = route(table, "planner", None, **facts)  # type: ignore[arg-type]
    assert (found.refusal is not None) is holds


def test_explain_names_every_rule_and_why() -> None:
    table = RoutingTable(
        settings(
            route=[
                {"name": "big", "larger_than": 5000, "refuse": "too big"},
                {"name": "team", "header": {"X-Team": "red"}, "to": "pool:research"},
            ],
            pool={"research": {"members": ["ada"]}},
        )
    )
    _, lines = explain(table, asked("planner", None, b"X-Team: red\r\n"), AGENTS.__contains__)
    text = "\n".join(lines)
    assert "rule big: does not hold, size 100 is not above 5000" in text
    assert "rule team: holds, header X-Team is like 'red'" in text
    assert "by team: pool research → mailbox ada@fabric.local" in text
    assert "without X-Workflow-ID each message may meet another member" in text


def test_at_rcpt_an_address_may_come_only_if_somebody_could_take_it() -> None:
    table = RoutingTable(
        settings(
            route=[{"name": "alias", "recipient": "help@*", "to": "mailbox:ada"}],
            pool={"research": {"members": ["ada"]}},
        )
    )
    for name, expected in (("planner", True), ("research", True), ("help", True), ("ghost", False)):
        assert table.may_reach(f"{name}@fabric.local", AGENTS.__contains__) is expected
    assert not table.serves("planner@elsewhere.example")


def test_a_rule_to_a_pool_that_is_not_there_names_the_mend(tmp_path: object) -> None:
    with pytest.raises(SettingError, match=r"route 'r' goes to pool 'x', which is not there; add \[pool\.x\]"):
        load({"route": [{"name": "r", "to": "pool:x"}]}, {})


# ── out of the node ──────────────────────────────────────────────────────────────────────────────────────────────────

OUT = {"relay": {"enabled": True, "up": {"host": "up.example", "domains": ["*.up.example"]}}}
PEER = {"peer": {"lab": {"domains": ["lab.example"], "ca": "lab.pem", "host": "lab.example"}}}


def way(found: Route) -> tuple[str, str, str, str]:
    (landing,) = found.landings
    return landing.transport, landing.via, landing.destination, landing.queue


def foreign(table: RoutingTable, address: str) -> Route:
    return table.route(replace(asked("x"), recipient=address), AGENTS.__contains__)


def test_mail_for_other_domains_goes_nowhere_until_it_is_asked_for() -> None:
    table = RoutingTable(settings())
    assert foreign(table, "bob@other.example").unknown
    assert not table.may_reach("bob@other.example", AGENTS.__contains__)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("bob@other.example", ("relay", "mx", "other.example", "mx")),
        ("bob@a.up.example", ("relay", "up", "relay:up", "up")),
        ("bob@lab.example", ("relay", "lab", "relay:lab", "lab")),
    ],
)
def test_mail_for_other_domains_takes_the_way_that_names_them(address: str, expected: tuple[str, ...]) -> None:
    table = RoutingTable(settings(**OUT, **PEER))
    assert table.may_reach(address, AGENTS.__contains__)
    assert way(foreign(table, address)) == expected


def test_a_peers_mail_goes_there_although_nothing_else_is_relayed() -> None:
    table = RoutingTable(settings(**PEER))
    assert way(foreign(table, "bob@lab.example"))[1] == "lab"
    assert foreign(table, "bob@other.example").unknown


def test_a_rule_sends_out_by_relay_webhook_or_lmtp() -> None:
    rules = [
        {"name": "hooked", "recipient": "hook@*", "to": "webhook:crm"},
        {"name": "stored", "recipient": "old@*", "to": "lmtp:store"},
        {"name": "partner", "recipient": "*@partner.example", "to": "relay:up"},
    ]
    table = RoutingTable(
        settings(
            route=rules,
            relay={"up": {"host": "up.example"}},
            webhook={"crm": {"url": "https://crm.example/", "secret_file": "crm.secret"}},
            lmtp={"store": {"host": "127.0.0.1"}},
        )
    )
    assert way(route(table, "hook")) == ("webhook", "crm", "webhook:crm", "crm")
    assert way(route(table, "old")) == ("lmtp", "store", "lmtp:store", "store")
    assert way(foreign(table, "x@partner.example")) == ("relay", "up", "relay:up", "up")


def test_a_list_may_have_members_elsewhere() -> None:
    table = RoutingTable(settings(**OUT, list={"all": {"members": ["ada", "bob@other.example"]}}))
    found = route(table, "all")
    assert [(landing.address, landing.transport, landing.queue) for landing in found.landings] == [
        ("ada@fabric.local", "mailbox", "all"),
        ("bob@other.example", "relay", "all"),
    ]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"route": [{"name": "a", "to": "relay:gone"}]}, r"add \[relay.gone\]"),
        ({"route": [{"name": "a", "to": "webhook:gone"}]}, r"add \[webhook.gone\]"),
        ({"relay": {"via": "gone"}}, r"add \[relay.gone\]"),
        ({"relay": {"mx": {"host": "x"}}}, "no name for a relay"),
        ({"relay": {"lab": {"host": "x"}}, **PEER}, "both called 'lab'"),
        ({"relay": {"up": {"host": "x", "user": "u"}}}, "come together"),
        ({"relay": {"up": {"host": "x", "user": "u", "password_file": "p", "tls": "may"}}}, "does not go out"),
    ],
)
def test_ways_out_that_cannot_be_are_refused_at_the_start(parts: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(**parts)
