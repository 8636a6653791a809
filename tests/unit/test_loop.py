"""The loop guard: what is a loop, what only looks like one, and what the refusal says."""

from dataclasses import replace
from hashlib import sha256

from aimx.config import LoopLimits, Settings
from aimx.routing.loop import Candidate, Verdict, depth, judge, limits_for
from aimx.store.contract import Ancestor, Lineage, Past, SpanRef

LIMITS = LoopLimits()
ADA, BOB = "ada@fabric.local", "bob@fabric.local"


def digest(text: str) -> bytes:
    return sha256(text.encode()).digest()


class Workflow:
    """A conversation as the store remembers it."""

    def __init__(self) -> None:
        self.past: list[Past] = []

    def say(self, sender: str, recipient: str, text: str, at_depth: int, template: str | None = None) -> Verdict:
        message = Candidate(
            sender, (recipient,), digest(text), digest(template or text), at_depth, len(self.past) * 1000, "wf"
        )
        lineage = Lineage(None, None, None, "wf", tuple(reversed(self.past)), len(self.past), 0 if self.past else None)
        verdict = judge(message, lineage, LIMITS)
        self.past.append(Past(sender, (recipient,), message.payload, message.template, at_depth, message.t_ms))
        return verdict


def test_ping_pong_that_only_counts_up_is_refused_at_the_twelfth_turn() -> None:
    flow = Workflow()
    kinds = []
    for turn in range(14):
        sender, recipient = (ADA, BOB) if turn % 2 == 0 else (BOB, ADA)
        kinds.append(flow.say(sender, recipient, f"attempt {turn}", turn + 1, template=f"attempt #{turn % 2}"))
    assert all(verdict.kind == "pass" for verdict in kinds[:12])
    assert (kinds[12].kind, kinds[12].rule, kinds[12].count) == ("refuse", "alternations", 12)


def test_a_chains_first_message_is_a_turn_whatever_it_said() -> None:
    """Its template is not made: most messages are the first of their chain and stay the only one."""
    flow = Workflow()
    kinds = []
    for turn in range(14):
        sender, recipient = (ADA, BOB) if turn % 2 == 0 else (BOB, ADA)
        kinds.append(flow.say(sender, recipient, f"attempt {turn}", turn + 1, template=f"attempt #{turn % 2}"))
        if not turn:
            flow.past[0] = replace(flow.past[0], template=b"")
    assert [verdict.kind for verdict in kinds].index("refuse") == 12


def test_a_long_dialogue_that_says_new_things_is_only_warned_by_depth() -> None:
    flow = Workflow()
    verdicts = [
        flow.say(*((ADA, BOB) if i % 2 == 0 else (BOB, ADA)), f"thought {i * i} {'x' * i}", i + 1) for i in range(40)
    ]
    assert {verdict.kind for verdict in verdicts[:15]} == {"pass"}
    assert {(verdict.kind, verdict.rule) for verdict in verdicts[15:]} == {("warn", "depth")}


def test_depth_64_is_refused_whatever_is_said() -> None:
    verdict = Workflow().say(ADA, BOB, "new", 64)
    assert (verdict.kind, verdict.rule) == ("refuse", "depth")
    assert 'raise max_depth in [workflow."wf"]' in verdict.text


def test_the_same_payload_again_and_again_in_a_chain_is_warned_then_refused() -> None:
    flow = Workflow()
    kinds = [flow.say(ADA, BOB, "same", 2 * i + 1).kind for i in range(7)]
    assert kinds == ["pass"] * 3 + ["warn"] * 3 + ["refuse"]


def test_asking_fifty_researchers_the_same_question_is_no_loop() -> None:
    flow = Workflow()
    assert {flow.say(ADA, f"r{i}@fabric.local", "question", 1).kind for i in range(50)} == {"pass"}


def test_a_status_said_every_minute_without_an_answer_is_no_loop() -> None:
    flow = Workflow()
    assert {flow.say(ADA, BOB, "ok", 1).kind for i in range(50)} == {"pass"}


def test_budget_and_deadline_of_a_workflow() -> None:
    lineage = Lineage(None, None, None, "wf", (), 10, 0)
    message = Candidate(ADA, (BOB,), b"p", b"t", 1, 61_000, "wf")
    assert judge(message, lineage, LoopLimits(budget=10)).rule == "budget"
    assert judge(message, lineage, LoopLimits(budget=11)).kind == "pass"
    assert judge(message, lineage, LoopLimits(deadline=60)).rule == "deadline"


def test_depth_is_one_more_than_what_is_answered() -> None:
    parent = Ancestor("e", "<m>", SpanRef(b"t" * 16, b"s" * 8), 1, "", "", 4, None, "k")
    older = Ancestor("e", "<m>", SpanRef(b"t" * 16, b"s" * 8), 1, "", "", 9, None, "k")
    assert depth(Lineage(None, None, None, None, (), 0, None)) == 1
    assert depth(Lineage(parent, older, older, "k", (), 0, None)) == 5
    assert depth(Lineage(None, None, older, "k", (), 0, None)) == 10


def test_limits_of_workflow_and_agent_overlay_only_what_they_set() -> None:
    settings = Settings.model_validate(
        {
            "loop": {"max_depth": 50},
            "workflow": {"long-*": {"max_depth": 500}},
            "agent": {"Ada@*": {"max_repeats": 100}},
            "domain": {"fabric.local": {"loop": {"warn_depth": 5}}},
        }
    )
    limits = limits_for(settings, ADA, "Long-haul")
    assert (limits.max_depth, limits.max_repeats, limits.warn_depth, limits.max_alternations) == (500, 100, 5, 12)
    assert limits_for(settings, BOB, "short").max_depth == 50
