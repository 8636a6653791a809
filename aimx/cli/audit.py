"""`aimx audit …`: is the log whole, and one message's place in it."""

import asyncio
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aimx.cli.audit_erasure import erase, hold, holds, release
from aimx.cli.audit_upkeep import drop_shard, restore_fork, rotate_key, shards
from aimx.cli.failure import Failed
from aimx.cli.folder import data_option, json_option, opened
from aimx.cli.screen import harmless, print_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aimx.audit.report import Report


@click.group()
def audit() -> None:
    """The tamper-evident log."""


for command in (rotate_key, shards, drop_shard, restore_fork, erase, hold, release, holds):
    audit.add_command(command)


ALTERED, UNRECONCILED, UNANCHORED, SUPPRESSED = 3, 4, 5, 6
"""Exit codes, besides 0 (nothing is wrong), 1 (it could not be checked) and 2 (wrong use)."""


@audit.command(short_help="Check every leaf, signature, event and message.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="An exported log instead of a node's: needs no server and no configuration.",
)
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
@click.option(
    "--policy",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Whose cosignatures count (C2SP tlog-policy), instead of the node's own settings.",
)
@click.option(
    "--tsa-roots",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Certificates (PEM) of the time stamp authorities to trust.",
)
@click.option(
    "--require",
    type=click.Choice(["anchored", "witnessed"]),
    help="Fail (exit 5) unless somebody outside has confirmed the log; unless a quorum of witnesses has.",
)
@click.option("--within", metavar="DURATION", help="With --require: and not longer ago than this, e.g. 2h.")
@click.option("--new", is_flag=True, help="Only what is new since the last verification of this folder.")
@click.option("--contents/--no-contents", default=True, help="Hash every stored message again. [default: yes]")
@json_option
@data_option
def verify(
    bundle: Path | None,
    checkpoints: tuple[Path, ...],
    vkeys: Path | None,
    policy: Path | None,
    tsa_roots: Path | None,
    require: str | None,
    within: str | None,
    new: bool,
    contents: bool,
    as_json: bool,
    data: Path,
) -> None:
    """Check every leaf, signature, event and message. Works while the node runs and when it does not.

    With --new only what was logged since the last verification that found nothing wrong is read. What was changed
    before it then goes unseen where the tree's own nodes do not show it: read everything now and then.

    Exit codes: 0 nothing is wrong; 1 it could not be checked; 3 the log was altered (INCONSISTENT); 4 log and store
    tell different stories (UNRECONCILED); 5 not anchored or witnessed as --require asks.
    """
    from aimx.cli import audit_trust
    from aimx.config import duration

    longest_s = None if within is None else duration(within)
    remembered = [path.read_text(errors="replace") for path in checkpoints]
    if bundle is not None:
        from aimx.audit.offline import verify_bundle

        given = None if policy is None and tsa_roots is None else audit_trust.given(policy, tsa_roots)
        report = verify_bundle(bundle, keys=audit_trust.keys(vkeys), remembered=remembered, trust=given)
    else:
        report = asyncio.run(_verify_node(data, vkeys, policy, tsa_roots, remembered, contents, new))
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)
    sys.exit(_status(report, require, longest_s))


async def _verify_node(
    data: Path,
    vkeys: Path | None,
    policy: Path | None,
    tsa_roots: Path | None,
    remembered: list[str],
    contents: bool,
    new: bool,
) -> "Report":
    from aimx.audit import memory
    from aimx.audit.keys import PublicKeys
    from aimx.audit.verify import verify as check
    from aimx.cli import audit_trust

    keys = None
    if vkeys is not None:
        lines = audit_trust.keys(vkeys)
        if len(lines) < 2:
            raise Failed(f"{vkeys} does not hold two verifier keys, the log's and the receipt key")
        keys = PublicKeys(lines[0], lines[1], tuple(lines[2:]))
    async with opened(data) as (settings, store):
        trust = audit_trust.of_node(settings, data, policy, tsa_roots)
        before = memory.load(data) if new else None
        with verifying() as progress:
            report = await check(
                store,
                data,
                database=settings.log_database,
                keys=keys,
                remembered=remembered,
                contents=contents,
                trust=trust,
                memory=before,
                progress=progress,
            )
    if report.memory is not None:
        memory.save(data, report.memory, full=before is None)
    return report


