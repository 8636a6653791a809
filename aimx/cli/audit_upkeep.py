"""`aimx audit …` for whoever keeps the log: its shards, its keys, and what to do after an old copy was put back."""

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aimx.cli.failure import Failed
from aimx.cli.folder import data_option, json_option, opened, ready, settings_of
from aimx.cli.screen import print_json

if TYPE_CHECKING:
    from aimx.audit.events import Stamp
    from aimx.config import Settings


@click.command("rotate-key", short_help="Let a new key sign from now on.")
@click.option("--receipt", is_flag=True, help="The key of receipts, instead of the log's.")
@json_option
@data_option
def rotate_key(receipt: bool, as_json: bool, data: Path) -> None:
    """Make a new key and log that it takes over; the node does so within seconds, or at its next start.

    The log's key is made, or looked for, where `[audit] signer` says; the old one signs beside it for `key_overlap`.
    """
    from aimx.audit import events, keys
    from aimx.message.identifier import new_eid

    what: keys.What = "receipt" if receipt else "log"

    async def work() -> tuple[str, str]:
        async with opened(data) as (settings, store):
            waits = keys.waiting(data, what)
            if waits is not None and await _is_logged(settings, data, waits.eid):
                raise Failed("the last rotation has yet to be taken up; start the node once")
            old = (await asyncio.to_thread(keys.load, data, _now())).public()
            before = old.receipt if receipt else old.log
            eid, stamp = new_eid(), _stamp(settings)
            made = keys.make_next(data, what, before.name, eid, signer=settings.audit.signer)
            new = made.key.verifier
            if new == before:
                keys.forget_next(data, what)
                raise Failed(f"{settings.audit.signer} leads to the key that is in force; put the new one there first")
            row = events.key_rotated(stamp, what=what, by="admin", old=before.vkey(), new=new.vkey(), eid=eid)
            await store.record([row])
            return before.vkey(), new.vkey()

    was, now = asyncio.run(work())
    if as_json:
        print_json({"what": what, "old": was, "new": now})
        return
    click.echo(f"until now  {was}\nfrom now   {now}")
    click.echo(f"hand {data / keys.VKEYS} to whoever checks the log, once the node has taken it up", err=True)


@click.command(short_help="List the logs that the log consists of.")
@json_option
@data_option
def shards(as_json: bool, data: Path) -> None:
    """List the shards: each is a transparency log of its own, and names the one before it."""
    from aimx.audit.place import open_reader

    reader = open_reader(data, settings_of(data).log_database)
    try:
        found = reader.shards()
    finally:
        reader.close()
    if as_json:
        print_json([{**one._asdict(), "newest": one == found[-1]} for one in found])
        return
    for one in found:
        state = "open" if one == found[-1] else "closed"
        click.echo(f"{one.origin}  {one.size} leaves from {one.start} on, {state}")


@click.command("drop-shard", short_help="Let go of the oldest shard, for good.")
@click.argument("origin")
@click.option("--yes", is_flag=True, help="Do not ask.")
@data_option
def drop_shard(origin: str, yes: bool, data: Path) -> None:
    """Delete the oldest shard whole, its retention over; the log says so from then on (log.dropped).

    What it proved can be proved no more, except with an export or proofs kept elsewhere.
    """
    from aimx.audit import events
    from aimx.audit.place import open_log, open_reader

    async def work() -> int:
        async with opened(data) as (settings, store):
            database = settings.log_database
            reader, log = open_reader(data, database), open_log(data, database)
            try:
                found = reader.shards()
                if len(found) < 2 or origin not in (found[0].origin, found[0].origin.rpartition("/")[2]):
                    raise Failed(f"{origin} is not a closed shard that is the oldest; `aimx audit shards` lists them")
                oldest, last = found[0], reader.shard(found[0].number).checkpoint() or ""
                if not yes:
                    click.confirm(f"Delete all {oldest.size} leaves of {oldest.origin} for good?", abort=True)
                row = events.log_dropped(
                    _stamp(settings), origin=oldest.origin, size=oldest.size, last=last, by="admin"
                )
                await store.record([row])
                log.drop(oldest.number)
                return oldest.size
            finally:
                reader.close()
                log.close()

    click.echo(f"{asyncio.run(work())} leaves dropped")


@click.command("restore-fork", short_help="Go on honestly after an old copy of the log was put back.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@data_option
def restore_fork(yes: bool, as_json: bool, data: Path) -> None:
    """Begin a new log, under a new name and key, whose first leaf names the newest head known of the old one.

    For when the node refuses to start because the log is older than what it has signed, and the newest copy is gone.
    What is lost stays lost, and every verification says so.
    """
    from aimx.audit import keys, restored
    from aimx.audit.place import read_anchors
    from aimx.audit.sequencer import HIGH_WATER, high_water
    from aimx.audit.succession import sharding
    from aimx.data_folder import CannotStart, lock

    if ready(data) is not None:
        raise Failed("the node runs; stop it first")

    async def work() -> tuple[str, int]:
        async with opened(data) as (settings, store):
            database = settings.log_database
            held = keys.load(data, _now())
            anchors = read_anchors(data, database, held.origin)
            texts = [*high_water(data), *((one.name, one.note) for one in anchors)]
            known = restored.heads(texts, keys.load_public(data).logs)
            if not yes:
                click.confirm("Is the newest copy of the log really gone?", abort=True)
            return await restored.fork(
                store,
                data,
                held,
                known,
                node=settings.node,
                database=database,
                sharding=sharding(settings.audit),
                high_water=data / HIGH_WATER,
            )

    try:
        descriptor = lock(data)
    except CannotStart as error:
        raise Failed(str(error)) from None
    try:
        origin, lost = asyncio.run(work())
    finally:
        os.close(descriptor)
    if as_json:
        print_json({"origin": origin, "lost": lost})
        return
    click.echo(f"the log goes on as {origin}; {lost} leaves that were signed for are lost")


async def _is_logged(settings: "Settings", data: Path, eid: str) -> bool:
    from aimx.audit.place import open_reader

    reader = open_reader(data, settings.log_database)
    try:
        return await asyncio.to_thread(reader.place_of, eid) is not None
    finally:
        reader.close()


def _stamp(settings: "Settings") -> "Stamp":
    """Nothing else caused it: a trace of one span."""
    from aimx.audit import events

    return events.Stamp(settings.node, _now(), events.no_span(), "admin")


def _now() -> int:
    return time.time_ns() // 1_000_000
