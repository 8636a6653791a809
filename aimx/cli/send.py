"""`aimx send`: one message, as an agent, through the door every agent uses."""

import asyncio
import json
import os
import sys
from typing import Any

import click

from aimx.cli.account import account_options, client
from aimx.cli.folder import json_option
from aimx.cli.screen import harmless, json_of, print_json
from aimx.cli.tracing import exported
from aimx.message.header import HeaderBlock
from aimx.message.part import leaves
from aimx.message.payload import Codec, codec_of
from aimx.sdk.client import AsyncClient, Sent

REPORT_S = 30.0
"""Patience for the report of a dry run, which the node writes before it answers."""


@click.command()
@click.argument("to")
@click.argument("payload", default="-")
@click.option("--subject", help="[default: the workflow]")
@click.option("--workflow", help="X-Workflow-ID: what belongs together.")
@click.option("--type", "content_type", help="Content type, e.g. text/plain or application/msgpack.")
@click.option("--idempotency-key", metavar="KEY", help="The same message sent again under KEY is accepted once.")
@click.option("--priority", type=click.IntRange(-9, 9), help="Above 0 only for agents that may.")
@click.option(
    "--wait",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Wait so long for the reply and print it.",
)
@click.option("--trace-only", is_flag=True, help="A dry run: print what would become of it; deliver nothing.")
@account_options
@json_option
def send(
    to: str,
    payload: str,
    subject: str | None,
    workflow: str | None,
    content_type: str | None,
    idempotency_key: str | None,
    priority: int | None,
    wait: float | None,
    trace_only: bool,
    as_json: bool,
    **account: Any,
) -> None:
    """Send PAYLOAD to TO (an address, or a name in the agent's domain; several with commas).

    PAYLOAD is JSON, any other text, or other octets; `-`, or nothing, reads it from standard input. Signs in with
    AIMX_URL, or with --agent and AIMX_PASSWORD at the node in --data.
    """
    octets = sys.stdin.buffer.read() if payload == "-" else os.fsencode(payload)
    value = _payload(octets, codec_of(content_type) if content_type else None)
    options = {"subject": subject, "workflow": workflow, "content_type": content_type, "priority": priority}
    recipients = [address for address in to.split(",") if address.strip()]

    async def work() -> Sent | dict[str, Any]:
        async with client(**account) as me:
            if trace_only:
                return await _rehearsed(me, recipients, value, options)
            if wait is None:
                return await me.send(recipients, value, idempotency_key=idempotency_key, **options)  # type: ignore[arg-type]
            reply = await me.request(recipients[0], value, timeout=wait, **options)  # type: ignore[arg-type]
            return {"id": reply.id, "from": reply.sender, "trace_id": reply.trace_id, "payload": reply.payload}

    if wait is not None and len(recipients) != 1:
        raise click.UsageError("--wait takes one recipient")
    if wait is not None and trace_only:
        raise click.UsageError("--trace-only delivers nothing that could be answered; leave --wait out")
    if wait is not None and idempotency_key is not None:
        raise click.UsageError("--wait waits for the reply to a new message; leave --idempotency-key out")
    with exported("aimx-send"):
        done = asyncio.run(work())
    if trace_only:
        assert isinstance(done, dict)
        print_json(done["report"]) if as_json else click.echo(harmless(done["text"]))
    elif not isinstance(done, Sent):
        print_json(done) if as_json else click.echo(_shown(done["payload"]))
    elif as_json:
        print_json({"id": done.id, "message_id": done.message_id, "trace_id": done.trace_id})
    else:
        click.echo(f"accepted {done.id}\ntrace    {done.trace_id}")


async def _rehearsed(me: AsyncClient, recipients: list[str], value: object, options: dict[str, Any]) -> dict[str, Any]:
    """The report of a dry run, as text and as what its JSON says."""
    found = await me.request(recipients, value, timeout=REPORT_S, trace_only=True, **options)
    header, body = HeaderBlock.parse(found.raw)
    said = next(leaf for leaf in leaves(header, found.raw[body:]) if leaf.content_type == "text/plain")
    return {"report": found.payload, "text": said.data().decode().replace("\r\n", "\n").rstrip()}


def _payload(octets: bytes, codec: Codec | None) -> object:
    """What the octets are; `codec` is None when no content type was given."""
    if codec in ("bytes", "protobuf"):
        return octets
    try:
        text = octets.decode()
    except UnicodeDecodeError:
        return octets
    if codec == "text":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _shown(payload: object) -> str:
    return payload if isinstance(payload, str) else json_of(payload, indent=2)
