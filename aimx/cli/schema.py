"""`aimx schema …`: registered Protocol Buffers types."""

import asyncio
import time
from pathlib import Path

import click

from aimx.cli.folder import data_option, json_option, opened
from aimx.cli.screen import print_json
from aimx.message.payload import Descriptors


@click.group()
def schema() -> None:
    """Protocol Buffers types, so that payloads can be shown by name."""


@schema.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--name", help="[default: the file's name]")
@json_option
@data_option
def add(file: Path, name: str | None, as_json: bool, data: Path) -> None:
    """Register a FileDescriptorSet; the same name again replaces it.

    Make it with `protoc --descriptor_set_out=FILE.desc --include_imports your.proto`.
    """
    from aimx.audit import events

    octets = file.read_bytes()
    types = sorted(Descriptors().add(octets))
    name = name or file.stem

    async def work() -> None:
        async with opened(data) as (settings, store):
            now = time.time_ns() // 1_000_000
            stamp = events.Stamp(settings.node, now, events.no_span(), "admin")
            event = events.config_changed(stamp, what="schema.added", by="admin", subject=name)
            await store.add_schema(name, octets, now, [event])

    asyncio.run(work())
    if as_json:
        print_json({"name": name, "types": types})
    else:
        click.echo(f"{name}: {', '.join(types)}")


@schema.command(name="list")
@json_option
@data_option
def list_(as_json: bool, data: Path) -> None:
    """List what is registered."""

    async def work() -> list[tuple[str, bytes]]:
        async with opened(data) as (_, store):
            return await store.schemas()

    found = {name: Descriptors([octets]).names() for name, octets in asyncio.run(work())}
    if as_json:
        print_json([{"name": name, "types": types} for name, types in found.items()])
    elif not found:
        click.echo("no types yet; add a FileDescriptorSet with `aimx schema add FILE.desc`")
    for name, types in found.items() if not as_json else ():
        click.echo(f"{name}: {', '.join(types)}")
