"""From an exception to one line on stderr and an exit code. The only place where the command line catches."""

import os
import sqlite3
import sys

import click


class Failed(click.ClickException):
    """It could not be done. The text is one line that says what to do."""

    exit_code = 1


def report(error: Exception) -> int:
    """Print what a user can mend as one line; the exit code. Anything else is our own failure and is raised again."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    if isinstance(error, click.UsageError):
        asked = f"; `{error.ctx.command_path} --help` says more" if error.ctx is not None else ""
        click.echo(f"aimx: {' '.join(error.format_message().split()).rstrip('.')}{asked}", err=True)
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        # Whoever read us has seen enough. Python would complain once more while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if not isinstance(error, Failed) and not _is_the_users(error):
        raise error
    click.echo(f"aimx: {_in_words(error)}", err=True)
    return 1


def _in_words(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    match error:
        case sqlite3.Error():
            return f"the folder's store cannot be used: {text}; `aimx doctor` looks at the rest"
        case OSError(strerror=str(strerror), filename=str(name)):
            return f"{name}: {strerror}"
    return text


def _is_the_users(error: Exception) -> bool:
    from aimx.audit.keys import KeyUnusable
    from aimx.audit.log import LogError
    from aimx.config import SettingError
    from aimx.identity.addresses import BadName
    from aimx.message.payload import PayloadError
    from aimx.sdk.errors import AimxError
    from aimx.store.contract import StoreError

    kinds = (AimxError, BadName, KeyUnusable, LogError, OSError, PayloadError, SettingError, StoreError, sqlite3.Error)
    return isinstance(error, kinds)
