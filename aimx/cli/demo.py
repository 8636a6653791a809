"""`aimx demo`: a node, three agents, one task, one trace, a retry, a runaway loop stopped, an audit log verified."""

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table

import aimx
from aimx.audit.evidence import Evidence
from aimx.audit.report import Report
from aimx.cli.audit import print_report
from aimx.cli.failure import Failed
from aimx.cli.folder import Ready, opened, ready
from aimx.cli.screen import console
from aimx.cli.tracing import exported
from aimx.sidecar.timeline import Timeline

SETTINGS = """\
# The demo's node: retries begin soon, so that you need not wait for one.
[delivery]
first_delay = "400ms"
factor = 1.5
"""
TASK = {
    "task": "Find a train for us.",
    "route": {"from": "Bern", "to": "Lyon"},
    "terms": {"travellers": 3, "budget": 240, "arrive_by": "14:00"},
}
WORKFLOW = "trip-to-lyon"
AGENTS = ("planner", "researcher", "critic")
PATIENCE = 30.0
"""Seconds each wait of the demo may take before it counts as failed."""

_COLOUR = {"planner": "cyan", "researcher": "green", "critic": "magenta", "you": "bold", "node": "dim"}


@click.command()
@click.option("--once", is_flag=True, help="Stop at the end; exit 0 only if everything held.")
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), help="A folder that is not there yet; kept afterwards."
)
def demo(once: bool, data: Path | None) -> int:
    """Watch three agents solve a small task by mail, and look at it afterwards.

    Without --once the node stays until Ctrl-C, so that you can look around. Needs no model and no network; if
    OTEL_EXPORTER_OTLP_ENDPOINT is set, the spans of the node and of all agents go there as one trace.
    """
    if data is not None and data.exists():
        raise Failed(f"{str(data)!r} is there already; the demo wants a fresh folder")
    with exported("agent-you"):
        return asyncio.run(_demo(data, once))


@dataclass(slots=True)
class Seen:
    """What the demo saw, and what it therefore may claim."""

    began: float
    answer: dict[str, Any] = field(default_factory=dict)
    stopped: dict[str, Any] = field(default_factory=dict)
    sent: aimx.Sent | None = None
    timeline: Timeline | None = None
    report: Report | None = None
    evidence: Evidence | None = None

    def claims(self) -> list[tuple[str, bool]]:
        """Each promise of the demo, and whether it held."""
        counts = self.timeline.counts if self.timeline else None
        approved = self.answer.get("answer", {}).get("train") == "EC 151" and self.answer.get("total") == 222
        return [
            ("the task was solved over several mails", approved),
            ("one agent was busy, and its mail was retried", counts is not None and counts.retries > 0),
            ("every message arrived and was acknowledged", self._all_done()),
            ("the runaway loop was refused, and the agent could read why", self.stopped.get("code") == 554),
            ("the whole conversation is one trace", self._one_trace()),
            ("the audit log is consistent and complete", self._verified()),
            ("one message is proved, offline", self.evidence is not None),
        ]

    def _one_trace(self) -> bool:
        found, sent = self.timeline, self.sent
        if found is None or sent is None or found.counts.refused < 1:
            return False
        return all(entry.trace_id == sent.trace_id for entry in found.entries) and found.counts.messages >= 10

    def _all_done(self) -> bool:
        counts = self.timeline.counts if self.timeline else None
        if counts is None or counts.waiting or counts.bounced:
            return False
        return counts.messages == counts.deliveries == counts.acknowledged

    def _verified(self) -> bool:
        return self.report is not None and self.report.ok and self.report.complete == "COMPLETE"


