"""`aimx serve`: settings from flags, a node from settings."""

import shlex
from pathlib import Path
from typing import Any

import click

from aimx.cli.folder import remember
from aimx.config import load
from aimx.sdk.account import DEFAULT_DATA, STARTED_FILE

_LISTENERS = {
    "smtp": "SMTP submission with STARTTLS",
    "smtps": "SMTP submission over TLS",
    "imap": "IMAP with STARTTLS",
    "imaps": "IMAP over TLS",
    "http": "HTTPS: messages, traces, audit, metrics",
}

NEXT = """\
A new node in {data}. Next, in another terminal:

{export}  aimx agent add critic
  AIMX_URL=$(aimx agent add planner --url) aimx send critic '{{"hello": "world"}}'
  aimx trace ID          (the id that `aimx send` printed)

"""


def _listeners(command: Any) -> Any:
    for name, what in reversed(_LISTENERS.items()):
        command = click.option(f"--{name}", metavar="HOST:PORT", help=f"{what}. Port 0: a free one.")(command)
    return command


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), help="The node's folder. [default: ./aimx-data]"
)
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Settings: aimx.toml.")
@click.option("--database", metavar="URL", help="postgresql://USER:PASSWORD@HOST/NAME; its tables: aimx db init.")
@click.option("--workers", type=int, metavar="N", help="Processes that serve; more than one needs --database.")
@_listeners
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write (JSON) that every port answers, besides ready.json in the folder.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[default: info]")
def serve(
    data: Path | None,
    config: Path | None,
    database: str | None,
    workers: int | None,
    ready_file: Path | None,
    log_level: str | None,
    **listen: str | None,
) -> int:
    """Run a node: SMTP, IMAP and HTTPS on loopback, everything it keeps in one folder.

    With --database the mail is in PostgreSQL, which any number of nodes may share; the folder then keeps keys and
    certificates.

    Every setting can also stand in aimx.toml or in the environment (AIMX_DATA, AIMX_LISTEN__SMTP, …); flags win.
    SIGTERM or Ctrl-C finishes what is in hand and leaves.
    """
    flags = {
        "data": data,
        "config": config,
        "database": {"url": database},
        "workers": workers,
        "ready_file": ready_file,
        "log_level": log_level,
        "listen": listen,
    }
    settings = load(flags)
    from aimx import supervisor
    from aimx.data_folder import Ready

    def announced(ready: Ready, first: bool) -> None:
        first = first or not (settings.data / STARTED_FILE).exists()  # the first that came so far
        remember(settings)
        if first:
            elsewhere = settings.data.resolve() != Path(DEFAULT_DATA).resolve()
            export = f"  export AIMX_DATA={shlex.quote(str(settings.data.resolve()))}\n" if elsewhere else ""
            click.echo(NEXT.format(data=settings.data, export=export))
        doors = (("submission", ready.smtps), ("mailboxes", ready.imaps), ("http", ready.http))
        click.echo("ready: " + ", ".join(f"{name} {where}" for name, where in doors))

    return supervisor.serve(settings, lambda: load(flags), announced)
