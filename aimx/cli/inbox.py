"""`aimx inbox`: an agent's mail in the terminal."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import click

from aimx.cli.account import account_options, client
from aimx.cli.folder import json_option
from aimx.cli.tracing import exported
from aimx.message.payload import as_json as show_payload
from aimx.sdk.message import Message


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on with each new message as it comes.")
@click.option("--ack", is_flag=True, help="Acknowledge what is printed.")
@click.option("--wait", type=float, default=None, metavar="SECONDS", help="Without --follow: wait for the first one.")
@account_options
@json_option
def inbox(follow: bool, ack: bool, wait: float | None, as_json: bool, **account: Any) -> None:
    """Print the messages an agent has not acknowledged; with --json one document a line."""

    async def work() -> None:
        async with client(**account) as me:
            messages = me.inbox()
            try:
                patience = wait if wait is not None else 0.5
                while True:
                    async with asyncio.timeout(None if follow else patience):
                        message = await anext(messages)
                    patience = 0.5
                    _print(message, as_json)
                    if ack:
                        await message.ack()
            except TimeoutError:
                return
            finally:
                await messages.aclose()

    with exported("aimx-inbox"), suppress(KeyboardInterrupt):
        asyncio.run(work())


def _print(message: Message, as_json: bool) -> None:
    shown = show_payload(message.content_type, message.content)
    if as_json:
        click.echo(
            json.dumps(
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
                },
                ensure_ascii=False,
            )
        )
        return
    click.echo(click.style(f"{message.sender or 'AIMX'}", bold=True) + f"  {message.subject}")
    about = f"id {message.id}  trace {message.trace_id}" + (
        f"  workflow {message.workflow}" if message.workflow else ""
    )
    click.echo(click.style(about, dim=True))
    text = shown.value if isinstance(shown.value, str) else json.dumps(shown.value, indent=2, ensure_ascii=False)
    click.echo(text + (click.style(f"\n({shown.note})", dim=True) if shown.note else "") + "\n")
