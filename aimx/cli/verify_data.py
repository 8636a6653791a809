"""`aimx verify-data`: what a broken disk or a hand at the database leaves behind, found and put right."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aimx.cli.failure import Failed
from aimx.cli.folder import data_option, json_option, opened
from aimx.cli.screen import print_json

if TYPE_CHECKING:
    from aimx.audit.report import Report
    from aimx.store.contract import EventRow, Fault, Store

ALTERED, UNSOUND = 3, 4
"""Exit codes, as those of `aimx audit verify`."""


@click.command("verify-data")
@click.option("--fix", is_flag=True, help="Put right what can be without losing mail. The node must be stopped.")
@click.option("--contents/--no-contents", default=True, help="Hash every stored message again. [default: yes]")
@json_option
@data_option
def verify_data(fix: bool, contents: bool, as_json: bool, data: Path) -> None:
    """Check that the rows of the store agree with each other, and every message and event with the log.

    Counts of mailboxes, UIDs and MODSEQs, sizes, parts of large bodies, rows that lead nowhere; then what
    `aimx audit verify` checks, each message's octets among it. Without --fix nothing is changed and nodes may run.

    Exit codes: 0 nothing is wrong (any more); 1 it could not be checked; 3 the log was altered; 4 data is wrong.
    """
    left, mended, report = asyncio.run(_check(data, fix, contents))
    if as_json:
        told = {"faults": [one._asdict() for one in left], "mended": [one._asdict() for one in mended]}
        print_json({"ok": report.ok and not left, **told, "log": report.to_json()})
    else:
        for what, faults, colour in (("mended", mended, "yellow"), ("WRONG", left, "red")):
            for one in faults:
                click.secho(f"{what} {one.rule}: {one.wrong} ({one.n})", fg=colour)
                click.echo("".join(f"    {place}\n" for place in one.where), nl=False)
                if what == "WRONG" and one.mendable:
                    click.echo("    → `aimx verify-data --fix`, with the node stopped, puts this right")
        if not left:
            click.secho("the rows of the store agree with each other", fg="green")
        click.echo("\n".join(report.lines()))
    sys.exit(UNSOUND if left else 0 if report.ok else ALTERED if report.inconsistent else UNSOUND)


async def _check(data: Path, fix: bool, contents: bool) -> "tuple[list[Fault], list[Fault], Report]":
    """What is wrong, what was mended before, and what the log says of it all."""
    from aimx.audit import events
    from aimx.audit.verify import verify
    from aimx.cli.audit import verifying

    async with opened(data) as (settings, store):
        mended: list[Fault] = []
        if fix:
            stamp = events.Stamp(settings.node, time.time_ns() // 1_000_000, events.no_span(), "admin")

            def told(fault: "Fault") -> "list[EventRow]":
                return [events.data_mended(stamp, what=fault.rule, n=fault.n, by="admin")]

            await _alone(store, settings.node)
            with _stopped(data):
                mended = await store.mend(told)
        left = await store.faults()
        with verifying() as progress:
            report = await verify(
                store, data, database=settings.log_database, contents=contents, patience_s=0, progress=progress
            )
    return left, mended, report


@contextlib.contextmanager
def _stopped(data: Path) -> "Iterator[None]":
    """No node runs in this folder, and none starts."""
    from aimx.data_folder import CannotStart, lock

    try:
        descriptor = lock(data)
    except CannotStart as error:
        raise Failed(str(error)) from None
    try:
        yield
    finally:
        os.close(descriptor)


async def _alone(store: "Store", node: str) -> None:
    """No node of another machine works on the same database. Raises Failed."""
    from aimx.store.contract import SILENT_MS

    now_ms = time.time_ns() // 1_000_000
    alive = sorted({one.node for one in await store.nodes() if one.node != node and one.seen_ms > now_ms - SILENT_MS})
    if alive:
        raise Failed(f"stop every node first; these run: {', '.join(alive)}")
