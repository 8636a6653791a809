"""As whom a command speaks to a node: AIMX_URL, or an agent's name and password at the node in a folder."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from aimx.sdk.client import AsyncClient, connect

Command = TypeVar("Command", bound=Callable[..., Any])


def account_options(command: Command) -> Command:
    """`--url`, or `--agent` with `--data`; the password is never an argument, where every process could read it."""
    for option in (
        click.option("--url", envvar="AIMX_URL", help="Where and as whom: the line `aimx agent add` printed."),
        click.option("--agent", envvar="AIMX_ADDRESS", help="As whom, instead of --url; password in AIMX_PASSWORD."),
        click.option("--data", envvar="AIMX_DATA", help="The running node's folder, with --agent."),
    ):
        command = option(command)
    return command


def client(*, url: str | None, agent: str | None, data: str | None) -> AsyncClient:
    """A client for what `account_options` took in. An agent named on purpose goes before a URL from the environment."""
    if agent is not None:
        return connect(data or "./aimx-data", agent=agent)
    return connect(url)
