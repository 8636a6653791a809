"""`aimx node …`: the nodes over one database, and what a further machine must bring to be one of them."""

import asyncio
import json
import re
import time
from dataclasses import asdict
from pathlib import Path

import click

from aimx import durable
from aimx.cli.failure import Failed
from aimx.cli.folder import data_option, json_option, opened
from aimx.cli.screen import print_json, print_table, span_of
from aimx.store.contract import NodeRecord, NotFound

FORM = "aimx node keys 1"
_SHARED = re.compile(r"keys/[A-Za-z0-9._-]+\.key|tls/ca\.(pem|key)|node\.secret|(admin|metrics)\.token|audit\.vkeys")
"""What all nodes over one database hold alike. Each makes its own server certificate, under the shared authority."""
_NAMES = ("keys/*.key", "tls/ca.pem", "tls/ca.key", "node.secret", "admin.token", "metrics.token", "audit.vkeys")
_KEYS = ("keys/log.key", "keys/receipt.key")
SILENT_S = 10
"""Seconds without a sign of life (one every 2 s) from which a worker is called silent."""


@click.group()
def node() -> None:
    """The nodes that share a database: list, drain, undrain; invite and join a further machine."""


@node.command(name="list")
@json_option
@data_option
def list_(as_json: bool, data: Path) -> None:
    """List every worker of every node."""

    async def work() -> list[NodeRecord]:
        async with opened(data) as (_, store):
            return await store.nodes()

    found, now_ms = asyncio.run(work()), time.time_ns() // 1_000_000
    if as_json:
        print_json([{**asdict(one), "state": _state(one, now_ms)} for one in found])
        return
    if not found:
        click.echo("no node says that it serves (a node with its mail in its own folder is alone and does not say so)")
        return
    rows = [["node", "worker", "state", "host", "pid", "up", "seen", "version"]]
    for one in found:
        seen = f"{span_of(max(0, now_ms - one.seen_ms))} ago"
        up = span_of(max(0, one.seen_ms - one.started_ms))
        rows.append([one.node, str(one.worker), _state(one, now_ms), one.host, str(one.pid), up, seen, one.version])
    print_table(rows)


def _state(one: NodeRecord, now_ms: int) -> str:
    if now_ms - one.seen_ms > SILENT_S * 1000:
        return "silent"
    return "draining" if one.draining else "serving"


@node.command()
@click.argument("name")
@data_option
def drain(name: str, data: Path) -> None:
    """Let a node take no new connections and no deliveries, and finish what it has.

    Who is connected goes on, and /readyz says 503. Stopping the node then sends those that are left elsewhere.
    """
    _ask(data, name, True)
    click.echo(f"{name} drains: within 2 s it takes nothing new; undo it with: aimx node undrain {name}")


@node.command()
@click.argument("name")
@data_option
def undrain(name: str, data: Path) -> None:
    """Let a node serve again."""
    _ask(data, name, False)
    click.echo(f"{name} serves again within 2 s")


def _ask(data: Path, name: str, on: bool) -> None:
    async def work() -> None:
        async with opened(data) as (_, store):
            try:
                await store.drain(name, on)
            except NotFound:
                raise Failed(f"no node calls itself {name!r}; `aimx node list` shows those that do") from None

    asyncio.run(work())


@node.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@data_option
def invite(file: Path, data: Path) -> None:
    """Write to FILE what a further machine needs to serve the same database: signing keys, secrets, the CA.

    Whoever has the file can sign receipts and checkpoints as this node: bring it over a safe line, and remove it then.
    """
    if not (data / "keys" / "log.key").exists():
        raise Failed(f"there are no keys in {str(data)!r}; start the node once")
    paths = sorted(path for pattern in _NAMES for path in data.glob(pattern))
    files = {str(path.relative_to(data)): path.read_text() for path in paths}
    durable.replace(file, json.dumps({"form": FORM, "files": files}, indent=1).encode())
    click.echo(f"{file}: {len(files)} files, mode 600. On the other machine: aimx node join {file.name} --data DIR")


@node.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--replace", is_flag=True, help="Although other keys are there: they are lost.")
@data_option
def join(file: Path, replace: bool, data: Path) -> None:
    """Put into the data folder what `aimx node invite` wrote on another machine.

    Then `aimx serve --data DIR --database URL` with the same settings and another `node`. After a key was rotated, do
    both again with --replace: a running node takes the keys into use by itself.
    """
    files = _read(file)
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    other = [name for name in _KEYS if (data / name).exists() and (data / name).read_text() != files.get(name)]
    if other and not replace:
        raise Failed(f"{str(data)!r} has other keys ({', '.join(other)}); --replace puts these in their place")
    for name, text in sorted(files.items(), key=lambda one: one[0] == "keys/log.key"):  # the newest last
        path = data / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        durable.replace(path, text.encode(), 0o644 if name in ("audit.vkeys", "tls/ca.pem") else 0o600)
    if (data / "tls" / "server.pem").exists() and other:
        click.echo("the certificate there stays; remove tls/server.* to have one made under the authority that came")
    click.echo(f"{data}: {len(files)} files. Next: aimx serve --data {data} --database URL, with a `node` of its own")


def _read(file: Path) -> dict[str, str]:
    wrong = Failed(f"{str(file)!r} is not what `aimx node invite` writes")
    try:
        said = json.loads(file.read_bytes())
        files = said["files"]
        if said["form"] != FORM or not all(_SHARED.fullmatch(name) and isinstance(files[name], str) for name in files):
            raise wrong
    except (OSError, ValueError, KeyError, TypeError):
        raise wrong from None
    if file.stat().st_mode & 0o077:
        click.echo(f"aimx: {file} can be read by others; remove it soon", err=True)
    return dict(files)