async def _demo(data: Path | None, once: bool) -> int:
    folder = data or Path(tempfile.mkdtemp(prefix="aimx-demo-"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        async with AsyncExitStack() as stack:
            node = await stack.enter_async_context(_node(folder))
            seen = await _conversation(folder)
            await _look(folder, seen)
            _show(folder, seen)
            held = all(holds for _, holds in seen.claims())
            if once:
                return 0 if held else 1
            _invite(folder, node, seen)
            await _until_interrupted()
            return 0 if held else 1
    finally:
        if data is None:
            shutil.rmtree(folder, ignore_errors=True)


# ── the processes ────────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def _node(folder: Path) -> AsyncIterator[Ready]:
    """`aimx serve` on free ports, as its own process."""
    config = folder / "aimx.toml"
    config.write_text(SETTINGS)
    listeners = [arg for name in ("smtp", "smtps", "imap", "imaps", "http") for arg in (f"--{name}", "127.0.0.1:0")]
    command = [sys.executable, "-m", "aimx.cli", "serve", "--data", str(folder), "--config", str(config), *listeners]
    with (folder / "node.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=log, stderr=STDOUT, env=_environment(), start_new_session=True
        )
    try:
        began = time.monotonic()
        while (found := ready(folder)) is None:
            if process.returncode is not None or time.monotonic() - began > PATIENCE:
                last = (folder / "node.log").read_text(errors="replace").strip().splitlines()[-1:]
                raise Failed(f"the node did not start: {' '.join(last) or 'it said nothing'}")
            await asyncio.sleep(0.05)
        console().print(f"[dim]node up in {time.monotonic() - began:.1f} s, everything it keeps is in {folder}[/]")
        yield found
    finally:
        await _stop(process)


@asynccontextmanager
async def _agent(name: str, url: str, began: float) -> AsyncIterator[Process]:
    """One agent in its own process; what it says is printed as it says it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "aimx.cli.demo_agent",
        name,
        stdout=PIPE,
        env=_environment(AIMX_URL=url),
        start_new_session=True,
    )
    assert process.stdout is not None
    listening = asyncio.create_task(_listen(name, process.stdout, began))
    try:
        yield process
    finally:
        await _stop(process)
        await listening


async def _listen(name: str, lines: asyncio.StreamReader, began: float) -> None:
    async for line in lines:
        said = json.loads(line)
        if said["what"] != "ready":
            _tell(name, said["text"], began, loud=said["what"] == "stopped")


async def _stop(process: Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), 12)
        except TimeoutError:
            process.kill()
            await process.wait()


def _environment(**more: str) -> dict[str, str]:
    """This one without AIMX's own variables, which could point the demo at another node."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIMX_")}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


# ── the story ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _conversation(folder: Path) -> Seen:
    from aimx.cli.agent import create

    names = ("you", *AGENTS)
    # The critic takes one message at a time: while it works on one, the next has to wait and is retried.
    accounts = {name: await create(folder, name, max_unacked=1 if name == "critic" else None) for name in names}
    console().print(f"[dim]agents: {', '.join(AGENTS)}, each a process of its own; and you[/]\n")
    seen = Seen(time.monotonic())
    async with AsyncExitStack() as stack:
        for name in AGENTS:
            await stack.enter_async_context(_agent(name, accounts[name].url, seen.began))
        me = await stack.enter_async_context(aimx.connect(accounts["you"].url))
        _tell("you", "send planner: a train from Bern to Lyon for 3, at most 240 francs, there by 14:00", seen.began)
        seen.sent = await me.send("planner", TASK, subject="A train to Lyon", workflow=WORKFLOW)
        try:
            async with asyncio.timeout(PATIENCE), contextlib.aclosing(me.inbox()) as inbox:
                async for message in inbox:
                    async with message.process():
                        _take(message.payload, seen)
                    if seen.answer and seen.stopped:
                        break
        except TimeoutError:
            console().print("[red]the agents did not finish in time[/]")
    return seen


def _take(payload: dict[str, Any], seen: Seen) -> None:
    if "answer" in payload:
        seen.answer = payload
        text = f"have your train: {payload['answer']['train']}, {payload['total']} francs for 3"
        _tell("you", text, seen.began)
    elif "stopped" in payload:
        seen.stopped = payload
        _tell("you", "hear that a loop was stopped", seen.began)


def _tell(name: str, text: str, began: float, *, loud: bool = False) -> None:
    colour = _COLOUR.get(name, "")
    words = f"[bold red]{escape(text)}[/]" if loud else escape(text)
    row = Table.grid(padding=(0, 2))
    row.add_row(f"[dim]{time.monotonic() - began:6.2f} s[/]", f"[{colour}]{name:<10}[/]", words)
    console().print(row)


# ── what can be seen afterwards ──────────────────────────────────────────────────────────────────────────────────────


async def _look(folder: Path, seen: Seen) -> None:
    from aimx.audit.evidence import check, message_proof
    from aimx.audit.keys import load_public
    from aimx.audit.log import NotCovered
    from aimx.audit.place import open_reader
    from aimx.audit.verify import verify
    from aimx.sidecar.timeline import timeline

    if seen.sent is None:
        return
    async with opened(folder) as (_, store):
        seen.timeline = await timeline(store, bytes.fromhex(seen.sent.trace_id))
        reader = open_reader(folder)
        try:
            for _ in range(50):
                with contextlib.suppress(NotCovered):
                    evidence = await message_proof(store, reader, seen.sent.id)
                    check(evidence, load_public(folder).log)
                    seen.evidence = evidence
                    break
                await asyncio.sleep(0.1)  # until the next checkpoint is signed
        finally:
            reader.close()
        for _ in range(20):
            seen.report = await verify(store, folder)
            if seen.report.complete != "PENDING":
                break
            await asyncio.sleep(0.1)


def _show(folder: Path, seen: Seen) -> None:
    from aimx.cli.conversation import draw

    if seen.timeline is not None:
        console().print()
        console().print(Rule("the conversation: one trace", align="left", style="dim"))
        console().print(draw(seen.timeline))
    if seen.stopped:
        console().print()
        text = f"{seen.stopped['code']} {seen.stopped['enhanced']} {seen.stopped['stopped']}"
        console().print(Panel(escape(text), title="the refusal, as the agent got it", border_style="red", expand=False))
    if seen.report is not None:
        console().print(Rule("the audit log", align="left", style="dim"))
        print_report(seen.report)
    if seen.evidence is not None:
        console().print(
            Rule(f"proof that message {seen.evidence.eid} was accepted as it is", align="left", style="dim")
        )
        console().print(seen.evidence.proof.strip(), markup=False, soft_wrap=True, style="dim")
    console().print(Rule("what held", align="left", style="dim"))
    for claim, holds in seen.claims():
        console().print(f"{'[green]✓[/]' if holds else '[red]✗[/]'} {claim}")


def _invite(folder: Path, node: Ready, seen: Seen) -> None:
    """The commands to look further."""
    where = shlex.quote(str(folder))
    trace_id = seen.sent.trace_id if seen.sent else "TRACE_ID"
    eid = seen.sent.id if seen.sent else "ID"
    console().print(Rule("look further, in another terminal", align="left", style="dim"))
    for command in (
        f"export AIMX_DATA={where}",
        f"aimx trace {trace_id} --all",
        "aimx audit verify",
        f"aimx audit prove {eid} --json",
        "aimx doctor",
        f'curl --cacert {shlex.quote(node.ca)} -H "Authorization: Bearer $(cat {shlex.quote(node.admin_token_file)})" '
        f"{node.http}/v1/traces/{trace_id}",
    ):
        console().print(f"  {command}", markup=False, soft_wrap=True)
    console().print("\n[dim]Ctrl-C ends the node and removes its folder.[/]")


async def _until_interrupted() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
