"""The odd mails of Python's own test-suite go in by SMTP and by IMAP APPEND and come out byte for byte.

What may differ: AIMX takes out the header lines that only it may write and puts its own in front. Over SMTP an agent
sends only as itself, so there the `From` and `Sender` lines are first made the agent's, octet for octet the rest.
"""

import re
from pathlib import Path

import pytest

from tests.node_process import receipt_id

try:
    import test.test_email

    FOLDER = Path(test.test_email.__file__).parent / "data"
except ImportError:  # some distributions leave Python's tests out
    FOLDER = Path("/nonexistent")

MAILS = sorted(FOLDER.glob("msg_*.txt"))
ADDED = {
    "return-path", "aimx-id", "aimx-trace", "received", "x-agent-id", "traceparent", "tracestate", "baggage",
    "message-id", "date",
}  # fmt: skip
STRIPPED = re.compile(rb"(?i)(aimx-[^:\s]*|x-agent-id|return-path|delivered-to|traceparent|tracestate|baggage)\s*:")
pytestmark = pytest.mark.skipif(not MAILS, reason="NOT TESTED: this Python came without test/test_email/data")


def on_the_wire(raw: bytes) -> bytes:
    """With CRLF, as it must be sent."""
    return raw.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def fields(message: bytes) -> tuple[list[bytes], bytes]:
    """The lines above the first empty one, each with its continuations, and the rest from there."""
    found: list[bytes] = []
    position = 0
    for line in message.splitlines(keepends=True):
        if not line.strip(b"\r\n"):
            break
        if found and line[:1] in b" \t":
            found[-1] += line
        else:
            found.append(line)
        position += len(line)
    return found, message[position:]


def sent_by(message: bytes, address: str) -> bytes:
    """The same mail under the agent's own name."""
    mine = re.compile(rb"(?i)(from|sender)\s*:")
    head, rest = fields(message)
    renamed = [
        mine.match(field)[1] + b": " + address.encode() + b"\r\n" if mine.match(field) else field for field in head
    ]  # type: ignore[index]
    return b"".join(renamed) + rest


def check(got: bytes, sent: bytes) -> None:
    """`got` is AIMX's own lines and then `sent` without what only AIMX may write."""
    head, rest = fields(sent)
    expected = b"".join(field for field in head if not STRIPPED.match(field)) + rest
    assert got.endswith(expected), f"{got!r}\nshould end with\n{expected!r}"
    added, remains = fields(got[: len(got) - len(expected)])
    assert remains == b""
    assert {field.partition(b":")[0].decode().lower() for field in added} <= ADDED


@pytest.mark.parametrize("path", MAILS, ids=lambda path: path.stem)
def test_odd_mail_over_smtp(node, odd_agents, path):
    sender, reader = odd_agents
    message = sent_by(on_the_wire(path.read_bytes()), sender.address)
    with node.smtp(sender) as client:
        client.ehlo_or_helo_if_needed()
        assert client.mail(sender.address, ["BODY=8BITMIME"])[0] == 250
        assert client.rcpt(reader.address)[0] == 250
        code, answer = client.data(message)
    assert code == 250, answer
    eid = receipt_id(answer).encode()
    # smtplib ends what it sends with a line end, as DATA must.
    sent = message if message.endswith(b"\r\n") else message + b"\r\n"
    (got,) = [one for one in node.bodies(reader) if b"AIMX-ID: " + eid in one]
    check(got, sent)


@pytest.mark.parametrize("path", MAILS, ids=lambda path: path.stem)
def test_odd_mail_by_append(node, odd_agents, path):
    _, reader = odd_agents
    message = on_the_wire(path.read_bytes())
    with node.imap(reader) as client:
        client.create(path.stem)
        assert client.append(path.stem, None, None, message)[0] == "OK"
        client.select(path.stem)
        # Garbage is still answered: structure and envelope of every one of them.
        answer, parts = client.fetch("1", "(ENVELOPE BODYSTRUCTURE BODY.PEEK[])")
        assert answer == "OK"
    (got,) = [part[1] for part in parts if isinstance(part, tuple) and b"BODY[]" in part[0].rpartition(b"\r\n")[2]]
    head, rest = fields(got)
    assert head[0].startswith(b"AIMX-ID: ")
    sent_head, sent_rest = fields(message)
    assert (head[1:], rest) == ([one for one in sent_head if not one.lower().startswith(b"aimx-")], sent_rest)


@pytest.mark.parametrize("path", MAILS[::8], ids=lambda path: path.stem)
def test_odd_mail_with_bare_line_feeds_is_refused(node, odd_agents, path):
    sender, reader = odd_agents
    message = path.read_bytes().replace(b"\r\n", b"\n")
    with node.smtp(sender) as client:
        client.ehlo_or_helo_if_needed()
        client.mail(sender.address)
        client.rcpt(reader.address)
        client.putcmd("data")
        assert client.getreply()[0] == 354
        client.send(message.replace(b"\n.", b"\n..") + b"\r\n.\r\n")
        code, answer = client.getreply()
    assert 500 <= code < 600, (code, answer)


@pytest.fixture(scope="module")
def odd_agents(node):
    return node.add_agent("oddsender"), node.add_agent("oddreader")