@contextmanager
def verifying() -> "Iterator[Callable[[int, int], None] | None]":
    """A progress bar on standard error, where that is a terminal and it takes long enough to be seen."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("verifying", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _status(report: "Report", require: str | None, longest_s: float | None) -> int:
    """The exit code, and on standard error the first thing that is wrong."""
    if not report.ok:
        first = report.findings[0]
        click.echo(f"aimx: {first.kind}: {first.text}", err=True)
        return ALTERED if report.inconsistent else UNRECONCILED
    if require is None:
        return 0
    age_s, standing = report.anchored_s, report.standing
    if age_s is None:
        wrong = "nobody outside has confirmed the log"
    elif longest_s is not None and age_s > longest_s:
        wrong = f"the log was last confirmed {age_s:.0f} s ago, and {longest_s:.0f} s are allowed"
    elif require == "witnessed" and not (standing is not None and standing.quorum):
        by, of = (standing.witnessed, standing.of) if standing is not None else (0, 0)
        wrong = f"{by} of {of} witnesses have cosigned one state of the log, and the policy asks for more"
    else:
        return 0
    click.echo(f"aimx: {' '.join(report.words)}: {wrong}", err=True)
    return UNANCHORED


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

    Where witnesses have cosigned a checkpoint over it, the proof ends in that one, else in the newest. With --json also
    the leaf and what opens its commitments.
    """
    from aimx.audit.evidence import Evidence, check, message_proof
    from aimx.audit.keys import load_public
    from aimx.audit.log import NotCovered
    from aimx.audit.place import open_reader, read_anchors

    async def work() -> Evidence:
        async with opened(data) as (settings, store):
            reader = open_reader(data, settings.log_database)
            said = partial(read_anchors, data, settings.log_database)
            try:
                for _ in range(30):
                    try:
                        return await message_proof(store, reader, id.strip(), said)
                    except NotCovered:
                        await asyncio.sleep(0.1)  # the node signs each second; another process can only look again
                return await message_proof(store, reader, id.strip(), said)
            finally:
                reader.close()

    evidence = asyncio.run(work())
    opened_at = check(evidence, *load_public(data).logs)
    if output is not None:
        output.write_text(evidence.proof)
    if as_json:
        print_json(evidence.to_json())
        return
    if output is None:
        click.echo(evidence.proof, nl=not evidence.proof.endswith("\n"))
    size = opened_at.checkpoint.size
    click.echo(f"message {evidence.eid} is leaf {evidence.index} of {size}; proof and openings check", err=True)


@audit.command(short_help="Write a folder by which anybody can check the log.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR")
@click.option("--openings", is_flag=True, help="Also what opens the commitments: addresses, trace ids, hashes.")
@json_option
@data_option
def export(folder: Path, openings: bool, as_json: bool, data: Path) -> None:
    """Write the log to DIR in C2SP's layout, with keys, policy, anchors and a README of how to check it.

    Into a folder that holds an earlier export only what is new is written; if the log is not the one it was, nothing
    is. Check it with `aimx audit verify --bundle DIR`, or with public tools alone.
    """
    from aimx.audit import bundle
    from aimx.cli import audit_trust

    async def work() -> bundle.Exported:
        async with opened(data) as (settings, store):
            done = await audit_trust.export(folder, settings, data)
            if openings:
                done.openings = await bundle.export_openings(folder, audit_trust.events(store))
            return done

    done = asyncio.run(work())
    if as_json:
        print_json({"size": done.size, "files": done.files, "shards": done.shards, "openings": done.openings})
        return
    click.echo(f"{done.size} leaves, {done.files} files written to {folder}")
    if openings:
        click.echo(f"{done.openings} openings: they name people; hand them on as you would the mail", err=True)


