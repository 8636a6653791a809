"""`aimx audit erase|hold|release|holds`: destroying what messages say, and forbidding it."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from aimx.cli.failure import Failed
from aimx.cli.folder import data_option, json_option, opened
from aimx.cli.screen import clock, harmless, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aimx.config import Settings
    from aimx.store.contract import Hold, MessageRecord, Store

Command = TypeVar("Command", bound=Callable[..., Any])


def subject_options(command: Command) -> Command:
    """What is meant: one message, all of an agent's, all of a workflow's."""
    for option in (
        click.option("--workflow", metavar="ID", help="Every message of this workflow."),
        click.option("--agent", metavar="ADDRESS", help="Everything this address sent or received."),
        click.argument("eid", metavar="[MESSAGE]", required=False),
    ):
        command = option(command)
    return command


@click.command(short_help="Destroy messages: content, addresses, keys.")
@subject_options
@click.option("--reason", default="request", show_default=True, help="Goes into the log, in the clear: a word or two.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@data_option
def erase(
    eid: str | None, agent: str | None, workflow: str | None, reason: str, yes: bool, as_json: bool, data: Path
) -> None:
    """Destroy MESSAGE, or all messages of an agent or a workflow: content, envelope, and the keys that open the log.

    Works beside a running node; mailboxes lose the messages at once. The log keeps its leaves, which say nothing any
    more, and gains message.erased. What a legal hold covers stays. Copies elsewhere stay too: it says where.
    """
    from aimx.audit import erasure

    kind, subject = _subject(eid, agent, workflow)
    if not 0 < len(reason) <= 64 or "@" in reason:
        raise click.UsageError("--reason is kept in the log for good: up to 64 characters, and no address")

    async def work() -> erasure.Erased:
        async with opened(data) as (settings, store):
            subject_ = _full(settings, kind, subject)
            if not yes:
                count = await _count(store, kind, subject_)
                _ask(kind, subject_, count)
            records = _records(store, kind, subject_)
            return await erasure.erase_all(store, records, node=settings.node, by="admin", why=reason)

    done = asyncio.run(work())
    if as_json:
        print_json({"erased": done.eids, "held": done.held, "survivors": done.survivors})
    else:
        click.echo(f"{len(done.eids)} erased, {len(done.held)} kept by a legal hold")
        for one, why in done.held.items():
            click.echo(f"  {one}: {harmless(why)}")
        if done.eids:
            click.echo("not reached from here: " + "; ".join(done.survivors), err=True)
    if done.held and not done.eids:
        raise Failed("a legal hold forbids it; `aimx audit holds` lists them")
    if not done.eids and kind == "message":
        raise Failed(f"message {subject} was erased before")


@click.command(short_help="Forbid the erasure of messages.")
@subject_options
@click.option("--reason", required=True, help="Why, e.g. the case it is about. Erasable, as addresses are.")
@data_option
def hold(eid: str | None, agent: str | None, workflow: str | None, reason: str, data: Path) -> None:
    """Place a legal hold: until it is released, nothing it covers can be erased, also not by age."""
    from aimx.audit import erasure
    from aimx.store.contract import AlreadyExists, Hold

    kind, subject = _subject(eid, agent, workflow)

    async def work() -> str:
        async with opened(data) as (settings, store):
            subject_ = _full(settings, kind, subject)
            if kind == "message" and await store.message(subject_) is None:
                raise Failed(f"there is no message {subject_}")
            made = Hold(kind, subject_, reason, "admin", time.time_ns() // 1_000_000)  # type: ignore[arg-type]
            try:
                await erasure.place_hold(store, made, node=settings.node)
            except AlreadyExists as error:
                raise Failed(str(error)) from None
            return subject_

    click.echo(f"held: {kind} {harmless(asyncio.run(work()))}")


@click.command(short_help="End a legal hold.")
@subject_options
@data_option
def release(eid: str | None, agent: str | None, workflow: str | None, data: Path) -> None:
    """End a legal hold. Another hold on the same messages goes on."""
    from aimx.audit import erasure
    from aimx.store.contract import NotFound

    kind, subject = _subject(eid, agent, workflow)

    async def work() -> str:
        async with opened(data) as (settings, store):
            subject_ = _full(settings, kind, subject)
            try:
                found = await erasure.covering(store, kind, subject_)
                await erasure.release_hold(store, found, node=settings.node, by="admin")
            except NotFound as error:
                raise Failed(str(error)) from None
            return subject_

    click.echo(f"released: {kind} {harmless(asyncio.run(work()))}")


@click.command(short_help="List the legal holds.")
@json_option
@data_option
def holds(as_json: bool, data: Path) -> None:
    """List the legal holds, oldest first."""

    async def work() -> "list[Hold]":
        async with opened(data) as (_, store):
            return await store.holds()

    found = asyncio.run(work())
    if as_json:
        print_json([asdict(one) for one in found])
    elif not found:
        click.echo("no legal holds")
    else:
        rows = [[one.kind, one.subject, clock(one.t_ms), one.by, one.reason] for one in found]
        print_table([["covers", "which", "since", "by", "reason"]] + [[harmless(cell) for cell in row] for row in rows])


# ── what is meant ────────────────────────────────────────────────────────────────────────────────────────────────────


def _subject(eid: str | None, agent: str | None, workflow: str | None) -> tuple[str, str]:
    given = [(kind, name) for kind, name in (("message", eid), ("agent", agent), ("workflow", workflow)) if name]
    if len(given) != 1:
        raise click.UsageError("say which: a message's id, --agent or --workflow")
    return given[0]


def _full(settings: "Settings", kind: str, subject: str) -> str:
    if kind != "agent":
        return subject.strip()
    return subject.lower() if "@" in subject else f"{subject.lower()}@{settings.domains[0]}"


async def _records(store: "Store", kind: str, subject: str) -> "AsyncIterator[MessageRecord]":
    from aimx.audit.erasure import found
    from aimx.store.contract import MessageFilter

    if kind == "message":
        record = await store.message(subject)
        if record is None:
            raise Failed(f"there is no message {subject}")
        yield record
        return
    what = MessageFilter(agent=subject) if kind == "agent" else MessageFilter(workflow=subject)
    async for record in found(store, what):
        yield record


async def _count(store: "Store", kind: str, subject: str) -> int:
    return len([record async for record in _records(store, kind, subject) if not record.erased])


def _ask(kind: str, subject: str, count: int) -> None:
    if not count:
        raise Failed(f"there is nothing to erase of the {kind} {subject}")
    what = f"message {subject}" if kind == "message" else f"{count} messages of the {kind} {harmless(subject)}"
    click.confirm(f"Destroy {what} for good?", abort=True, err=True)
