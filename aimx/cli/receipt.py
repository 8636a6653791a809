"""What `aimx audit check-receipt` does: the promise against the mail, then the log against the promise."""

import asyncio
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.utils import getaddresses
from pathlib import Path
from typing import NamedTuple

from aimx.audit import bundle
from aimx.audit.log import Reader
from aimx.audit.place import open_reader
from aimx.cli.failure import Failed
from aimx.cli.folder import settings_of
from aimx.sdk.receipt import ElsewhereLogged, HttpLog, Receipt, ReceiptInvalid, State, of_reply
from aimx.tlog.errors import FormatError, ProofError
from aimx.tlog.inclusion import Fetch, Found
from aimx.tlog.note import ED25519, RECEIPT, Verifier
from aimx.tlog.tile import parse_path


class Asked(NamedTuple):
    receipt: str
    """The text of the 250, or the name of a file that holds it."""
    mail: bytes
    sender: str | None
    recipients: tuple[str, ...]
    vkeys: Path
    url: str | None
    ca: str | None
    offline: bool


@dataclass(slots=True)
class Checked:
    valid: bool
    state: State | None = None
    """None: the log was not asked."""
    lines: list[str] = field(default_factory=list)
    eid: str = ""
    index: int | None = None
    size: int | None = None

    @property
    def words(self) -> list[str]:
        return ["VALID" if self.valid else "INVALID", *([self.state.value] if self.state else [])]

    def to_json(self) -> dict[str, object]:
        return {
            "valid": self.valid,
            "state": self.state,
            "words": self.words,
            "eid": self.eid,
            "index": self.index,
            "size": self.size,
            "says": self.lines,
        }


async def check(asked: Asked, data: Path) -> Checked:
    """Raises Failed and LogError when it cannot be checked."""
    receipt = _receipt(asked)
    keys = bundle.vkeys(asked.vkeys)
    checked = Checked(True, eid=receipt.eid)
    try:
        receipt.verify(_one(keys, RECEIPT, asked.vkeys, receipt.issued.key_id))
    except ReceiptInvalid as error:
        return Checked(False, lines=[f"  receipt   {error}"], eid=receipt.eid)
    checked.lines.append(f"  receipt   {receipt.eid}: promised to {', '.join(receipt.recipients)}")
    if asked.offline:
        return checked
    logs = [key for key in keys if key.kind == ED25519]
    try:
        if asked.url is not None:
            async with HttpLog(asked.url, asked.ca) as fetch:
                checked.state, found = await receipt.follow(fetch, logs)
        else:
            checked.state, found = await _in_shards(receipt, data, logs)
    except ElsewhereLogged as error:
        raise Failed(str(error)) from None
    except (FormatError, ProofError) as error:
        checked.valid = False
        checked.lines.append(f"  log       {error}")
        return checked
    signed = found.checkpoint.checkpoint
    checked.index, checked.size = found.place, signed.size
    where = "not among its" if found.place is None else f"leaf {found.place} of"
    checked.lines.append(f"  log       {signed.origin}: {where} {signed.size} leaves, by its signed checkpoint")
    if checked.state is State.SUPPRESSED:
        checked.lines.append("  note      keep the mail, the receipt and this checkpoint: together they prove it")
        checked.lines += [f"  | {line}" for line in str(found.checkpoint.note).splitlines()]
    return checked


def _receipt(asked: Asked) -> Receipt:
    given = Path(asked.receipt) if len(asked.receipt) < 256 else None
    text = given.read_text(errors="replace") if given is not None and given.is_file() else asked.receipt
    parsed = message_from_bytes(asked.mail, policy=policy.compat32)
    sender = "".join(_addresses(parsed.get_all("From", []))[:1]) if asked.sender is None else asked.sender
    recipients = asked.recipients or _addresses([v for name in ("To", "Cc", "Bcc") for v in parsed.get_all(name, [])])
    if not recipients:
        raise Failed("the mail names no recipient; give --to")
    try:
        return of_reply(text, asked.mail, sender, recipients)
    except FormatError:
        raise Failed("there is no receipt in that; it is the text of the 250: … aimx-leaf=… t=… sig=…") from None


def _addresses(values: list[str]) -> list[str]:
    return [address for _, address in getaddresses([str(value) for value in values]) if address]


def _one(keys: list[Verifier], kind: bytes, path: Path, key_id: bytes) -> Verifier:
    """The key that signed, else any of its kind, which will say that it did not."""
    fitting = [key for key in keys if key.kind == kind]
    if not fitting:
        raise Failed(f"{path} holds no key for receipts")
    return next((key for key in fitting if key.key_id == key_id), fitting[0])


async def _in_shards(receipt: Receipt, data: Path, logs: list[Verifier]) -> tuple[State, Found]:
    """Look through the node's own log, the newest shard first. Raises Failed where what is needed was dropped."""
    reader = open_reader(data, settings_of(data).log_database)
    try:
        shards = await asyncio.to_thread(reader.shards)
        answers = []
        for shard in reversed(shards):
            answers.append(await receipt.follow(_files(reader.shard(shard.number)), logs))
            if answers[-1][0] is State.INCLUDED:
                return answers[-1]
        if shards[0].start and answers[0][0] is State.SUPPRESSED:
            raise Failed("no shard that is left holds it; older ones were dropped, and it may have been there")
        return answers[0]
    finally:
        reader.close()


def _files(shard: Reader) -> Fetch:
    """What the shard serves, read where it is kept."""

    async def fetch(path: str) -> bytes:
        octets: bytes | None
        if path == "checkpoint":
            signed = await asyncio.to_thread(shard.checkpoint)
            octets = None if signed is None else signed.encode()
        else:
            octets = await asyncio.to_thread(shard.tile, parse_path(path))
        if octets is None:
            raise ProofError(f"the log has no {path}")
        return octets

    return fetch
