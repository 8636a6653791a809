"""The receipt in the 250: checked offline and against the log, by SDK and command line; suppression is proved."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import aimx
from aimx.cli.audit import audit
from aimx.sdk.account import find
from aimx.sdk.receipt import State
from tests.node_process import Account, NodeProcess

NewAgent = Callable[..., Account]


def mail(account: Account, text: str = "hello") -> bytes:
    return f"From: {account.address}\r\nTo: {account.address}\r\nSubject: x\r\n\r\n{text}\r\n".encode()


def handed_over(node: NodeProcess, account: Account, octets: bytes) -> str:
    """The text of the 250."""
    with node.smtp(account) as client:
        client.mail(account.address)
        client.rcpt(account.address)
        code, text = client.data(octets)
    assert code == 250
    return text.decode()


def checked(node: NodeProcess, *arguments: str) -> tuple[int, dict[str, object]]:
    """The command, in this process: an interpreter for each of ten would be most of what this file takes."""
    done = CliRunner().invoke(audit, ["check-receipt", *arguments, "--json", "--data", str(node.data)])
    assert done.stdout, done.stderr
    return done.exit_code, json.loads(done.stdout)


async def test_the_sdk_checks_its_receipt_offline_and_follows_it_into_the_log(
    node: NodeProcess, new_agent: NewAgent
) -> None:
    account = new_agent("ann")
    async with aimx.connect(account.url) as me:
        sent = await me.send([account.name, account.name], {"n": 1})
        receipt = sent.receipt
        assert receipt is not None
        receipt.verify()
        assert await receipt.confirm() in (State.INCLUDED, State.PENDING)
        node.aimx("audit", "prove", sent.id)  # waits for the checkpoint
        assert await receipt.confirm() is State.INCLUDED
        with pytest.raises(aimx.ReceiptInvalid):
            aimx.Receipt(receipt.issued, (bytes(32),), receipt.sender, receipt.recipients, me.account).verify()
        with pytest.raises(aimx.ReceiptInvalid):
            aimx.Receipt(receipt.issued, receipt.data, receipt.sender, ("other@x.example",), me.account).verify()
        alone = aimx.Receipt(receipt.issued, receipt.data, receipt.sender, receipt.recipients)
        with pytest.raises(aimx.NotConfigured):
            alone.verify()


def test_an_account_knows_where_its_log_is(node: NodeProcess, new_agent: NewAgent) -> None:
    account = find(new_agent("url").url, environ={})
    assert account.http == node.endpoint("http")
    assert account.vkeys == str((node.data / "audit.vkeys").resolve())


def test_a_receipt_is_checked_against_the_mail_and_the_log(
    node: NodeProcess, new_agent: NewAgent, tmp_path: Path
) -> None:
    account = new_agent("bob")
    octets = mail(account)
    text = handed_over(node, account, octets)
    (tmp_path / "mail.eml").write_bytes(octets.replace(b"\r\n", b"\n"))  # as a file has it
    (tmp_path / "receipt").write_text(f"250 2.0.0 {text}\n")
    keys = str(node.data / "audit.vkeys")
    node.aimx("audit", "prove", text.partition("<")[2].partition(">")[0])
    assert checked(node, text, str(tmp_path / "mail.eml"), "--offline", "--vkeys", keys)[0] == 0
    for where in ([], ["--url", node.ready["http"], "--ca", node.ready["ca"]]):
        code, found = checked(node, str(tmp_path / "receipt"), str(tmp_path / "mail.eml"), *where)
        assert (code, found["words"]) == (0, ["VALID", "INCLUDED"])
    (tmp_path / "mail.eml").write_bytes(mail(account, "something else"))
    code, found = checked(node, text, str(tmp_path / "mail.eml"))
    assert (code, found["words"]) == (3, ["INVALID"])
    (tmp_path / "mail.eml").write_bytes(octets)
    code, found = checked(node, text, str(tmp_path / "mail.eml"), "--to", "somebody@else.example")
    assert (code, found["words"]) == (3, ["INVALID"])
    assert "no receipt" in node.aimx("audit", "check-receipt", "250 OK", str(tmp_path / "mail.eml"), check=False).stderr


def test_a_promise_that_was_not_kept_is_suppression_and_proved(tmp_path: Path) -> None:
    """The event is taken out of the outbox before the log has seen it: as if it had never happened."""
    with NodeProcess(tmp_path / "node") as node:
        account = node.add_agent("carl")
        node.aimx("audit", "verify")
        node.stop()
        saved = tmp_path / "saved"
        shutil.copytree(node.data, saved)
        node.start()
        octets = mail(account)
        text = handed_over(node, account, octets)
        node.aimx("audit", "prove", text.partition("<")[2].partition(">")[0])
    # What its owner does who wants it undone: everything is put back as it was before.
    shutil.rmtree(node.data)
    shutil.copytree(saved, node.data)
    with NodeProcess(tmp_path / "node") as node:
        (tmp_path / "mail.eml").write_bytes(octets)
        code, found = checked(node, text, str(tmp_path / "mail.eml"))
        assert (code, found["words"]) == (0, ["VALID", "PENDING"]), "the minute is not over"
        # A minute later, by the receipt's own clock: the same node's key signs the same promise, dated back.
        receipt = older(node, text, octets, account)
        code, found = checked(node, receipt, str(tmp_path / "mail.eml"))
        assert (code, found["words"]) == (6, ["VALID", "SUPPRESSED"])
        said = "\n".join(str(line) for line in found["says"])  # type: ignore[attr-defined]
        assert "/audit/" in said, "the checkpoint that does not hold it is shown"
        assert sqlite3.connect(node.data / "audit.db").execute("SELECT count(*) FROM leaf").fetchone()[0] > 0


def older(node: NodeProcess, text: str, octets: bytes, account: Account) -> str:
    from hashlib import sha256

    from aimx.tlog import receipt
    from aimx.tlog.note import Signer

    found = receipt.parse(text)
    signer = Signer.parse((node.data / "keys" / "receipt.key").read_text())
    promise = receipt.Promise(
        signer.verifier.name,
        found.eid,
        found.leaf,
        found.t_ms - 120_000,
        sha256(octets).digest(),
        account.address,
        (account.address,),
    )
    return receipt.issue(promise, signer).line()
