"""What a rule, a pool or a list makes of a recipient, and what `route explain` says about it."""

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
