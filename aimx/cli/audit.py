"""`aimx audit …`: is the log whole, and one message's place in it."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aimx.cli.failure import Failed
from aimx.cli.folder import data_option, json_option, opened
from aimx.cli.screen import print_json

if TYPE_CHECKING:
    from aimx.audit.report import Report


@click.group()
def audit() -> None:
    """The tamper-evident log."""


@audit.command(short_help="Check every leaf, signature, event and message.")
@click.option(
    "--checkpoint",
    "checkpoints",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    multiple=True,
    help="A signed checkpoint you kept elsewhere; the log must have gone through it.",
)
@click.option(
    "--vkeys",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The verifier keys you kept (audit.vkeys), instead of believing the folder's.",
)
@click.option("--contents/--no-contents", default=True, help="Hash every stored message again. [default: yes]")
@json_option
@data_option
def verify(checkpoints: tuple[Path, ...], vkeys: Path | None, contents: bool, as_json: bool, data: Path) -> None:
    """Check every leaf, signature, event and message; exit 1 and the first thing that is wrong if anything is.

    Works while the node runs and when it does not.
    """
    from aimx.audit.keys import PublicKeys
    from aimx.audit.verify import verify as check
    from aimx.tlog.note import Verifier

    keys = None
    if vkeys is not None:
        lines = vkeys.read_text().split()
        if len(lines) != 2:
            raise Failed(f"{vkeys} does not hold two verifier keys, the log's and the receipt key")
        keys = PublicKeys(*(Verifier.parse(line) for line in lines))
    remembered = [path.read_text() for path in checkpoints]

    async def work() -> "Report":
        async with opened(data) as (settings, store):
            return await check(
                store, data, database=settings.audit.database, keys=keys, remembered=remembered, contents=contents
            )

    report = asyncio.run(work())
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)
    if not report.ok:
        first = report.findings[0]
        click.echo(f"aimx: {first.kind}: {first.text}", err=True)
        sys.exit(1)


def print_report(report: "Report") -> None:
    """The verdict in colour, then what was checked and what is wrong."""
    verdict, *rest = report.lines()
    click.secho(verdict, bold=True, fg="green" if report.ok else "red")
    click.echo("\n".join(rest))


@audit.command(short_help="Print a proof for one message, to be checked offline.")
@click.argument("id")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the proof to a file.")
@json_option
@data_option
def prove(id: str, output: Path | None, as_json: bool, data: Path) -> None:
    """Print a proof that the message ID was accepted as it is: checkable by anybody, offline (C2SP tlog-proof).

    With --json also the leaf and what opens its commitments.
    """
    from aimx.audit.evidence import Evidence, check, message_proof
    from aimx.audit.keys import load_public
    from aimx.audit.log import NotCovered
    from aimx.audit.place import open_reader

    async def work() -> Evidence:
        async with opened(data) as (settings, store):
            reader = open_reader(data, settings.audit.database)
            try:
                for _ in range(30):
                    try:
                        return await message_proof(store, reader, id.strip())
                    except NotCovered:
                        await asyncio.sleep(0.1)  # the node signs each second; another process can only look again
                return await message_proof(store, reader, id.strip())
            finally:
                reader.close()

    evidence = asyncio.run(work())
    opened_at = check(evidence, load_public(data).log)
    if output is not None:
        output.write_text(evidence.proof)
    if as_json:
        print_json(evidence.to_json())
        return
    if output is None:
        click.echo(evidence.proof, nl=not evidence.proof.endswith("\n"))
    size = opened_at.checkpoint.size
    click.echo(f"message {evidence.eid} is leaf {evidence.index} of {size}; proof and openings check", err=True)
