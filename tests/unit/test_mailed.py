"""A mailbox that collects checkpoints takes mail from anybody: what strangers send hides and commands nothing."""

from pathlib import Path

from click.testing import CliRunner

from aimx.audit.mailed import compare
from aimx.cli.audit import check_mail
from aimx.tlog import checkpoint
from aimx.tlog.checkpoint import Checkpoint
from aimx.tlog.note import ED25519, RECEIPT, Signer

SIGNER = Signer("fabric.local/audit/2026h2", b"k" * 32, ED25519)
NESTED = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(1500))


def mail(content: bytes) -> bytes:
    return b"From x@y.example Mon Nov 23 11:00:00 2026\n" + content + b"\n"


def signed(size: int) -> bytes:
    note = checkpoint.sign(Checkpoint(SIGNER.verifier.name, size, bytes([size]) * 32), [SIGNER])
    return b"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n" + str(note).encode()


def test_a_mail_nested_beyond_reason_hides_no_other(tmp_path: Path) -> None:
    box = tmp_path / "mbox"
    box.write_bytes(mail(signed(1)) + mail(NESTED) + mail(signed(2)))
    found = compare(box, [SIGNER.verifier])
    assert (found.mails, found.count, len(found.invalid)) == (3, 2, 1)


def test_a_stranger_s_mail_writes_no_commands_to_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "vkeys").write_text(
        f"{SIGNER.verifier.vkey()}\n{Signer(SIGNER.verifier.name, b'r' * 32, RECEIPT).verifier.vkey()}\n"
    )
    box = tmp_path / "mbox"
    box.write_bytes(mail(b"Message-ID: <\x1b[2J\x1b]0;x\x07>\n\nx\n5\nAAAA\n\n\xe2\x80\x94 x AAAA\n"))
    done = CliRunner().invoke(check_mail, [str(box), "--alone", "--vkeys", str(tmp_path / "vkeys")], color=True)
    assert "WRONG" in done.output
    assert "\x1b[2J" not in done.output
    assert "\x07" not in done.output
