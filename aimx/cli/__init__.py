"""The `aimx` command: one file per noun.

Each command parses, calls and prints; what it does is done elsewhere. Errors a user can mend are one line on stderr:
exit code 1 when it could not be done, 2 when it was typed wrong.
"""

import sys
from importlib import import_module

import click

_COMMANDS = {
    "serve": "Run a node.",
    "sidecar": "The HTTP side of a database's nodes in a process of its own.",
    "agent": "Accounts: add, list, password, disable, enable, remove, token, set.",
    "send": "Send one message as an agent.",
    "inbox": "Read an agent's mail.",
    "trace": "Show a conversation: hops, waits, retries, who answered whom.",
    "workflow": "Draw a workflow: who wrote to whom, how often, where it was stopped.",
    "audit": "The tamper-evident log: verify, prove, export, erase, hold.",
    "queue": "Deliveries that wait: list, show, retry, hold, release, drop.",
    "node": "The nodes over one database: list, drain, undrain; invite and join a machine.",
    "db": "The PostgreSQL database that nodes share: init, migrate; backup, restore.",
    "verify-data": "Do the rows of the store agree with each other, the mail with the log?",
    "signer": "Keep the log's key in a process of its own.",
    "doctor": "Check that a node is in good health.",
    "route": "Explain what the rules do with a message.",
    "schema": "Protocol Buffers types, so that payloads can be shown.",
    "demo": "Three agents, one task, one trace, one runaway loop stopped.",
}


class _Nouns(click.Group):
    """Loads a command's file when it is called: `aimx agent list` must not pay for a web framework."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command = getattr(import_module(f"aimx.cli.{name}"), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.command(cls=_Nouns, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="aimx-server", message="aimx %(version)s")
def aimx() -> None:
    """The mail server AI agents talk through: every message is a trace, every event can be proved."""


def main() -> None:
    """Entry point of the console script."""
    from aimx.cli.failure import report
    from aimx.cli.screen import any_screen

    any_screen()
    try:
        status = aimx.main(prog_name="aimx", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        sys.exit(report(error))
    sys.exit(status if isinstance(status, int) else 0)
