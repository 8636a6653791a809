"""`aimx agent …`: accounts, straight on the node's store; the running node sees each change within a second."""

import asyncio
import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import click

from aimx.cli.failure import Failed
from aimx.cli.folder import data_option, json_option, opened, ready
from aimx.cli.screen import clock, print_json, print_table, size_of
from aimx.config import Settings
from aimx.sdk.account import VKEYS_FILE, Account, Door
from aimx.store.contract import Agent, EventRow, NotFound, Store


class Secret(NamedTuple):
    """An agent whose password was just made; the only moment in which it is known."""

    address: str
    password: str
    url: str


@click.group()
def agent() -> None:
    """Accounts of agents."""


@agent.command()
@click.argument("name")
@click.option("--max-unacked", type=click.IntRange(1), help="Busy while it has so many unacknowledged messages.")
@click.option("--quota", metavar="OCTETS", type=click.IntRange(1), help="What its mailboxes may hold.")
@click.option("--may-prioritise", is_flag=True, help="May ask for a priority above normal.")
@click.option("--url", "only_url", is_flag=True, help="Print only the line for AIMX_URL.")
@json_option
@data_option
def add(
    name: str,
    max_unacked: int | None,
    quota: int | None,
    may_prioritise: bool,
    only_url: bool,
    as_json: bool,
    data: Path,
) -> None:
    """Add an agent and show its password, once.

    NAME is `planner` (in the node's first domain) or `planner@domain`.
    """
    added = asyncio.run(create(data, name, max_unacked=max_unacked, quota=quota, may_prioritise=may_prioritise))
    _show(added, as_json=as_json, only_url=only_url)


async def create(data: Path, name: str, **limits: Any) -> Secret:
    """Add an agent to the node in `data`. Raises BadName, AlreadyExists, Failed."""
    from aimx.identity.addresses import agent_address
    from aimx.identity.agents import generate_password

    password = generate_password()
    async with opened(data) as (settings, store):
        address = agent_address(name, settings.domains)
        new = Agent(address=address, credential=_credential(password, settings), created_ms=_now(), **limits)
        await store.add_agent(new, [_event(settings, "agent.added", address, _limits(new))])
    return Secret(address, password, _url(address, password, settings, data))


@agent.command(name="list")
@json_option
@data_option
def list_(as_json: bool, data: Path) -> None:
    """List the agents and what they may."""

    async def work() -> list[tuple[Agent, int]]:
        async with opened(data) as (_, store):
            return [(one, await store.usage(one.address)) for one in await store.agents()]

    found = asyncio.run(work())
    if as_json:
        print_json([{"address": one.address, "used": used, **_limits(one), **_state(one)} for one, used in found])
        return
    if not found:
        click.echo("no agents yet; add one with `aimx agent add NAME`")
        return
    rows = [["address", "state", "busy at", "holds", "quota", "priority", "since"]]
    for one, used in found:
        rows.append(
            [
                one.address,
                "disabled" if one.disabled else "active",
                str(one.max_unacked or "-"),
                size_of(used),
                size_of(one.quota) if one.quota else "-",
                "may raise" if one.may_prioritise else "-",
                clock(one.created_ms),
            ]
        )
    print_table(rows)


@agent.command()
@click.argument("name")
@click.option("--url", "only_url", is_flag=True, help="Print only the line for AIMX_URL.")
@json_option
@data_option
def password(name: str, only_url: bool, as_json: bool, data: Path) -> None:
    """Give an agent a new password and show it, once."""
    from aimx.identity.agents import generate_password

    secret = generate_password()

    async def work() -> Secret:
        async with opened(data) as (settings, store):
            old = await _existing(store, settings, name)
            new = dataclasses.replace(old, credential=_credential(secret, settings))
            await store.update_agent(new, [_event(settings, "agent.password", new.address)])
            return Secret(new.address, secret, _url(new.address, secret, settings, data))

    _show(asyncio.run(work()), as_json=as_json, only_url=only_url)


@agent.command()
@click.argument("name")
@json_option
@data_option
def disable(name: str, as_json: bool, data: Path) -> None:
    """Let an agent sign in no more; its mail stays and still comes."""
    _change(name, data, as_json, "agent.disabled", disabled=True)


@agent.command()
@click.argument("name")
@json_option
@data_option
def enable(name: str, as_json: bool, data: Path) -> None:
    """Let a disabled agent sign in again."""
    _change(name, data, as_json, "agent.enabled", disabled=False)


@agent.command(name="set")
@click.argument("name")
@click.option("--max-unacked", metavar="N|none", help="Busy while it has so many unacknowledged messages.")
@click.option("--quota", metavar="OCTETS|none", help="What its mailboxes may hold.")
@click.option("--may-prioritise/--may-not-prioritise", default=None, help="May ask for a priority above normal.")
@json_option
@data_option
def set_(
    name: str, max_unacked: str | None, quota: str | None, may_prioritise: bool | None, as_json: bool, data: Path
) -> None:
    """Change what an agent may."""
    changes: dict[str, Any] = {}
    for option, value in (("max_unacked", max_unacked), ("quota", quota)):
        if value is not None:
            changes[option] = _limit(f"--{option.replace('_', '-')}", value)
    if may_prioritise is not None:
        changes["may_prioritise"] = may_prioritise
    if not changes:
        raise click.UsageError("nothing to change; give --max-unacked, --quota or --may-prioritise")
    _change(name, data, as_json, "agent.limits", **changes)


