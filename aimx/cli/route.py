"""`aimx route explain`: what the rules do with a message, without sending it."""

import asyncio
import sys
from dataclasses import asdict
from pathlib import Path

import click

from aimx.cli.failure import Failed
from aimx.cli.folder import data_option, json_option, settings_of
from aimx.cli.screen import print_json
from aimx.config import Settings, load
from aimx.message.header import HeaderBlock
from aimx.message.identifier import new_eid
from aimx.routing.table import Facts, Route, RoutingTable
from aimx.routing.table import explain as explain_route


@click.group()
def route() -> None:
    """The routing rules."""


@route.command(short_help="Print every rule tried for a message, and what comes of it.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True, allow_dash=True))
@click.option("--to", multiple=True, help="Recipient. [default: those in To and Cc]")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Try this aimx.toml instead.")
@json_option
@data_option
def explain(file: Path, to: tuple[str, ...], config: Path | None, as_json: bool, data: Path) -> None:
    """Print every rule tried for the message in FILE (RFC 5322), whether it holds and why, and what comes of it."""
    octets = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    settings = load({"data": data, "config": config}) if config else settings_of(data)
    routes = asyncio.run(_routes(settings, octets, to))
    if as_json:
        print_json([asdict(found) for found, _ in routes])
        return
    for _, lines in routes:
        click.echo("\n".join(lines))


async def _routes(settings: Settings, octets: bytes, to: tuple[str, ...]) -> list[tuple[Route, list[str]]]:
    from aimx.identity.addresses import normalise
    from aimx.intake.stamp import agent_id
    from aimx.intake.told import tell
    from aimx.sdk.message import Message

    header, _ = HeaderBlock.parse(octets)
    told = tell(header)
    sender = Message(octets).sender
    domain = settings.domains[0]
    recipients = [normalise(address, domain) for address in to or _addresses(header)]
    if not recipients:
        raise Failed("the message names no recipient; give --to")
    agents = await _agents(settings)
    table = RoutingTable(settings)
    found = []
    for recipient in dict.fromkeys(recipients):
        facts = Facts(
            sender=sender,
            recipient=recipient,
            workflow=told.workflow,
            agent=agent_id(sender, settings.domains) if sender else None,
            header=header,
            content_type=told.content_type,
            size=len(octets),
            key=new_eid(),
        )
        found.append(explain_route(table, facts, agents.__contains__))
    return found


async def _agents(settings: Settings) -> set[str]:
    from aimx.cli.folder import MAIL_DB, opened

    if not (settings.data / MAIL_DB).exists():
        return set()
    async with opened(settings.data) as (_, store):
        return {agent.address for agent in await store.agents() if not agent.disabled}


def _addresses(header: HeaderBlock) -> list[str]:
    from email.utils import getaddresses

    values = [value for name in ("To", "Cc") for value in header.get_all(name)]
    return [address for _, address in getaddresses(values) if "@" in address]
