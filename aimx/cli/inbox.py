"""`aimx inbox`: an agent's mail in the terminal."""

import asyncio
from contextlib import aclosing, suppress
from typing import Any

import click

from aimx.cli.account import account_options, client
from aimx.cli.folder import json_option
from aimx.cli.screen import harmless, json_of
from aimx.cli.tracing import exported
from aimx.message.payload import as_json as show_payload
from aimx.sdk.message import Message


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on with each new message as it comes.")
@click.option("--ack", is_flag=True, help="Acknowledge what is printed.")
@click.option(
    "--wait",
    type=click.FloatRange(0, min_open=True),
    default=None,
    metavar="SECONDS",
    help="Without --follow: wait for the first one.",
)
@account_options
@json_option
def inbox(follow: bool, ack: bool, wait: float | None, as_json: bool, **account: Any) -> None:
    """Print the messages an agent has not acknowledged; with --json one document a line."""

    async def work() -> int:
        printed = 0

        async def show(message: Message) -> None:
            nonlocal printed
            _print(message, as_json)
            printed += 1
            if ack:
                await message.ack()

        # The first is awaited by a loop that stays open, so that the second does not get it again.
        async with client(**account) as me, aclosing(me.inbox()) as waiting:
            if wait is not None and not follow:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        first = await anext(waiting)
                    await show(first)
            async with aclosing(me.inbox(follow=follow)) as messages:
                async for message in messages:
                    await show(message)
        return printed

    with exported("aimx-inbox"), suppress(KeyboardInterrupt):
        if not asyncio.run(work()) and not as_json:
            click.echo("nothing that is not acknowledged", err=True)


def _print(message: Message, as_json: bool) -> None:
    shown = show_payload(message.content_type, message.content)
    if as_json:
        click.echo(
            json_of(
                {
                    "id": message.id,
                    "message_id": message.message_id,
                    "from": message.sender,
                    "subject": message.subject,
                    "workflow": message.workflow,
                    "trace_id": message.trace_id,
                    "content_type": message.content_type,
                    "payload": shown.value,
                    **({"note": shown.note} if shown.note else {}),
                }
            )
        )
        return
    click.echo(click.style(harmless(message.sender or "AIMX"), bold=True) + f"  {harmless(message.subject)}")
    workflow = f"  workflow {harmless(message.workflow)}" if message.workflow else ""
    about = f"id {message.id}  trace {message.trace_id}{workflow}"
    click.echo(click.style(about, dim=True))
    text = shown.value if isinstance(shown.value, str) else json_of(shown.value, indent=2)
    click.echo(harmless(text.replace("\r\n", "\n")))
    click.echo(click.style(f"({shown.note})\n", dim=True) if shown.note else "")
