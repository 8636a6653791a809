"""Ten loops that the node must end, and busy conversations that it must not, each over real SMTP.

An agent here is a rule that makes the next mail out of the last one; what it is given of threading and tracing is what
real ones of its kind have.
"""

import re
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count, cycle
from pathlib import Path
from typing import Any

import aiosmtplib
import pytest

from tests.protocol.mail_node import PASSWORD, MailNode, address, running

HOUR_MS = 3_600_000


class Crew:
    """Agents with a connection each. `say` returns the Message-ID of what was accepted."""

    def __init__(self, node: MailNode, stack: AsyncExitStack) -> None:
        self.node = node
        self._stack = stack
        self._smtp: dict[str, aiosmtplib.SMTP] = {}
        self._numbers = count(1)
        self.accepted = 0

    async def say(self, sender: str, to: str | list[str], text: str, answers: str = "", **headers: str) -> str:
        """`answers`: the Message-ID replied to. Header names with `_` for `-`; raises SMTPDataError when refused."""
        recipients = [address(name) for name in ([to] if isinstance(to, str) else to)]
        message_id = f"<{next(self._numbers)}@x>"
        fields = {"From": address(sender), "Message-ID": message_id, "In-Reply-To": answers}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
        smtp = await self._connection(sender)
        await smtp.sendmail(address(sender), recipients, f"{head}\r\n{text}\r\n".encode())
        self.accepted += 1
        return message_id

    async def _connection(self, name: str) -> aiosmtplib.SMTP:
        if name not in self._smtp:
            host, port = self.node.ready.smtps.rsplit(":", 1)
            smtp = aiosmtplib.SMTP(hostname=host, port=int(port), use_tls=True, tls_context=self.node.tls())
            self._smtp[name] = await self._stack.enter_async_context(smtp)
            await smtp.login(address(name), PASSWORD)
        return self._smtp[name]


@asynccontextmanager
async def crew(folder: Path, *names: str, **settings: Any) -> AsyncIterator[Crew]:
    async with running(folder, names, **settings) as node, AsyncExitStack() as stack:
        yield Crew(node, stack)


async def stopped(turn: Callable[[int], Any], most: int) -> tuple[int, str]:
    """Take turns until one is refused: which one, by which rule. AssertionError when none is, of `most`."""
    for number in range(most):
        try:
            await turn(number)
        except aiosmtplib.SMTPDataError as error:
            return number, rule_of(error)
    raise AssertionError(f"nobody stopped it in {most} turns")


def rule_of(refused: aiosmtplib.SMTPDataError) -> str:
    """The loop guard's rule, by the setting that its text says to raise."""
    assert (refused.code, refused.message.split()[0]) == (554, "5.4.6")
    found = re.search(r"if meant, raise (max_)?(\w+) in", refused.message)
    assert found is not None, refused.message
    return found[2]


# ── ten loops ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_ping_pong(tmp_path: Path) -> None:
    async with crew(tmp_path, "ada", "bob") as agents:
        last = ""

        async def turn(number: int) -> None:
            nonlocal last
            sender, to = ("ada", "bob") if number % 2 == 0 else ("bob", "ada")
            last = await agents.say(sender, to, f"No, after you. (attempt {number})", last)

        assert await stopped(turn, 20) == (12, "alternations")


async def test_ring_of_three(tmp_path: Path) -> None:
    async with crew(tmp_path, "ada", "bob", "cleo") as agents:
        ring, last = ["ada", "bob", "cleo"], ""

        async def turn(number: int) -> None:
            nonlocal last
            last = await agents.say(ring[number % 3], ring[(number + 1) % 3], "Not my department, over to you.", last)

        number, rule = await stopped(turn, 40)
        assert (number, rule) == (18, "repeats"), "each has said it six times"


async def test_self_mail(tmp_path: Path) -> None:
    async with crew(tmp_path, "ada") as agents:
        last = ""

        async def turn(number: int) -> None:
            nonlocal last
            last = await agents.say("ada", "ada", "remember to remember", last)

        assert await stopped(turn, 20) == (6, "repeats")


async def test_forwarder(tmp_path: Path) -> None:
    """Two rules "forward everything": no In-Reply-To, a new Message-ID, the headers of the first mail as they came."""
    async with crew(tmp_path, "ada", "bob") as agents:
        parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

        async def turn(number: int) -> None:
            sender, to = ("ada", "bob") if number % 2 == 0 else ("bob", "ada")
            await agents.say(sender, to, "Forwarded: the minutes", traceparent=parent, Subject="Fwd: minutes")

        number, rule = await stopped(turn, 20)
        assert rule in ("repeats", "alternations")
        assert number <= 12


