"""`aimx workflow`: what a workflow did as a whole: who wrote to whom, how often, and where it was stopped."""

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aimx.cli.folder import data_option, json_option, opened
from aimx.cli.screen import clock, harmless, page, print_json, span_of
from aimx.store.contract import NotFound

if TYPE_CHECKING:
    from aimx.sidecar.timeline import Timeline
    from aimx.sidecar.workflow import Edge, Graph, Stop

BAR = 24
"""Columns of the longest bar."""


@click.group()
def workflow() -> None:
    """What belongs together by its X-Workflow-ID."""


@workflow.command()
@click.argument("id")
@json_option
@data_option
def show(id: str, as_json: bool, data: Path) -> None:
    """Draw who wrote to whom, how often, and where it was stopped.

    ID is an X-Workflow-ID; or a trace id, for messages that name no workflow.
    """
    from aimx.sidecar.workflow import graph

    found = graph(asyncio.run(_timeline(data, id)))
    if as_json:
        print_json(found.as_json())
        return
    screen = page()
    for line, style in _lines(found):
        screen.print(line, style=style, markup=False, soft_wrap=True)


async def _timeline(data: Path, what: str) -> "Timeline":
    from aimx.sidecar.conversation import trace_conversation, workflow_conversation
    from aimx.sidecar.timeline import assemble

    async with opened(data) as (_, store):
        try:
            return assemble(await workflow_conversation(store, what))
        except NotFound:
            if not re.fullmatch(r"[0-9a-fA-F]{32}", what):
                raise
            return assemble(await trace_conversation(store, bytes.fromhex(what)))


def _lines(found: "Graph") -> Iterator[tuple[str, str]]:
    """Lines of the drawing, each with its style."""
    domains = {name.partition("@")[2] for name in found.agents if "@" in name}
    suffix = f"@{next(iter(domains))}" if len(domains) == 1 else ""

    def short(name: str) -> str:
        return harmless(name.removesuffix(suffix) if suffix else name) or "AIMX"

    title = ", ".join(map(harmless, found.workflows)) or f"trace {found.trace_ids[0]}"
    yield f"workflow {title}  {clock(found.started_ms)}", "bold"
    refused = f", {len(found.stops)} refused" if found.stops else ""
    yield (
        (
            f"{_many(found.messages, 'message')} between {_many(len(found.agents), 'agent')} in "
            f"{span_of(found.duration_ms)}, depth {found.depth}, {_many(len(found.trace_ids), 'trace')}{refused}"
        ),
        "",
    )
    if found.truncated:
        yield "only the newest messages are counted", "yellow"
    yield "", ""
    most = max((edge.messages + edge.refused for edge in found.edges), default=1)
    width = max((len(short(edge.sender)) + len(short(edge.recipient)) for edge in found.edges), default=0) + 3
    for edge in found.edges:
        yield _edge(edge, f"{short(edge.sender)} → {short(edge.recipient)}".ljust(width), most)
    for warned in found.warnings:
        often = "once" if warned.times == 1 else f"{warned.times} times"
        yield f"⚠ {warned.rule}: warned {often}, up to {warned.highest}; it warns from {warned.limit} on", "yellow"
    for stop in found.stops:
        yield from _stop(stop, found.started_ms, short)


def _edge(edge: "Edge", label: str, most: int) -> tuple[str, str]:
    bar = "█" * max(1, round(edge.messages * BAR / most)) if edge.messages else ""
    bar += "✗" * min(edge.refused, BAR)
    tail = f", {edge.retries} retried" if edge.retries else ""
    tail += f", {edge.refused} refused" if edge.refused else ""
    return f"  {label}  {bar.ljust(BAR + 1)} {edge.messages}{tail}", "red" if edge.refused else ""


def _stop(stop: "Stop", started_ms: int, short: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    yield "", ""
    to = ", ".join(map(short, stop.recipients)) or "?"
    yield f"✗ stopped at +{span_of(stop.t_ms - started_ms)}: {short(stop.sender)} → {to}", "bold red"
    if stop.ring:
        yield "  in a circle: " + " → ".join(map(short, [*stop.ring, stop.ring[0]])), "red"
    yield f"  {harmless(stop.text)}", ""


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
