"""`aimx signer`: keep the log's key in a process of its own."""

import asyncio
import contextlib
import pwd
import signal
from pathlib import Path

import click

from aimx.cli.failure import Failed


@click.command()
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The key's file; made if it is not there. Its user should not be the mail's.",
)
@click.option("--socket", type=click.Path(path_type=Path), required=True, help="Where to listen.")
@click.option("--user", "users", multiple=True, help="A user whose processes may ask, by name or number.")
@click.option("--name", default="aimx-log", show_default=True, help="What a new key is called.")
def signer(key: Path, socket: Path, users: tuple[str, ...], name: str) -> None:
    """Sign the log's checkpoints for a node, and nothing else (ssh-agent protocol).

    Never a smaller size, never another root for a size that was signed. In the node's settings:

    \b
    [audit]
    signer = "agent:SOCKET"
    """
    from aimx.audit.keeper import Keeper, serve
    from aimx.audit.keys import load_or_create_key
    from aimx.tlog.note import ED25519

    allowed = frozenset(_uid(user) for user in users)
    keeper = Keeper(load_or_create_key(key, name, ED25519), key.with_name(f"{key.name}.seen"))

    async def work() -> None:
        serving, ready = asyncio.current_task(), asyncio.Event()
        assert serving is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
        said = asyncio.create_task(_say(ready, socket))
        try:
            await serve(keeper, socket, allowed, ready)
        finally:
            said.cancel()

    try:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(work())
    finally:
        socket.unlink(missing_ok=True)


async def _say(ready: asyncio.Event, socket: Path) -> None:
    await ready.wait()
    click.echo(f"signing on {socket}")


def _uid(user: str) -> int:
    try:
        return int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise Failed(f"there is no user {user!r} on this machine") from None