async def test_auto_reply_storm(tmp_path: Path) -> None:
    """Three who are away answer everything to all: unchecked, each mail makes two more."""
    away = {name: f"{name} is out of office" for name in ("ada", "bob", "cleo")}
    async with crew(tmp_path, "dan", *away) as agents:
        first = await agents.say("dan", list(away), "Lunch?")
        waiting = deque((name, first) for name in away)
        refused = 0
        while waiting:
            name, last = waiting.popleft()
            others = [other for other in away if other != name]
            try:
                said = await agents.say(name, others, away[name], last)
            except aiosmtplib.SMTPDataError as error:
                refused += bool(rule_of(error))
            else:
                waiting += [(other, said) for other in others]
            assert agents.accepted < 200, "the storm goes on"
        assert refused


async def test_list_echo(tmp_path: Path) -> None:
    """A member of a list answers to the list, and so to itself."""
    lists = {"list": {"crew": {"members": ["bob", "cleo"]}}}
    async with crew(tmp_path, "ada", "bob", "cleo", **lists) as agents:
        last = await agents.say("ada", "crew", "Please confirm.")

        async def turn(number: int) -> None:
            nonlocal last
            last = await agents.say("bob", "crew", "Confirmed.", last)

        assert await stopped(turn, 20) == (6, "repeats")


async def test_two_loops_in_one_workflow(tmp_path: Path) -> None:
    """Each is ended for itself, and who only works beside them is not."""
    async with crew(tmp_path, "ada", "bob", "cleo", "dan", "eve") as agents:
        pairs = {("ada", "bob"): "", ("cleo", "dan"): ""}
        ended: dict[tuple[str, str], tuple[int, str]] = {}
        for number in range(20):
            for pair in [pair for pair in pairs if pair not in ended]:
                sender, to = pair if number % 2 == 0 else pair[::-1]
                text = f"{sender} waits for {to}, {number} s"
                try:
                    pairs[pair] = await agents.say(sender, to, text, pairs[pair], X_Workflow_ID="busy")
                except aiosmtplib.SMTPDataError as error:
                    ended[pair] = number, rule_of(error)
            await agents.say("eve", "ada", f"note of {'x' * number}", X_Workflow_ID="busy")
        assert ended == dict.fromkeys(pairs, (12, "alternations"))


@pytest.mark.parametrize("carries", ["traceparent", "X_Workflow_ID"])
async def test_changing_message_ids_without_in_reply_to(tmp_path: Path, carries: str) -> None:
    """No thread at all: only the trace, or only the workflow, says that they belong together."""
    async with crew(tmp_path, "ada", "bob") as agents:

        async def turn(number: int) -> None:
            sender, to = ("ada", "bob") if number % 2 == 0 else ("bob", "ada")
            said = {"traceparent": f"00-{'a' * 32}-{number + 1:016x}-01", "X_Workflow_ID": "unthreaded"}[carries]
            await agents.say(sender, to, f"retrying, {number} of 1000", **{carries: said})

        assert await stopped(turn, 20) == (12, "alternations")


async def test_changing_payloads(tmp_path: Path) -> None:
    """Two that never say the same: warned of from depth 16 on, ended at 64."""
    async with crew(tmp_path, "ada", "bob") as agents:
        last, words = "", cycle(["apple", "pear", "plum", "fig", "quince", "medlar", "sloe"])

        async def turn(number: int) -> None:
            nonlocal last
            sender, to = ("ada", "bob") if number % 2 == 0 else ("bob", "ada")
            last = await agents.say(sender, to, f"{next(words)} {'and ' * number} so on", last)

        assert await stopped(turn, 80) == (63, "depth")
        spans = agents.node.spans.named("smtp receive")
        warned = [span.attributes["aimx.depth"] for span in spans if span.attributes.get("aimx.loop.detected")]
        assert warned == list(range(16, 65))


async def test_slow_loop_over_hours(tmp_path: Path) -> None:
    """One turn an hour, past every retry and idle time: the chain is kept, not a rate."""
    async with crew(tmp_path, "ada", "bob") as agents:
        intake = agents.node.node._intake
        clock, passed, last = intake.clock, 0, ""
        intake.clock = lambda: clock() + passed * HOUR_MS

        async def turn(number: int) -> None:
            nonlocal last, passed
            passed = number
            sender, to = ("ada", "bob") if number % 2 == 0 else ("bob", "ada")
            last = await agents.say(sender, to, f"Any news? It is {number}:00 o'clock.", last)

        assert await stopped(turn, 20) == (12, "alternations")


