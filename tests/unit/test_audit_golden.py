"""Today's leaf and receipt, octet for octet: whoever has kept one must be able to check it with tomorrow's AIMX."""

import json
from hashlib import sha256
from pathlib import Path

from aimx.audit import events
from aimx.store.contract import SpanRef
from aimx.tlog import receipt
from aimx.tlog.note import RECEIPT, Signer
from aimx.tlog.tree import leaf_hash

GOLDEN = json.loads((Path(__file__).parents[1] / "vectors" / "audit" / "leaves.json").read_text())
SPAN = SpanRef(bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736"), bytes.fromhex("00f067aa0ba902b7"))
STAMP = events.Stamp("n1", 1780000000123, SPAN, "a@agents.example")
KEY = bytes(range(32))
EID = "01JZ0000000000000000000001"
HEADER, BODY = b"from:a@agents.example\r\nto:b@agents.example\r\nsubject:hi\r\n\r\n", b"hello\r\n"
DATA = sha256(HEADER + BODY).digest()
SIGNER = Signer("mail.agents.example/audit/2026h2", b"\x03" * 32, RECEIPT)

ACCEPTED = events.message_accepted(
    STAMP,
    eid=EID,
    key=KEY,
    data=DATA,
    header=sha256(HEADER).digest(),
    body=sha256(BODY).digest(),
    sender="a@agents.example",
    recipients=("b@agents.example",),
    size=len(HEADER + BODY),
)


def test_the_leaf_of_an_accepted_message_has_not_changed() -> None:
    assert ACCEPTED.leaf.decode() == GOLDEN["accepted"]


def test_the_leaf_of_a_delivery_has_not_changed() -> None:
    delivered = events.event(
        "delivery.mailbox",
        STAMP._replace(t_ms=1780000000130),
        eid="01JZ0000000000000000000002",
        ref=EID,
        key=KEY,
        fields={"attempt": 1, "uid": 7},
        values={"rcpt": "b@agents.example", "box": "b@agents.example INBOX"},
    )
    assert delivered.leaf.decode() == GOLDEN["delivered"]


def test_a_sender_can_check_a_kept_receipt_from_what_it_sent() -> None:
    kept = receipt.parse("2.0.0 " + GOLDEN["receipt"])
    assert kept.leaf == leaf_hash(GOLDEN["accepted"].encode())
    mine = receipt.Promise(
        SIGNER.verifier.name, kept.eid, kept.leaf, kept.t_ms, DATA, "a@agents.example", ("b@agents.example",)
    )
    receipt.verify(kept, mine, SIGNER.verifier)
    assert receipt.issue(mine, SIGNER).line() == GOLDEN["receipt"]
    assert mine.text().decode() == GOLDEN["promise"]
