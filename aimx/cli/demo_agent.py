"""One agent of the demo, a process of its own: `python -m aimx.cli.demo_agent planner|researcher|critic`.

No model is needed: each agent's "thinking" is a few lines of ordinary code. What it does with mail is what any agent
would do: wait in its inbox, process, ask others, reply. It says what it does on standard output, one JSON line each.
"""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import aimx
from aimx.cli.tracing import exported

TRAINS = [
    {"train": "TGV 9216", "leaves": "06:34", "arrives": "11:02", "fare": 96},
    {"train": "IR 1423", "leaves": "09:04", "arrives": "14:48", "fare": 58},
    {"train": "EC 151", "leaves": "08:12", "arrives": "13:20", "fare": 74},
]
"""What the researcher finds out about trains from Bern to Lyon."""

READING = 1.0
"""Seconds the critic needs for the terms; its limit is one unacknowledged message, so it is busy meanwhile."""


def say(what: str, text: str, **more: Any) -> None:
    """Tell whoever watches."""
    print(json.dumps({"what": what, "text": text, **more}), flush=True)


async def planner(me: aimx.AsyncClient) -> None:
    """Takes tasks apart: finds options, proposes the cheapest, and another one until the critic agrees."""
    async for message in me.inbox():
        async with message.process():
            if "task" in message.payload:
                await solve(me, message)
            else:
                await be_polite(me, message, "Thank you as well, and thanks for asking.")


async def solve(me: aimx.AsyncClient, task: aimx.Message) -> None:
    terms = task.payload["terms"]
    say("ask", "asks researcher which trains there are")
    found = await me.request("researcher", {"find": "trains", **task.payload["route"]}, subject="Which trains?")
    options = sorted(found.payload["trains"], key=lambda train: train["fare"])
    say("tell", "tells critic the terms, and sends the cheapest train right after")
    await me.send("critic", {"terms": terms}, subject="The terms")
    for option in options:
        verdict = await me.request("critic", {"draft": option}, subject=f"Draft: {option['train']}")
        if verdict.payload["approved"]:
            await task.reply({"answer": option, "total": option["fare"] * terms["travellers"]})
            say("done", f"answers: {option['train']}, {option['fare'] * terms['travellers']} francs")
            break
        say("again", f"drops {option['train']}: {verdict.payload['because']}")
    await me.send("researcher", {"say": "Thank you for the trains.", "round": 1}, subject="Thanks")


async def researcher(me: aimx.AsyncClient) -> None:
    """Knows things. And always has the last word, which is the mistake the loop guard is there for."""
    async for message in me.inbox():
        async with message.process():
            if "find" in message.payload:
                say("reply", f"knows {len(TRAINS)} trains")
                await message.reply({"trains": TRAINS})
            else:
                await be_polite(me, message, "You are welcome! Anything else?")


async def critic(me: aimx.AsyncClient) -> None:
    """Holds drafts against the terms. Slow, and takes one thing at a time."""
    terms: dict[str, Any] = {}
    async for message in me.inbox():
        async with message.process():
            if "terms" in message.payload:
                say("busy", "reads the terms and is busy")
                terms = message.payload["terms"]
                await asyncio.sleep(READING)
                continue
            draft = message.payload["draft"]
            because = objection(draft, terms)
            say("reply", f"{'rejects' if because else 'approves'} {draft['train']}")
            await message.ack()  # free for the next draft before the answer can bring it
            await message.reply({"approved": not because, "because": because})


def objection(draft: dict[str, Any], terms: dict[str, Any]) -> str:
    """What is wrong with a draft; empty when nothing is."""
    if draft["arrives"] > terms["arrive_by"]:
        return f"it arrives at {draft['arrives']}, after {terms['arrive_by']}"
    total = draft["fare"] * terms["travellers"]
    return f"it costs {total}, more than {terms['budget']}" if total > terms["budget"] else ""


async def be_polite(me: aimx.AsyncClient, message: aimx.Message, words: str) -> None:
    """Answers every courtesy with one, for ever, until the node says stop."""
    number = message.payload["round"] + 1
    await message.ack()
    try:
        await message.reply({"say": words, "round": number})
    except aimx.LoopRefused as refusal:
        say("stopped", str(refusal), round=number)
        report = {"stopped": refusal.text, "code": refusal.code, "enhanced": refusal.enhanced, "round": number}
        await me.send("you", report, subject="I was stopped")


ROLES: dict[str, Callable[[aimx.AsyncClient], Awaitable[None]]] = {
    "planner": planner,
    "researcher": researcher,
    "critic": critic,
}


async def run(role: str) -> None:
    """Work until SIGTERM."""
    async with aimx.connect() as me:
        work = asyncio.ensure_future(ROLES[role](me))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, work.cancel)
        say("ready", "is here")
        with contextlib.suppress(asyncio.CancelledError):
            await work


if __name__ == "__main__":
    with exported(f"agent-{sys.argv[1]}"):
        asyncio.run(run(sys.argv[1]))