async def test_a_workflows_deadline_ends_what_no_count_would(tmp_path: Path) -> None:
    async with crew(tmp_path, "ada", "bob", workflow={"day-*": {"deadline": "24h"}}) as agents:
        intake = agents.node.node._intake
        clock = intake.clock
        await agents.say("ada", "bob", "begin", X_Workflow_ID="day-1")
        intake.clock = lambda: clock() + 23 * HOUR_MS
        await agents.say("bob", "ada", "still at it", X_Workflow_ID="day-1")
        intake.clock = lambda: clock() + 25 * HOUR_MS
        with pytest.raises(aiosmtplib.SMTPDataError, match="raise deadline"):
            await agents.say("ada", "bob", "and again", X_Workflow_ID="day-1")
        await agents.say("ada", "bob", "begin", X_Workflow_ID="day-2")


# ── five busy conversations ──────────────────────────────────────────────────────────────────────────────────────────


async def test_a_long_dialogue_is_not_stopped(tmp_path: Path) -> None:
    async with crew(tmp_path, "ada", "bob") as agents:
        last = ""
        for number in range(60):
            sender, to = ("ada", "bob") if number % 2 == 0 else ("bob", "ada")
            thought = " ".join(f"word{chr(97 + (number * k) % 26)}" for k in range(1, 9))
            last = await agents.say(sender, to, thought, last, X_Workflow_ID="essay")


async def test_a_planner_that_asks_fifty_agents_the_same_is_not_stopped(tmp_path: Path) -> None:
    team = [f"r{i}" for i in range(50)]
    async with crew(tmp_path, "ada", *team) as agents:
        parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        for name in team:
            asked = await agents.say("ada", name, "Which trains?", traceparent=parent, X_Workflow_ID="trip")
            await agents.say(name, "ada", "None.", asked, X_Workflow_ID="trip")


async def test_a_supervisor_that_polls_workers_is_not_stopped(tmp_path: Path) -> None:
    """Thirty rounds of the same question to each, each a thread of its own; the answers tell of other things."""
    async with crew(tmp_path, "boss", "ann", "ben") as agents:
        for number in range(30):
            for worker in ("ann", "ben"):
                asked = await agents.say("boss", worker, f"Round {number}: how far?", X_Workflow_ID="build")
                await agents.say(worker, "boss", f"{number * 3} % done", asked, X_Workflow_ID="build")


async def test_map_and_reduce_is_not_stopped(tmp_path: Path) -> None:
    """Numbered chunks, handed out one by one as the workers come free; every answer is the same word."""
    workers = [f"w{i}" for i in range(4)]
    async with crew(tmp_path, "mapper", "reducer", *workers) as agents:
        for chunk in range(100):
            worker = workers[chunk % 4]
            given = await agents.say("mapper", worker, f"chunk {chunk}", X_Workflow_ID="count")
            await agents.say(worker, ["mapper", "reducer"], "done", given, X_Workflow_ID="count")
        await agents.say("reducer", "mapper", "total", X_Workflow_ID="count")


async def test_a_negotiation_in_numbers_is_not_stopped(tmp_path: Path) -> None:
    """A dozen offers are within the limit; who haggles longer on purpose raises it for these workflows alone."""
    async with crew(tmp_path, "ada", "bob", workflow={"haggle-*": {"max_alternations": 50}}) as agents:

        async def haggle(workflow: str, turns: int) -> None:
            last = ""
            for number in range(turns):
                sender, to = ("ada", "bob") if number % 2 == 0 else ("bob", "ada")
                last = await agents.say(sender, to, f"I offer {100 - number}.50 €", last, X_Workflow_ID=workflow)
            await agents.say("ada", "bob", "Deal.", last, X_Workflow_ID=workflow)

        await haggle("price", 12)
        await haggle("haggle-rug", 40)
        with pytest.raises(aiosmtplib.SMTPDataError, match="raise max_alternations"):
            await haggle("price-2", 13)


async def test_limits_are_set_by_domain_workflow_and_agent(tmp_path: Path) -> None:
    settings = {
        "domain": {"fabric.local": {"loop": {"max_depth": 3}}},
        "workflow": {"deep-*": {"max_depth": 6}},
        "agent": {"chatty@*": {"max_depth": 9}},
    }
    async with crew(tmp_path, "ada", "chatty", **settings) as agents:

        async def chain(sender: str, workflow: str) -> int:
            last, number = "", 0
            try:
                for number in range(20):
                    text = f"{workflow} {'x' * number}"
                    last = await agents.say(sender, sender, text, last, X_Workflow_ID=workflow)
            except aiosmtplib.SMTPDataError:
                return number
            return -1

        assert await chain("ada", "plain") == 2
        assert await chain("ada", "deep-1") == 5
        assert await chain("chatty", "deep-1") == 8
