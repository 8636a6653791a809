"""Receipts: the server's signed promise, given in the 250, that a message's leaf will be in the log within 60 seconds.

The signed text also holds what the sender knows and the reply does not carry (the content's hash, the envelope), so the
sender rebuilds it from what it sent. A receipt without such a leaf in a later checkpoint proves suppression.
"""

import base64
import re
from collections.abc import Sequence
from typing import NamedTuple

from aimx.tlog.errors import FormatError
from aimx.tlog.leaf import fold_values
from aimx.tlog.note import RECEIPT, Signer, Verifier, decode64
from aimx.tlog.tree import HASH_SIZE

PROMISE_SECONDS = 60


class Promise(NamedTuple):
    """What a receipt promises. `data` is the SHA-256 of the DATA octets as the client sent them, dots not doubled."""

    origin: str
    eid: str
    leaf: bytes
    t_ms: int
    data: bytes
    sender: str
    recipients: Sequence[str]

    def text(self) -> bytes:
        """The octets that are signed. Addresses may hold anything, so they go in as hashes, never as lines."""
        envelope = fold_values([address.encode() for address in (self.sender, *self.recipients)])
        lines = (
            "aimx/receipt/v1",
            self.origin,
            self.eid,
            _b64(self.leaf),
            str(self.t_ms),
            _b64(self.data),
            _b64(envelope),
        )
        return "".join(line + "\n" for line in lines).encode()


class Receipt(NamedTuple):
    """What the reply line carries: the event's id, the leaf's hash, the time (Unix ms), key id and signature."""

    eid: str
    leaf: bytes
    t_ms: int
    key_id: bytes
    signature: bytes

    def line(self) -> str:
        """The text of the 250 after the enhanced code, well within RFC 5321 §4.5.3.1.5's 512 octets."""
        signed = _b64(self.key_id + self.signature)
        return f"<{self.eid}> queued aimx-leaf={_b64(self.leaf)} t={self.t_ms} sig={signed}"


_LINE = re.compile(r"<([0-9A-Z]{26})> queued aimx-leaf=([A-Za-z0-9+/=]{44}) t=([0-9]{1,16}) sig=([A-Za-z0-9+/=]{92})")


def issue(promise: Promise, signer: Signer) -> Receipt:
    """Sign a promise with the receipt key. About 25 µs, during which other threads run: keep it off the event loop."""
    if signer.verifier.kind != RECEIPT:
        raise ValueError("receipts are signed by the receipt key and by no other")
    signed = signer.sign(promise.text())
    return Receipt(promise.eid, promise.leaf, promise.t_ms, signed.key_id, signed.blob)


def parse(reply: str) -> Receipt:
    """Find the receipt in the text of a 250. Raises FormatError when there is none."""
    match = _LINE.search(reply)
    if match is None:
        raise FormatError("no receipt in this reply")
    eid, leaf, t_ms, signed = match.groups()
    digest, blob = decode64(leaf), decode64(signed)
    if len(digest) != HASH_SIZE or len(blob) != 4 + 64:
        raise FormatError("no receipt in this reply")
    return Receipt(eid, digest, int(t_ms), blob[:4], blob[4:])


def verify(receipt: Receipt, promise: Promise, key: Verifier) -> None:
    """Raises ProofError unless `key` signed exactly this promise."""
    key.verify(promise._replace(eid=receipt.eid, leaf=receipt.leaf, t_ms=receipt.t_ms).text(), receipt.signature)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