@audit.command("check-receipt", short_help="Did the node keep the promise it gave with a 250?")
@click.argument("receipt")
@click.argument("mail", type=click.File("rb"))
@click.option("--from", "sender", help="Envelope sender. [default: the From header]")
@click.option("--to", "recipients", multiple=True, help="Envelope recipient, in order. [default: To, Cc, Bcc]")
@click.option(
    "--vkeys",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The node's verifier keys. [default: the folder's]",
)
@click.option("--url", help="Ask the log that is served there, instead of the folder's.")
@click.option("--ca", type=click.Path(dir_okay=False, exists=True), help="Authority to trust for --url, and no other.")
@click.option("--offline", is_flag=True, help="Only check the signature.")
@json_option
@data_option
def check_receipt(
    receipt: str,
    mail: Any,
    sender: str | None,
    recipients: tuple[str, ...],
    vkeys: Path | None,
    url: str | None,
    ca: str | None,
    offline: bool,
    as_json: bool,
    data: Path,
) -> None:
    """Check RECEIPT (the text of the 250, or a file with it) against the original MAIL, and look for it in the log.

    VALID: the node promised this message. Then INCLUDED: its leaf is under a signed checkpoint; PENDING: not yet, and
    the minute is not over; SUPPRESSED: it never came, and receipt, mail and checkpoint together prove that.

    Exit codes: 0; 1 it could not be checked; 3 the receipt is not about this mail, or the log's files do not hold
    together (INVALID); 6 SUPPRESSED.
    """
    from aimx.cli import receipt as check

    asked = check.Asked(receipt, mail.read(), sender, recipients, vkeys or data / "audit.vkeys", url, ca, offline)
    found = asyncio.run(check.check(asked, data))
    if as_json:
        print_json(found.to_json())
    else:
        good = found.state in (None, "INCLUDED", "PENDING") and found.valid
        click.secho(", ".join(found.words), bold=True, fg="green" if good else "red")
        click.echo("\n".join(found.lines))
    if not found.valid:
        sys.exit(ALTERED)
    sys.exit(SUPPRESSED if found.state == "SUPPRESSED" else 0)


@audit.command("check-mail", short_help="Compare all checkpoints that were mailed to you.")
@click.argument("mbox", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--vkeys",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The log's verifier keys. [default: the folder's, or the export's]",
)
@click.option(
    "--bundle", type=click.Path(path_type=Path, file_okay=False, exists=True), help="Hold them against this export."
)
@click.option("--alone", is_flag=True, help="Only compare them with each other; needs --vkeys.")
@json_option
@data_option
def check_mail(mbox: Path, vkeys: Path | None, bundle: Path | None, alone: bool, as_json: bool, data: Path) -> None:
    """Compare every checkpoint in MBOX (an mbox file, a Maildir, one mail) with each other and with the log.

    CONSISTENT: all are states of one history. FORKED: two contradict each other. ALTERED: one contradicts the log. Both
    are proved by the notes that are printed. UNCHECKED: no log was at hand to compare different sizes by.

    Exit codes: 0; 1 it could not be checked; 3 FORKED or ALTERED, or a checkpoint that the log has not signed.
    """
    from aimx.audit.mailed import compare
    from aimx.cli import audit_trust

    if alone and vkeys is None:
        raise click.UsageError("--alone needs --vkeys")
    path = vkeys or (bundle / "vkeys" if bundle else data / "audit.vkeys")
    found = compare(mbox, audit_trust.keys(path), None if alone else audit_trust.logs(bundle, data))
    sizes = {origin: sorted({size for size, _ in notes}) for origin, notes in found.notes.items()}
    if as_json:
        said = {"word": found.word, "mails": found.mails, "checkpoints": found.count, "sizes": sizes}
        print_json({**said, "wrong": found.contradictions + found.invalid, "evidence": found.evidence})
    else:
        good = not (found.contradictions or found.invalid)
        click.secho(found.word, bold=True, fg="green" if good else "red")
        click.echo(f"  read      {found.mails} mails, {found.count} different checkpoints")
        for origin, held in sizes.items():
            click.echo(f"  log       {origin}: {held[0]} to {held[-1]} leaves")
        click.echo(
            "".join(f"  WRONG     {harmless(text)}\n" for text in found.contradictions + found.invalid), nl=False
        )
        click.echo("\n".join(found.evidence), nl=False)
    if found.contradictions or found.invalid:
        sys.exit(ALTERED)
    if not found.count:
        raise Failed(f"there is no checkpoint in {mbox}")
