"""`aimx trace`: the conversation around a trace or a message, from the node's store."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aimx.cli.failure import Failed
from aimx.cli.folder import data_option, json_option, opened
from aimx.cli.screen import page, print_json
from aimx.store.contract import MessageFilter, Store

if TYPE_CHECKING:
    from aimx.sidecar.timeline import Timeline


@click.command()
@click.argument("id")
@click.option("--all", "everything", is_flag=True, help="Every step, with its span and its place in the audit log.")
@json_option
@data_option
def trace(id: str, everything: bool, as_json: bool, data: Path) -> None:
    """Show a conversation as a tree: hops, waits, retries, who answered whom.

    ID is a trace id (32 hex digits, or a whole traceparent), a message's id (26 characters) or its Message-ID.
    """
    found = asyncio.run(_timeline(data, id.strip()))
    if as_json:
        print_json(found.as_json())
        return
    from aimx.cli.conversation import draw

    page().print(draw(found, everything=everything))


async def _timeline(data: Path, what: str) -> "Timeline":
    from aimx.sidecar.timeline import timeline

    async with opened(data) as (_, store):
        return await timeline(store, await _meant(store, what))


async def _meant(store: Store, what: str) -> str:
    """The trace id or message id in whatever a person copied from somewhere."""
    parts = what.split("-")
    if len(parts) == 4 and len(parts[1]) == 32:
        return parts[1].lower()
    if len(what) == 32:
        return what.lower()
    if len(what) == 26 and what.isalnum():
        return what.upper()
    if "@" in what:
        message_id = what if what.startswith("<") else f"<{what}>"
        records = await store.find(MessageFilter(message_id=message_id), 1)
        if not records:
            raise Failed(f"there is no message {message_id}")
        return records[0].eid
    raise Failed(f"{what!r} is no trace id (32 hex digits), no message id (26 characters) and no Message-ID")