@agent.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@data_option
def remove(name: str, yes: bool, as_json: bool, data: Path) -> None:
    """Remove an agent with its mailboxes. Messages and events stay in the record."""

    async def work() -> str:
        async with opened(data) as (settings, store):
            old = await _existing(store, settings, name)
            if not yes and not _agreed(old.address):
                raise Failed(f"{old.address} is not removed; --yes removes it unasked")
            await store.remove_agent(old.address, [_event(settings, "agent.removed", old.address)])
            return old.address

    address = asyncio.run(work())
    if as_json:
        print_json({"address": address, "removed": True})
    else:
        click.echo(f"{address} is removed")


@agent.command()
@click.argument("name")
@json_option
@data_option
def token(name: str, as_json: bool, data: Path) -> None:
    """Make an HTTP token for an agent's own view and show it, once."""
    from aimx.identity.tokens import digest, new_token

    secret = new_token()

    async def work() -> str:
        async with opened(data) as (settings, store):
            old = await _existing(store, settings, name)
            event = _event(settings, "agent.token", old.address)
            await store.add_token(digest(secret), old.address, _now(), [event])
            return old.address

    address = asyncio.run(work())
    if as_json:
        print_json({"address": address, "token": secret})
    else:
        click.echo(f"token for {address}, shown once:\n{secret}")


def _agreed(address: str) -> bool:
    try:
        return click.confirm(f"Remove {address} and its mailboxes?", err=True)
    except click.Abort:  # nobody is there to answer
        click.echo(err=True)
        return False


def _change(name: str, data: Path, as_json: bool, what: str, **changes: Any) -> None:
    async def work() -> Agent:
        async with opened(data) as (settings, store):
            old = await _existing(store, settings, name)
            new = dataclasses.replace(old, **changes)
            await store.update_agent(new, [_event(settings, what, new.address, _limits(new))])
            return new

    new = asyncio.run(work())
    if as_json:
        print_json({"address": new.address, **_limits(new), **_state(new)})
    else:
        words = {None: "none", True: "yes", False: "no"}
        facts = ", ".join(f"{key.replace('_', '-')} {words.get(value, value)}" for key, value in changes.items())
        click.echo(f"{new.address}: {facts}")


async def _existing(store: Store, settings: Settings, name: str) -> Agent:
    from aimx.identity.addresses import normalise

    address = normalise(name, settings.domains[0])
    found = await store.agent(address)
    if found is None:
        raise NotFound(f"there is no agent {address}; `aimx agent list` shows who is there")
    return found


def _limit(option: str, value: str) -> int | None:
    if value.lower() == "none":
        return None
    if not value.isdigit() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither a number above 0 nor `none`", param_hint=option)
    return int(value)


def _credential(password: str, settings: Settings) -> Any:
    from aimx.identity import scram

    return scram.derive(password, iterations=settings.sign_in.iterations)


def _event(settings: Settings, what: str, subject: str, facts: dict[str, Any] | None = None) -> EventRow:
    """The change's own event."""
    from aimx.audit import events

    stamp = events.Stamp(settings.node, _now(), events.no_span(), "admin")
    return events.config_changed(stamp, what=what, by="admin", subject=subject, facts=facts)


def _limits(one: Agent) -> dict[str, Any]:
    return {"max_unacked": one.max_unacked, "quota": one.quota, "may_prioritise": one.may_prioritise}


def _state(one: Agent) -> dict[str, Any]:
    return {"disabled": one.disabled, "created_ms": one.created_ms}


def _now() -> int:
    return time.time_ns() // 1_000_000


def _show(secret: Secret, *, as_json: bool, only_url: bool) -> None:
    if as_json:
        print_json(secret._asdict())
    elif only_url:
        click.echo(secret.url)
    else:
        click.echo(f"address   {secret.address}\npassword  {secret.password}\n")
        click.echo(f"For the SDK and `aimx send`, shown once:\nexport AIMX_URL='{secret.url}'")


def _url(address: str, secret: str, settings: Settings, data: Path) -> str:
    """Where the agent signs in: what the running node says, else what the settings say."""
    running = ready(data)
    doors = (running.smtps, running.imaps) if running else (str(settings.listen.smtps), str(settings.listen.imaps))
    smtp, imap = (Door(host.strip("[]"), int(port)) for host, _, port in (door.rpartition(":") for door in doors))
    if "" in (smtp.host, imap.host):
        raise Failed("the node's addresses cannot be read from its ready file")
    ca = running.ca if running else str((data / "tls" / "ca.pem").resolve())
    served = (running.http if running else str(settings.listen.http)).removeprefix("https://").rpartition(":")
    http = Door(served[0].strip("[]"), int(served[2]))
    vkeys = str((data / VKEYS_FILE).resolve()) if (data / VKEYS_FILE).exists() else None
    return Account(address, secret, smtp, imap, ca, http, vkeys).url
