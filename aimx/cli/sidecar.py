"""`aimx sidecar`: the HTTP side beside the nodes, in a process of its own."""

import asyncio
import sys
from pathlib import Path

import click

from aimx.config import load


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="A node's folder, or one that `aimx node join` made. [default: ./aimx-data]",
)
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Settings: the nodes' aimx.toml.")
@click.option("--database", metavar="URL", help="postgresql://aimx_api:PASSWORD@HOST/NAME, where the nodes write.")
@click.option("--replica", metavar="URL", help="A standby of it to read from.")
@click.option("--http", metavar="HOST:PORT", help="Where to listen. Port 0: a free one.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[default: info]")
def sidecar(
    data: Path | None,
    config: Path | None,
    database: str | None,
    replica: str | None,
    http: str | None,
    log_level: str | None,
) -> int:
    """Serve messages, traces, proofs and checkpoints over HTTPS for the nodes of a database.

    As role `aimx_api` it reads everything but credentials and writes down that an admin was shown a message. A role
    that may only read is enough for all else: what it may not write is refused with 403.
    """
    import uvloop

    from aimx import sidecar_process
    from aimx.audit.keys import KeyUnusable
    from aimx.data_folder import CannotStart
    from aimx.telemetry import logs
    from aimx.telemetry.export import TelemetrySettingError

    settings = load(
        {
            "data": data,
            "config": config,
            "database": {"url": database},
            "log_level": log_level,
            "listen": {"http": http},
        }
    )
    logs.configure(settings.log_level)
    if settings.database.url is None:
        print("aimx: database.url: a sidecar needs the database that nodes share; give --database", file=sys.stderr)
        return 1
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(sidecar_process.run(settings, replica))
    except (CannotStart, KeyUnusable, TelemetrySettingError) as error:
        print(f"aimx: {error}", file=sys.stderr)
        return 1
    return 0
