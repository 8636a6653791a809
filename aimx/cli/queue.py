"""`aimx queue …`: what waits, straight on the node's store; a running node sees each change within a second."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import click

from aimx.cli.failure import Failed
from aimx.cli.folder import data_option, json_option, opened
from aimx.cli.screen import clock, harmless, print_json, print_table, span_of
from aimx.config import Settings
from aimx.store.contract import EventRow, Pending, Store

PAGE = 500
"""Deliveries changed by one commit."""

What = Literal["retry", "hold", "release", "drop"]
Command = TypeVar("Command", bound=Callable[..., Any])


class Chosen(NamedTuple):
    """Which deliveries are meant."""

    ids: Sequence[int]
    message: str | None
    destination: str | None
    everything: bool


def choice(command: Command) -> Command:
    """ID…, or all of a message, of a destination, of the queue."""
    for option in (
        click.option("--all", "everything", is_flag=True, help="All that wait."),
        click.option("--destination", metavar="NAME", help="All that wait for this domain, webhook, …"),
        click.option("--message", metavar="ID", help="All of this message."),
        click.argument("ids", metavar="[ID]...", nargs=-1, type=click.IntRange(1)),
    ):
        command = option(command)
    return data_option(json_option(command))


@click.group()
def queue() -> None:
    """Deliveries that wait: for a busy agent, for another server, for a webhook."""


@queue.command(name="list")
@click.option("--message", metavar="ID", help="Only of this message.")
@click.option("--destination", metavar="NAME", help="Only for this domain, webhook, …")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@click.option("--after", type=click.IntRange(0), default=0, metavar="ID", help="Only those with a higher number.")
@json_option
@data_option
def list_(message: str | None, destination: str | None, limit: int, after: int, as_json: bool, data: Path) -> None:
    """List what waits, oldest first."""

    async def work() -> tuple[list[Pending], int]:
        async with opened(data) as (_, store):
            found = await store.pending(message, limit, after, destination)
            return found, (await store.backlog()).queue_depth

    found, depth = asyncio.run(work())
    if as_json:
        print_json([asdict(one) for one in found])
        return
    if not found:
        click.echo("nothing waits" if not depth else f"nothing of that waits; the queue has {depth}")
        return
    rows = [["id", "message", "to", "by", "priority", "attempts", "next", "why"]]
    rows += [_row(one) for one in found]
    print_table(rows)
    if len(found) == limit and depth > limit:
        click.echo(f"the queue has {depth}; `--after {found[-1].id}` goes on")


@queue.command()
@click.argument("id", type=click.IntRange(1))
@json_option
@data_option
def show(id: int, as_json: bool, data: Path) -> None:
    """Show one delivery and what happened to it."""

    async def work() -> tuple[Pending, list[dict[str, Any]]]:
        async with opened(data) as (_, store):
            one = await _one(store, id)
            return one, [_said(event.row) for event in await store.events_of(one.eid) if _is_about(event.row, one)]

    one, events = asyncio.run(work())
    if as_json:
        print_json({**asdict(one), "events": events})
        return
    for name, value in asdict(one).items():
        if value not in (None, ""):
            shown = clock(value) if name.endswith("_ms") else value
            click.echo(f"{name.removesuffix('_ms'):12} {harmless(str(shown))}")
    for event in events:
        click.echo(f"{clock(event['t_ms'])}  {event['event']}  {harmless(event['why'])}".rstrip())


@queue.command()
@choice
def retry(as_json: bool, data: Path, **chosen: Any) -> None:
    """Try them again now; held ones are let go. What is being tried at this moment is left alone."""
    _report(_change(data, "retry", Chosen(**chosen)), "due now", as_json)


@queue.command()
@choice
def hold(as_json: bool, data: Path, **chosen: Any) -> None:
    """Keep them where they are. Their deadline goes on running."""
    _report(_change(data, "hold", Chosen(**chosen)), "held", as_json)


@queue.command()
@choice
def release(as_json: bool, data: Path, **chosen: Any) -> None:
    """Let held ones go on, at the time they were due."""
    _report(_change(data, "release", Chosen(**chosen)), "released", as_json)


@queue.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@choice
def drop(yes: bool, as_json: bool, data: Path, **chosen: Any) -> None:
    """Take them out of the queue, undelivered. Nobody is told; the audit log knows."""
    which = Chosen(**chosen)
    _check(which)
    if not yes:
        click.confirm(
            f"Drop {_named(which)}? Nobody will get that mail, and its sender is not told", abort=True, err=True
        )
    _report(_change(data, "drop", which), "dropped", as_json)


# ── steering ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check(which: Chosen) -> None:
    if sum((bool(which.ids), which.message is not None, which.destination is not None, which.everything)) != 1:
        raise click.UsageError("say which: numbers, --message, --destination or --all")


def _named(which: Chosen) -> str:
    if which.everything:
        return "the whole queue"
    if which.message is not None:
        return f"all deliveries of {which.message}"
    if which.destination is not None:
        return f"all deliveries for {which.destination}"
    return "delivery " + ", ".join(map(str, which.ids))


def _change(data: Path, what: What, which: Chosen) -> list[Pending]:
    _check(which)

    async def work() -> list[Pending]:
        changed: list[Pending] = []
        async with opened(data) as (settings, store):
            async for ids in _pages(store, which):
                changed += await _steer(settings, store, what, ids)
            if not changed:
                missing = "is being tried or not there (any more)" if what == "retry" else "is as asked or not there"
                raise Failed(f"{_named(which)} {missing}; see `aimx queue list`")
        return changed

    return asyncio.run(work())


async def _pages(store: Store, which: Chosen) -> AsyncIterator[list[int]]:
    if which.ids:
        yield list(which.ids)
        return
    after = 0
    while page := await store.pending(which.message, PAGE, after, which.destination):
        after = page[-1].id
        yield [one.id for one in page]


async def _steer(settings: Settings, store: Store, what: What, ids: list[int]) -> list[Pending]:
    now_ms = time.time_ns() // 1_000_000

    def witness(changed: list[Pending]) -> list[EventRow]:
        return [_event(settings, now_ms, what, changed)] if changed else []

    match what:
        case "retry":
            return await store.hasten(ids, now_ms, witness)
        case "hold" | "release":
            return await store.suspend(ids, what == "hold", witness)
        case "drop":
            return await store.drop(ids, witness)


def _event(settings: Settings, now_ms: int, what: What, changed: list[Pending]) -> EventRow:
    from aimx.audit import events

    stamp = events.Stamp(settings.node, now_ms, events.no_span(), "admin")
    return events.queue_changed(
        stamp, what=what, by="admin", messages=[one.eid for one in changed], deliveries=[one.id for one in changed]
    )


# ── showing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _report(changed: list[Pending], state: str, as_json: bool) -> None:
    if as_json:
        print_json([asdict(one) for one in changed])
        return
    for one in changed[:20]:
        click.echo(f"{one.id} to {harmless(one.address)}: {state}")
    if len(changed) > 20:
        click.echo(f"and {len(changed) - 20} more: {state}")


def _row(one: Pending) -> list[str]:
    wait_ms = one.next_ms - time.time_ns() // 1_000_000
    due = "held" if one.held else "now" if wait_ms <= 0 else f"in {span_of(wait_ms)}"
    by = f"{one.transport} {one.destination}".rstrip()
    why = f"{one.reason}, being tried" if one.leased_by else one.reason
    shown = [one.id, one.eid, one.address, by, one.priority, one.attempt, due, why.lstrip(", ")]
    return [harmless(str(cell)) for cell in shown]


async def _one(store: Store, number: int) -> Pending:
    found = await store.pending(limit=1, after=number - 1)
    if not found or found[0].id != number:
        raise Failed(f"there is no delivery {number} (any more); see `aimx queue list`")
    return found[0]


def _is_about(row: EventRow, one: Pending) -> bool:
    """The message's events but for those of its other recipients."""
    return row.detail.get("recipient") in (None, one.address)


def _said(row: EventRow) -> dict[str, Any]:
    why = row.detail.get("text") or row.detail.get("reason") or ""
    return {"t_ms": row.t_ms, "event": row.ev, "attempt": row.detail.get("attempt"), "why": str(why)}
